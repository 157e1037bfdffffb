"""The whole drawing: heading, the forward pass as pills, lanes with their rhythm, boxes, edges, legend."""

from __future__ import annotations

from nestflow.graph.model import FlowBox, LevelGraph
from nestflow.view import theme, words
from nestflow.view.arrange import Placed, arrange
from nestflow.view.layout import GUTTER, Lane
from nestflow.view.parts import arrow, box, bus, edge, ends, frame
from nestflow.view.primitives import BASE, Group, Item, Path, Poly, Rect, Scene, Text, lane_styles
from nestflow.view.route import route, straight


def build(graph: LevelGraph) -> Scene:
    """Places everything and gives the drawing."""
    title = words.clean(graph.name) or "level graph"
    head: list[Item] = []
    y = _heading(graph, title, head)
    y, strip = _flow_strip(graph, y)
    placed = arrange(graph, y)
    width = max(placed.width, 900.0)
    scene = Scene(
        title, width, placed.bottom + 34 + 22 * ((len({k.kind for k in placed.links}) + 1) // 2), styles=dict(BASE)
    )
    scene.items.append(Rect(0, 0, width, scene.height, 0, "paper"))
    colours = lane_styles(placed.lanes, scene.styles)
    for lane in placed.lanes:
        scene.items += _lane(lane, colours[id(lane)], placed, width)
    lane_of = {id(u): lane for lane in placed.lanes for rank in lane.ranks for u in rank}
    routes = route(placed)
    for u in placed.units:
        if u.frame:
            scene.items.append(frame(u, colours[id(lane_of[id(u)])]))
    for u in placed.units:
        scene.items += [box(b, colours[id(lane_of[id(u)])], b.badge) for b in u.boxes]
    scene.items += [edge(r) for r in routes]
    scene.items += [g for u in placed.units if u.bus for g in bus(u)]
    scene.items += [
        Group(
            (Text(r.label_at[0], r.label_at[1] + 4, words.clean(r.link.label), f"label-{r.link.kind}", "middle"),),
            "label",
            ends(r.link.edges),
        )
        for r in routes
        if r.label_at
    ]
    scene.items += head + strip + _legend(placed.bottom + 30, placed)
    return scene


def _heading(graph: LevelGraph, title: str, out: list[Item]) -> float:
    out.append(Text(28, 44, words.short(title, 60), "heading"))
    y = 66.0
    lines = [
        *((p, "sub") for p in words.lines(words.first_sentence(graph.doc or "", 230), 840, 13)),
        *((p, "mono") for p in words.params_lines(graph, 110)),
        (words.totals(graph), "sub"),
    ]
    for text, style in lines:
        if text:
            out.append(Text(28, y, text, style))
            y += 20
    return y + 8


def _flow_strip(graph: LevelGraph, y: float) -> tuple[float, list[Item]]:
    """The forward pass as nested pills in one line; `repeat` once, with its count."""
    items: list[Item] = []
    if not graph.flows:
        return y, items
    deep = max(_depth(f) for f in graph.flows)
    if sum(_pill_width(f) for f in graph.flows) > 1160:
        return y, items
    x, height = 28.0, 24.0 + 12 * deep
    for f in graph.flows:
        x = _pill(f, x, y + height / 2, deep, items) + 12
    return y + height + 14, items


def _depth(f: FlowBox) -> int:
    return 1 + max((_depth(c) for c in f.children), default=-1) if f.children else 0


def _pill_width(f: FlowBox) -> float:
    text = words.width(words.clean(f.name), 11, True) + 20
    count = 28 if f.count > 1 else 0
    return text + count + (sum(_pill_width(c) + 14 for c in f.children) if f.children else 0)


def _pill(f: FlowBox, x: float, cy: float, deep: int, out: list[Item]) -> float:
    w, h = _pill_width(f), 22.0 + 12 * _depth(f)
    name = words.clean(f.name)
    style = "flow-network" if f.kind == "network" else "flow" if f.level is None else "flow-level"
    parts: list[Item] = [Rect(x, cy - h / 2, w, h, 9, style), Text(x + 10, cy + 4, name, "flowtext")]
    if f.count > 1:
        parts.append(Text(x + w - 8, cy + 4, f"×{f.count}", "flowcount", "end"))
    out.append(Group(tuple(parts), "pill", (("level", words.clean(f.level)),) if f.level else ()))
    left = x + words.width(name, 11, True) + 20
    for c in f.children:
        out.append(Path((straight((left - 2, cy), (left + 8, cy)),), "flowline"))
        left = _pill(c, left + 8, cy, deep, out) + 6
    return x + w


def _lane(lane: Lane, style: str, placed: Placed, width: float) -> list[Item]:
    """The band, its name, and its rhythm: a tick at every update on a ruler that all lanes of one clock share."""
    items: list[Item] = []
    if lane.divider:
        y = lane.top - 20
        items.append(Path((straight((GUTTER + 10, y), (width - 28, y)),), "divider"))
        # beside the names of the lanes, where no edge passes
        for i, line in enumerate(words.lines(lane.divider, GUTTER - 30, 11.5)):
            items.append(Text(28, y - 2 + 14 * i, line, "dividertext"))
    items.append(Rect(14, lane.top, width - 28, lane.bottom - lane.top, 12, style))
    items.append(Text(30, lane.top + 34, lane.name, f"{style}-name"))
    note = lane.note
    cut = words.fit(note, GUTTER - 34, 10.5)
    items.append(Text(30, lane.top + 52, cut, "lanenote"))
    items += _ruler(lane, style, placed, width)
    return items


def _ruler(lane: Lane, style: str, placed: Placed, width: float) -> list[Item]:
    x0, x1, y = GUTTER + 26.0, width - 34, lane.top + 13
    rule = Path((straight((x0, y), (x1, y)),), f"{style}-rule")
    if lane.every == 0:
        return [rule]
    if lane.every < 0:
        return [Rect(x0, y - 3, x1 - x0, 6, 3, f"{style}-bar")]
    slowest = max((o.every for o in placed.lanes if o.clock == lane.clock), default=1)
    slots = max(48, 3 * slowest)
    step = (x1 - x0) / slots
    if step * lane.every < 3:
        return [Rect(x0, y - 2, x1 - x0, 4, 2, f"{style}-bar")]
    ticks = tuple(
        straight((x, y - 4), (x, y + 4)) for n in range(lane.every, slots + 1, lane.every) for x in (x0 + n * step,)
    )
    return [rule, Group((Path(ticks, f"{style}-tick"),), "ruler", (("clock", lane.clock), ("every", str(lane.every))))]


def _legend(y: float, placed: Placed) -> list[Item]:
    """The kinds of edge that are in the picture, two in a line."""
    kinds = [k for k in theme.EDGES if any(link.kind == k for link in placed.links)]
    items: list[Item] = []
    for i, kind in enumerate(kinds):
        x, base = 30.0 + 440 * (i % 2), y + 22 * (i // 2)
        items += [
            Path((straight((x, base - 4), (x + 22, base - 4)),), f"edge-{kind}"),
            Poly(arrow((x, base - 4), (x + 28, base - 4)), f"head-{kind}"),
            Text(x + 38, base, kind, f"label-{kind}"),
            Text(x + 38 + 78, base, theme.EDGES[kind][0], "legend"),
        ]
    return items
