"""LevelGraph to Plan: for each memory of each token-level level the fastest pattern that computes exactly its meaning.

Patterns are tried in order, each a function (memory, level) -> Match or the reason why not
(`nestflow.lowering.patterns`). The last one, `scan`, takes everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nestflow.graph.model import Instance, LevelGraph, Memory
from nestflow.graph.state import keeps_anchor
from nestflow.ir.construct import rewrite
from nestflow.ir.node import Node, make
from nestflow.lowering.errors import Errors, errors_of
from nestflow.lowering.linear_rule import LinearRule
from nestflow.lowering.patterns import PATTERNS, Pattern, Setting
from nestflow.lowering.side_by_side import side_by_side

BLOCK = 64  # ticks that a closed form without chunk boundaries takes at once
LONGEST = 64  # a longer chunk is worked through in pieces: their matrices are of this size squared


@dataclass(frozen=True)
class MemoryPlan:
    """pattern: recurrence, delta, chunk, scan or cache. rules: the linear rule of each tensor (closed forms only).
    reasons: why each faster pattern did not apply. boundary: pieces of a call must end at its multiples (None:
    anywhere). rounds: the tick's further updates. Closed forms take all of them at once, as ticks of their own
    (`woven`); a scan makes one after the other, of the memory under a name of its own (`state@2`)."""

    memory: Memory
    pattern: str
    errors: Errors = field(default_factory=lambda: Errors({}, {}))
    rules: Mapping[str, LinearRule] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    boundary: int | None = None
    rounds: tuple[MemoryPlan, ...] = ()

    @property
    def closed(self) -> bool:
        """The state advances a block at a time, in closed form."""
        return self.pattern in ("recurrence", "delta", "chunk")

    @property
    def woven(self) -> tuple[MemoryPlan, ...]:
        """The updates that one tick of a closed form makes."""
        return (self, *self.rounds) if self.closed else (self,)

    @property
    def apart(self) -> tuple[MemoryPlan, ...]:
        """The further updates that a tick makes one by one."""
        return () if self.closed else self.rounds


@dataclass(frozen=True)
class LevelPlan:
    """size: ticks of a piece of the level's loop, whose ends are multiples of it; 0 where there is no loop. by: the
    backend whose kernel takes all ticks at once, where it can (None: the loop in torch alone); not_by: why no kernel
    does, where one was asked for."""

    instance: Instance
    memories: tuple[MemoryPlan, ...]
    size: int
    by: str | None = None
    not_by: str | None = None

    @property
    def looped(self) -> tuple[MemoryPlan, ...]:
        return tuple(m for m in self.memories if m.pattern != "cache")

    @cached_property
    def groups(self) -> tuple[tuple[MemoryPlan, ...], ...]:
        """Memories that are computed side by side."""
        return side_by_side(self.looped)

    @property
    def caches(self) -> tuple[MemoryPlan, ...]:
        return tuple(m for m in self.memories if m.pattern == "cache")


@dataclass(frozen=True)
class Plan:
    """levels: instance path -> how it is computed. Instances with equal bodies share one LevelPlan's memories."""

    graph: LevelGraph
    levels: Mapping[str, LevelPlan]


def lower(graph: LevelGraph, patterns: Mapping[str, Pattern] = PATTERNS) -> Plan:
    """Choose a lowering for every token-level level, from the patterns that are given (all of them by default)."""
    said = dict(graph.execution)
    block, backend = said.get("block"), said.get("backend", "auto")
    known: dict[tuple[Any, ...], LevelPlan] = {}
    levels: dict[str, LevelPlan] = {}
    for instance in graph.root.walk():
        if instance.kind != "level":
            continue
        key = (instance.memories, instance.result, bodies(instance))
        if key not in known:
            known[key] = lower_level(instance, patterns, block, backend)
        levels[instance.path] = replace(known[key], instance=instance)
    return Plan(graph, levels)


def bodies(instance: Instance) -> tuple[Any, ...]:
    """What the flows that a level calls compute: their derivative may be part of a memory's errors."""
    return tuple((path, child.slots, child.result, bodies(child)) for path, child in instance.children)


def lower_level(
    instance: Instance, patterns: Mapping[str, Pattern] = PATTERNS, block: int | None = None, backend: str = "torch"
) -> LevelPlan:
    """The plan of one level. block: ticks of a piece where its memories leave that open (`execution { block 32 }`).
    backend: what computes its memories where it can; `auto` is chosen by device, in `compile`, and is torch here."""
    setting = Setting(instance)
    plans = tuple(lower_memory(m, setting, patterns) for m in instance.memories)
    bounds = [p.boundary for p in plans if p.pattern != "cache" and p.boundary]
    looped = any(p.pattern != "cache" for p in plans)
    free = block or min((together(p) for p in plans), default=BLOCK)
    size = math.gcd(*bounds) if bounds else free
    if not looped or backend in ("torch", "auto"):
        return LevelPlan(instance, plans, size if looped else 0)
    from nestflow.lowering.kernels import refused

    reason = refused(instance, tuple(p for p in plans if p.pattern != "cache"), backend)
    return LevelPlan(instance, plans, size, backend if reason is None else None, reason)


