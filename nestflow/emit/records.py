"""Records of levels outside flows: `total((outer - anchor) ^ 2)` as Python that acts on all tensors of a level."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nestflow.emit.operand import ATOM, Expr, expr_of
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter

RECORDS = "nestflow.ops.records"


def is_record(node: Node) -> bool:
    """Whether the value is a record in the generated code: below it, not inside a `total`, is a record."""
    stack, seen = [node], set[Node]()
    while stack:
        n = stack.pop()
        if n.op in ("record", "g", "w", "w0", "slot_old", "slot_new") and n.type.like:
            return True
        if n.op not in ("total", "norm_all") and n not in seen:
            seen.add(n)
            stack += n.args
    return False


def record(em: Emitter, node: Node) -> Expr:
    em.writer.use(RECORDS, "record")
    level, what = node["level"], node["what"]
    beside = f', "{what}({level})."' if what in ("before", "gradient") else ""
    return expr_of(f'record(c, LEVELS["{level}"]{beside})')


def _function(name: str) -> Callable[[Emitter, Node], Expr]:
    def emit(em: Emitter, node: Node) -> Expr:
        em.writer.use(RECORDS, name)
        e = em.done[node.args[0]]
        return expr_of(f"{name}({e.text})", ATOM, e)

    return emit


total, average, norm_all, norm_each = (_function(n) for n in ("total", "average", "norm_all", "norm_each"))


def reduced(em: Emitter, node: Node) -> Expr:
    """sum and mean of each tensor of a record."""
    e = em.done[node.args[0]]
    if node.op not in ("sum", "mean"):
        raise NotImplementedError(f"`{node.op}` of a record")
    return expr_of(f"{e.atom}.{node.op}()", ATOM, e)


def square_root(em: Emitter, node: Node) -> Expr:
    em.writer.use(RECORDS, "safe_sqrt")
    e = em.done[node.args[0]]
    return expr_of(f"safe_sqrt({e.text})", ATOM, e)


__all__ = ["average", "is_record", "norm_all", "norm_each", "record", "reduced", "square_root", "total"]
