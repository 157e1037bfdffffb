"""What patterns ask about a level as a whole, and the linear rules of a memory's tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from nestflow.graph.contents import context_of
from nestflow.graph.globs import matches
from nestflow.graph.levels.gradients import gradients_of
from nestflow.graph.model import Instance, Memory
from nestflow.graph.state import state_tensors
from nestflow.ir import ops
from nestflow.ir.choices import for_tensor
from nestflow.ir.construct import number
from nestflow.ir.node import Node, walk
from nestflow.lowering.errors import Errors
from nestflow.lowering.linear_rule import ONE, Carry, LinearRule, NotLinear, gate_of, linear_rule


@dataclass(frozen=True)
class Setting:
    """A level as its memories see it."""

    instance: Instance

    @cached_property
    def recalled(self) -> frozenset[str]:
        """The memories that are recalled at their chunk's first state, by names, fields or the result."""
        roots: list[Node] = [] if self.instance.result is None else [self.instance.result]
        for m in self.instance.memories:
            roots += context_of(m)
        return frozenset(n["memory"] for n in walk(*roots) if n.op == "recall" and n["mode"] == "chunk")

    def reads_beside_errors(self, m: Memory) -> bool:
        """Whether the level asks for this memory's state at a tick, or the memory for that of any, elsewhere than in
        the objective (which key and value are parts of)."""
        own = [
            n for r in (m, *m.rounds) for n in context_of(replace(r, rounds=(), key=None, value=None, objective=None))
        ]
        if any(n.op == "recall" and n["mode"] in ("chunk", "gradient") for n in walk(*own)):
            return True
        others = [n for o in self.instance.memories if o.name != m.name for n in context_of(o)]
        roots = others if self.instance.result is None else [*others, self.instance.result]
        return any(n.op == "recall" and n["memory"] == m.name and n["mode"] == "chunk" for n in walk(*roots))

    @cached_property
    def taken(self) -> frozenset[str]:
        """The memories whose gradients something in the level reads."""
        found = gradients_of(self.instance.memories, self.instance.result) if self.instance.result is not None else []
        return frozenset(n["memory"] for n in found)


def reads_memories(m: Memory) -> bool:
    """Whether a field of the memory recalls a memory of the level (its objective's own recalls do not count)."""
    return any(n.op == "recall" and n["mode"] in ("chunk", "gradient") for n in walk(*context_of(m)))


def linear_rules(m: Memory, errors: Errors) -> dict[str, LinearRule] | str:
    """The closed form of each tensor's update, or why there is none."""
    if m.retain_on == "key" and (errors.dense or any(t.path not in errors.factors for t in state_tensors(m))):
        return "its gate is a vector, and its errors are no outer products"
    rules: dict[str, LinearRule] = {}
    for t in state_tensors(m):
        try:
            rule = linear_rule(m, t)
        except NotLinear as e:
            return f"its update is not linear in g: {e}"
        if rule.dgd is not None:
            found = delta_rule(m, errors, t.path, rule)
            if isinstance(found, str):
                return found
            rule = found
        if m.gradient == "stop" and not keeps_retain(m, t.path, rule):
            return "its steps are constants (`gradient stop`), and the weight is part of them"
        rules[t.path] = rule
    return rules


def keeps_retain(m: Memory, tensor: str, rule: LinearRule) -> bool:
    """The memory's decay is its retain and nothing else."""
    retain = ONE if m.retain is None else gate_of(m, tensor)
    return rule.carries[-1].decay is (retain if m.when is None else ops.where(m.when, retain, ONE))


def delta_rule(m: Memory, errors: Errors, tensor: str, rule: LinearRule) -> LinearRule | str:
    """A delta step's rate for this tensor: exact, lr/(1 + lr·tr K); tensors without an input, and those that `only`
    leaves out, learn by gd(lr)."""
    s = rule.dgd
    assert s is not None
    pairs = errors.factors.get(tensor)
    if pairs is None or not matches(s.only, tensor):
        return replace(rule, dgd=None)
    if m.ages:
        return "dgd beside `windowed`: each pair erases by its age"
    if m.every > 1:
        return "dgd sums K over the ticks between its updates"
    if s.normalize:
        return "dgd with `normalize` erases along other vectors than it writes"
    if len(pairs) != 1:
        return "dgd with several recalls in one objective"
    if not s.exact:
        return rule
    (h, _), *_ = pairs
    lr = s.lr if s.scale is None else ops.binary("mul", s.lr, number(s.scale))
    trace = ops.binary("mul", erasing(m, tensor), ops.reduce("sum", ops.unary("square", h)))
    rate = ops.binary("div", lr, ops.binary("add", ONE, ops.binary("mul", lr, trace)))
    *others, last = rule.carries
    return replace(rule, carries=(*others, Carry("", last.decay, (("g", ops.unary("neg", rate)),))))


def erasing(m: Memory, tensor: str) -> Node:
    """How much of W k kᵀ a delta step takes away for each G of its rate (a number that scaled g scales both)."""
    return ONE if m.weight is None else ops.unary("abs", number(for_tensor(m.weight, tensor)))
