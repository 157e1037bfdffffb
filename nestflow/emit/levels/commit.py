"""The end of an update, tensor by tensor: the new state into the variables that stay, and the sums that go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.levels.nodes import state
from nestflow.graph.model import Memory
from nestflow.graph.state import SINCE, TICKS, UPDATES
from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.lowering.linear_rule import COUNT, SEEN

if TYPE_CHECKING:
    from nestflow.emit.levels.rule import RuleCode, Tensor


def finish(code: RuleCode) -> None:
    """Assign the new states to the variables that stay."""
    for t in code.tensors:
        if t.memory.when is not None or late(code):
            now = learns(code, t.memory)
            t.w = ops.where(now, t.w, code.leaf(t.memory, t.spec, "now"))
            t.new = {s: ops.where(now, n, code.slot(t, s)) for s, n in t.new.items()}
    for t in code.tensors:
        variable, value = code.name(t, "now"), code.em.value(t.w)
        if value != variable:
            code.writer.line(f"{variable} = {value}")
        for slot, node in t.new.items():
            code.writer.line(f"{code.names[code.slot(t, slot)]} = {code.em.value(node)}")
        if late(code):
            sum_on(code, t)
        elif t.memory.every > 1:
            code.writer.line(f"{code.name(t, '@pending')} = torch.zeros_like({code.name(t, '@pending')})")
            if len(t.spec.shape) == 2 and state(t.memory, t.path, "@gram", code.leaf_k(t).type) in code.names:
                code.writer.line(f"{code.name(t, '@gram')} = torch.zeros_like({code.name(t, '@gram')})")
    for p in code.plans if code.first.when is not None and late(code) else ():
        now, seen = code.em.atom(due(code, p.memory)), code.names[code.counter(p.memory, SEEN)]
        updates, ticks = (code.names[code.counter(p.memory, c)] for c in (UPDATES, TICKS))
        count = code.names[code.counter(p.memory, COUNT)]
        code.writer.line(f"{updates} = torch.where({now}, {count}, {updates})")
        code.writer.line(f"{ticks} = torch.where({now}, 0, {seen})")
    for p in code.plans if code.first.when is not None and not late(code) else ():
        updates, ticks = (code.counter(p.memory, c) for c in (UPDATES, TICKS))
        code.writer.line(f"{code.names[updates]} = {code.names[code.counter(p.memory, COUNT)]}")
        if ticks in code.names:
            code.writer.line(f"{code.names[ticks]} = torch.zeros_like({code.names[ticks]})")


def late(code: RuleCode) -> bool:
    """Rows learn at ticks of their own: they count them from where they started anew (`reset where`)."""
    return code.first.reset_where is not None and code.first.every > 1


def due(code: RuleCode, m: Memory) -> Node:
    """Whether N divides the ticks of the row."""
    return ops.binary("eq", ops.binary("mod", code.counter(m, SINCE), ops.const(m.every)), ops.const(0))


def learns(code: RuleCode, m: Memory) -> Node:
    """Whether a row learns now."""
    if not late(code):
        return code.made(m)
    return due(code, m) if m.when is None else ops.binary("and", due(code, m), code.made(m))


def sum_on(code: RuleCode, t: Tensor) -> None:
    """The sums begin again in the rows that have learned, and go on in the others."""
    now = code.em.variable(due(code, t.memory), "due")
    for name, leaf in (("@pending", code.leaf(t.memory, t.spec, "g")), ("@gram", None)):
        if leaf is None and len(t.spec.shape) == 2:
            leaf = code.leaf_k(t)
        if leaf is not None and leaf in code.names:
            shape = ", ".join(["None"] * len(t.spec.shape))
            mask = f"{now}[..., {shape}]" if shape else now
            code.writer.line(f"{code.name(t, name)} = torch.where({mask}, 0, {code.names[leaf]})")


def wait(code: RuleCode) -> None:
    """Between updates: the sums go on."""
    for t in code.tensors:
        code.writer.line(f"{code.name(t, '@pending')} = {code.names[code.leaf(t.memory, t.spec, 'g')]}")
        k = code.leaf_k(t) if len(t.spec.shape) == 2 else None
        if k is not None and k in code.names:
            code.writer.line(f"{code.name(t, '@gram')} = {code.names[k]}")
    for p in code.plans if code.first.when is not None else ():
        seen = code.names[code.counter(p.memory, SEEN)]
        code.writer.line(f"{code.names[code.counter(p.memory, TICKS)]} = {seen}")


__all__ = ["finish", "wait"]
