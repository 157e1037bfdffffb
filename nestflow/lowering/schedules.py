"""Schedules of a memory on the token clock: rates by the ticks of its level, as expressions of the position."""

from __future__ import annotations

import math

from nestflow.graph.model import Memory
from nestflow.ir import ops
from nestflow.ir.node import Node, Type


def scheduled(memory: Memory, n: Node) -> Node:
    """`cosine`, `linear_decay`, `wsd` at the tick that learns; ticks count from the memory's last reset."""
    s: Node = ops.leaf("position", Type("int", batch=True, clock="T"))
    if memory.reset is not None and not memory.keep_rule:
        since = ops.binary("mod", ops.binary("sub", s, ops.const(1)), ops.const(memory.reset))
        s = ops.binary("add", since, ops.const(1))
    peak, warmup = ops.const(float(n["peak"])), float(n["warmup"] or 0)
    if n["kind"] == "wsd":
        fallen = share(s, warmup + float(n["stable"]), float(n["decay"]))
        after = ops.binary("mul", peak, ops.binary("sub", ops.const(1.0), fallen))
    else:
        floor = ops.const(float(n["floor"]))
        done = share(s, warmup, max(float(n["total"]) + memory.every - warmup, 1.0))
        if n["kind"] == "cosine":
            turned = ops.unary("cos", ops.binary("mul", ops.const(math.pi), done))
            left = ops.binary("mul", ops.const(0.5), ops.binary("add", ops.const(1.0), turned))
        else:
            left = ops.binary("sub", ops.const(1.0), done)
        after = ops.binary("add", floor, ops.binary("mul", ops.binary("sub", peak, floor), left))
    if not warmup:
        return after
    rising = ops.binary("mul", peak, ops.binary("div", s, ops.const(warmup)))
    return ops.where(ops.binary("le", s, ops.const(warmup)), rising, after)


def share(s: Node, start: float, length: float) -> Node:
    """How much of a stretch has passed, from 0 to 1."""
    gone = ops.binary("div", ops.binary("sub", s, ops.const(start)), ops.const(length))
    return ops.binary("min", ops.binary("max", gone, ops.const(0.0)), ops.const(1.0))
