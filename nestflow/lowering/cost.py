"""What a memory costs, and how long it remembers at the start: numbers for `nestflow explain`."""

from __future__ import annotations

import math
from collections.abc import Callable

from nestflow.graph.model import Memory
from nestflow.graph.state import keeps_anchor, state_tensors
from nestflow.ir.node import Node, walk
from nestflow.lowering.plan import MemoryPlan

_FUNCTIONS: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "neg": lambda a: -a,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "softplus": lambda a: math.log1p(math.exp(a)),
    "abs": math.fabs,
    "where": lambda c, a, b: a if c else b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "max": max,
    "min": min,
    "square": lambda a: a * a,
    "sum": lambda a: a,
    "mean": lambda a: a,
    "index": lambda a: a,
    "reshape": lambda a: a,
    "stop": lambda a: a,
    "log_sigmoid": lambda a: -math.log1p(math.exp(-a)),
}


def at_start(node: Node) -> float | None:
    """A gate's or rate's value where what it computes from its input is zero, as it is on average at the start; None
    where that says nothing (the gate is the input itself, or differs from head to head)."""
    known: dict[Node, float | None] = {}
    for n in walk(node):
        if n.op == "const":
            known[n] = float(n.value)
        elif n.op in ("linear", "recall", "short_conv"):
            known[n] = 0.0
        else:
            args = [known[a] for a in n.args]
            try:
                known[n] = _FUNCTIONS[n.op](*args) if args and None not in args and n.op in _FUNCTIONS else None
            except (ValueError, OverflowError, ZeroDivisionError):
                known[n] = None
    return known[node]


def half_life(memory: Memory) -> float | None:
    """Ticks after which half of what was stored is left, at the start: ln 2 / −ln(retain), in learning ticks times
    `every`. inf where nothing is forgotten; None where it is not known."""
    if memory.retain is None:
        return math.inf
    gate = at_start(memory.retain)
    if gate is None or gate > 1:
        return None
    if gate == 1:
        return math.inf
    return 0.0 if gate <= 0 else memory.every * math.log(2) / -math.log(gate)


def states(plan: MemoryPlan) -> int:
    """How many tensors of the memory's size move along: itself, the rule's slots, a pending sum, the chunk's first
    state."""
    m = plan.memory
    slots = 0 if m.rule is None else sum(s.like != "number" for s in m.rule.slots)
    return 1 + slots + (m.every > 1) + keeps_anchor(m)


def multiply_adds(plan: MemoryPlan, size: int) -> int | None:
    """Multiply-adds of one token and head, forward (backward is about twice that); None for a cache, which grows with
    T."""
    m = plan.memory
    if m.kind == "cache":
        return None
    shapes = [t.shape for t in state_tensors(m) if len(t.shape) == 2]
    product = sum(a * b for a, b in shapes)
    if not plan.closed:
        return (5 * product if m.every == 1 else 4 * product) + states(plan) * product // m.every
    widths = sum(a + b for a, b in shapes)
    starts = 1 + (0 if m.rule is None else len(m.rule.slots)) + (m.every > 1)
    errors = 3 * product if plan.pattern == "chunk" else product if plan.pattern == "delta" else 0
    return len(plan.woven) * (errors + 2 * starts * product + size * len(plan.woven) * widths)
