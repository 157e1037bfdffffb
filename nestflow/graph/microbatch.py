"""Whether a batch may be cut in parts of rows: the step's objectives are then the weighted means of those of the parts.

It may where each objective is made of means over the batch, by sums and by factors that the batch does not change, and
where nothing below it looks from one row to another.
"""

from __future__ import annotations

from nestflow.diagnostics.core import Span
from nestflow.graph.model import LevelGraph, StepLevel
from nestflow.ir.node import Node, walk

MEANS = ("mean_all", "cross_entropy")
Reason = tuple[str, Span | None]


def whole_batch(graph: LevelGraph) -> Reason | None:
    """Why a step needs its batch as a whole: a sentence and its place; or None."""
    if graph.networks:
        return "a network of yours may look at the batch as a whole", graph.networks[0].span
    for i in graph.root.walk():
        for m in i.memories:
            if m.per == "model":
                return f"all rows write the one copy of a memory of `{i.path or graph.name}` (`per model`)", m.span
    for level in graph.step_levels:
        found = _of_level(level)
        if found is not None:
            return found, level.span
    return None


def _of_level(level: StepLevel) -> str | None:
    name = f"`{level.name}`"
    if level.copies:
        return f"the workers of {name} share the batch (`per worker`)"
    if level.inner is not None:
        return None if level.inner.copies == "task" else f"{name} learns from the whole batch inside the step"
    rule = level.rule
    if rule is not None and rule.inputs is not None:
        return f"the update of {name} reads the inputs of its weights over the whole batch"
    if rule is not None and any(n.op == "curvature" for n in walk(*rule.nodes())):
        return f"the update of {name} reads the curvature of the whole batch"
    if level.objective is None:
        return None
    if any(n.op == "es" for n in walk(level.objective)):
        return f"the gradient of {name} is estimated from the whole batch (`es`)"
    return _not_mean(level.objective, name)


def _not_mean(node: Node, name: str) -> str | None:
    """Why a number is no sum of means over the batch, each times what the batch does not change."""
    if node.op in MEANS:
        if any(n.op in MEANS for a in node.args for n in walk(a) if _from_batch(n)):
            return f"the objective of {name} reads a mean of the whole batch in each row"
        if node.op == "cross_entropy" and len(node.args) > 2:
            return f"the objective of {name} has a mask, and is the mean over what the whole batch leaves in"
        return None
    if not _from_batch(node):
        return None
    parts = [a for a in node.args if _from_batch(a)]
    linear = node.op in ("add", "sub", "neg") or (
        len(parts) == 1 and (node.op == "mul" or (node.op == "div" and parts[0] is node.args[0]))
    )
    if not linear:
        return f"the objective of {name} is no sum of means over rows"
    return next((found for a in parts if (found := _not_mean(a, name)) is not None), None)


def _from_batch(node: Node) -> bool:
    return any(n.type.batch for n in walk(node))


__all__ = ["whole_batch"]
