"""The level graph in a terminal: lanes by update frequency with their rhythm, boxes, and the edges in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nestflow.graph.model import LevelGraph
from nestflow.view import theme, words
from nestflow.view.arrange import Link, arrange
from nestflow.view.layout import Box, Lane, Unit

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

WIDTH = 98


@dataclass(frozen=True)
class Picture:
    """Something rich prints, as wide as the console is, and `width` at most."""

    graph: LevelGraph
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _whole(self.graph, max(40, min(self.width, options.max_width)))


def render(graph: LevelGraph, width: int = WIDTH) -> RenderableType:
    """Something rich prints, at most `width` columns wide (100 fit); without colour it says the same."""
    return Picture(graph, width)


def _whole(graph: LevelGraph, width: int) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    placed = arrange(graph)
    parts: list[Any] = [Text.assemble((words.clean(graph.name), "bold"), ("  " + words.totals(graph), "dim"))]
    parts += [
        Text(line, style="dim")
        for line in (words.first_sentence(graph.doc or "", width), *words.params_lines(graph, width))
        if line
    ]
    if graph.networks:
        names = " · ".join(words.clean(n.name) for n in graph.networks)
        parts.append(Panel(Text(names, "bold"), box.ROUNDED, title="of yours", border_style="dim", expand=False))
    for lane in placed.lanes:
        if lane.divider:
            parts.append(Text(f"── {lane.divider} ".ljust(width, "╌"), style="dim"))
        parts.append(_lane(lane, width))
    parts.append(Text())
    parts += _edges(placed.links, width)
    return Group(*parts)


def _colour(lane: Lane) -> str:
    return theme.lane_colour(lane.clock, lane.every, lane.index, "dark")


def _lane(lane: Lane, width: int) -> Any:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    colour = _colour(lane)
    slots = min(32, max(16, 2 * lane.every))
    title = Text.assemble(
        ("▌", colour),
        (lane.name, f"bold {colour}"),
        "  ",
        (words.rhythm(lane.every, slots), colour),
        "  ",
        (lane.note, "dim"),
    )
    title.truncate(width - 2, overflow="ellipsis")
    title.append(" " + "─" * max(0, width - len(title) - 1), style=f"dim {colour}")
    rows: list[Any] = []
    for rank in lane.ranks:
        line: list[Any] = []
        used = 0
        for unit in rank:
            for block in _blocks(unit, colour, width - 4):
                if line and used + block[0] + 1 > width - 4:
                    rows.append(_row(line))
                    line, used = [], 0
                line.append(block)
                used += block[0] + 1
        if line:
            rows.append(_row(line))
    return Group(title, *[Padding(r, (0, 0, 0, 2)) for r in rows])


def _row(line: list[tuple[int, Any]]) -> Any:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1, 0, 0))
    for w, _ in line:
        grid.add_column(width=w)
    grid.add_row(*[b for _, b in line])
    return grid


def _blocks(unit: Unit, colour: str, width: int) -> list[tuple[int, Any]]:
    """Panels of a unit with their widths: one for a group, one for a level with its optimiser."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    if unit.frame != "group":
        return [_card(c.box, c.chips, colour) for c in unit.cells]
    cards: list[Any] = [Text(" " + words.short(h, width - 4)) for h in unit.header]
    line: list[tuple[int, Any]] = []
    used = widest = 0
    for c in unit.cells:
        card = _card(c.box, c.chips, colour)
        if line and used + card[0] + 1 > width - 1:
            cards.append(_row(line))
            line, used = [], 0
        line.append(card)
        used += card[0] + 1
        widest = max(widest, used)
    cards.append(_row(line))
    count = f" ×{unit.count}" if unit.count > 1 else ""
    title = Text.assemble((unit.title, "bold"), (count, f"bold {colour}"))
    w = min(width, max([widest] + [len(h) + 3 for h in unit.header]) + 1)
    return [
        (
            w,
            Panel(
                Group(*cards),
                title=title,
                title_align="left",
                box=box.ROUNDED,
                border_style=colour,
                width=w,
                padding=0,
            ),
        )
    ]


def _card(b: Box, chips: list[Box], colour: str) -> tuple[int, Any]:
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    lines = [Text(text, style="dim" if kind == "soft" else "") for kind, text in b.lines if kind != "title"]
    for c in chips:
        what = "".join(text for kind, text in c.lines if kind == "code")
        lines.append(
            Text.assemble(("◀ ", theme.TERMINAL_EDGES["optimises"]), (_title(c), "bold"), (f"  {what}", "dim"))
        )
    count = f" ×{b.level.count}" if b.level.count > 1 and b.badge else ""
    title = Text.assemble((_title(b), "bold"), (count, f"bold {colour}"))
    w = min(46, max([len(t) for t in lines] + [len(title) + 2, 10]) + 4)
    for t in lines:
        t.truncate(w - 4, overflow="ellipsis")
    return w, Panel(
        Group(*lines),
        title=title,
        title_align="left",
        box=box.ROUNDED if not b.chip else box.SQUARE,
        border_style=colour,
        width=w,
        padding=(0, 1),
    )


def _edges(links: list[Link], width: int) -> list[Any]:
    """Edges in words, by kind; an optimiser's memory beside its level has been shown there already."""
    from rich.text import Text

    lines: list[Any] = []
    for kind, (meaning, _, _) in theme.EDGES.items():
        colour = theme.TERMINAL_EDGES[kind]
        said: dict[tuple[str, str], list[str]] = {}
        for link in links:
            if link.kind == kind and not (kind == "optimises" and link.source[0] is link.target[0]):
                mine = said.setdefault(_ends(link), [])
                if link.label and words.clean(link.label) not in mine:
                    mine.append(words.clean(link.label))
        if not said:
            continue
        lines.append(Text.assemble((kind, f"bold {colour}"), (f"  {meaning}", "dim")))
        by_target: dict[str, list[str]] = {}
        for (source, target), labels in said.items():
            by_target.setdefault(target, []).append(source + (f" ({', '.join(labels)})" if labels else ""))
        for target, sources in by_target.items():
            arrow = f" ──▶ {target}"
            text = words.short(", ".join(sources), width - len(arrow) - 2)
            lines.append(Text.assemble("  ", text, (arrow, colour)))
    return lines


def _ends(link: Link) -> tuple[str, str]:
    (a, ab), (b, bb) = link.source, link.target
    if ab is not None and ab is bb:
        return (f"each memory of {a.title}" if a.frame == "group" else _name(a, ab)), "itself"
    inside = a is b and a.frame == "group"
    target = f"every memory of {b.title}" if inside and bb is None else _name(b, bb)
    return (_title(ab) if inside and ab else _name(a, ab)), target


def _title(b: Box) -> str:
    return next(text for kind, text in b.lines if kind == "title")


def _name(unit: Unit, b: Box | None) -> str:
    if b is None:
        return unit.title or _title(unit.cells[0].box)
    return f"{unit.title}.{_title(b)}" if unit.frame == "group" else _title(b)
