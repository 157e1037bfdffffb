"""What an objective's gradient can reach: a level whose own tensors are out of its reach would never learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nestflow.graph.evolution import is_es
from nestflow.graph.model import Instance, StepLevel, TokenLevel, named_level
from nestflow.ir.node import Node, depends, through, walk
from nestflow.ir.rule import DgdStep, Rule


def check_reach(
    elab: Any,
    children: Mapping[str, Instance],
    steps: Sequence[StepLevel],
    reading: Sequence[TokenLevel] = (),
) -> None:
    """Tell the levels that learn from a gradient which is zero for ever (NF407)."""
    table = {x.name: x for x in steps}
    owner = {p: x.name for x in steps for p in x.weights}
    inside = {name: frozenset(_weights(c)) | _lent(c, owner) for name, c in children.items()}
    for x in (*steps, *reading):
        objective = x.terms if isinstance(x, TokenLevel) else x.objective
        if objective is None or not x.weights or not _uses_gradient(x.rule):
            continue
        reached = _reached(objective, table, owner, inside)
        if not reached.isdisjoint(x.weights):
            continue
        message = f"`{x.name}` would never learn: no gradient of `{x.texts.value or x.texts.objective}` reaches "
        others = sorted({owner[p] for p in reached if p in owner} - {x.name})
        message += "what it stores" + (f"; it reaches `{others[0]}`" if others else "")
        elab.collector.error("NF407", message, x.span, _way_out(x))


def _way_out(x: StepLevel | TokenLevel) -> str:
    if isinstance(x, StepLevel) and x.inner is not None:
        return f"recall the level's own memory in its objective, outside `stop(…)`: `{x.name}(…)`"
    if isinstance(x, StepLevel) and x.state:
        return f"name the level in its objective: `total(square({x.name} - …))`; or give it a `value`"
    flow = x.weights[0].partition(".")[0]
    where = "outside `stop`, `sign` and comparisons"
    return f"call `{flow}` in its objective, {where}; where nothing is to be learned: `every never`"


def _uses_gradient(rule: Rule | None) -> bool:
    """Whether a step or a memory of the rule reads the gradient."""
    for s in () if rule is None else rule.program:
        if isinstance(s, DgdStep) or any(n.op in ("g", "gram", "curvature") for n in walk(s.value)):
            return True
    return False


def _reached(
    objective: Node, table: dict[str, StepLevel], owner: dict[str, str], inside: dict[str, frozenset[str]]
) -> set[str]:
    """Absolute paths of the tensors that the objective depends on, through what learns inside the step too."""
    found: set[str] = set()
    seen: set[str] = set()
    stack = [objective]
    while stack:
        node = stack.pop()
        for n in walk(node) if depends(node, is_es) else through(node):  # `es` asks for values alone
            if n.op == "weight":
                found.add(n["path"])
            elif n.op == "network":
                found |= {p for p in owner if p.startswith(f"{n['network']}.")}
            name = named_level(n)
            if not name or name in seen or n.get("what") == "gradient":
                continue
            seen.add(name)
            found |= inside.get(name, frozenset())
            level = table.get(name)
            if level is not None:
                found |= {*level.weights, *(source for _, source in level.start)}
                # under `gradient stop` its steps are constants: only what it began at is reached
                if level.inner is not None and level.objective is not None and level.inner.gradient != "stop":
                    stack.append(level.objective)
    return found


def _lent(i: Instance, owner: Mapping[str, str]) -> frozenset[str]:
    """Paths of the owned weights of networks of the caller that the instance calls, or any below it."""
    called: set[str] = set()
    for x in i.walk():
        roots = [x.result, *(n for _, n in x.names)]
        called |= {n["network"] for n in walk(*(r for r in roots if r is not None)) if n.op == "network"}
    return frozenset(p for p in owner if p.partition(".")[0] in called)


def _weights(i: Instance) -> Iterator[str]:
    """The slow weights of an instance and of all below it, by absolute path."""
    for x in i.walk():
        for w in x.weights:
            yield f"{x.path}.{w.path}"
