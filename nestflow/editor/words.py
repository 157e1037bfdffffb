"""The words of the language by the part they play, gathered from the records that define them."""

from __future__ import annotations

from functools import cache

from nestflow.vocabulary import WORDS, Word
from nestflow.vocabulary.fields import SYNTAX

DECLARATIONS = ("param", "input", "clock", "extern", "level", "flow", "optimizer", "execution", "shared")
BRINGS = ("use", "extends")
CONTROL = ("return", "emit", "for", "repeat", "if", "else", "assert")
WORD_OPERATORS = ("and", "or", "not")
SMALL = ("in", "of", "as")
CONSTANTS = ("true", "false", "none", "inf", "never")
TYPES = ("int", "float", "bool", "string")
UNITS = ("token", "step", "tick", "update")
RULE_FIELDS = ("step", "set", "eval")


@cache
def field_records() -> dict[str, Word]:
    """The record of every field, of a level, a memory or an optimizer, by its name; `return` among them."""
    return {w.name: w for w in SYNTAX.values() if w.kind == "field"}


@cache
def fields() -> tuple[str, ...]:
    """Every word that is a field, `output` among them; `return` is a keyword."""
    return tuple(sorted({*field_records(), "output"} - set(CONTROL)))


@cache
def builtins() -> frozenset[str]:
    """Every word that a spec may name without defining it: the vocabulary, the shipped optimizers and blocks."""
    from nestflow.language.shipped import shipped_files

    parts = [name.split(".") for name in shipped_files()]
    return frozenset(WORDS) | {p[-1] for p in parts if p[0] in ("optimizers", "blocks")}
