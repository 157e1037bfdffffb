"""Edges as smooth curves: vertical through the gaps between boxes, bent only in the channels between rows."""

from __future__ import annotations

from dataclasses import dataclass

from nestflow.view.arrange import Anchor, Link, Placed
from nestflow.view.labels import labelled
from nestflow.view.layout import GUTTER, Box, Unit

Point = tuple[float, float]
Curve = tuple[Point, Point, Point, Point]  # cubic: start, two controls, end


@dataclass(frozen=True)
class Route:
    """The way of one link: joined cubic curves, the place of its label, and the direction of its head."""

    link: Link
    curves: tuple[Curve, ...]
    label_at: Point | None


def at(curve: Curve, t: float) -> Point:
    """The point of a cubic curve at t in [0, 1]."""
    a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
    x, y = (a * p + b * q + c * r + d * s for p, q, r, s in zip(*curve))
    return x, y


def straight(a: Point, b: Point) -> Curve:
    return (a, _mix(a, b, 1 / 3), _mix(a, b, 2 / 3), b)


def route(placed: Placed) -> list[Route]:
    """Routes of all links between units and between boxes of one unit; a group's bus is drawn with the group."""
    rows: dict[int, list[Unit]] = {}
    for u in placed.units:
        rows.setdefault(u.rank, []).append(u)
    for row in rows.values():
        row.sort(key=lambda u: u.x)
    gaps = _gaps(placed, rows)
    ports = _ports(placed, gaps)
    routes = []
    for link in placed.links:
        (a, _), (b, bb) = link.source, link.target
        if a is b:
            if bb is not None:
                routes.append(_within(link))
        elif a.rank == b.rank and _beside(a, b, rows[a.rank]):
            routes.append(_sideways(link, placed))
        elif a.rank == b.rank:
            routes.append(_arc(link, ports))
        else:
            routes.append(_across(link, ports, rows, gaps[id(link)]))
    return labelled(routes, placed)


def _cy(r: Box | Unit) -> float:
    return r.y + r.h / 2


def _rect(anchor: Anchor) -> Box | Unit:
    return anchor[1] or anchor[0]


def _gaps(placed: Placed, rows: dict[int, list[Unit]]) -> dict[int, list[float]]:
    """For each link from row to row: the x of its way through every row between, from its source on."""
    taken: dict[int, list[float]] = {}
    gaps: dict[int, list[float]] = {}
    for link in placed.links:
        a, b = link.source[0].rank, link.target[0].rank
        between = list(range(a + 1, b) if b > a else range(a - 1, b, -1))
        x, goal = _rect(link.source).cx, _rect(link.target).cx
        found = []
        for n, r in enumerate(between):
            want = x + (goal - x) / (len(between) + 1 - n)
            x = _gap(rows[r], want, taken.setdefault(r, []), placed.width)
            found.append(x)
        gaps[id(link)] = found
    return gaps


def _ports(placed: Placed, gaps: dict[int, list[float]]) -> dict[tuple[int, str], Point]:
    """Where each end of a link touches its box: spread over the side, ordered by where the link goes from there."""
    sides: dict[tuple[int, bool], list[tuple[float, float, int, str]]] = {}
    rects: dict[int, Box | Unit] = {}
    for i, link in enumerate(placed.links):
        if link.source[0] is link.target[0]:
            continue
        for end, mine, other in (("s", link.source, link.target), ("t", link.target, link.source)):
            r, far = _rect(mine), _rect(other).cx
            way = gaps[id(link)]
            near = (way[0] if end == "s" else way[-1]) if way else far
            up = other[0].rank <= mine[0].rank
            rects[id(r)] = r
            sides.setdefault((id(r), up), []).append((near, far, i, end))
    found: dict[tuple[int, str], Point] = {}
    for (rid, up), ends in sides.items():
        r = rects[rid]
        span = min(r.w - 28, 54.0 * (len(ends) - 1))
        for n, (_, _, i, end) in enumerate(sorted(ends)):
            x = r.cx + (span * (n / (len(ends) - 1) - 0.5) if len(ends) > 1 else 0.0)
            found[(id(placed.links[i]), end)] = (x, r.y if up else r.bottom)
    return found


def _beside(a: Unit, b: Unit, row: list[Unit]) -> bool:
    return abs(row.index(a) - row.index(b)) == 1


