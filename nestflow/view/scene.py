"""The picture as a list of primitives, so that SVG and PNG are the same drawing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nestflow.graph.model import FlowBox, LevelGraph
from nestflow.view import theme, words
from nestflow.view.arrange import Placed, arrange
from nestflow.view.layout import GUTTER, Box, Lane, Unit
from nestflow.view.route import Curve, Point, Route, route, straight


@dataclass(frozen=True)
class Style:
    """How a primitive looks; colours are (light, dark) or None. size: of a text."""

    fill: tuple[str, str] | None = None
    stroke: tuple[str, str] | None = None
    width: float = 1.0
    dash: tuple[float, float] | None = None
    opacity: float = 1.0
    size: float = 12.0
    bold: bool = False
    mono: bool = False
    halo: bool = False


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    w: float
    h: float
    r: float
    style: str


@dataclass(frozen=True)
class Path:
    curves: tuple[Curve, ...]
    style: str


@dataclass(frozen=True)
class Poly:
    points: tuple[Point, ...]
    style: str


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    style: str
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True)
class Group:
    """Primitives that belong together. data: attributes for the HTML page. tip: a tooltip of several lines."""

    items: tuple[Item, ...]
    kind: str
    data: tuple[tuple[str, str], ...] = ()
    tip: str = ""


Item = Rect | Path | Poly | Text | Group


@dataclass
class Scene:
    title: str
    width: float
    height: float
    items: list[Item] = field(default_factory=list)
    styles: dict[str, Style] = field(default_factory=dict)


def _pair(colour: dict[theme.Theme, str] | dict[str, str]) -> tuple[str, str]:
    return colour["light"], colour["dark"]  # type: ignore[index]


INK, SOFT, FAINT, CARD, PAPER = (_pair(c) for c in (theme.INK, theme.SOFT, theme.FAINT, theme.CARD, theme.PAPER))
BASE = {
    "paper": Style(fill=PAPER),
    "heading": Style(fill=INK, size=26, bold=True),
    "sub": Style(fill=SOFT, size=13),
    "mono": Style(fill=SOFT, size=12, mono=True),
    "title": Style(fill=INK, size=14, bold=True),
    "code": Style(fill=INK, size=11, mono=True, opacity=0.86),
    "soft": Style(fill=SOFT, size=10.5),
    "chiptitle": Style(fill=INK, size=12, bold=True),
    "chipcode": Style(fill=SOFT, size=10, mono=True),
    "lanenote": Style(fill=SOFT, size=10.5),
    "divider": Style(stroke=SOFT, width=1.2, dash=(2, 5)),
    "dividertext": Style(fill=SOFT, size=11.5, bold=True, halo=True),
    "legend": Style(fill=SOFT, size=11.5),
    "badgetext": Style(fill=PAPER, size=10.5, bold=True),
    "flow": Style(fill=CARD, stroke=FAINT, width=1),
    "flowtext": Style(fill=SOFT, size=11, mono=True),
    "flowcount": Style(fill=INK, size=11, bold=True),
    "flowline": Style(stroke=SOFT, width=1.2, opacity=0.7),
}


def build(graph: LevelGraph) -> Scene:
    """Places everything and gives the drawing."""
    title = words.clean(graph.name) or "level graph"
    head: list[Item] = []
    y = _heading(graph, title, head)
    y, strip = _flow_strip(graph, y)
    placed = arrange(graph, y)
    width = max(placed.width, 900.0)
    scene = Scene(title, width, placed.bottom + 34 + 22 * ((len({k.kind for k in placed.links}) + 1) // 2), styles=dict(BASE))
    scene.items.append(Rect(0, 0, width, scene.height, 0, "paper"))
    colours = _lane_styles(placed.lanes, scene.styles)
    for lane in placed.lanes:
        scene.items += _lane(lane, colours[id(lane)], placed, width)
    lane_of = {id(u): lane for lane in placed.lanes for rank in lane.ranks for u in rank}
    routes = route(placed)
    for u in placed.units:
        if u.frame:
            scene.items.append(_frame(u, colours[id(lane_of[id(u)])]))
    for u in placed.units:
        scene.items += [_box(b, colours[id(lane_of[id(u)])], b.badge) for b in u.boxes]
    scene.items += [_edge(r) for r in routes]
    scene.items += [g for u in placed.units if u.bus for g in _bus(u)]
    scene.items += [Group((Text(r.label_at[0], r.label_at[1] + 4, words.clean(r.link.label), f"label-{r.link.kind}", "middle"),),
                          "label", _ends(r.link.edges)) for r in routes if r.label_at]
    scene.items += head + strip + _legend(placed.bottom + 30, placed)
    return scene


def _heading(graph: LevelGraph, title: str, out: list[Item]) -> float:
    out.append(Text(28, 44, words.short(title, 60), "heading"))
    y = 66.0
    lines = [(words.first_sentence(graph.doc or "", 130), "sub"), *((p, "mono") for p in words.params_lines(graph, 110)),
             (words.totals(graph), "sub")]
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
    style = "flow" if f.level is None else "flow-level"
    parts: list[Item] = [Rect(x, cy - h / 2, w, h, 9, style), Text(x + 10, cy + 4, name, "flowtext")]
    if f.count > 1:
        parts.append(Text(x + w - 8, cy + 4, f"×{f.count}", "flowcount", "end"))
    out.append(Group(tuple(parts), "pill", (("level", words.clean(f.level)),) if f.level else ()))
    left = x + words.width(name, 11, True) + 20
    for c in f.children:
        out.append(Path((straight((left - 2, cy), (left + 8, cy)),), "flowline"))
        left = _pill(c, left + 8, cy, deep, out) + 6
    return x + w


def _lane_styles(lanes: list[Lane], styles: dict[str, Style]) -> dict[int, str]:
    names = {}
    for i, lane in enumerate(lanes):
        accent = (theme.lane_colour(lane.clock, lane.every, lane.index, "light"),
                  theme.lane_colour(lane.clock, lane.every, lane.index, "dark"))

        def on(ground: tuple[str, str], amount: float, accent: tuple[str, str] = accent) -> tuple[str, str]:
            return theme.blend(accent[0], ground[0], amount), theme.blend(accent[1], ground[1], amount)

        names[id(lane)] = f"lane{i}"
        styles[f"lane{i}"] = Style(fill=on(PAPER, 0.055))
        styles[f"lane{i}-tick"] = Style(stroke=accent, width=1.6, opacity=0.8)
        styles[f"lane{i}-rule"] = Style(stroke=on(PAPER, 0.35), width=1)
        styles[f"lane{i}-name"] = Style(fill=on(INK, 0.82), size=15, bold=True)
        styles[f"lane{i}-box"] = Style(fill=CARD, stroke=on(CARD, 0.7), width=1.3)
        styles[f"lane{i}-under"] = Style(fill=on(CARD, 0.1), stroke=on(CARD, 0.45), width=1)
        styles[f"lane{i}-bar"] = Style(fill=accent)
        styles[f"lane{i}-chip"] = Style(fill=on(CARD, 0.1), stroke=on(CARD, 0.45), width=1)
        styles[f"lane{i}-group"] = Style(fill=on(PAPER, 0.1), stroke=on(PAPER, 0.6), width=1.4)
        styles[f"lane{i}-served"] = Style(fill=on(PAPER, 0.06), stroke=on(PAPER, 0.5), width=1.1, dash=(4, 3))
    styles["flow-level"] = Style(fill=CARD, stroke=SOFT, width=1.3)
    for kind, (_, light, dark) in theme.EDGES.items():
        styles[f"edge-{kind}"] = Style(stroke=(light, dark), width=1.8)
        styles[f"head-{kind}"] = Style(fill=(light, dark))
        styles[f"label-{kind}"] = Style(fill=(light, dark), size=11, bold=True, halo=True)
    return names


def _lane(lane: Lane, style: str, placed: Placed, width: float) -> list[Item]:
    """The band, its name, and its rhythm: a tick at every update on a ruler that all lanes of one clock share."""
    items: list[Item] = []
    if lane.divider:
        y = lane.top - 20
        start = 40 + words.width(lane.divider, 11.5) * 1.06
        items += [Path((straight((start, y), (width - 28, y)),), "divider"),
                  Text(28, y + 4, lane.divider, "dividertext")]
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
    ticks = tuple(straight((x, y - 4), (x, y + 4)) for n in range(lane.every, slots + 1, lane.every) for x in (x0 + n * step,))
    return [rule, Group((Path(ticks, f"{style}-tick"),), "ruler", (("clock", lane.clock), ("every", str(lane.every))))]


def _frame(u: Unit, style: str) -> Group:
    items: list[Item] = []
    for k in range(min(u.count - 1, 2), 0, -1):
        items.append(Rect(u.x + 5 * k, u.y - 5 * k, u.w, u.h, 12, f"{style}-under"))
    items.append(Rect(u.x, u.y, u.w, u.h, 12, f"{style}-{'group' if u.frame == 'group' else 'served'}"))
    if u.title:
        items.append(Text(u.x + PAD_TEXT, u.y + 25, words.short(u.title, 50), "title"))
    for i, line in enumerate(u.header):
        items.append(Text(u.x + PAD_TEXT, u.y + 43 + 15 * i, words.fit(line, u.w - 30, 11, True), "code"))
    if u.count > 1:
        items += _badge(u.right - 14, u.y + 12, u.count, style)
    return Group(tuple(items), "frame", (("frame", words.clean(u.name)),))


PAD_TEXT = 14


def _badge(right: float, top: float, count: int, style: str) -> list[Item]:
    text = f"×{words.number(count)}"
    w = words.width(text, 10.5) + 14
    return [Rect(right - w, top, w, 17, 8.5, f"{style}-bar"), Text(right - w / 2, top + 12.5, text, "badgetext", "middle")]


def _box(b: Box, style: str, badge: bool) -> Group:
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
        items += _badge(b.right - 9, b.y + 9, count, style)
    tip = "\n".join([words.clean(b.level.title), words.clean(b.level.doc or "")] + [f"{k}: {v}" for k, v in words.fields(b.level)])
    data = (("level", words.clean(b.level.name)), ("clock", words.clean(b.level.clock)), ("every", str(b.level.every)),
            ("frame", words.clean(b.level.parent or "")))
    return Group(tuple(items), "box", data, tip)


def _ends(edges: tuple) -> tuple[tuple[str, str], ...]:
    names = dict.fromkeys(words.clean(n) for e in edges for n in (e.source, e.target))
    return (("ends", "\t".join(names)),)


def _edge(r: Route) -> Group:
    kind = r.link.kind
    (_, _, c, d) = r.curves[-1]
    tip = "\n".join(f"{words.clean(e.source)} {kind} {words.clean(e.target)} {words.clean(e.label)}" for e in r.link.edges[:12])
    return Group((Path(r.curves, f"edge-{kind}"), Poly(_arrow(c, d), f"head-{kind}")), "edge", _ends(r.link.edges), tip)


def _arrow(before: Point, tip: Point, size: float = 8.0) -> tuple[Point, ...]:
    dx, dy = tip[0] - before[0], tip[1] - before[1]
    n = (dx * dx + dy * dy) ** 0.5 or 1.0
    dx, dy = dx / n, dy / n
    x, y = tip[0] - dx * size, tip[1] - dy * size
    return tip, (x - dy * size * 0.45, y + dx * size * 0.45), (x + dy * size * 0.45, y - dx * size * 0.45)


def _bus(u: Unit) -> list[Group]:
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
            items += [Poly(_arrow((x, y), (x, b.y)), f"head-{kind}") for x, b in zip(xs, boxes)]
            items += [Text(b.x + b.w * 0.26, y - 6, words.clean(label), f"label-{kind}", "middle") for b, label in sources if label]
        tip = "\n".join(f"{words.clean(e.source)} {kind} the {words.clean(e.label)} of every member" for e in edges)
        groups.append(Group(tuple(items), "edge", _ends(tuple(edges)), tip))
    return groups


def _legend(y: float, placed: Placed) -> list[Item]:
    """The kinds of edge that are in the picture, two in a line."""
    kinds = [k for k in theme.EDGES if any(link.kind == k for link in placed.links)]
    items: list[Item] = []
    for i, kind in enumerate(kinds):
        x, base = 30.0 + 440 * (i % 2), y + 22 * (i // 2)
        items += [Path((straight((x, base - 4), (x + 22, base - 4)),), f"edge-{kind}"),
                  Poly(_arrow((x, base - 4), (x + 28, base - 4)), f"head-{kind}"),
                  Text(x + 38, base, kind, f"label-{kind}"),
                  Text(x + 38 + 78, base, theme.EDGES[kind][0], "legend")]
    return items
