"""Memories of one level that are computed side by side: one product for all of them where each had one of its own.

They have one function up to the width of what comes out, one rule with the same numbers, and take their errors at the
first state of chunks of one length. What they read and what they learn may differ. Memories that differ in more than
that stay apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from nestflow.graph.state import counters, state_tensors
from nestflow.ir.alike import Alike
from nestflow.ir.node import Node
from nestflow.lowering.linear_rule import LinearRule

if TYPE_CHECKING:
    from nestflow.lowering.plan import MemoryPlan


def side_by_side(plans: Sequence[MemoryPlan]) -> tuple[tuple[MemoryPlan, ...], ...]:
    """Groups of two memories and more; those in no group run on their own."""
    groups: dict[Hashable, list[MemoryPlan]] = {}
    inputs = Alike(_tensor, free=lambda n: n.type if n.type.clock else id(n))
    rates = Alike(_tensor)
    for p in plans:
        if _simple(p):
            groups.setdefault(_form(p, inputs, rates), []).append(p)
    return tuple(tuple(g) for g in groups.values() if len(g) > 1)


def _simple(p: MemoryPlan) -> bool:
    """Matrices that learn from outer products at one state of the chunk, and nothing that rows count for themselves."""
    m = p.memory
    if p.pattern != "chunk" or m.turns > 1 or p.rounds or m.link is not None or m.ages or m.retain_on != "number":
        return False
    if m.rule is None or any(s.shared for s in m.rule.slots):
        return False
    if m.reset is not None or m.reset_where is not None or m.when is not None or counters(m):
        return False
    return all(len(t.shape) == 2 and t.path in p.errors.factors for t in state_tensors(m)) and not p.errors.dense


def _form(p: MemoryPlan, inputs: Alike, rates: Alike) -> Hashable:
    m = p.memory
    tensors = tuple(
        (
            t.path,
            t.shape[1],
            tuple(inputs.code(h) for h, _ in p.errors.factors[t.path]),
            _numbers(p.rules[t.path], rates),
        )
        for t in state_tensors(m)
    )
    return m.heads, m.per, m.chunk, m.every, m.gradient, m.decay_first, tensors


def _numbers(rule: LinearRule, rates: Alike) -> Hashable:
    """The recurrence with its numbers."""
    carries = tuple((c.slot, rates.code(c.decay), tuple((w, rates.code(k)) for w, k in c.drive)) for c in rule.carries)
    return carries, rule.dgd is None


def _tensor(n: Node) -> Hashable | None:
    return n["tensor"] if n.op == "theta" else None
