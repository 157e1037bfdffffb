"""How diagnostics are shown: a picture of the place for people, one line for logs, records for programs."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from nestflow.diagnostics.core import AGAIN, Diagnostic, Related, Span
from nestflow.diagnostics.fixes import edits_of

MAX_SHOWN = 20
MAX_WIDTH = 120
MAX_AGAIN = 2  # places shown of one mistake, beside the first
TAB = 4

Paint = Callable[[str, str], str]
"""Colours a piece of text: its role (`error`, `warning`, `note`, `place`, `mark`, `help`, or a source's name for a line
of it), the text. Escapes it adds are its own: what a user wrote is made safe before."""


def plain(role: str, text: str) -> str:
    """No colour."""
    return text


def render_all(diagnostics: Sequence[Diagnostic], paint: Paint = plain) -> str:
    """Up to 20 diagnostics as text, then how many more there are."""
    parts = [render(d, paint) for d in diagnostics[:MAX_SHOWN]]
    more = len(diagnostics) - MAX_SHOWN
    if more > 0:
        parts.append(f"... and {more} more")
    return "\n\n".join(parts)


def render(d: Diagnostic, paint: Paint = plain) -> str:
    """One diagnostic: code and sentence, place, source line with a caret, related places, help."""
    lines = [paint(d.severity, f"{d.severity}[{d.code}]: {safe(d.message)}")]
    again = [r for r in d.related if r.message == AGAIN][MAX_AGAIN:]
    shown = [r for r in d.related if r not in again]
    gutter = max((len(str(s.line)) for s in (d.span, *(r.span for r in shown)) if s is not None), default=1)
    if d.span is not None:
        lines += _picture(d.span, gutter, "^", d.severity, paint)
        labels = _labels(d.span, [r for r in shown if r.part], gutter, paint)
        lines += labels
        shown = [r for r in shown if not (r.part and labels)]
    for r in shown:
        lines.append(f"{' ' * gutter} = note: {safe(r.message)}")
        lines += _picture(r.span, gutter, "-", "mark", paint)
    if again:
        lines.append(f"{' ' * gutter} = note: and at {len(again)} more places")
    if d.help:
        lines.append(f"{' ' * gutter} = {paint('help', 'help')}: {safe(d.help)}")
    return "\n".join(lines)


def short(d: Diagnostic) -> str:
    """`file:line:col: error[NF101] sentence (help)`, in one line."""
    where = f"{safe(d.span.where())}: " if d.span is not None else ""
    help = f" ({safe(d.help)})" if d.help else ""
    return f"{where}{d.severity}[{d.code}] {safe(d.message)}{help}"


def as_json(diagnostics: Sequence[Diagnostic]) -> list[dict[str, Any]]:
    """Diagnostics as plain records; lines and columns from 1, ends exclusive, None where there is no place."""
    return [
        {
            "code": d.code,
            "severity": d.severity,
            "message": d.message,
            "help": d.help,
            **_place(d.span),
            "related": [{"message": r.message, **_place(r.span)} for r in d.related],
            "fix": [{**_place(e.span), "replacement": e.replacement} for e in edits_of(d)],
        }
        for d in diagnostics
    ]


def _place(span: Span | None) -> dict[str, Any]:
    if span is None:
        return dict.fromkeys(("file", "line", "column", "end_line", "end_column", "start", "end"))
    (line, column), (end_line, end_column) = span.source.position(span.start), span.source.position(span.end)
    return {
        "file": span.source.name,
        "line": line,
        "column": column,
        "end_line": end_line,
        "end_column": end_column,
        "start": span.start,
        "end": span.end,
    }


def safe(text: str) -> str:
    """Text that a terminal can show without obeying it: control and direction characters become visible."""
    return "".join(c if c.isprintable() or c == "\n" else _visible(c) for c in text)


def _visible(c: str) -> str:
    n = ord(c)
    if n < 0x20:
        return " " * TAB if c == "\t" else chr(0x2400 + n)
    if n == 0x7F:
        return "\u2421"
    return " " if unicodedata.category(c) == "Zs" else "\ufffd"


def _width(c: str) -> int:
    if unicodedata.combining(c):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def _picture(span: Span, gutter: int, mark: str, role: str, paint: Paint) -> list[str]:
    """The place, the line, and a line that marks the span (its first line, where it has several)."""
    number, column = span.source.position(span.start)
    raw = span.source.line(number)
    start = min(column - 1, len(raw))
    stop = min(max(start + span.end - span.start, start + 1), max(len(raw), start + 1))
    if len(raw) > 50 * MAX_WIDTH:  # a line of a million characters is not measured whole
        skip = max(0, start - 2 * MAX_WIDTH)
        raw, start, stop = raw[skip : skip + 5 * MAX_WIDTH], start - skip, min(stop - skip, 5 * MAX_WIDTH)
    cells = [_cell(c) for c in raw]
    before = sum(w for _, w in cells[:start])
    marked = max(1, sum(w for _, w in cells[start:stop]))
    text = "".join(t for t, _ in cells)
    if sum(w for _, w in cells) > MAX_WIDTH:
        text, before, marked = _crop(cells, start, stop)
    pad = " " * gutter
    return [
        paint("place", f"{pad}--> {safe(span.where())}"),
        paint("place", f"{pad} |"),
        f"{paint('place', f'{number:>{gutter}} |')} {paint(span.source.name, text)}".rstrip(),
        f"{paint('place', f'{pad} |')} {' ' * before}{paint(role, mark * marked)}",
    ]


def _labels(span: Span, parts: Sequence[Related], gutter: int, paint: Paint) -> list[str]:
    """What each part of an expression is, under the part; nothing where they are not all in one short line."""
    number = span.line
    raw = span.source.line(number)
    ends = {span.source.position(max(p.span.start, p.span.end - 1))[0] for p in parts}
    if not parts or ends != {number} or any(p.span.line != number for p in parts) or len(raw) > MAX_WIDTH:
        return []
    at = [sum(_cell(c)[1] for c in raw[: p.span.column - 1]) for p in parts]
    wide = [max(1, sum(_cell(c)[1] for c in p.span.text)) for p in parts]
    placed = sorted(zip(at, wide, (safe(p.message) for p in parts), strict=True))
    under = ""
    for column, width, _ in placed:
        under = under.ljust(column)[:column] + "-" * width
    rows = [f"{under} {placed[-1][2]}"]
    for i in range(len(placed) - 2, -1, -1):
        row = ""
        for column, _, _ in placed[:i]:
            row = row.ljust(column) + "|"
        rows.append(row.ljust(placed[i][0]) + placed[i][2])
    pad = " " * gutter
    return [f"{paint('place', f'{pad} |')} {paint('mark', row)}" for row in rows]


def _cell(c: str) -> tuple[str, int]:
    if c == "\t":
        return " " * TAB, TAB
    shown = safe(c)
    return shown, sum(_width(x) for x in shown)


def _crop(cells: list[tuple[str, int]], start: int, stop: int) -> tuple[str, int, int]:
    """The part of a long line around a span."""
    first = max(0, start - MAX_WIDTH // 3)
    last = min(len(cells), first + MAX_WIDTH - 2)
    head, tail = ("\u2026" if first else ""), ("\u2026" if last < len(cells) else "")
    before = len(head) + sum(w for _, w in cells[first:start])
    marked = max(1, sum(w for _, w in cells[start : min(stop, last)]))
    return head + "".join(t for t, _ in cells[first:last]) + tail, before, marked
