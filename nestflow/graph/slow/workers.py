"""`per worker(n)`: n copies of a level that live on, each of which learns from its part of every batch (DiLoCo)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nestflow.graph.contents import called, draws
from nestflow.graph.expressions import integer
from nestflow.graph.model import StepLevel
from nestflow.graph.published import published
from nestflow.graph.slow.state import OWNING, is_inner
from nestflow.ir.node import walk
from nestflow.ir.rule import DgdStep
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.slow.steps import StepLevels

MOST = 4096


def for_workers(s: StepLevels, level: tree.Level, fields: dict[str, tree.Field], made: StepLevel) -> StepLevel:
    """The level with the tensors of all its copies; as it is where it has one state.

    Raises NF231 (weights of a flow have no copies), NF406 (how many), NF490 (what copies cannot do)."""
    if s.elab.slow.copied(level.name) != "worker":
        return made
    f = fields["per"]
    if s.elab.slow.kind(level.name) in OWNING:
        message = f"`{level.name}` owns the weights of a flow, which are one, and `per worker` makes copies"
        raise s.elab.failure("NF231", message, f.span, "`memory net; init outer`, outer the level on `weights(net)`")
    n = count(s, f)
    check(s, level, fields, made)
    table = dict(made.start)

    def path(i: int, p: str) -> str:
        return f"{made.prefix}{i}.{p.removeprefix(made.prefix)}"

    return replace(
        made,
        copies=n,
        weights=tuple(path(i, p) for i in range(n) for p in made.weights),
        state=tuple(replace(w, path=path(i, w.path)) for i in range(n) for w in made.state),
        start=tuple((path(i, p), table[p]) for i in range(n) for p in made.weights if p in table),
    )


def count(s: StepLevels, f: tree.Field) -> int:
    """How many workers there are."""
    e = f.value
    if not isinstance(e, tree.Call) or len(e.args) != 1 or e.kwargs:
        raise s.elab.failure("NF231", "`per worker` says how many workers there are", f.span, "`per worker(4)`")
    n = integer(e.args[0], s.elab.top, "the number of workers")
    if not 1 <= n <= MOST:
        raise s.elab.failure("NF406", f"there are 1 to {MOST} workers, and this is {n}", e.args[0].span)
    return n


def check(s: StepLevels, level: tree.Level, fields: dict[str, tree.Field], made: StepLevel) -> None:
    """What the copies of a level that lives on cannot do."""
    elab, name = s.elab, level.name
    nodes = [n for n in (made.objective, made.when) if n is not None]
    for n in walk(*nodes):
        at = n.span or level.span
        other = n["child"] if n.op == "call" else n["level"] if n.op == "record" else ""
        if n.op == "es":
            raise elab.not_yet("`es` in a level that has a copy for each worker", at)
        if n.op == "record" and other == name and n["what"] in ("before", "gradient"):
            raise elab.not_yet(f"what `{name}` was, or its gradient, in a level that has a copy for each worker", at)
        if other in elab.slow.levels and other != name:
            if elab.slow.copied(other):
                raise elab.not_yet("a level with a copy for each worker that reads another one", at)
            if is_inner(s.fields.get(other, {})):
                raise elab.not_yet(f"`{other}`, a level inside the step, in one that has a copy for each worker", at)
    for child in called(elab.root, nodes):
        if published(child):
            raise elab.not_yet("`emit` in what a level with a copy for each worker learns from", level.span)
        if draws(child):
            raise elab.not_yet("chance in what a level with a copy for each worker learns from", level.span)
        if any(m.per != "sequence" for i in child.walk() for m in i.memories):
            raise elab.not_yet("a memory that goes on beyond its sequence, in a level per worker", level.span)
    rule = made.rule
    if rule is not None:
        if any(isinstance(x, DgdStep) for x in rule.program):
            raise elab.not_yet("`dgd` in a level that has a copy for each worker", fields["update"].span)
        if any(n.op in ("curvature", "w_in", "gram") for n in walk(*rule.nodes())):
            raise elab.not_yet(
                "`curvature` and `w_in` in a level that has a copy for each worker", fields["update"].span
            )


__all__ = ["for_workers"]
