"""The level table: one row a level, fastest first, at most 20 lines. `print(bundle)` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nestflow.graph.model import LevelGraph, LevelInfo
from nestflow.view import theme, words
from nestflow.view.layout import lane_key, lanes_of

if TYPE_CHECKING:
    from rich.table import Table

MAX_ROWS = 15  # with the title, the head and their rules 20 lines
Row = list[LevelInfo]


def level_table(
    graph: LevelGraph, lowered: Mapping[str, str] | None = None, width: int = 98, max_rows: int = MAX_ROWS
) -> Table:
    """A rich Table: level, every, memory, objective, update, params, state and, where given, how it was lowered.

    lowered: level name -> a few words. If there are more than `max_rows` rows, optimiser memories join each
    other first, then the members of a group. Texts are cut so that the table is at most `width` columns wide.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=words.short(f"{words.clean(graph.name)} · {words.totals(graph)}", width),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        show_edge=False,
    )
    head = ["level", "every", "memory", "objective", "update", "params", "state"] + (
        ["lowered"] if lowered is not None else []
    )
    rows = fold(graph, max_rows)
    cells = [_cells(row, graph, lowered) for row in rows]
    widths = _widths(head, cells, width)
    for name, w in zip(head, widths):
        table.add_column(name, justify="right" if name in ("params", "state") else "left", no_wrap=True, width=w)
    colours = {lane.key: theme.lane_colour(lane.clock, lane.every, lane.index, "dark") for lane in lanes_of(graph)}
    for row, texts in zip(rows, cells):
        cut = [words.short(t, w) for t, w in zip(texts, widths)]
        table.add_row(*[Text(t, style=colours[lane_key(row[0])] if i == 1 else "") for i, t in enumerate(cut)])
    left = len(graph.levels) - sum(len(r) for r in rows)
    if left:
        table.caption, table.caption_justify = Text(f"… {left} more levels"), "left"
    return table


def fold(graph: LevelGraph, max_rows: int) -> list[Row]:
    """Rows of levels: one each if they fit; else optimiser memories join each other, then members of a group."""
    rows = [[v] for v in _ordered(graph)]
    names = {v.name for v in graph.levels}
    for served in (True, False):
        if len(rows) <= max_rows:
            return rows
        merged: dict[object, Row] = {}
        for row in rows:
            v = row[0]
            joins = v.parent is not None and (v.parent in names) == served
            merged.setdefault((v.parent, lane_key(v)) if joins else v.name, []).extend(row)
        rows = list(merged.values())
    return rows[:max_rows]


def _ordered(graph: LevelGraph) -> list[LevelInfo]:
    """Fastest first; within a frequency optimiser memories follow what they serve, members of a group are together."""
    home = {v.name: i for i, v in enumerate(graph.levels)}
    first: dict[tuple[object, ...], int] = {}
    for i, v in enumerate(graph.levels):
        first.setdefault((lane_key(v), v.parent), i)

    def place(item: tuple[int, LevelInfo]) -> tuple[Any, ...]:
        i, v = item
        if v.parent is None:
            return lane_key(v), i, 0, 0
        return lane_key(v), home.get(v.parent, first[(lane_key(v), v.parent)]), 1, i

    return [v for _, v in sorted(enumerate(graph.levels), key=place)]


def _widths(head: list[str], cells: list[list[str]], width: int) -> list[int]:
    """Names, periods and sizes are shown whole (within reason); the texts of fields share what is left."""
    need = [max([len(h), *(len(c[i]) for c in cells)]) for i, h in enumerate(head)]
    whole = {"level": 26, "every": 18, "params": 8, "state": 8}
    widths = [min(n, whole.get(h, n)) for h, n in zip(head, need)]
    shared = [i for i, h in enumerate(head) if h not in whole]
    room = width - 2 * len(head) - sum(w for i, w in enumerate(widths) if i not in shared)
    while sum(widths[i] for i in shared) > max(room, 4 * len(shared)):
        longest = max(shared, key=lambda i: widths[i])
        widths[longest] -= 1
    return widths


def _cells(row: Row, graph: LevelGraph, lowered: Mapping[str, str] | None) -> list[str]:
    v = row[0]
    cells = [
        _name(row, graph),
        words.lane_name(v.clock, v.every),
        words.clean(v.texts.memory),
        words.clean(v.texts.objective),
        words.clean(v.texts.update),
        _sum(row, "parameters"),
        _sum(row, "state"),
    ]
    if lowered is not None:
        cells.append(words.clean(next((lowered[o.name] for o in row if o.name in lowered), "")))
    return cells


def _name(row: Row, graph: LevelGraph) -> str:
    v = row[0]
    host = next((o.title for o in graph.levels if o.name == v.parent), v.parent or "").rsplit(".", 1)[-1]
    titles = [words.clean(o.title or o.name).removeprefix(f"{words.clean(host)}.") for o in row]
    inner = titles[0] if len(row) == 1 else "{" + ", ".join(titles) + "}"
    name = f"{words.clean(host)}.{inner}" if host else inner
    return f"{name} ×{v.count}" if v.count > 1 else name


def _sum(row: Row, what: str) -> str:
    total = sum(getattr(v, what) for v in row)
    return words.number(total) if total else "–"
