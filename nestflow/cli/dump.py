"""Stages of the compiler as text: `nestflow compile --dump tree|graph|plan|source`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from nestflow.diagnostics.core import Source, Span
from nestflow.graph.model import Instance, LevelGraph, Memory
from nestflow.ir.node import Node, Type
from nestflow.ir.printer import show

MAX_DEPTH = 40
_SKIPPED = {"span", "spans", "source", "sources", "comments"}


def dump(value: Any, refer: tuple[type, ...] = ()) -> str:
    """A frozen value as indented text: fields at their default, spans and sources are left out.

    refer: types that are only named (an instance by its path), because another dump shows them.
    """
    return "\n".join(_lines(value, 0, refer)) + "\n"


def dump_plan(plan: Any) -> str:
    """A plan, its level instances and memories named instead of repeated."""
    return dump(plan, (Instance, LevelGraph, Memory))


def _lines(value: Any, depth: int, refer: tuple[type, ...]) -> Iterator[str]:
    short = _short(value, refer)
    if short is not None or depth > MAX_DEPTH:
        yield short if short is not None else "…"
        return
    if is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__
        for f in fields(value):
            item = getattr(value, f.name)
            default = (
                f.default
                if f.default is not MISSING
                else f.default_factory()
                if f.default_factory is not MISSING
                else MISSING
            )
            if f.name not in _SKIPPED and (default is MISSING or (item is not default and item != default)):
                yield from _nested(f.name, item, depth, refer)
    elif isinstance(value, Mapping):
        yield "{}" if not value else "mapping"
        for key, item in value.items():
            yield from _nested(str(key), item, depth, refer)
    elif isinstance(value, (tuple, list, set, frozenset)):
        yield f"{len(value)} item{'' if len(value) == 1 else 's'}"
        for item in value:
            yield from _nested("-", item, depth, refer)
    else:
        yield " ".join(str(value).split())


def _nested(name: str, item: Any, depth: int, refer: tuple[type, ...]) -> Iterator[str]:
    lines = _lines(item, depth + 1, refer)
    mark = "- " if name == "-" else f"{name}: "
    yield f"  {mark}{next(lines)}"
    for line in lines:
        yield f"  {line}"


def _short(value: Any, refer: tuple[type, ...]) -> str | None:
    """Values that fit in a line."""
    if isinstance(value, Node):
        return f"{show(value)} : {value.type}"
    if isinstance(value, Type):
        return str(value)
    if isinstance(value, (Span, Source)):
        return "…"
    if isinstance(value, refer):
        return f"{type(value).__name__} {getattr(value, 'path', None) or getattr(value, 'name', '')}"
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)
    if isinstance(value, (tuple, list)) and all(v is None or isinstance(v, (str, int, float, bool)) for v in value):
        return repr(tuple(value))
    return None
