"""Whether a step may be captured once and replayed: all that changes from step to step lies in tensors."""

from __future__ import annotations

from nestflow.diagnostics.core import Span
from nestflow.graph.contents import DRAWS, draws, nodes_of
from nestflow.graph.model import LevelGraph, StepLevel
from nestflow.ir.node import walk

Reason = tuple[str, Span | None]


def not_captured(graph: LevelGraph) -> Reason | None:
    """Why a step may not be the same work each time, done by the device alone: a sentence and its place; or None."""
    if graph.networks:
        return "a network of yours may do other work in each", graph.networks[0].span
    if graph.token_levels:
        return "weights that learn while the module reads are not captured", graph.token_levels[0].span
    for i in graph.root.walk():
        for m in i.memories:
            if m.per == "model":
                return f"a memory of `{i.path or graph.name}` goes on from step to step (`per model`)", m.span
        if any(n.op == "py" for n in nodes_of(i)):
            return "a Python function of yours may do other work in each", i.span
    if draws(graph.root):
        return "what it draws is a function of the step's number", None
    for level in graph.step_levels:
        found = _of_level(level)
        if found is not None:
            return found, level.span
    return None


def _of_level(level: StepLevel) -> str | None:
    name, rule = f"`{level.name}`", level.rule
    if level.inner is not None:
        return f"{name} learns inside the step"
    if level.copies:
        return f"{name} has workers"
    if rule is not None and rule.inputs is not None:
        return f"the update of {name} watches the inputs of its weights"
    if rule is not None and any(n.op == "curvature" for n in walk(*rule.nodes())):
        return f"the update of {name} reads the curvature at some steps"
    roots = [n for n in (level.objective, level.when) if n is not None]
    if any(n.op in DRAWS for n in walk(*roots)):
        return f"what the objective of {name} draws is a function of the step's number"
    if any(n.op == "record" and n["what"] in ("before", "gradient") for n in walk(*roots)):
        return f"{name} reads what another level had before it learned"
    return None


__all__ = ["not_captured"]