def together(p: MemoryPlan) -> int:
    """Ticks that a closed form without chunk boundaries best takes at once."""
    # measured at 16 to 128 ticks: triangular systems of numbers are best at 32, what has gates of channels at 64
    longest = BLOCK // 2 if p.pattern == "delta" and p.memory.retain_on != "key" else BLOCK
    return min(longest, max(1, BLOCK // len(p.woven)))


def lower_memory(memory: Memory, setting: Setting, patterns: Mapping[str, Pattern]) -> MemoryPlan:
    """The first pattern that takes the memory, and what the ones before it said."""
    errors = errors_of(memory, setting.instance)
    reasons: list[str] = []
    for name, pattern in patterns.items():
        if memory.per == "model" and name not in ("frozen", "scan"):
            reasons.append(f"{name}: one copy learns from all rows")
            continue
        found = pattern(memory, errors, setting)
        later = () if isinstance(found, str) else rounds_of(memory, name, pattern, setting)
        if not isinstance(found, str) and not isinstance(later, str):
            first = MemoryPlan(memory, name, errors, found, tuple(reasons), boundary(memory, name, setting), later)
            if alike(first.woven):
                return first
            found = "the updates of a tick are not of one form"
        reasons.append(f"{name}: {later if isinstance(later, str) else found}")
    raise AssertionError("scan takes every memory")


def rounds_of(memory: Memory, name: str, pattern: Pattern, setting: Setting) -> tuple[MemoryPlan, ...] | str:
    """The plans of the tick's further updates, or why one of them has no closed form."""
    if name == "scan":
        return tuple(scanned_round(r, setting.instance) for r in memory.rounds)
    plans: list[MemoryPlan] = []
    for r in memory.rounds:
        errors = errors_of(r, setting.instance)
        found = pattern(r, errors, setting)
        if isinstance(found, str):
            return found
        plans.append(MemoryPlan(r, name, errors, found))
    return tuple(plans)


def alike(rounds: Sequence[MemoryPlan]) -> bool:
    """Whether the updates of a tick are one recurrence with other numbers."""
    forms = {
        (
            tuple((t, len(pairs)) for t, pairs in p.errors.factors.items()),
            tuple(p.errors.dense),
            tuple((t, tuple((c.slot, tuple(w for w, _ in c.drive)) for c in r.carries)) for t, r in p.rules.items()),
        )
        for p in rounds
    }
    return len(forms) == 1


def scanned_round(memory: Memory, level: Instance) -> MemoryPlan:
    """A further update of the tick. The memory has another name there, so that its state is told from the one
    before."""
    name = f"{memory.name}@{memory.turn + 1}"

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "recall" and n["memory"] == memory.name and n["mode"] == "objective":
            attrs: dict[str, Any] = {**dict(n.attrs), "memory": name}
            return make("recall", args, n.type, n.span, **attrs)
        return None

    objective = None if memory.objective is None else rewrite([memory.objective], change)[0]
    renamed = replace(memory, name=name, objective=objective)
    return MemoryPlan(renamed, "scan", errors_of(renamed, level))


def boundary(memory: Memory, pattern: str, setting: Setting) -> int | None:
    """Where pieces of a call must end so that the memory's errors and recalls see the right state."""
    found = boundary_between(memory, pattern, setting)
    if memory.reset is None:
        return found
    return shorter(memory.reset) if found is None else math.gcd(found, memory.reset)


def boundary_between(memory: Memory, pattern: str, setting: Setting) -> int | None:
    """The same, resets apart."""
    if pattern == "frozen":
        return None
    if pattern == "scan":
        return memory.every if memory.reset_where is None else 1  # rows learn at ticks of their own
    recalled = pattern != "delta" and memory.name in setting.recalled  # a delta rule opens recalls in its own error
    if pattern == "chunk" or keeps_anchor(memory) or recalled:
        return shorter(memory.chunk) if keeps_anchor(memory) else memory.chunk
    return None


def shorter(chunk: int, longest: int = LONGEST) -> int:
    """A piece of at most LONGEST ticks that divides the chunk (errors are taken at the chunk's first state all the
    same)."""
    if chunk <= longest:
        return chunk
    for n in range(longest, longest // 4 - 1, -1):
        if chunk % n == 0:
            return n
    return chunk
