"""Records of levels outside flows: `total((outer - anchor) ^ 2)` as Python that acts on all tensors of a level."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nestflow.diagnostics.core import fail
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
        if n.op in ("record", "g", "w", "w0", "slot_old", "slot_new", "fact") and (n.type.like or n.op == "fact"):
            return True
        if n.op not in ("total", "norm_all") and n not in seen:
            seen.add(n)
            stack += n.args
    return False


def record(em: Emitter, node: Node) -> Expr:
    level, what = node["level"], node["what"]
    if what == "copies" and level in em.workers:
        em.writer.use("nestflow.ops.workers", "copies")
        return expr_of(f'copies(c, LEVELS["{level}"], {em.workers[level]})')
    em.writer.use(RECORDS, "record")
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
        raise fail("NF490", f"`{node.op}` of a record is not built yet", node.span, "`ROADMAP.md` says what is to come")
    return expr_of(f"{e.atom}.{node.op}()", ATOM, e)


def square_root(em: Emitter, node: Node) -> Expr:
    em.writer.use(RECORDS, "safe_sqrt")
    e = em.done[node.args[0]]
    return expr_of(f"safe_sqrt({e.text})", ATOM, e)


def pairwise(em: Emitter, node: Node) -> Expr:
    """max and min of records: of each tensor with the other's, or with a number."""
    name = {"max": "maximum", "min": "minimum"}[node.op]
    em.writer.use("nestflow.ops.blocks", name)
    a, b = sorted(node.args, key=lambda n: not is_record(n))
    x, y = em.done[a], em.done[b]
    return expr_of(f"{x.atom}.each({name}, {y.text})", ATOM, x, y)


def one_by_one(em: Emitter, node: Node) -> Expr:
    """A function of matrices, of each tensor alone."""
    from nestflow.emit.ops import OPERATIONS

    a = node.args[0]
    x = em.done[a]
    em.done[a] = Expr("v", ATOM)
    inside = OPERATIONS[node.op](em, node)
    em.done[a] = x
    return expr_of(f"{x.atom}.each(lambda v: {inside.text})", ATOM, x)


def choice(em: Emitter, node: Node) -> Expr:
    """a if c else b, where the condition or a side is a record."""
    em.writer.use(RECORDS, "choice")
    parts = [em.done[a] for a in node.args]
    return expr_of(f"choice({', '.join(p.text for p in parts)})", ATOM, *parts)


SPECIAL = {
    "where": choice,
    **dict.fromkeys(("sum", "mean", "amax", "amin"), reduced),
    "sqrt": square_root,
    "max": pairwise,
    "min": pairwise,
    "newton_schulz": one_by_one,
}
"""What is written in another way where it acts on records."""


__all__ = ["SPECIAL", "average", "is_record", "norm_all", "norm_each", "record", "total"]
