"""What the tests of the level graph build with."""

from __future__ import annotations

import textwrap
from typing import Any

from nestflow.diagnostics.core import Diagnostic, NestflowError
from nestflow.graph.build import build
from nestflow.graph.model import Instance, LevelGraph, Memory
from nestflow.language.resolve import load

HEAD = "nestflow 1\n"


def graph(text: str, **params: Any) -> LevelGraph:
    """The graph of a spec without its first line."""
    return build(load(HEAD + textwrap.dedent(text), params))


def flow(body: str, inputs: str = "input x : float[T, 8]") -> LevelGraph:
    """The graph of one flow of x."""
    return graph(f"{inputs}\noutput f(x)\nflow f(x) {{\n{body}\n}}\n")


LEVEL = {
    "memory": "matrix",
    "key": "x |> linear |> l2norm",
    "value": "x |> linear",
    "query": "x |> linear",
    "objective": "l2",
    "update": "gd(0.1)",
}


def level(heads: int | None = None, width: int = 8, extra: str = "", **fields: str | None) -> LevelGraph:
    """The graph of one level of x; a field that is None is left out, `returns` is its `return`."""
    returns = fields.pop("returns", None)
    written = {**({} if heads is None else {"heads": str(heads)}), **LEVEL, **fields}
    lines = [f"  {k} {v}" for k, v in written.items() if v is not None]
    lines += [extra] if extra else []
    lines += [f"  return {returns}"] if returns else []
    return graph(f"input x : float[T, {width}]\noutput m(x)\nlevel m(x) {{\n" + "\n".join(lines) + "\n}\n")


def instance(g: LevelGraph) -> Instance:
    """The only level of the graph."""
    (found,) = [i for i in g.root.walk() if i.kind == "level"]
    return found


def memory(g: LevelGraph, name: str = "memory") -> Memory:
    return next(m for m in instance(g).memories if m.name == name)


def mistakes(act: Any) -> tuple[Diagnostic, ...]:
    """What an act that must fail says."""
    try:
        act()
    except NestflowError as e:
        return e.diagnostics
    raise AssertionError("nothing was wrong")


def codes(act: Any) -> list[str]:
    return [d.code for d in mistakes(act)]


def mistake(act: Any) -> Diagnostic:
    """The one mistake of an act."""
    (d,) = mistakes(act)
    return d


def paths(g: LevelGraph) -> list[str]:
    """Of all weights, in order of creation."""
    return [w.path for w in g.weights]


def shapes(g: LevelGraph) -> dict[str, tuple[int, ...]]:
    """Of all weights, head axis included."""
    return {w.path: w.full_shape for w in g.weights}
