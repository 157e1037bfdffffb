"""Texts of the pictures: short numbers, lane names, widths, clean strings."""

from __future__ import annotations

import re
from typing import Any

from nestflow.graph.model import LevelGraph, LevelInfo

# C0, C1, bidirectional controls and lone surrogates: none may reach a terminal or an XML file
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_NARROW = set("ijlI.,:;|!'()[]{}frt·`")
_WIDE = set("mwMW@%∂→—")


def clean(text: object) -> str:
    """One line of printable text: controls and line ends are dropped, so no escape sequence survives."""
    return " ".join(_CONTROL.sub("", str(text)).split())


def short(text: str, limit: int) -> str:
    """At most `limit` characters, with an ellipsis where something was cut."""
    return text if len(text) <= limit else text[: max(1, limit - 1)].rstrip() + "…"


def number(n: int) -> str:
    """12, 4.2k, 1.3M: three digits at most."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            value = n / size
            return f"{value:.0f}{unit}" if value >= 100 or n % size == 0 else f"{value:.1f}".removesuffix(".0") + unit
    return str(n)


def wrap(text: str, limit: int) -> list[str]:
    """One or two lines, broken after a comma or a blank where there is one."""
    if len(text) <= limit:
        return [text]
    cut = max(text.rfind(" ", 0, limit + 1), 0) or limit
    return [text[:cut].rstrip(), short(text[cut:].strip(), limit)]


def width(text: str, size: float, mono: bool = False) -> float:
    """Estimated width in pixels; no font is at hand, so it errs on the wide side."""
    if mono:
        return 0.605 * size * len(text)
    units = sum(0.34 if c in _NARROW else 0.9 if c in _WIDE else 0.68 if c.isupper() else 0.58 for c in text)
    return units * size


def fit(text: str, pixels: float, size: float, mono: bool = False) -> str:
    """The longest beginning of a text that fits in so many pixels."""
    if width(text, size, mono) <= pixels:
        return text
    n = len(text)
    while n > 1 and width(text[: n - 1] + "…", size, mono) > pixels:
        n -= 1
    return short(text, n)


def lines(text: str, pixels: float, size: float) -> list[str]:
    """One or two lines of at most so many pixels, broken at a blank; what is left over is cut."""
    if width(text, size) <= pixels:
        return [text] if text else []
    first = text.split(" ")
    n = len(first)
    while n > 1 and width(" ".join(first[:n]), size) > pixels:
        n -= 1
    return [fit(" ".join(first[:n]), pixels, size), *([fit(" ".join(first[n:]), pixels, size)] if first[n:] else [])]


def lane_name(clock: str, every: int) -> str:
    """`every token`, `every 16 tokens`, `every step`, `every 4 steps`, `never`, `attention`."""
    if every < 0:
        return "unbounded"
    if every == 0:
        return "never"
    return f"every {clock}" if every == 1 else f"every {every} {clock}s"


def lane_note(clock: str, every: int) -> str:
    """What the lane means, for someone who sees such a picture for the first time."""
    if every < 0:
        return "the context is the memory"
    if every == 0:
        return "frozen weights"
    if clock == "token":
        return "learns while reading" if every == 1 else f"once per {every} tokens"
    if clock == "step":
        return "learns from each batch" if every == 1 else f"once per {every} batches"
    return f"on the clock `{clock}`"


def rhythm(every: int, slots: int = 16) -> str:
    """Ticks as characters: `▮▮▮▮`, `▮···▮···`; a line where the frequency is unbounded."""
    if every < 0:
        return "━" * slots
    if every == 0:
        return "·" * slots
    if every > slots:
        return f"···⋯ {every} ⋯···▮"
    return "".join("▮" if (i + 1) % every == 0 else "·" for i in range(slots))


def learning(level: LevelInfo) -> str:
    """Objective and update in one line: `l2 ⇒ dgd(…)`."""
    parts = [clean(level.texts.objective), clean(level.texts.update)]
    return " ⇒ ".join(p for p in parts if p)


def sizes(level: LevelInfo) -> str:
    """`16.4k params · 8.2k state`."""
    parts = []
    if level.parameters:
        parts.append(f"{number(level.parameters)} params")
    if level.state:
        parts.append(f"{number(level.state)} state")
    return " · ".join(parts)


def params_lines(graph: LevelGraph, limit: int) -> list[str]:
    """`dim = 128 · depth = 2`, in at most two lines."""
    lines: list[str] = []
    for p in graph.params:
        item = f"{clean(p.name)} = {clean(_value(p.value))}"
        if lines and len(lines[-1]) + len(item) + 3 <= limit:
            lines[-1] += f" · {item}"
        else:
            lines.append(short(item, limit))
    return lines if len(lines) <= 2 else [lines[0], short(lines[1] + " ·" + " " * limit, len(lines[1]) + 3)]


def first_sentence(text: str, limit: int) -> str:
    """The first sentence of a doc comment; a dot inside brackets or after a short form does not end it."""
    text = clean(text)
    for i, c in enumerate(text):
        if c == "." and text[i + 1 : i + 2] in ("", " ") and text[:i].count("(") == text[:i].count(")"):
            return short(text[: i + 1], limit)
    return short(text, limit)


def totals(graph: LevelGraph) -> str:
    """How many levels, frequencies, parameters and numbers of state a sequence has."""
    rates = len({(v.clock, v.every) for v in graph.levels if v.every})
    parts = [plural(len(graph.levels), "level"), f"{rates} frequenc{'y' if rates == 1 else 'ies'}"]
    weights = sum(w.size for w in graph.weights) or sum(v.parameters for v in graph.levels)
    if weights:
        parts.append(f"{number(weights)} parameters")
    state = sum(_size(s.shape) * (s.heads or 1) for s in graph.state if not s.grows)
    if state:
        parts.append(f"{number(state)} numbers of state a sequence")
    parts += [f"on `{n.name}`, a network of yours" for n in graph.networks]
    return " · ".join(parts)


def plural(n: int, noun: str) -> str:
    """`1 level`, `3 levels`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def fields(level: LevelInfo) -> list[tuple[str, str]]:
    """Every field of a level that has a text, in the order of the language."""
    t = level.texts
    rows = [
        ("memory", t.memory),
        ("key", t.key),
        ("value", t.value),
        ("query", t.query),
        ("objective", t.objective),
        ("update", t.update),
        ("retain", t.retain),
        ("every", level.frequency_text),
    ]
    if level.heads:
        rows.append(("heads", str(level.heads)))
    if level.count > 1:
        rows.append(("instances", str(level.count)))
    if level.parameters:
        rows.append(("parameters", f"{level.parameters:,}"))
    if level.state:
        rows.append(("state", f"{level.state:,}"))
    return [(k, clean(v)) for k, v in rows if v]


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
