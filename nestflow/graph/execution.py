"""`execution { … }`: how a spec is computed, never what. Its settings stand where `compile` is told nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from nestflow.diagnostics.core import NestflowError, Span, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.capture import not_captured
from nestflow.graph.microbatch import whole_batch
from nestflow.graph.model import LevelGraph
from nestflow.language import tree

DTYPES = ("float32", "float64", "bfloat16", "float16")
BACKENDS = ("auto", "torch", "whole", "triton", "fla")
LARGEST_BLOCK = 1024
MOST_PARTS = 2**20


@dataclass(frozen=True)
class Setting:
    """fits: whether a value is one. what: the values, in words. example: as it stands in a spec."""

    fits: Callable[[Any], bool]
    what: str
    example: str
    names: tuple[str, ...] = ()


def _whole(x: Any, least: int, most: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and least <= x <= most


SETTINGS: Mapping[str, Setting] = {
    "dtype": Setting(
        lambda x: x in DTYPES, "a floating type of weights: " + ", ".join(DTYPES), "dtype float32", DTYPES
    ),
    "device": Setting(lambda x: isinstance(x, str), "a name or a text", 'device "cuda:0"'),
    "compile": Setting(lambda x: isinstance(x, bool), "true or false", "compile true"),
    "checkpointing": Setting(
        lambda x: x in ("none", "auto") or _whole(x, 1, 10**6),
        "none, auto, or the number of pieces that run again together in the backward pass",
        "checkpointing auto",
        ("none", "auto"),
    ),
    "block": Setting(
        lambda x: _whole(x, 1, LARGEST_BLOCK), f"a whole number of ticks from 1 to {LARGEST_BLOCK}", "block 32"
    ),
    "capture": Setting(lambda x: isinstance(x, bool), "true or false", "capture true"),
    "backend": Setting(lambda x: x in BACKENDS, "one of " + ", ".join(BACKENDS), "backend auto", BACKENDS),
    "microbatch": Setting(lambda x: _whole(x, 1, MOST_PARTS), "a whole number of parts, at least 1", "microbatch 4"),
}


def settings(elab: Any, s: tree.Execution) -> list[tuple[str, Any]]:
    """The settings of a block. Raises NF217 (no field), NF221 (unknown), NF222 (twice), NF325 (no such value)."""
    found: dict[str, Any] = {}
    for f in s.body:
        if not isinstance(f, tree.Field):
            raise elab.failure("NF217", "this statement cannot stand in `execution`", f.span, "it has fields only")
        if f.name not in SETTINGS:
            help_ = did_you_mean(f.name, SETTINGS) or "its fields are " + ", ".join(SETTINGS)
            raise elab.failure("NF221", f"`execution` has no field `{f.name}`", f.name_span or f.span, help_)
        if f.name in found:
            raise elab.failure("NF222", f"`{f.name}` is given twice", f.span, "keep one of them")
        found[f.name] = _value(elab, f)
    return list(found.items())


def _value(elab: Any, f: tree.Field) -> Any:
    e, setting = f.value, SETTINGS[f.name]
    value = getattr(e, "name", None) if isinstance(e, tree.Name) else getattr(e, "value", None)
    if isinstance(e, tree.Name) and not setting.names and f.name != "device":  # a param
        from nestflow.graph.expressions import evaluate

        value = elab.as_node(evaluate(e, elab.top), e).get("value")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not setting.fits(value):
        help_ = did_you_mean(str(value), setting.names) or f"`{setting.example}`"
        raise elab.failure("NF325", f"`{f.name}` of `execution` is {setting.what}", e.span, help_)
    return value


def fitting(graph: LevelGraph) -> LevelGraph:
    """The graph, if its settings fit what it computes. Raises NF549 where `microbatch` cannot, NF552 where `capture`
    cannot."""
    if dict(graph.execution).get("microbatch", 1) > 1:
        found = whole_batch(graph)
        if found is not None:
            message = f"`microbatch` cuts the batch, and {found[0]}"
            raise fail("NF549", message, found[1], "leave `microbatch` out; `checkpointing` saves memory too")
    if dict(graph.execution).get("capture", False):
        found = not_captured(graph)
        if found is not None:
            message = f"`capture` replays a step as it was, and {found[0]}"
            raise fail("NF552", message, found[1], "leave `capture` out; `compile` makes fewer launches too")
    return graph


@contextmanager
def at_setting(body: Sequence[tree.Statement], name: str) -> Generator[None]:
    """What goes wrong inside, and has no place of its own, is told where a spec says this setting."""
    try:
        yield
    except NestflowError as e:
        span = _said_at(body, name)
        raise NestflowError([replace(d, span=d.span or span) for d in e.diagnostics]) from None


def _said_at(body: Sequence[tree.Statement], name: str) -> Span | None:
    found = None
    for s in body:
        if isinstance(s, tree.Execution):
            found = next((f.span for f in s.body if isinstance(f, tree.Field) and f.name == name), found)
        elif isinstance(s, tree.If):
            found = _said_at((*s.body, *s.otherwise), name) or found
    return found


def problem(given: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """What is wrong with settings that were told in Python or a file: a sentence and its help, or None."""
    for name, value in given.items():
        if name not in SETTINGS:
            return f"`execution` has no field `{name}`", did_you_mean(str(name), SETTINGS) or (
                "its fields are " + ", ".join(SETTINGS)
            )
        if not SETTINGS[name].fits(value):
            return f"`{name}` of `execution` is {SETTINGS[name].what}", f"not {value!r:.60}"
    return None
