"""What stands outside flows: what instances publish beside their results, and the tensors of levels (records)."""

from __future__ import annotations

from nestflow.diagnostics.core import Span
from nestflow.ir.node import Node, Type, make
from nestflow.ir.shapes import broadcast_shapes, carried


def emit(x: Node, published: list[tuple[str, Node]]) -> Node:
    """x itself; what stands beside it is published under its name each time this is computed."""
    if not published:
        return x
    names = tuple(n for n, _ in published)
    return make("emit", (x, *(v for _, v in published)), x.type, x.span, names=names)


def emitted(name: str, calls: tuple[Node, ...], types: list[Type], span: Span | None = None) -> Node:
    """Σ over the instances of what they publish under a name; a value per head counts once for each head."""
    base = carried(*(t.with_(heads=None) for t in types))
    shape = broadcast_shapes(*(t.shape for t in types))
    return make("emitted", calls, base.with_(dtype="float", shape=shape), span, name=name)


def record(level: str, what: str = "now", span: Span | None = None) -> Node:
    """The tensors of a level as one value, like w."""
    return make("record", (), Type(like=True), span, level=level, what=what)


def total(x: Node, span: Span | None = None) -> Node:
    """Σ over all tensors of a record: one number."""
    return make("total", (x,), Type(), span)
