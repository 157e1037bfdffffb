"""`nestflow explain SPEC`: how each memory is computed, why not faster, what it costs, how long it remembers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nestflow.graph.model import LevelGraph, Memory
from nestflow.graph.state import state_tensors
from nestflow.lowering.advice import Advice, advice
from nestflow.lowering.cost import half_life, multiply_adds, states
from nestflow.lowering.explain_slow import pieces_texts, reading_text, step_level_text
from nestflow.lowering.plan import LevelPlan, MemoryPlan, Plan, lower

MEANING = {
    "cache": "scaled dot-product attention over the kept pairs",
    "recurrence": "a linear recurrence, {ticks}",
    "delta": "the delta rule in closed form (one triangular system), {ticks}",
    "chunk": "all errors of a chunk at its first state, then the rule in closed form, {ticks}",
    "frozen": "it stays as it started",
    "scan": "sequential: the rule on the tensors themselves, {every}",
}


@dataclass(frozen=True)
class Explanation:
    """One memory. row: its name in the level table. pattern: how it is lowered (`how` in words), always exact.
    reasons: why the faster patterns did not apply. faster: edits of the spec after which one would.
    kernel: which backend computes it, or why the one that `execution` names does not (None: it names none).
    half_life: ticks until half of what is stored is left, at the start (None: not known). multiply_adds: per token and
    head, forward. state: numbers kept per sequence. beside: the memories of its level that are computed together with
    it."""

    row: str
    count: int
    pattern: str
    how: str
    reasons: tuple[str, ...]
    half_life: float | None
    multiply_adds: int | None
    state: int
    note: str | None
    per: str = "sequence"
    faster: tuple[Advice, ...] = ()
    kernel: str | None = None
    beside: tuple[str, ...] = ()


def explanations(target: Any) -> list[Explanation]:
    """One record for each memory, repeated levels once. target: a Bundle, a Plan or a LevelGraph."""
    from nestflow.graph.describe import row_name

    plan = plan_of(target)
    found: dict[str, list[tuple[LevelPlan, MemoryPlan]]] = {}
    for level in plan.levels.values():
        for m in level.memories:
            found.setdefault(row_name(level.instance, m.memory), []).append((level, m))
    return [one(row, len(group), *group[0]) for row, group in found.items()]


def plan_of(target: Any) -> Plan:
    if isinstance(target, Plan):
        return target
    if isinstance(target, LevelGraph):
        return lower(target)
    return target.plan


def one(row: str, count: int, level: LevelPlan, p: MemoryPlan) -> Explanation:
    m = p.memory
    numbers = sum(math.prod(t.shape) for t in state_tensors(m)) * states(p) * (m.heads or 1)
    every = "once a tick" if m.every == 1 else f"once in {m.every} ticks, from their summed errors"
    how = MEANING[p.pattern].format(ticks=ticks_of(level, p), every=every)
    order = ("recurrence", "delta", "chunk")
    reasons = tuple(r for r in p.reasons if r.partition(":")[0] in order and p.pattern == "scan")
    return Explanation(
        row,
        count,
        p.pattern,
        how,
        reasons,
        None if m.kind == "cache" else half_life(m),
        multiply_adds(p, level.size),
        numbers,
        note_of(m, p),
        m.per,
        advice(p, level.instance),
        None if m.kind == "cache" else kernel_of(level),
        tuple(q.memory.name for g in level.groups if p in g for q in g if q is not p),
    )


def ticks_of(level: LevelPlan, p: MemoryPlan) -> str:
    """How many ticks a piece has, and which other memories keep it from more than one."""
    if level.size != 1:
        return f"{level.size} ticks at once"
    slow = [f"`{q.memory.name}`" for q in level.memories if q.pattern == "scan" and q is not p]
    return "one tick at a time" + (f", because {' and '.join(slow)} beside it cannot take more" if slow else "")


def kernel_of(level: LevelPlan) -> str | None:
    """What `execution { backend … }` has come to."""
    if level.by is not None:
        return f"{level.by}, all ticks of a call at once"
    return None if level.not_by is None else f"none: {level.not_by}"


def note_of(m: Memory, p: MemoryPlan) -> str | None:
    """What a user may want to change."""
    if p.pattern == "scan" and m.every == 1 and m.per == "model":
        return "each token updates the one copy by what all rows bring: `every 16 tokens` makes it one update of 16"
    if p.pattern == "scan" and m.every == 1 and m.chunk > 1:
        return "the rule is not linear in g, so each token updates the tensors: `every 16 tokens` makes it one of 16"
    return None


def duration(ticks: float | None) -> str:
    """`280 tokens`, `for ever`, `not known here`."""
    if ticks is None:
        return "depends on its input"
    if math.isinf(ticks):
        return "for ever (nothing is forgotten)"
    return f"{ticks:,.3g} tokens" if ticks < 1000 else f"{ticks:,.0f} tokens"


def explain(target: Any) -> str:
    """The text of `nestflow explain SPEC`, one block for each memory and each level of the step clock."""
    plan = plan_of(target)
    blocks = [text_of(e) for e in explanations(plan)]
    blocks += [reading_text(x, plan.graph) for x in plan.graph.token_levels]
    blocks += pieces_texts(plan.graph)
    blocks += [step_level_text(x, plan.graph) for x in plan.graph.step_levels]
    return "\n\n".join(blocks) if blocks else "nothing here learns or remembers: plain functions"


def text_of(e: Explanation) -> str:
    times = f" (× {e.count})" if e.count > 1 else ""
    lines = [f"{e.row}{times}", f"  how        {e.pattern}, exact: {e.how}"]
    lines += [f"  kernel     {e.kernel}"] if e.kernel else []
    if e.beside:
        lines.append(
            f"  together   with {', '.join(f'`{name}`' for name in e.beside)}: one product where each had its own"
        )
    lines += [f"  not        {r}" for r in e.reasons]
    lines += [f"  faster     {a}" for a in e.faster]
    if e.multiply_adds is not None:
        whose = "for the model" if e.per == "model" else f"a {e.per}"
        lines.append(
            f"  cost       about {e.multiply_adds:,} multiply-adds a token and head forward, projections apart; "
            f"{e.state:,} numbers of state {whose}"
        )
        lines.append(f"  half-life  at the start: {duration(e.half_life)}")
    else:
        lines.append("  cost       grows with the number of kept pairs")
    if e.note:
        lines.append(f"  note       {e.note}")
    return "\n".join(lines)
