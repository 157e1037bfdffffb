"""The call that gives a level's one memory to a kernel, all ticks at once; where it gives None, the loop stands below.

found = at_once(c, "triton", T, 64, W, query, key, error, gate=..., rate=...)
if found is None:
    ...                       the loop over pieces
else:
    W, y = found
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nestflow.emit.levels.nodes import per_tick
from nestflow.emit.ops import tensor
from nestflow.graph.state import state_tensors
from nestflow.ir import ops
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode


@contextmanager
def beside_kernel(level: LevelCode, outside: Sequence[Node]) -> Iterator[None]:
    """What is written inside is the loop. outside: what no state enters; both ways need it, so it comes first."""
    if level.plan.by is None:
        yield
        return
    em, writer = level.outer, level.writer
    for n in outside:
        if n.op != "channels" and (n.type.clock or "c." in em.done[n].text):
            em.variable(n, None if n.type.clock else "w")
    call, found = _call(level), level.variable("found")
    memory = level.plan.looped[0].memory
    level.comment(f"`{memory.name}`: all ticks at once", memory)
    writer.line(f"{found} = {call}")
    with writer.block(f"if {found} is None:  # not here: piece after piece"):
        yield
    (state,), (y,) = (v for v, _ in level.state.kept), (level.outer.done[n].text for n in level.front)
    with writer.block("else:"):
        writer.line(f"{state}, {y} = {found}")


def _call(level: LevelCode) -> str:
    em, nodes, (p,), (y,) = level.outer, level.nodes, level.plan.looped, level.reads
    m, (tensor_path,) = p.memory, p.rules
    by_channel = m.retain_on == "key"

    def number(n: Node) -> str:
        em.expression(n)
        return tensor(em, n, per_tick(m).with_(dtype="float")).text

    def vector(n: Node) -> str:
        em.expression(n)
        return tensor(em, n, per_tick(m, n.type.shape), 1).text

    first, error = y.args[0], y.args[-1]
    x, h = first.args[:2] if first.op == "channels" else y.args[:2]
    carry = nodes.rule(p, tensor_path).carries[0]
    ((_, rate),) = carry.drive
    more: list[str] = []
    if error.op == "solved":
        seen = error.args[0]
        a, error, *eta = error.args[1:] if by_channel else error.args[2:]
        more += [f"look={vector(seen.args[0] if by_channel else seen)}", f"scale={number(a)}"]
        rate = ops.unary("neg", eta[0]) if eta else rate
    more += [f"gate={vector(carry.decay) if by_channel else number(carry.decay)}"]
    more += [] if ops.is_const(rate, 1) else [f"rate={number(rate)}"]
    more += ["channels=True"] if by_channel else []
    (start,) = level.state.starts(p, state_tensors(m)[0])
    word = level.writer.use("nestflow.ops.backends", "at_once")
    given = [f'c, "{level.plan.by}"', level.ticks, str(level.plan.size), start, vector(x), vector(h), vector(error)]
    return f"{word}({', '.join(given + more)})"
