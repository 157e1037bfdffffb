"""What would make a memory that is scanned faster: edits of the spec, each tried on the memory before it is told.

An edit is another model. So it is advice for who writes the spec, and never done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from nestflow.graph.model import Instance, Memory
from nestflow.ir import ops
from nestflow.ir.node import walk
from nestflow.ir.rule import Step
from nestflow.lowering.patterns import PATTERNS, Setting
from nestflow.lowering.plan import MemoryPlan, lower_memory

SHORT = 16  # ticks of a chunk that is worth its name


@dataclass(frozen=True)
class Advice:
    """edit: what to write, in words. pattern: what the memory is lowered to then."""

    edit: str
    pattern: str

    def __str__(self) -> str:
        return f"with {self.edit}: {self.pattern}"


Edit = tuple[str, Callable[[Memory], Memory]]


def advice(plan: MemoryPlan, instance: Instance) -> tuple[Advice, ...]:
    """The smallest edits after which a scanned memory has a closed form: those of one change, else of two. Nothing
    where it is not scanned, or no such edit is known."""
    if plan.pattern != "scan" or plan.memory.per == "model":
        return ()
    edits = list(_edits(plan.memory))
    for count in (1, 2):
        found = []
        for chosen in combinations(edits, count):
            changed = plan.memory
            for _, change in chosen:
                changed = change(changed)
            tried = lower_memory(changed, Setting(_with(instance, plan.memory, changed)), PATTERNS)
            if tried.closed:
                found.append(Advice(" and ".join(words for words, _ in chosen), tried.pattern))
        if found:
            return tuple(found)
    return ()


def _with(instance: Instance, old: Memory, new: Memory) -> Instance:
    return replace(instance, memories=tuple(new if m is old else m for m in instance.memories))


def _edits(m: Memory) -> Iterator[Edit]:
    """What can be written otherwise, one field each, the smallest change of the model first."""
    chunk = max(SHORT, 4 * m.every) // m.every * m.every
    if m.chunk == m.every and not m.decay_first:
        yield f"`chunk {chunk}`", lambda m: replace(m, chunk=chunk)
    if m.decay_first:
        yield "`retain` without `decay_first`", lambda m: replace(m, decay_first=False)
        yield (
            f"`retain` without `decay_first`, and `chunk {chunk}`",
            lambda m: replace(m, decay_first=False, chunk=max(m.chunk, chunk)),
        )
    if m.every > 1:
        longer = max(m.chunk, m.every)
        yield f"`every 1 token; chunk {longer}`", lambda m: replace(m, every=1, chunk=longer)
    if m.retain is not None and m.retain_on != "number":
        constant = ops.const(0.9)
        yield "a `retain` of one number", lambda m: replace(m, retain=constant, retain_on="number")
    if m.when is not None:
        yield "no `when`", lambda m: replace(m, when=None)
    if m.reset_where is not None:
        yield "no `reset where`", lambda m: replace(m, reset_where=None)
    if m.rounds:
        yield "`rounds 1`", lambda m: replace(m, rounds=(), turns=1)
    if m.link is not None:
        yield "a memory that is read as it is kept (no `project`)", lambda m: replace(m, link=None)
    if m.rule is not None and m.rule.project is not None:
        yield "no `project`", _no_projection
    if m.rule is not None:
        yield "an update that is linear in g, as `momentum`", _linear


def _no_projection(m: Memory) -> Memory:
    assert m.rule is not None
    return replace(m, rule=replace(m.rule, project=None))


def _linear(m: Memory) -> Memory:
    """The memory with plain steps along −g in place of its rule."""
    assert m.rule is not None
    g = next(n for n in walk(*m.rule.nodes()) if n.op == "g")
    step = Step(ops.binary("mul", ops.const(-0.1), g))
    return replace(m, rule=replace(m.rule, slots=(), program=(step,), arguments=(), gradient=g))


__all__ = ["Advice", "advice"]
