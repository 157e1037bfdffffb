"""What a spec may name: one record per word, with its signature, documentation, source and meaning.

The elaborator (`nestflow.graph`) calls `build`; docs, completion and `nestflow explain WORD` read the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

REQUIRED: Any = object()
"""The default of a slot that must be given."""


@dataclass(frozen=True)
class SlotDef:
    name: str
    default: Any

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


def parse_signature(signature: str) -> tuple[str, tuple[SlotDef, ...], bool]:
    """`f(x, n = none, bias = false)` as a name, slots, and whether it takes any number of arguments (`xs...`)."""
    name, _, rest = signature.partition("(")
    slots: list[SlotDef] = []
    variadic = False
    for part in filter(None, (p.strip() for p in rest.rstrip(")").split(","))):
        slot, _, default = (s.strip() for s in part.partition("="))
        if slot.endswith("..."):
            variadic = True
            continue
        slots.append(SlotDef(slot, _literal(default) if default else REQUIRED))
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
