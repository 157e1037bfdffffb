"""What a spec may name: one record per word, with its signature, documentation, source and meaning.

The elaborator (`nestflow.graph`) calls `build`; docs, completion and `nestflow explain WORD` read the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nestflow.vocabulary.bounds import Bounds, parse_bounds

REQUIRED: Any = object()
"""The default of a slot that must be given."""


@dataclass(frozen=True)
class SlotDef:
    """bounds: what a number may be that is known when compiling."""

    name: str
    default: Any
    bounds: Bounds | None = None

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Word:
    """kind: function, memory, objective, update, retention, schedule, distribution, loss or special; of the words that
    make statements (`nestflow.vocabulary.fields`) field, statement or given name.
    elementwise: acts on each element of a list. also: words people type instead (for `help:` only). options: bare words
    that its keywords take (`method = cg`)."""

    name: str
    signature: str
    slots: tuple[SlotDef, ...]
    kind: str
    doc: str
    build: Callable[..., Any] | None = None
    paper: str = ""
    also: tuple[str, ...] = ()
    elementwise: bool = False
    variadic: bool = False
    example: str = ""
    options: frozenset[str] = frozenset()


WORDS: dict[str, Word] = {}


_SLOT = re.compile(
    r"(?P<name>\w+)(?P<more>\.\.\.)?(?:\s*=\s*(?P<default>[^,\s]+))?(?:\s+in\s+(?P<bounds>[\[(][^\])]*[\])]))?\s*(?:,\s*|$)"
)


def parse_signature(signature: str) -> tuple[str, tuple[SlotDef, ...], bool]:
    """`f(x, p = 0.5 in [0, 1), n = none)` as a name, slots, and whether it takes any number of arguments (`xs...`).

    Raises ValueError where a slot cannot be read."""
    name, _, rest = signature.partition("(")
    rest = rest.strip().removesuffix(")")
    slots: list[SlotDef] = []
    variadic, at = False, 0
    while at < len(rest):
        m = _SLOT.match(rest, at)
        if m is None:
            raise ValueError(f"{signature!r} has no slot at {rest[at:]!r}")
        at = m.end()
        if m["more"]:
            variadic = True
            continue
        default = REQUIRED if m["default"] is None else _literal(m["default"])
        slots.append(SlotDef(m["name"], default, parse_bounds(m["bounds"]) if m["bounds"] else None))
    return name.strip(), tuple(slots), variadic


def _literal(text: str) -> Any:
    known = {"none": None, "true": True, "false": False, "inf": float("inf")}
    if text in known:
        return known[text]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def word(
    signature: str,
    kind: str = "function",
    doc: str = "",
    paper: str = "",
    also: str = "",
    elementwise: bool = False,
    options: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as what a word builds."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        name, slots, variadic = parse_signature(signature)
        WORDS[name] = Word(
            name,
            signature,
            slots,
            kind,
            doc or (build.__doc__ or "").strip(),
            build,
            paper,
            tuple(also.split()),
            elementwise,
            variadic,
            options=frozenset(options.split()),
        )
        return build

    return register


def describe(signature: str, kind: str, doc: str, paper: str = "", also: str = "") -> None:
    """Register a word whose meaning is in the elaborator itself (memories, fields, special forms)."""
    name, slots, variadic = parse_signature(signature)
    WORDS[name] = Word(name, signature, slots, kind, doc, None, paper, tuple(also.split()), False, variadic)


def lookup(name: str) -> Word | None:
    """The record of a word, or None."""
    import_module("nestflow.vocabulary")  # registers all words
    return WORDS.get(name)
