"""Where the labels of edges stand: on their curves, clear of boxes, captions, arrowheads, rulers and each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nestflow.view.words import width

if TYPE_CHECKING:
    from nestflow.view.arrange import Placed
    from nestflow.view.route import Point, Route

Area = tuple[float, float, float, float]  # left, top, right, bottom
HALF = 8  # of a label's height
HEAD = 10  # an arrowhead, and room before it
APART = 12  # labels in one line are not read as one
PRICES = {"box": 8.0, "label": 8.0, "head": 6.0, "caption": 6.0, "ruler": 1.5, "frame": 0.5}
STEPS = (0.5, 0.42, 0.58, 0.35, 0.65, 0.28, 0.72, 0.2, 0.8, 0.13, 0.87)


def label_width(text: str) -> float:
    """What a label takes on its line, with room at both ends."""
    return width(text, 11) + 8


def labelled(routes: Sequence[Route], placed: Placed) -> list[Route]:
    """The routes with the places of their labels: those with the fewest choices first."""
    taken = _standing(placed)
    taken += [("head", (x - HEAD, y - HEAD, x + HEAD, y + HEAD)) for r in routes for x, y in (r.curves[-1][3],)]
    lines = {id(r): _points(r) for r in routes}
    found: dict[int, Route] = {}
    for r in sorted(routes, key=lambda r: len(r.curves)):
        if not r.link.label:
            continue
        half = label_width(r.link.label) / 2
        others = [p for o in routes if o is not r for p in lines[id(o)]]
        spots = _loop(r, half) or _spots(r)
        best = min(enumerate(spots), key=lambda s: (_price(s[1], half, taken, others), s[0]))[1]
        area = (best[0] - half - APART, best[1] - HALF - 2, best[0] + half + APART, best[1] + HALF + 2)
        taken.append(("label", area))
        found[id(r)] = replace(r, label_at=best)
    return [found.get(id(r), r) for r in routes]


def _standing(placed: Placed) -> list[tuple[str, Area]]:
    """Boxes, captions and rulers."""
    taken: list[tuple[str, Area]] = []
    for u in placed.units:
        taken += [("box", (b.x, b.y, b.right, b.bottom)) for b in u.boxes]
        if u.frame is not None:
            taken.append(("frame", (u.x, u.y, u.right, u.bottom)))
            if u.top:
                taken.append(("caption", (u.x, u.y, u.right, u.y + u.top)))
    for lane in placed.lanes:
        taken.append(("ruler", (0.0, lane.top + 7, placed.width, lane.top + 19)))
    return taken


def _loop(r: Route, half: float) -> list[Point]:
    """Beside the loop of a memory that names itself: right of it, or left where that leaves the box."""
    box = r.link.source[1]
    if box is None or box is not r.link.target[1]:
        return []
    x, y = r.curves[0][0]
    inside = x + 2 * half < r.link.source[0].right + 4
    return [(x + half if inside else x - 34 - half, y + 14)]


def _spots(r: Route) -> list[Point]:
    from nestflow.view.route import at

    ordered = (*r.curves[-1:], *r.curves[:-1])
    return [at(c, t) for t in STEPS for c in ordered]


def _points(r: Route) -> list[Point]:
    from nestflow.view.route import at

    return [at(c, n / 16) for c in r.curves for n in range(17)]


def _price(p: Point, half: float, taken: Sequence[tuple[str, Area]], others: Sequence[Point]) -> float:
    """What a label at p covers: things by their price, and other edges a little."""
    x0, y0, x1, y1 = p[0] - half, p[1] - HALF, p[0] + half, p[1] + HALF
    total = sum(PRICES[kind] for kind, (a, b, c, d) in taken if a < x1 and x0 < c and b < y1 and y0 < d)
    return total + 0.4 * min(sum(x0 < x < x1 and y0 < y < y1 for x, y in others), 5)
