"""Boxes, frames, edges and a group's bus as primitives."""

from __future__ import annotations

from nestflow.graph.model import Edge
from nestflow.view import words
from nestflow.view.layout import Box, Unit
from nestflow.view.primitives import Group, Item, Path, Poly, Rect, Text
from nestflow.view.route import Point, Route, straight

PAD_TEXT = 14


def frame(u: Unit, style: str) -> Group:
    items: list[Item] = []
    for k in range(min(u.count - 1, 2), 0, -1):
        items.append(Rect(u.x + 5 * k, u.y - 5 * k, u.w, u.h, 12, f"{style}-under"))
    items.append(Rect(u.x, u.y, u.w, u.h, 12, f"{style}-{'group' if u.frame == 'group' else 'served'}"))
    if u.title:
        items.append(Text(u.x + PAD_TEXT, u.y + 25, words.short(u.title, 50), "title"))
    for i, line in enumerate(u.header):
        items.append(Text(u.x + PAD_TEXT, u.y + 43 + 15 * i, words.fit(line, u.w - 30, 11, True), "code"))
    if u.count > 1:
        items += count_badge(u.right - 14, u.y + 12, u.count, style)
    return Group(tuple(items), "frame", (("frame", words.clean(u.name)),))


def count_badge(right: float, top: float, count: int, style: str) -> list[Item]:
    text = f"×{words.number(count)}"
    w = words.width(text, 10.5) + 14
    return [
        Rect(right - w, top, w, 17, 8.5, f"{style}-bar"),
        Text(right - w / 2, top + 12.5, text, "badgetext", "middle"),
    ]


def box(b: Box, style: str, badge: bool) -> Group:
    count = b.level.count if badge else 1
    items: list[Item] = []
    for k in range(0 if b.chip else min(count - 1, 2), 0, -1):
        items.append(Rect(b.x + 4 * k, b.y - 4 * k, b.w, b.h, 9, f"{style}-under"))
    items.append(Rect(b.x, b.y, b.w, b.h, 7 if b.chip else 9, f"{style}-{'chip' if b.chip else 'box'}"))
    if not b.chip:
        items.append(Rect(b.x + 5, b.y + 9, 3.5, b.h - 18, 1.75, f"{style}-bar"))
    y = b.y + (4 if b.chip else 6)
    left = b.x + (10 if b.chip else PAD_TEXT)
    for kind, text in b.lines:
        size = {"title": 12 if b.chip else 14, "code": 10 if b.chip else 11, "soft": 10.5}[kind]
        y += (15 if kind == "title" else 14) if b.chip else (20 if kind == "title" else 16)
        room = b.right - left - (46 if kind == "title" and count > 1 and not b.chip else 8)
        items.append(Text(left, y - 2, words.fit(text, room, size, kind == "code"), ("chip" if b.chip else "") + kind))
    if count > 1 and not b.chip:
        items += count_badge(b.right - 9, b.y + 9, count, style)
    tip = "\n".join(
        [words.clean(b.level.title), words.clean(b.level.doc or "")] + [f"{k}: {v}" for k, v in words.fields(b.level)]
    )
    data = (
        ("level", words.clean(b.level.name)),
        ("clock", words.clean(b.level.clock)),
        ("every", str(b.level.every)),
        ("frame", words.clean(b.level.parent or "")),
    )
    return Group(tuple(items), "box", data, tip)


def ends(edges: tuple[Edge, ...]) -> tuple[tuple[str, str], ...]:
    names = dict.fromkeys(words.clean(n) for e in edges for n in (e.source, e.target))
    return (("ends", "\t".join(names)),)


def edge(r: Route) -> Group:
    kind = r.link.kind
    (_, _, c, d) = r.curves[-1]
    tip = "\n".join(
        f"{words.clean(e.source)} {kind} {words.clean(e.target)} {words.clean(e.label)}" for e in r.link.edges[:12]
    )
    return Group((Path(r.curves, f"edge-{kind}"), Poly(arrow(c, d), f"head-{kind}")), "edge", ends(r.link.edges), tip)


def arrow(before: Point, tip: Point, size: float = 8.0) -> tuple[Point, ...]:
    dx, dy = tip[0] - before[0], tip[1] - before[1]
    n = (dx * dx + dy * dy) ** 0.5 or 1.0
    dx, dy = dx / n, dy / n
    x, y = tip[0] - dx * size, tip[1] - dy * size
    return tip, (x - dy * size * 0.45, y + dx * size * 0.45), (x + dy * size * 0.45, y - dx * size * 0.45)


def bus(u: Unit) -> list[Group]:
    """What some members of a group supply to all of them: stems up to a line, arrows down to each member."""
    groups = []
    kinds = list(dict.fromkeys(e.kind for e in u.bus))
    where = {c.box.level.name: c.box for c in u.cells}
    for n, kind in enumerate(kinds):
        edges = tuple(e for e in u.bus if e.kind == kind)
        items: list[Item] = []
        for row in u.rows:
            y = row[0].box.y - 17 - 7 * n
            boxes = [c.box for c in row]
            xs = [b.x + b.w * 0.7 for b in boxes]
            sources = [(where[e.source], e.label) for e in edges if where[e.source] in boxes]
            left = min([xs[0]] + [b.x + b.w * 0.26 for b, _ in sources])
            lines = [straight((left, y), (xs[-1], y))]
            lines += [straight((x, y), (x, b.y - 2)) for x, b in zip(xs, boxes)]
            lines += [straight((b.x + b.w * 0.26, b.y), (b.x + b.w * 0.26, y)) for b, _ in sources]
            items.append(Path(tuple(lines), f"edge-{kind}"))
            items += [Poly(arrow((x, y), (x, b.y)), f"head-{kind}") for x, b in zip(xs, boxes)]
            items += [
                Text(b.x + b.w * 0.26, y - 6, words.clean(label), f"label-{kind}", "middle")
                for b, label in sources
                if label
            ]
        tip = "\n".join(f"{words.clean(e.source)} {kind} the {words.clean(e.label)} of every member" for e in edges)
        groups.append(Group(tuple(items), "edge", ends(tuple(edges)), tip))
    return groups
