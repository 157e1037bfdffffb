"""What an update of a memory on the token clock is made of: leaves of its rule's memories, parts of the context."""

from __future__ import annotations

from nestflow.emit.levels.nodes import state
from nestflow.emit.levels.rows import starts_of
from nestflow.graph.model import Memory, MemoryTensor
from nestflow.graph.state import PENDING
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, walk
from nestflow.lowering.linear_rule import AS_CHUNK_BEGAN
from nestflow.lowering.plan import MemoryPlan


def unit(x: Node) -> Node:
    """x/‖x‖, and 0 where x = 0."""
    size = ops.root(ops.reduce("sum", ops.unary("square", x), -1, keep=True))
    return ops.binary("div", x, ops.where(ops.binary("eq", size, ops.const(0.0)), ops.const(1.0), size))


def is_context(n: Node) -> bool:
    """A value of the tick, with nothing in it of the rule's own."""
    return bool(n.type.clock) and not any(x.type.like or x.op in ("slot_old", "slot_new") for x in walk(n))


def context_parts(s: Node) -> list[Node]:
    """The largest context expressions in an expression of a rule: rates and gates."""
    found: list[Node] = []
    stack = [s]
    while stack:
        n = stack.pop()
        if is_context(n):
            found.append(n)
        else:
            stack.extend(n.args)
    return found


def slot_leaf(m: Memory, t: MemoryTensor, name: str) -> Node:
    """The leaf of a rule's memory as the update finds it."""
    assert m.rule is not None
    slot = next((s for s in m.rule.slots if s.name == name), None)
    shape = t.shape if slot is None else slot.shape(t.shape) or ()
    path = "" if slot is not None and slot.shared else t.path
    return state(m, path, "slot:" + name, Type(shape=shape, heads=m.heads))


def start_leaves(p: MemoryPlan, t: MemoryTensor) -> list[Node]:
    """The leaves of a closed form's starts, in order."""
    m, type_ = p.memory, Type(shape=t.shape, heads=p.memory.heads)
    found = []
    for slot in starts_of(p.rules[t.path], m.every):
        when = {"": "now", PENDING: PENDING, AS_CHUNK_BEGAN: "chunk"}.get(slot)
        found.append(slot_leaf(m, t, slot) if when is None else state(m, t.path, when, type_))
    return found


def decayed(m: Memory, w: Node, gate: Node) -> Node:
    """retain(w): a number, a vector on the key axis or on the value axis, or elementwise."""
    if m.retain_on == "value":
        gate = ops.reshape(gate, (*gate.type.shape, 1))
    return ops.binary("mul", gate, w)


__all__ = ["context_parts", "decayed", "is_context", "slot_leaf", "start_leaves", "unit"]