def _sideways(link: Link, placed: Placed) -> Route:
    """Between neighbours of a row: from side to side, several links one below the other."""
    a, b = _rect(link.source), _rect(link.target)
    same = [o for o in placed.links if {id(o.source[0]), id(o.target[0])} == {id(link.source[0]), id(link.target[0])}]
    shift = 18.0 * (same.index(link) - (len(same) - 1) / 2)
    x0, x1 = (a.right, b.x) if a.x < b.x else (a.x, b.right)
    y0, y1 = a.y + a.h / 2 + shift, b.y + b.h / 2 + shift
    mid = (x0 + x1) / 2
    return Route(link, (((x0, y0), (mid, y0), (mid, y1), (x1, y1)),), None)


def _arc(link: Link, ports: dict[tuple[int, str], Point]) -> Route:
    """Over the boxes that stand between two of the same row."""
    p, q = ports[(id(link), "s")], ports[(id(link), "t")]
    high = min(p[1], q[1]) - 30
    mid = ((p[0] + q[0]) / 2, high)
    third = (q[0] - p[0]) / 3
    return Route(
        link, ((p, (p[0], high), (mid[0] - third, high), mid), (mid, (mid[0] + third, high), (q[0], high), q)), None
    )


def _within(link: Link) -> Route:
    """Between boxes of one unit: a chip beside or below its level, a loop, or a bow under the members."""
    a, b = _rect(link.source), _rect(link.target)
    if a is b:
        x, y = a.right - 18, a.bottom
        return Route(link, (((x, y), (x, y + 26), (x - 34, y + 26), (x - 34, y)),), None)
    chips = [isinstance(r, Box) and r.chip for r in (a, b)]
    if chips[0] != chips[1] and abs(a.cx - b.cx) > a.w / 2:
        p, q = (
            ((a.x, _cy(a)), (b.right, _clamp(_cy(a), b.y + 12, b.bottom - 12)))
            if a.x > b.x
            else ((a.right, _cy(a)), (b.x, _cy(b)))
        )
        mid = (p[0] + q[0]) / 2
        return Route(link, ((p, (mid, p[1]), (mid, q[1]), q),), None)
    if any(chips):
        p, q = ((a.cx, a.y), (b.cx, b.bottom)) if a.y > b.y else ((a.cx, a.bottom), (b.cx, b.y))
        return Route(link, (straight(p, q),), None)
    low = max(a.bottom, b.bottom) + 26
    x0 = a.cx + (18 if b.cx > a.cx else -18)
    x1 = b.cx + (-18 if b.cx > a.cx else 18)
    return Route(link, (((x0, a.bottom), (x0, low), (x1, low), (x1, b.bottom)),), None)


def _across(link: Link, ports: dict[tuple[int, str], Point], rows: dict[int, list[Unit]], gaps: list[float]) -> Route:
    """From row to row: through a gap of each row between them."""
    p, q = ports[(id(link), "s")], ports[(id(link), "t")]
    step = 1 if link.target[0].rank > link.source[0].rank else -1
    last, curves = p, []
    for n, x in enumerate(gaps):
        row = rows[link.source[0].rank + step * (n + 1)]
        high, low = min(u.y for u in row) - 6, max(u.bottom for u in row) + 6
        first, end = ((x, high), (x, low)) if step > 0 else ((x, low), (x, high))
        curves += [_bend(last, first), straight(first, end)]
        last = end
    curves.append(_bend(last, q))
    return Route(link, tuple(curves), None)


def _gap(row: list[Unit], want: float, taken: list[float], width: float) -> float:
    """The x nearest to `want` that is free in a row and not used by another edge."""
    edges = [GUTTER + 4, *(e for u in row for e in (u.x, u.right)), width - 6]
    free = [(edges[i] + 9, edges[i + 1] - 9) for i in range(0, len(edges), 2) if edges[i + 1] - edges[i] >= 20]
    spots = sorted((abs(_clamp(want, lo, hi) - want), lo, hi) for lo, hi in free)
    for _, lo, hi in spots:
        start = _clamp(want, lo, hi)
        for step in range(40):
            for x in (start + 7 * step, start - 7 * step):
                if lo <= x <= hi and all(abs(x - t) >= 6 for t in taken):
                    taken.append(x)
                    return x
    return _clamp(want, spots[0][1], spots[0][2]) if spots else want


def _bend(p: Point, q: Point) -> Curve:
    reach = (q[1] - p[1]) * 0.55
    return (p, (p[0], p[1] + reach), (q[0], q[1] - reach), q)


def _mix(a: Point, b: Point, t: float) -> Point:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t)


def _clamp(x: float, lo: float, hi: float) -> float:
    return max(lo, min(hi, x))
