"""Places the units of a level graph: the order inside a lane by barycentres, positions by least squares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nestflow.graph.model import Edge, LevelGraph
from nestflow.view import words
from nestflow.view.labels import HEAD, label_width
from nestflow.view.layout import CONTENT, GAP, GUTTER, Box, Lane, Unit, lane_key, lanes_of, units_of

Anchor = tuple[Unit, Box | None]  # a box of a unit, or the unit's frame
Rooms = dict[tuple[int, int], float]  # by the ids of two units


@dataclass(frozen=True)
class Link:
    """An edge of the picture: one or several edges of the graph, drawn as one."""

    kind: str
    label: str
    source: Anchor
    target: Anchor
    edges: tuple[Edge, ...]


@dataclass
class Placed:
    """All that a renderer needs to know about places."""

    graph: LevelGraph
    lanes: list[Lane]
    units: list[Unit]
    links: list[Link]
    width: float
    top: float
    bottom: float


def arrange(graph: LevelGraph, top: float = 0.0) -> Placed:
    """Lanes, boxes and links with their places; the first lane begins at `top`."""
    units = units_of(graph)
    links = _links(graph, units)
    lanes = lanes_of(graph)
    ranks: list[list[Unit]] = []
    rooms = _rooms(links)
    for lane in lanes:
        mine = [u for u in units if _lane(u) == lane.key]
        lane.ranks = _wrap(mine, rooms)
        ranks += lane.ranks
    for i, rank in enumerate(ranks):
        for u in rank:
            u.rank = i
    _order(ranks, links, rooms)
    bottom = _heights(lanes, links, top)
    right = max([u.right for u in units] + [GUTTER + 640])
    return Placed(graph, lanes, units, links, right + 56, top, bottom)


def _lane(unit: Unit) -> tuple[int, int, str]:
    return lane_key(unit.cells[0].box.level)


def _links(graph: LevelGraph, units: list[Unit]) -> list[Link]:
    """Edges with their places. An edge to every member of a group goes to its frame, or its bus if it starts inside."""
    home: dict[str, Anchor] = {b.level.name: (u, b) for u in units for b in u.boxes}
    edges = _single(graph.edges)
    merged: dict[tuple[str, str, str], list[Edge]] = {}
    for e in edges:
        if e.source in home and e.target in home:
            merged.setdefault((e.kind, e.source, e.target), []).append(e)
    links: list[Link] = []
    left = dict(merged)
    groups = [u for u in units if u.frame == "group" and len(u.cells) > 1]
    for u in groups:
        names = [c.box.level.name for c in u.cells]
        for kind, label, inner, outer in sorted(
            {(e.kind, e.label, e.source, "out") for e in edges if e.target in names}
            | {(e.kind, e.label, e.target, "in") for e in edges if e.source in names}
        ):
            _gather(u, names, kind, label, inner, outer, home, left, links)
    for (kind, source, target), some in left.items():
        if some:
            label = words.short(", ".join(dict.fromkeys(words.clean(e.label) for e in some if e.label)), 32)
            links.append(
                Link(kind, label, home[source], _entrance(kind, label, home[source], home[target]), tuple(some))
            )
    for link in links:
        u, a = link.source
        if u is link.target[0] and u.frame == "group" and a and link.target[1] and not a.chip:
            u.inner += 1
    return links


def _single(edges: tuple[Edge, ...]) -> list[Edge]:
    """An edge for each of the labels that one edge of the graph carries (`key, value`)."""
    return [replace(e, label=label) for e in edges for label in (e.label.split(", ") if e.label else [""])]


def _entrance(kind: str, label: str, source: Anchor, target: Anchor) -> Anchor:
    """What feeds a level of several memories as a whole (its context, its projections) ends at its frame."""
    unit, box = target
    whole = kind == "context" or label == "projections"
    if whole and unit.frame == "group" and unit is not source[0] and box is unit.cells[0].box:
        return unit, None
    return target


def _gather(
    unit: Unit,
    names: list[str],
    kind: str,
    label: str,
    other: str,
    way: str,
    home: dict[str, Anchor],
    left: dict[Any, list[Edge]],
    links: list[Link],
) -> None:
    """Moves the edges between `other` and all members of a group into one link (or onto the group's bus)."""
    if other not in home:
        return
    found: list[tuple[Any, Edge]] = []
    for member in names:
        key = (kind, other, member) if way == "out" else (kind, member, other)
        found += [(key, e) for e in left.get(key, []) if e.label == label]
    inside = other in names
    if inside and way == "in":
        return
    reached = {e.target if way == "out" else e.source for _, e in found} | ({other} if inside else set())
    if reached != set(names) or len(found) < 2:
        return
    for key, e in found:
        left[key] = [o for o in left[key] if o is not e]
    if inside:
        unit.bus.append(found[0][1])
        links.append(Link(kind, label, home[other], (unit, None), tuple(e for _, e in found)))
    elif way == "out":
        links.append(Link(kind, label, home[other], (unit, None), tuple(e for _, e in found)))
    else:
        links.append(Link(kind, label, (unit, None), home[other], tuple(e for _, e in found)))


def _rooms(links: list[Link]) -> Rooms:
    """How far apart two units of a row stand, where labels of edges between them ask for more than a gap."""
    rooms: Rooms = {}
    for link in links:
        a, b = link.source[0], link.target[0]
        if a is not b and link.label:
            need = label_width(link.label) + 2 * HEAD + 16
            for pair in ((id(a), id(b)), (id(b), id(a))):
                rooms[pair] = max(need, rooms.get(pair, GAP))
    return rooms


def _starts(row: list[Unit], rooms: Rooms) -> list[float]:
    """Where each unit of a row begins at the least, from 0; last, where the row ends."""
    starts = [0.0]
    for i, u in enumerate(row):
        after = rooms.get((id(u), id(row[i + 1])), GAP) if i + 1 < len(row) else 0.0
        starts.append(starts[-1] + u.w + after)
    return starts


def _wrap(units: list[Unit], rooms: Rooms) -> list[list[Unit]]:
    rows: list[list[Unit]] = []
    for u in units:
        if not rows or _starts([*rows[-1], u], rooms)[-1] > CONTENT:
            rows.append([])
        rows[-1].append(u)
    return rows


def _order(ranks: list[list[Unit]], links: list[Link], rooms: Rooms) -> None:
    """Barycentre sweeps, keeping the arrangement with the fewest crossings; then places each row by least squares."""
    near: dict[int, list[Anchor]] = {}
    for link in links:
        for a, b in ((link.source, link.target), (link.target, link.source)):
            if a[0] is not b[0]:
                near.setdefault(id(a[0]), []).append(b)
    for rank in ranks:
        _spread(rank, {}, rooms)
    best: tuple[int, list[list[Unit]]] = (_crossings(links), [list(r) for r in ranks])
    for sweep in range(8):
        for rank in ranks if sweep % 2 == 0 else reversed(ranks):
            want = _wishes(rank, near)
            rank.sort(key=lambda u: (want.get(id(u), u.cx), u.cx))
            _spread(rank, want, rooms)
        score = _crossings(links)
        if score < best[0]:
            best = (score, [list(r) for r in ranks])
    for rank, kept in zip(ranks, best[1]):
        rank[:] = kept
    for _ in range(4):
        for rank in ranks:
            _spread(rank, _wishes(rank, near), rooms)


def _wishes(rank: list[Unit], near: dict[int, list[Anchor]]) -> dict[int, float]:
    wish: dict[int, float] = {}
    for u in rank:
        others = [(b.cx if b else o.cx) for o, b in near.get(id(u), []) if o.rank != u.rank]
        if others:
            wish[id(u)] = sum(others) / len(others)
    return wish


def _spread(rank: list[Unit], want: dict[int, float], rooms: Rooms) -> None:
    """Positions nearest to the wishes (least squares) that keep the order and the gaps, inside the lane."""
    middle = GUTTER + CONTENT / 2
    *offsets, whole = _starts(rank, rooms)
    starts = [want.get(id(u), middle) - u.w / 2 - offset for u, offset in zip(rank, offsets)]
    blocks: list[list[float]] = []  # pool adjacent violators
    for s in starts:
        blocks.append([s, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    flat = [b for b, n in blocks for _ in range(int(n))]
    limit = GUTTER + 26 + max(0.0, CONTENT - whole)
    for u, s, offset in zip(rank, flat, offsets):
        u.place(min(max(s, GUTTER + 26), limit) + offset, u.y)


def _crossings(links: list[Link]) -> int:
    spans = []
    for link in links:
        (a, ab), (b, bb) = link.source, link.target
        if a.rank != b.rank:
            ends = sorted([(a.rank, (ab or a).cx), (b.rank, (bb or b).cx)])
            spans.append((*ends[0], *ends[1]))
    total = 0
    for i, (r0, x0, r1, x1) in enumerate(spans):
        for s0, y0, s1, y1 in spans[i + 1 :]:
            if max(r0, s0) < min(r1, s1):
                total += (x0 - y0) * (x1 - y1) < 0
        total += r1 - r0  # long edges cost too
    return total


def _heights(lanes: list[Lane], links: list[Link], top: float) -> float:
    """Vertical places; a channel between two rows is as high as its edges ask for."""
    count = sum(len(lane.ranks) for lane in lanes)
    through = [0] * (count + 1)  # edges in the channel above each row
    for link in links:
        a, b = link.source[0].rank, link.target[0].rank
        for r in range(min(a, b) + 1, max(a, b) + 1):
            through[r] += 1
        if a == b and link.source[0] is not link.target[0]:
            through[a] += 1
    y, i = top, 0
    for lane in lanes:
        y += 34 if lane.divider else 0
        lane.top = y
        for j, rank in enumerate(lane.ranks):
            room = 4.0 * min(through[i], 9)
            y += (40 if j == 0 else 34) + room
            height = max(u.h for u in rank)
            for u in rank:
                u.place(u.x, y + (height - u.h) / 2)
            y += height
            i += 1
        y += 16 + 2.5 * min(through[i], 9)
        y = max(y, lane.top + 78)
        lane.bottom = y
        y += 5
    return y - 5
