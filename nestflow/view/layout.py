"""Where everything stands in the picture: horizontal lanes by update frequency, fastest on top.

The layout is deterministic and small: lanes are given by the frequencies, so only the order inside a lane is
searched (barycentres), and edges run through the gaps between boxes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nestflow.graph.model import Edge, LevelGraph, LevelInfo
from nestflow.view import words

GUTTER = 184  # the lane names stand left of this
CONTENT = 1010  # what stands right of it, before the lane wraps
GAP = 40  # between boxes: edges pass here
PAD = 12


@dataclass
class Box:
    """One level, or one memory of a level. chip: an optimiser's memory, drawn small beside what it serves."""

    level: LevelInfo
    lines: list[tuple[str, str]]  # (style, text): title, code, soft
    w: float
    h: float
    chip: bool = False
    badge: bool = True
    x: float = 0.0
    y: float = 0.0

    @property
    def cx(self) -> float:
        return self.x + self.w / 2

    @property
    def cy(self) -> float:
        return self.y + self.h / 2

    @property
    def right(self) -> float:
        return self.x + self.w

    @property
    def bottom(self) -> float:
        return self.y + self.h


@dataclass
class Cell:
    """A level with the memories of its optimiser that keep its frequency."""

    box: Box
    chips: list[Box] = field(default_factory=list)

    @property
    def w(self) -> float:
        if not self.chips:
            return self.box.w
        return self.box.w + 34 + max(c.w for c in self.chips)

    @property
    def h(self) -> float:
        if not self.chips:
            return self.box.h
        return max(self.box.h, sum(c.h for c in self.chips) + 8 * (len(self.chips) - 1))

    def place(self, x: float, y: float, height: float) -> None:
        self.box.x, self.box.y = x, y + (height - self.box.h) / 2
        stack = sum(c.h for c in self.chips) + 8 * (len(self.chips) - 1)
        top = y + (height - stack) / 2
        for c in self.chips:
            c.x, c.y = self.box.right + 34, top
            top = c.bottom + 8


@dataclass
class Unit:
    """What is placed as one: a level, a level of several memories, or a level with its optimiser."""

    name: str
    frame: str | None  # None | "group" | "optimiser"
    cells: list[Cell]
    title: str = ""
    header: list[str] = field(default_factory=list)
    count: int = 1
    bus: list[Edge] = field(default_factory=list)
    per_row: int = 5
    inner: int = 0  # edges between members, drawn under them
    rank: int = 0
    x: float = 0.0
    y: float = 0.0

    @property
    def boxes(self) -> list[Box]:
        return [b for c in self.cells for b in (c.box, *c.chips)]

    @property
    def top(self) -> float:
        """Height above the members: title, what is common to them, and the bus."""
        if self.frame is None:
            return 0.0
        head = PAD + (20 if self.title else 0) + 15 * len(self.header)
        return head + (46 if self.bus else 8 if self.title else 0)

    @property
    def between(self) -> float:
        """Room between rows, where edges pass: the bus, or bows under the members."""
        return 62 if self.bus else 48 if self.inner else 16

    @property
    def rows(self) -> list[list[Cell]]:
        return [self.cells[i : i + self.per_row] for i in range(0, len(self.cells), self.per_row)]

    @property
    def w(self) -> float:
        inside = max(sum(c.w for c in row) + 16 * (len(row) - 1) for row in self.rows)
        if self.frame is None:
            return inside
        text = max([words.width(self.title, 14)] + [words.width(h, 11, True) for h in self.header])
        return max(inside, min(text + 60, CONTENT - 60)) + 2 * PAD

    @property
    def h(self) -> float:
        inside = sum(max(c.h for c in row) for row in self.rows)
        inside += (len(self.rows) - 1) * self.between
        return inside + (self.top + PAD + (26 if self.inner else 0) if self.frame else 0)

    @property
    def cx(self) -> float:
        return self.x + self.w / 2

    @property
    def right(self) -> float:
        return self.x + self.w

    @property
    def bottom(self) -> float:
        return self.y + self.h

    def place(self, x: float, y: float) -> None:
        self.x, self.y = x, y
        top = y + self.top
        inset = PAD if self.frame else 0
        for row in self.rows:
            height = max(c.h for c in row)
            left = x + inset + (self.w - 2 * inset - sum(c.w for c in row) - 16 * (len(row) - 1)) / 2
            for cell in row:
                cell.place(left, top, height)
                left += cell.w + 16
            top += height + self.between


@dataclass
class Lane:
    clock: str
    every: int
    index: int  # among the lanes of this clock
    key: tuple[int, int, str]
    ranks: list[list[Unit]] = field(default_factory=list)
    top: float = 0.0
    bottom: float = 0.0
    divider: str | None = None  # a sentence above the lane, where the clock changes

    def levels(self, graph: LevelGraph) -> list[LevelInfo]:
        """The levels of a graph that belong here."""
        return [v for v in graph.levels if lane_key(v) == self.key]

    @property
    def name(self) -> str:
        return words.lane_name(self.clock, self.every)

    @property
    def note(self) -> str:
        return words.lane_note(self.clock, self.every)


def lane_key(level: LevelInfo) -> tuple[int, int, str]:
    """Order of the lanes: attention, every token, every N tokens, every step, every N steps, other clocks, never."""
    if level.every == 0:
        return (9, 0, "")
    if level.every < 0:
        return (0, 0, "token")
    return ({"token": 1, "step": 2}.get(level.clock, 3), level.every, level.clock)


