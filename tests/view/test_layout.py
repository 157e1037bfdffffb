"""Places: lanes by frequency, nothing overlaps, edges keep out of boxes."""

from __future__ import annotations

import graphs
import pytest

from nestflow.graph.model import LevelGraph
from nestflow.view.arrange import arrange
from nestflow.view.layout import lanes_of
from nestflow.view.route import at, route

ALL = [graphs.hope, graphs.hybrid, graphs.hostile, graphs.large]


def test_lanes_run_from_attention_to_frozen():
    names = [lane.name for lane in lanes_of(graphs.hybrid())]
    assert names == ["unbounded", "every token", "every 512 tokens", "every step", "every round", "never"]
    dividers = [lane.divider for lane in lanes_of(graphs.hybrid())]
    assert dividers[3] == "one step = the tokens of one batch" and dividers[:3] == [None] * 3
    assert "round" in dividers[4]
    assert [lane.name for lane in lanes_of(graphs.hope())] == [
        "every token",
        "every step",
        "every 4 steps",
        "every 16 steps",
    ]


@pytest.mark.parametrize("make", ALL)
def test_boxes_stand_in_their_lane_and_apart(make):
    placed = arrange(make(), 100.0)
    boxes = [b for u in placed.units for b in u.boxes]
    assert sorted(b.level.name for b in boxes) == sorted(v.name for v in make().levels)
    for lane in placed.lanes:
        for rank in lane.ranks:
            for u in rank:
                assert lane.top < u.y and u.bottom < lane.bottom
                assert u.x > 0 and u.right < placed.width
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a.right <= b.x + 0.01 or b.right <= a.x + 0.01 or a.bottom <= b.y + 0.01 or b.bottom <= a.y + 0.01


def test_what_serves_a_level_stands_beside_it_and_groups_stand_together():
    placed = arrange(graphs.hope())
    group = next(u for u in placed.units if u.frame == "group")
    assert [c.box.level.title for c in group.cells] == ["keys", "values", "store", "rates", "gates"]
    assert group.count == 2 and group.header[0].startswith("l2 ⇒ dgd")
    outer = next(u for u in placed.units if u.cells[0].box.level.name == "outer")
    assert [c.level.title for c in outer.cells[0].chips] == ["m", "v"]


def test_edges_to_every_member_of_a_group_are_drawn_once():
    placed = arrange(graphs.hope())
    group = next(u for u in placed.units if u.frame == "group")
    assert sorted(e.label for e in group.bus) == ["key", "rate", "retain", "value"]
    starts = [k for k in placed.links if k.kind == "initialises"]
    assert len(starts) == 1 and starts[0].target == (group, None) and len(starts[0].edges) == 5


def _drawn(graph: LevelGraph) -> int:
    return sum(len(k.edges) for k in arrange(graph).links)


def test_no_edge_of_the_graph_is_lost():
    for make in (graphs.hybrid, graphs.hostile, graphs.large):
        g = make()
        assert _drawn(g) == len(g.edges)
    # in a group's bus the edge of a member to itself is one of "to every member"
    labels = {(e.kind, e.source, e.target, e.label) for e in graphs.hope().edges}
    drawn = {(e.kind, e.source, e.target, e.label) for k in arrange(graphs.hope()).links for e in k.edges}
    assert drawn == labels


def test_long_edges_pass_between_boxes():
    placed = arrange(graphs.large())
    boxes = [b for u in placed.units for b in u.boxes]
    for r in route(placed):
        ends = {id(r.link.source[1]), id(r.link.target[1])}
        if r.link.source[0].rank == r.link.target[0].rank:
            continue
        for curve in r.curves:
            for t in (0.1, 0.3, 0.5, 0.7, 0.9):
                x, y = at(curve, t)
                hit = [b.level.name for b in boxes if id(b) not in ends and b.x < x < b.right and b.y < y < b.bottom]
                assert not hit, (r.link.label, hit)


def test_layout_is_deterministic():
    def places(graph: LevelGraph) -> list[tuple[str, float, float]]:
        return [(b.level.name, b.x, b.y) for u in arrange(graph).units for b in u.boxes]

    assert places(graphs.large()) == places(graphs.large())


def test_an_empty_graph_has_a_picture():
    empty = graphs.graph("empty", [], [])
    assert arrange(empty).units == []


def test_an_optimiser_memory_with_its_own_period_stands_in_its_own_lane():
    levels = list(graphs.hybrid().levels)
    slow = next(v for v in levels if v.name == "outer.muon.m")
    levels[levels.index(slow)] = type(slow)(**{**slow.__dict__, "every": 8})
    placed = arrange(graphs.graph("m3", levels, []))
    unit = next(u for u in placed.units if any(b.level.name == "outer.muon.m" for b in u.boxes))
    assert unit.title == "outer's optimiser"
    assert [lane.name for lane in placed.lanes if unit in [u for r in lane.ranks for u in r]] == ["every 8 steps"]
