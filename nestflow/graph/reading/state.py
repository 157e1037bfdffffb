"""What a stream keeps for weights that learn while the model reads.

LEVEL.WEIGHT                 the copy's own value of the weight
LEVEL.WEIGHT@pending         Σ of the gradients since the last update (also of a segment that a new sequence cut short)
LEVEL.SLOT.WEIGHT            a memory of the update rule for it
LEVEL@updates                its updates so far, LEVEL@ticks the ticks with a term since the last one (only with `when`)
INPUT@segment                the inputs of the open segment, as many ticks as it has
PATH@segment                 any other state, as it was when the open segment (of this sequence) began
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nestflow.graph.model import Init, InputSpec, StateSlot, TokenLevel, WeightSpec
from nestflow.graph.state import PENDING, TICKS, UPDATES, slot_start
from nestflow.ir.rule import RuleSlot

SEGMENT = "@segment"


def shortest(levels: Sequence[TokenLevel]) -> int:
    """Ticks of a segment."""
    return min(x.every for x in levels)


def position(levels: Sequence[TokenLevel], x: TokenLevel, age: int) -> int:
    """Ticks of x since its last reset, when `age` ticks of the stream have been read. One that goes back to its start
    after each update of a slower level counts from there."""
    slow = next((y for y in levels if y.name == x.reset), None)
    return age if slow is None else (position(levels, slow, age) - 1) % slow.every + 1


def rule_path(x: TokenLevel, slot: str, path: str) -> str:
    """Where a stream keeps a memory of the rule for a weight."""
    return f"{x.name}.{slot}.{path}"


def reading_slots(
    levels: tuple[TokenLevel, ...],
    inputs: tuple[InputSpec, ...],
    model: tuple[StateSlot, ...],
    weights: list[WeightSpec],
) -> tuple[StateSlot, ...]:
    """The state of all levels that learn while reading, and of their open segment. model: the rest of the state."""
    if not levels:
        return ()
    specs = {w.path: w for w in weights}
    slots: list[StateSlot] = []
    for x in levels:
        for path, start in zip(x.weights, x.starts, strict=True):
            w = specs[path]
            name = f"{x.name}.{path}"
            kept = StateSlot(name, "memory", w.shape, w.heads, start, Init("zeros"), per=x.per, reset=x.reset)
            slots.append(kept)
            slots.append(replace(kept, path=name + PENDING, role="pending", init=None))
            slots += [rule_slot(x, s, kept, path) for s in x.rule.slots if s.shape(w.shape) is not None]
        for count in counts(x):
            slots.append(StateSlot(count, "counter", (), None, dtype="int", per=x.per, reset=x.reset))
    size = shortest(levels)
    for i in inputs:
        if i.type.clock:
            name, shape = i.name + SEGMENT, (size, *i.type.shape)
            slots.append(StateSlot(name, "segment", shape, None, dtype=i.type.dtype))
    slots += [replace(s, path=s.path + SEGMENT, role="segment") for s in model]
    return tuple(slots)


def counts(x: TokenLevel) -> tuple[str, ...]:
    """What rows count for themselves: updates, and ticks with a term since the last one."""
    return () if x.when is None else (x.name + UPDATES, x.name + TICKS)


def rule_slot(x: TokenLevel, s: RuleSlot, w: StateSlot, path: str) -> StateSlot:
    """A memory of the rule for one weight. One that starts as the weight does starts from the same slow weight."""
    name = rule_path(x, s.name, path)
    if s.init.op in ("w", "w0"):
        return replace(w, path=name, role="rule")
    return replace(w, path=name, role="rule", shape=s.shape(w.shape) or (), init=None, start=slot_start(x.rule, s))


__all__ = ["SEGMENT", "counts", "position", "reading_slots", "rule_path", "rule_slot", "shortest"]
