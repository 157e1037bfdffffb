"""`es(e, sigma, pairs)`: an objective whose gradient is estimated from its values alone (evolution strategies)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nestflow.diagnostics.core import Span
from nestflow.graph.expressions import evaluate
from nestflow.graph.model import StepLevel
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, depends, make, rebuild, walk
from nestflow.ir.rule import DgdStep
from nestflow.language import tree

MOST_PAIRS = 10_000
SHAPE = "`es(loss, sigma = 0.05, pairs = 16)`"


def es_word(elab: Any, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
    """The node of `es(e, sigma, pairs)`; whose tensors are disturbed is known when the levels are (`settled`)."""
    values: dict[str, Any] = dict(zip(("e", "sigma", "pairs"), piped))
    at: dict[str, tree.Expr] = dict.fromkeys(values, site)
    names = ("e", "sigma", "pairs")[len(values) :]
    for name, expr in [*zip(names, args, strict=False), *kwargs]:
        if name not in ("e", "sigma", "pairs"):
            raise elab.unknown_slot("es", name, ["e", "sigma", "pairs"], expr)
        if name in at:
            raise elab.failure("NF211", f"`{name}` of `es` is given twice", expr.span)
        values[name], at[name] = evaluate(expr, elab.top), expr
    if len(args) > len(names) or len(values) != 3:
        message = "`es` takes an objective, the size of its disturbances and how many pairs of them"
        raise elab.failure("NF214", message, site.span, SHAPE)
    e = elab.as_node(values["e"], at["e"], "`es`")
    sigma = elab.as_node(values["sigma"], at["sigma"], "`sigma`")
    if sigma.op != "const" or not 0 < float(sigma.value) < math.inf:
        raise elab.failure("NF304", "`sigma` of `es` is a number above 0", at["sigma"].span, SHAPE)
    n = elab.as_node(values["pairs"], at["pairs"], "`pairs`")
    if n.op != "const" or isinstance(n.value, bool) or n.value != int(n.value) or not 1 <= n.value <= MOST_PAIRS:
        raise elab.failure("NF304", f"`pairs` is a whole number from 1 to {MOST_PAIRS:,}", at["pairs"].span, SHAPE)
    if e.type.like or e.type.dtype != "float":
        raise elab.failure("NF407", f"an objective is one number: this is {e.type}", at["e"].span)
    if depends(e, is_es):
        raise elab.failure("NF205", "`es` inside `es`: the inner one is asked for its value alone", site.span)
    e = e if not e.type.shape and not e.type.batch else ops.mean_all(e, at["e"].span)
    return make("es", (e,), Type(), site.span, sigma=float(sigma.value), pairs=int(n.value), weights=())


def is_es(n: Node) -> bool:
    return n.op == "es"


def settled(objectives: Mapping[str, Node | None], owned: Mapping[str, Sequence[str]]) -> dict[str, Node | None]:
    """The objectives with the tensors that each `es` disturbs: all those that learn from it, by absolute path."""
    owners: dict[Node, dict[str, None]] = {}
    for name, node in objectives.items():
        if node is not None:
            owners.setdefault(node, {}).update(dict.fromkeys(owned.get(name, ())))

    def put(node: Node) -> Node:
        paths = tuple(owners[node])

        def change(n: Node, args: tuple[Node, ...]) -> Node | None:
            if not is_es(n):
                return None
            return make("es", args, n.type, n.span, **{**dict(n.attrs), "weights": paths})

        return rebuild(node, change)

    return {n: put(x) if x is not None and depends(x, is_es) else x for n, x in objectives.items()}


def misplaced(elab: Any, *nodes: Node | None) -> None:
    """Raises NF205 where an `es` stands outside the objective of a level that has no slots."""
    found = next((n for n in walk(*(n for n in nodes if n is not None)) if is_es(n)), None)
    if found is not None:
        message = "`es` stands in the `objective` of a level without slots, and nowhere else"
        raise elab.failure("NF205", message, found.span, f"`objective {SHAPE[1:-1]}`")


def check_level(elab: Any, level: StepLevel, span: Span | None) -> None:
    """What a level cannot ask of an estimate. Raises NF490."""
    if level.rule is None or level.objective is None or not depends(level.objective, is_es):
        return
    if level.inner is not None:
        raise elab.not_yet("`es` in a level that begins anew in every step", span)
    if any(p.partition(".")[0] in elab.networks for p in level.weights):
        raise elab.not_yet("`es` of the weights of a network of your own", span)
    dgd = any(isinstance(s, DgdStep) for s in level.rule.program)
    nodes = [level.rule.expand(n) for n in level.rule.nodes()]
    word = next((n.op for n in walk(*nodes) if n.op in ("curvature", "w_in")), "dgd" if dgd else None)
    if word is not None:
        raise elab.not_yet(f"`{word}` in a level whose gradient `es` estimates", span)


__all__ = ["check_level", "es_word", "is_es", "misplaced", "settled"]