def lanes_of(graph: LevelGraph) -> list[Lane]:
    """The lanes of a graph, fastest first, without their contents."""
    lanes: list[Lane] = []
    per_clock: dict[str, int] = {}
    before = None
    for key in sorted({lane_key(v) for v in graph.levels}):
        rank, every, clock = key
        lane = Lane(clock or "step", {0: -1, 9: 0}.get(rank, every), per_clock.get(clock, 0), key)
        per_clock[clock] = lane.index + 1
        if lane.every != 0 and before is not None and clock != before:
            lane.divider = "one step = the tokens of one batch" if clock == "step" else clock_note(graph, clock)
        before = clock if lane.every != 0 else before
        lanes.append(lane)
    return lanes


def clock_note(graph: LevelGraph, clock: str) -> str:
    """What ticks a clock of the spec's own."""
    spec = next((c for c in graph.clocks if c.name == clock), None)
    if spec is None or spec.base == clock:
        return f"the clock `{words.clean(clock)}` is ticked from outside"
    every = spec.base if spec.count == 1 else f"{spec.count} {spec.base}s"
    return f"the clock `{words.clean(clock)}` ticks every {every}"


def level_box(level: LevelInfo, common: set[str], grouped: bool) -> Box:
    """The box of a level; what its group already says (`common`) is left out."""
    t = level.texts
    room = 24 if grouped else 36
    title = words.clean(level.title or level.name)
    if grouped:
        title = title.removeprefix(_last(level.parent or "") + ".")
    lines = [("title", words.short(title, 26))]
    if t.memory:
        lines += [("code", line) for line in words.wrap(words.clean(t.memory), room)]
    if "objective" in common and "update" in common:
        if t.value and "value" not in common:
            lines.append(("code", words.short("value " + words.clean(t.value), room)))
    else:
        if t.objective:
            lines.append(("code", words.short(words.clean(t.objective), room)))
        if t.update:
            lines.append(("code", words.short("⇒ " + words.clean(t.update), room)))
    if size := words.sizes(level):
        lines.append(("soft", size))
    need = max(words.width(s, 14 if k == "title" else 11, k == "code") for k, s in lines) + (
        56 if level.count > 1 else 28
    )
    w = min(max(need, 148), 182 if grouped else 278)
    return Box(level, lines, w, 16 + sum(20 if k == "title" else 16 for k, _ in lines))


def chip_box(level: LevelInfo) -> Box:
    """The small box of an optimiser's memory."""
    t = level.texts
    lines = [("title", words.short(words.clean(level.title or level.name), 18))]
    what = " ⇒ ".join(words.clean(p) for p in (t.value, t.update) if p)
    if what:
        lines.append(("code", words.short(what, 24)))
    need = max(words.width(s, 12 if k == "title" else 10, k == "code") for k, s in lines) + 24
    return Box(level, lines, min(max(need, 74), 176), 12 + sum(16 if k == "title" else 14 for k, _ in lines), chip=True)


def units_of(graph: LevelGraph) -> list[Unit]:
    """Levels gathered into what is placed as one, in the order of the graph."""
    by_name = {v.name: v for v in graph.levels}
    units: dict[tuple[str, tuple[int, int, str]], Unit] = {}
    served: list[tuple[LevelInfo, LevelInfo]] = []
    members: dict[tuple[str, tuple[int, int, str]], list[LevelInfo]] = {}
    for v in graph.levels:
        host = _host(v, by_name)
        if host is not None:
            served.append((v, host))
        else:
            members.setdefault((v.parent or v.name, lane_key(v)), []).append(v)
    for key, levels in members.items():
        grouped = levels[0].parent is not None
        common = _common(levels) if grouped else set[str]()
        cells = [Cell(level_box(v, common, grouped)) for v in levels]
        unit = Unit(key[0], "group" if grouped else None, cells)
        if grouped:
            unit.title, unit.header = _last(key[0]), _header(levels[0], common)
            unit.count = levels[0].count if len({v.count for v in levels}) == 1 else 1
            for cell in cells:
                cell.box.badge = unit.count == 1
        units[key] = unit
    for v, host in served:
        home = next(
            (u for k, u in units.items() if k[1] == lane_key(v) and any(b.level is host for b in u.boxes)), None
        )
        if home is not None:
            next(c for c in home.cells if c.box.level is host).chips.append(chip_box(v))
            home.frame = home.frame or "optimiser"
        else:
            key = (host.name, lane_key(v))
            unit = units.setdefault(
                key,
                Unit(f"{host.name} optimiser", "optimiser", [], f"{words.clean(host.title)}'s optimiser", per_row=3),
            )
            unit.cells.append(Cell(chip_box(v)))
    for unit in units.values():  # as many side by side as the page is wide
        unit.per_row = max(1, min(unit.per_row, int((CONTENT + 16) / (max(c.w for c in unit.cells) + 16))))
    return list(units.values())


def _host(level: LevelInfo, by_name: dict[str, LevelInfo]) -> LevelInfo | None:
    """The level that an optimiser's memory serves, through memories of memories; None for a level of its own."""
    host, seen = None, {level.name}
    parent = level.parent
    while parent is not None and parent in by_name and parent not in seen:
        seen.add(parent)
        host = by_name[parent]
        parent = host.parent
    return host


def _last(path: str) -> str:
    return words.clean(path.rsplit(".", 1)[-1])


def _common(levels: list[LevelInfo]) -> set[str]:
    names = ("key", "value", "objective", "update", "retain")
    return {n for n in names if len({getattr(v.texts, n) for v in levels}) == 1 and len(levels) > 1}


def _header(level: LevelInfo, common: set[str]) -> list[str]:
    t = level.texts
    lines = []
    if "objective" in common and "update" in common and (text := words.learning(level)):
        lines.append(words.short(text, 110))
    if "retain" in common and t.retain:
        lines.append(words.short(f"retain {words.clean(t.retain)}", 110))
    return lines
