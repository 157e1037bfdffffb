"""Names and shapes of everything a stream keeps between calls: the one place that knows the state dict.

LEVEL.MEMORY.TENSOR            the memory's tensor as it stands
LEVEL.MEMORY.TENSOR@chunk      as the open chunk began (only where chunk > every: errors are taken there)
LEVEL.MEMORY.TENSOR@pending    Σ G since the last update (only where every > 1)
LEVEL.MEMORY.TENSOR@gram       Σ |weight| k kᵀ since the last update (only dgd and `gram`, every > 1)
LEVEL.MEMORY@updates           updates so far, LEVEL.MEMORY@ticks the ticks since the last one that brought a pair (only
                               with `when`; the second where every > 1)
LEVEL.MEMORY@since             ticks since the last reset (only `reset where`, with chunks or of a cache)
LEVEL.MEMORY.SLOT.TENSOR       a memory of the update rule; LEVEL.MEMORY.SLOT where it is one for all (`per level`)
LEVEL.MEMORY.key / .value      the pairs a cache keeps
INSTANCE.TAIL                  the last inputs of a look-back block
"""

from __future__ import annotations

from dataclasses import replace

from nestflow.diagnostics.core import fail
from nestflow.graph.model import Init, Instance, Memory, MemoryTensor, StateSlot, TailSpec
from nestflow.ir import ops
from nestflow.ir.rule import Rule, RuleSlot

CHUNK, PENDING, GRAM = "@chunk", "@pending", "@gram"
MODEL, AGE = "@model.", "@age"  # where the module keeps what is `per model`, and the ticks that it has seen
UPDATES, TICKS, SINCE = "@updates", "@ticks", "@since"


def memory_path(instance: str, memory: str, tensor: str) -> str:
    """State path of a memory's tensor; the learned start has the same path among the weights."""
    return ".".join(p for p in (instance, memory, tensor) if p)


def state_tensors(memory: Memory) -> tuple[MemoryTensor, ...]:
    """The tensors of the memory that are state (those named `slow` are weights of the level, not listed here)."""
    return () if memory.function is None else memory.function.tensors


def keeps_anchor(memory: Memory) -> bool:
    """Errors are taken at a state that is not the current one: the stream keeps that state too."""
    return memory.kind != "cache" and memory.chunk > memory.every


def has_dgd(memory: Memory) -> bool:
    """Its rule reads Σ k kᵀ over the inputs of its weights."""
    return memory.rule is not None and memory.rule.inputs is not None


def state_slots(instance: Instance) -> tuple[StateSlot, ...]:
    """What one instance keeps (its children not included): its memories in order, then its tails."""
    slots: list[StateSlot] = []
    for memory in instance.memories:
        own = _cache_slots(instance.path, memory) if memory.kind == "cache" else _memory_slots(instance.path, memory)
        slots += own if memory.per == "sequence" else [replace(s, per=memory.per, reset="never") for s in own]
    slots += [_tail_slot(instance.path, tail) for tail in instance.tails]
    if instance.shares is not None:  # the starts are those of the instance whose weights it uses
        own, of = len(instance.path), instance.shares
        slots = [replace(s, init=of + s.init[own:]) if s.init is not None else s for s in slots]
    return tuple(slots)


def drawn_starts(instance: Instance) -> bool:
    """Whether a memory of it starts from a draw."""
    return any(t.drawn for m in instance.memories for t in state_tensors(m))


def _memory_slots(path: str, memory: Memory) -> list[StateSlot]:
    tensors = state_tensors(memory)
    slots = [_tensor_slot(path, memory, t, "") for t in tensors]
    if keeps_anchor(memory):
        slots += [_tensor_slot(path, memory, t, CHUNK) for t in tensors]
    for rule_slot in memory.rule.slots if memory.rule is not None else ():
        if rule_slot.shared:
            name = memory_path(path, memory.name, rule_slot.name)
            start = slot_start(memory.rule, rule_slot) if memory.rule is not None else Init("zeros")
            slots.append(StateSlot(name, "rule", (), memory.heads, None, start))
            continue
        slots += [_rule_slot(path, memory, t, rule_slot) for t in tensors if rule_slot.shape(t.shape) is not None]
    if memory.every > 1:
        for t in tensors:
            name = memory_path(path, memory.name, t.path)
            slots.append(StateSlot(name + PENDING, "pending", t.shape, memory.heads))
            if has_dgd(memory) and len(t.shape) == 2:
                slots.append(StateSlot(name + GRAM, "pending", (t.shape[1], t.shape[1]), memory.heads))
    return slots + _counter_slots(path, memory)


