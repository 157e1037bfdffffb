"""Which levels a kernel computes: one memory that is one matrix, read once after each tick, by a rule without slots.

Kernels take all ticks of a call at once (`nestflow.ops.whole`). Whatever this refuses is computed by the loop in torch.
"""

from __future__ import annotations

from nestflow.graph.contents import context_of
from nestflow.graph.model import Instance, Memory
from nestflow.graph.state import keeps_anchor, state_tensors
from nestflow.ir.node import Node, walk
from nestflow.lowering.linear_rule import ONE
from nestflow.lowering.patterns.delta import system
from nestflow.lowering.patterns.setting import reads_memories
from nestflow.lowering.plan import MemoryPlan
from nestflow.ops.backends import BACKENDS, Backend


def refused(instance: Instance, looped: tuple[MemoryPlan, ...], by: str) -> str | None:
    """Why a backend does not compute the memories of a level, in words, or None if it does."""
    if len(looped) != 1:
        return "the level has several memories"
    (p,) = looped
    return _form(p) or _timing(p.memory) or _reads(instance, p.memory) or _fits(p, BACKENDS[by])


def _form(p: MemoryPlan) -> str | None:
    m = p.memory
    if p.pattern not in ("recurrence", "delta"):
        return f"it is computed as `{p.pattern}`"
    tensors = state_tensors(m)
    if len(tensors) != 1 or len(tensors[0].shape) != 2 or not _is_map(m) or m.link is not None:
        return "the memory is more than one matrix"
    (rule,) = p.rules.values()
    if rule.dgd is not None or len(rule.carries) != 1 or [where for where, _ in rule.carries[0].drive] != ["g"]:
        return "its rule keeps more than the matrix"
    if p.errors.dense or [len(pairs) for pairs in p.errors.factors.values()] != [1]:
        return "its errors are more than one outer product"
    return None


def _is_map(m: Memory) -> bool:
    """M(key) is the matrix times the key."""
    result = None if m.function is None else m.function.result
    return result is not None and result.op == "linear" and result.args[0].op == "slot" and result.args[1].op == "theta"


def _timing(m: Memory) -> str | None:
    if m.reset is not None or m.reset_where is not None:
        return "it is reset"
    if m.every > 1 or m.when is not None or m.rounds or keeps_anchor(m):
        return "it does not learn once at every tick"
    if m.gradient == "stop":
        return "its steps are constants (`gradient stop`)"
    return "it is read before it learns" if m.read != "after" else None


def _reads(instance: Instance, m: Memory) -> str | None:
    roots = [n for n in (instance.result, *(n for _, n in instance.names)) if n is not None]
    roots += [n for other in instance.memories if other.name != m.name for n in context_of(other)]
    recalls = {n for n in walk(*roots) if n.op == "recall" and n["memory"] == m.name}
    if len(recalls) != 1 or any(n["mode"] != "return" or n.get("tensor") is not None for n in recalls):
        return "it is not read once, at one query"
    if reads_memories(m) or any(_below(n) for n in recalls):
        return "what it learns depends on what it has stored"
    return None


def _below(recall: Node) -> bool:
    return any(n.op == "recall" for a in recall.args for n in walk(a))


def _fits(p: MemoryPlan, backend: Backend) -> str | None:
    wide = state_tensors(p.memory)[0].shape[1]
    if wide > backend.widest:
        return f"its key has {wide} numbers, and kernels take {backend.widest}"
    if not backend.usual_delta or p.pattern != "delta":
        return None
    m, (rule,) = p.memory, p.rules.values()
    s = system(m, p.errors, rule)
    decay = rule.carries[0].decay
    looks = s.x is s.h and s.a is decay
    if m.retain_on == "key":
        looks = s.a is ONE and s.x.op == "mul" and set(s.x.args) == {decay, s.h}
    return None if looks else "its error does not look with its key at what its gate has left"
