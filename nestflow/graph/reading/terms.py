"""A loss of the whole model at one tick: its means over ticks and batch are taken at this tick and row alone."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.core import Span
from nestflow.graph.expressions import evaluate
from nestflow.graph.model import Instance
from nestflow.graph.published import published
from nestflow.ir import ops
from nestflow.ir.construct import number, rewrite
from nestflow.ir.node import Node, depends, walk
from nestflow.language import tree


def terms_of(objective: Node) -> Node:
    """ℓ_t, undivided: `cross_entropy` is the tick's own term (times its mask), a mean is that of the tick's features.

    An addend without a tick stands in it as it is, so it counts at each tick.
    """

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "cross_entropy":
            return summed(ops.cross_entropy(*args, smoothing=n["smoothing"], span=n.span, terms=True))
        if n.op == "mean_all":
            (x,) = args
            if x.type.dtype != "float":
                x = ops.binary("mul", ops.const(1.0), x, n.span)
            return ops.reduce("mean", x, span=n.span) if x.type.shape else x
        return None

    (terms,) = rewrite([objective], change)
    return number(terms) if terms.type.is_number else terms


def weight_of(elab: Any, f: tree.Field) -> Node:
    """`weight e`: a number at each tick, which is constant in the gradient."""
    node = terms_of(elab.as_node(evaluate(f.value, elab.top), f.value, "`weight`"))
    if not node.type.is_number or node.type.dtype == "bool":
        message = f"`weight` of weights that learn while reading is a number at each tick: this is {node.type}"
        raise elab.failure("NF322", message, f.span, "an input, or what a flow makes of it; `when` takes a condition")
    return ops.stop(node)


def condition_of(elab: Any, f: tree.Field) -> Node:
    """`when e`: at which ticks there is a term."""
    node = terms_of(elab.as_node(evaluate(f.value, elab.top), f.value, "`when`"))
    if node.type.dtype != "bool" or not node.type.is_number or node.type.clock != "T" or not node.type.batch:
        message = f"`when` of weights that learn while reading is a condition at each tick, and this is {node.type}"
        raise elab.failure("NF305", message, f.span, "`when loss > 2`, of the tick's own loss, or of an input")
    return node


def weighed(terms: Node, weight: Node | None, when: Node | None) -> Node:
    """The terms times their weight; 0 where there is none."""
    if weight is not None:
        terms = ops.binary("mul", weight, terms)
    return terms if when is None else ops.where(when, terms, ops.const(0.0))


def summed(x: Node) -> Node:
    """Several classes of one tick: their sum."""
    return ops.reduce("sum", x) if x.type.shape else x


def check_terms(elab: Any, terms: Node, f: tree.Field) -> None:
    """One number at each tick, that looks at most one token ahead, and at no later output."""
    if terms.type.clock != "T":  # N counts examples, which have no order
        message = "this loss has no term at a tick, and its level learns by tokens"
        raise elab.failure("NF407", message, f.span, "`objective cross_entropy(model(tokens), next(tokens))`, or steps")
    for n in walk(terms):
        if n.op == "call" and not n.type.batch:
            raise elab.not_yet("a loss on the token clock of a value that is the same in all rows", n.span or f.span)
        if n.type.short > 1:
            message = "a loss on the token clock looks at most one token ahead"
            raise elab.failure("NF435", message, n.span or f.span, "`next(tokens)`")
        if n.op == "next" and depends(n, lambda x: x.op == "call"):
            message = "`next` of what the model computes: the next token is read with what this tick's loss will teach"
            raise elab.failure("NF435", message, n.span or f.span, "`next` of an input: `next(tokens)`")
    if not terms.type.is_number:
        raise elab.failure("NF407", f"an objective is one number a tick: this is {terms.type}", f.span)


def check_around(elab: Any, root: Instance, terms: list[Node], output: Node | None, span: Span | None) -> None:
    """What a segment that is run row by row, and again, leaves to others."""
    nodes = [*terms, *([] if output is None else [output]), *(i.result for i in root.walk() if i.result is not None)]
    for n in walk(*nodes):
        if n.op == "es":
            raise elab.not_yet("`es` on the token clock", n.span or span)
        alike = n.op in ("emit", "emitted") and not all(a.type.batch for a in n.args)
        if alike:
            raise elab.not_yet("`emit` of a value that is the same in all rows, of rows that learn,", n.span or span)
        if n.op in ("network", "network_result"):
            raise elab.not_yet("a network of your own in a model whose weights learn while it reads", n.span or span)
    for name, types in published(root).items():
        if len({(t.shape, t.clock) for t in types}) > 1:  # what rows publish is joined name by name
            raise elab.not_yet(f"values of several shapes as `{name}`, published by rows that learn,", span)
    for i in root.walk():
        if any(m.cache is not None and not m.cache.causal for m in i.memories):
            raise elab.not_yet("`causal = false` in a model whose weights learn while it reads", i.span or span)
    outputs = () if output is None else output.args if output.op == "outputs" else (output,)
    same = next((x for x in outputs if not x.type.batch), None)
    if same is not None:
        raise elab.not_yet("an output that is the same in all rows, of rows that learn", same.span or span)


__all__ = ["check_around", "check_terms", "condition_of", "terms_of", "weighed", "weight_of"]