def _counter_slots(path: str, memory: Memory) -> list[StateSlot]:
    name = memory_path(path, memory.name, "")
    return [StateSlot(name + c, "counter", (), memory.heads, dtype="int") for c in counters(memory)]


def counters(memory: Memory) -> tuple[str, ...]:
    """With `when` rows learn at ticks of their own: they count their updates, and what they wait with. With `reset
    where(…)` their chunks begin at ticks of their own: they count those since the last reset."""
    counts = memory.kind == "cache" or (memory.every, memory.chunk) != (1, 1)
    since = (SINCE,) if memory.reset_where is not None and counts else ()
    if memory.when is None:
        return since
    return (UPDATES, TICKS, *since) if memory.every > 1 else (UPDATES, *since)


def _tensor_slot(path: str, memory: Memory, t: MemoryTensor, suffix: str) -> StateSlot:
    learned = memory_path(path, "", t.learned) if t.learned else None
    name = memory_path(path, memory.name, t.path) + suffix
    start = Init("zeros") if learned else t.init
    role, drawn = "anchor" if suffix else "memory", counted_by(path, t)
    return StateSlot(name, role, t.shape, memory.heads, learned, start, drawn=drawn)


def counted_by(path: str, t: MemoryTensor) -> str:
    """The place that the draw of a start belongs to; "" where it is not drawn."""
    return memory_path(path, "", t.drawn) if t.drawn else ""


def _rule_slot(path: str, memory: Memory, t: MemoryTensor, slot: RuleSlot) -> StateSlot:
    name = memory_path(path, memory.name, f"{slot.name}.{t.path}")
    if slot.init.op in ("w", "w0"):  # starts where the memory starts
        learned = memory_path(path, "", t.learned) if t.learned else None
        start, drawn = Init("zeros") if learned else t.init, counted_by(path, t)
        return StateSlot(name, "rule", t.shape, memory.heads, learned, start, drawn=drawn)
    assert memory.rule is not None
    return StateSlot(name, "rule", slot.shape(t.shape) or (), memory.heads, None, slot_start(memory.rule, slot))


def slot_start(rule: Rule, slot: RuleSlot) -> Init:
    """The start of an optimiser's memory on the token clock: a number, or a number times the identity."""
    init = rule.expand(slot.init)
    if init.op == "const":
        return Init("constant", float(init.value)) if init.value else Init("zeros")
    scale, rest = init.args if init.op == "mul" else (ops.const(1.0), init)
    if rest.op == "const":
        scale, rest = rest, scale
    if scale.op == "const" and rest.op == "eye_of":
        return Init("eye", float(scale.value))
    raise fail(
        "NF490",
        f"a start of `{slot.name}` that is no number, `w` or `eye` is not built yet on the token clock",
        init.span or slot.init.span,
        "`init 0.1`, `init w`, `init 0.1 * eye`",
    )


def _cache_slots(path: str, memory: Memory) -> list[StateSlot]:
    """Pairs are appended, and those that no later query sees are dropped: the length is what is visible."""
    slots: list[StateSlot] = []
    for role, node in (("key", memory.key), ("value", memory.value)):
        if node is not None:
            name, count = memory_path(path, memory.name, role), memory.cache.pairs if memory.cache is not None else 1
            shape = (0, node.type.shape[-1] // count)
            slots.append(StateSlot(name, f"cache_{role}", shape, node.type.heads, grows=True))
    return slots + _counter_slots(path, memory)


def _tail_slot(path: str, tail: TailSpec) -> StateSlot:
    shape = (tail.length, *tail.type.shape)
    name, kind = memory_path(path, "", tail.path), tail.type.dtype
    return StateSlot(name, "tail", shape, tail.type.heads, grows=tail.grows, dtype=kind)
