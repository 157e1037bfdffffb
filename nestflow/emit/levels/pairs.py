"""What one token brings to a tensor: a product of two vectors, which need not be formed.

At one tick a gradient is e hᵀ, and dgd's K is h hᵀ. So c (e hᵀ) is (c e) hᵀ, and W K + g is (W h + e) hᵀ: a rule works
on vectors, and its last addition meets the tensor. Leaf of the loop: pair(a, h), a [..., out] and h [..., in] of the
tick, the tensor a hᵀ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nestflow.emit.levels.leaves import unit
from nestflow.graph.globs import matches
from nestflow.ir import ops
from nestflow.ir.construct import construct, rewrite
from nestflow.ir.node import Node, make, walk
from nestflow.ir.ops import is_const
from nestflow.ir.rule import DgdStep

if TYPE_CHECKING:
    from nestflow.emit.levels.rule import RuleCode, Tensor


def pair(a: Node, h: Node) -> Node:
    """a hᵀ at the only tick."""
    like = ops.carried(a.type, h.type)
    shape = (*a.type.shape, *h.type.shape)
    return make("pair", (a, h), like.with_(shape=shape, clock=None, dtype="float"))


def ticked(x: Node) -> Node:
    """A number of the update as a number of its tick: the axis of the one tick stays, and that of its one feature."""
    if not _of_tick(x):
        return make("each_tick", (x,), x.type.with_(clock="T"), one=True)
    return rewrite([x], lambda n, args: widened(n.args[0]) if n.op == "last" else None)[0]


def widened(n: Node) -> Node:
    """A number as the vector of size 1 that it was taken from, where it is made of such."""
    if is_only(n):
        return n.args[0]
    if n.op not in ops.UNARY and n.op not in ops.BINARY:
        return n
    args = tuple(widened(a) for a in n.args)
    return n if args == n.args else construct(n.op, args, n)


def is_only(n: Node) -> bool:
    """Whether a node takes the number out of a vector of size 1."""
    return n.op == "index" and n.args[0].type.shape == (1,)


def bare(n: Node) -> Node:
    """The value without its sign."""
    return n.args[0] if n.op == "neg" else n


def times(by: Node, a: Node) -> Node:
    """by · a; of −1 the other sign."""
    if is_const(by, 1):
        return a
    if is_const(by, -1):
        return a.args[0] if a.op == "neg" else ops.unary("neg", a)
    return ops.binary("mul", by, a)


def _of_tick(x: Node) -> bool:
    """Whether a number is made of values of the tick and constants, number by number."""
    stack = [x]
    while stack:
        n = stack.pop()
        if n.op in ops.UNARY or n.op in ops.BINARY:
            stack.extend(n.args)
        elif n.op not in ("last", "const") and not n.type.clock:
            return False
    return True


def absorbed(node: Node) -> Node:
    """The value with its numbers multiplied into the vectors of pairs."""

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if not any(a.op == "pair" for a in args):
            return None
        if n.op == "stop":  # nothing here is differentiated
            return args[0]
        if n.op == "neg":
            return pair(times(ops.const(-1.0), args[0].args[0]), args[0].args[1])
        if n.op == "div" and args[0].op == "pair" and args[1].type.is_number:
            (a, h), by = args[0].args, ticked(args[1])
            return pair(ops.binary(n.op, a, by), h)
        for p, by in (args, args[::-1]) if n.op == "mul" else ():
            if p.op == "pair" and by.type.is_number:
                return pair(times(ticked(by), p.args[0]), p.args[1])
        if n.op in ("add", "sub") and all(x.op == "pair" for x in args) and args[0].args[1] is args[1].args[1]:
            return pair(ops.binary(n.op, args[0].args[0], args[1].args[0]), args[0].args[1])
        return None

    return rewrite([node], change)[0] if any(n.op == "pair" for n in walk(node)) else node


def dgd_of_pair(code: RuleCode, t: Tensor, s: DgdStep, h: Node) -> Node:
    """−η(w K + g) where K = k kᵀ and g = e hᵀ: −η(w k) kᵀ − η e hᵀ, η = lr/(1 + lr tr K) if exact."""
    assert t.memory.rule is not None
    normalize, only = t.memory.rule.inputs or (False, "**")
    lr, (e, _) = ticked(code.value(t, s.lr)), t.g.args
    if not matches(only, t.path):
        return pair(ops.binary("mul", times(ops.const(-1.0), lr), e), h)
    k, rate = unit(h) if normalize else h, times(ops.const(-1.0), lr)
    if s.exact:
        code.em.variable(rate)
        size = ops.reduce("sum", ops.unary("square", k), -1, keep=True)
        rate = ops.binary("div", rate, ops.binary("add", ops.const(1.0), ops.binary("mul", lr, size)))
    terms = [(ops.linear(k, t.w), k), (e, h)]
    if k is h:
        terms = [(ops.binary("add", terms[0][0], e), h)]
    first, *others = (pair(ops.binary("mul", rate, a), b) for a, b in terms)
    return ops.binary("add", first, others[0]) if others else first


def uses(nodes: Iterable[Node], op: str) -> int:
    """How often expressions ask for leaves of an operation."""
    roots = list(nodes)
    return sum(r.op == op for r in roots) + sum(a.op == op for n in walk(*roots) for a in n.args)


def shared(node: Node) -> list[Node]:
    """The numbers that stand beside the vectors of pairs: other tensors may have the same."""
    pairs = [n.args[0] for n in walk(node) if n.op == "pair"]
    return [x for a in pairs if a.op in ("mul", "div") for x in a.args if x.type.is_number and x.args]


__all__ = ["absorbed", "bare", "dgd_of_pair", "is_only", "pair", "shared", "ticked", "times", "uses", "widened"]
