"""A long sequence that is only read (no gradients) in blocks of ticks, each from the state that the last one left.

All at once, every tensor along the ticks is a trip to main memory, and new memory for the system to hand out; blocks
are small enough for a processor's cache and use the same memory again. The numbers are those of a stream that is fed in
blocks, and what a pass needs besides its inputs and outputs does not grow with the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestflow.bundle.token import undisturbed
from nestflow.graph.contents import nodes_of
from nestflow.graph.model import LevelGraph

NUMBERS = 1 << 18  # of a block's widest tensor: 1 MiB in float32
LEAST = 256  # ticks: below it, what a pass does besides its loops is no longer spread over many of them
EVEN = 128  # blocks are whole multiples of this, and of all chunks that are shorter than a block


@dataclass(frozen=True)
class Blocks:
    """How a graph is read in blocks. numbers: of one row's widest tensor at a tick; even: ticks after which all its
    chunks are whole; inputs: those along the ticks."""

    numbers: int
    even: int
    inputs: tuple[str, ...]

    def ticks(self, rows: int) -> int:
        """Of a block of so many rows."""
        fit = max(NUMBERS // (self.numbers * max(rows, 1)), LEAST)
        even = self.even if self.even <= 2 * fit else EVEN
        return max(fit // even, 1) * even

    def cut(self, bound: Mapping[str, Tensor], ticks: int) -> Iterator[dict[str, Tensor]]:
        """The inputs [rows, T, ...], block by block."""
        parts = [[(n, x) for x in bound[n].split(ticks, 1)] for n in self.inputs]
        return (dict(at) for at in zip(*parts, strict=True))


def blocks_of(graph: LevelGraph) -> Blocks | None:
    """None where a graph is read as a whole: caches, which look at the sequence in blocks of their own; what looks
    ahead, has no tick axis, or begins anew with each call."""
    inputs = tuple(i for i in graph.inputs if i.name in graph.needed)
    if not inputs or any(t is None or t.clock != "T" for t in (graph.output_type, *(i.type for i in inputs))):
        return None
    if graph.reading or graph.networks or any(x.inner is not None for x in graph.step_levels):
        return None
    if any(s.grows for s in graph.state) or any(True for _ in graph.root.begun_anew()):
        return None
    instances = list(graph.root.walk())
    memories = [m for i in instances for m in i.memories]
    if not memories or any(m.per == "model" for m in memories):
        return None
    types = (n.type for i in instances for n in nodes_of(i))
    width = max((math.prod(t.shape) * (t.heads or 1) for t in types if t.clock == "T"), default=1)
    return Blocks(
        width, math.lcm(EVEN, *(n for m in memories for n in (m.chunk, m.reset or 1))), tuple(i.name for i in inputs)
    )


def block_by_block(
    module: Any,
    bound: Mapping[str, Tensor],
    tensors: dict[str, Tensor],
    t0: int,
    training: bool | None,
    age: int | None,
    rows: Tensor | None,
) -> tuple[Any, dict[str, Tensor]] | None:
    """Output and tensors of the state after, as `Module._compute` gives them; None where the call is not to be cut."""
    given, ticks = module.__dict__, module._ticks(bound)
    if ticks < 2 * LEAST or not undisturbed():
        return None
    if "_blocks" not in given:
        plain = not (given["_lasting"] or given["_kept"] or given["_draws_at_random"] or given["_ahead"])
        given["_blocks"] = blocks_of(given["_graph"]) if plain else None
    found: Blocks | None = given["_blocks"]
    if found is None:
        return None
    x = bound[found.inputs[0]]
    length = found.ticks(x.shape[0])
    if ticks < 2 * length or x.device.type != "cpu":  # elsewhere launches cost more than memory
        return None
    results: list[Tensor] = []
    for part in found.cut(bound, length):
        result, tensors = module._compute("forward", part, tensors, t0, training, age=age, rows=rows)
        results.append(result)
        read = module._ticks(part)
        t0, age = t0 + read, None if age is None else age + read
    return torch.cat(results, 1), tensors
