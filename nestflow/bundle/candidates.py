"""What `nestflow.tune` measures: the settings that change how a spec is run, and inputs for it drawn at random."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nestflow.graph.model import InputSpec, LevelGraph
from nestflow.lowering.plan import lower

BLOCKS = (16, 32, 64, 128)
Settings = dict[str, Any]


def candidates(graph: LevelGraph, length: int, learns: bool, compiled: bool) -> list[Settings]:
    """Settings to be measured: none first; then blocks that change the plan, alone and with each way to run the loop.

    A way of running is of use where some loop has more than one piece."""
    said = dict(graph.execution)
    sizes = {}
    for block in (None, *BLOCKS):
        found = _sizes(graph, length, said.get("block") if block is None else block)
        if found not in sizes.values():
            sizes[block] = found
    ways: list[Settings] = [{}]
    if learns:  # without gradients it changes nothing
        ways.append({"checkpointing": "auto" if said.get("checkpointing", "none") == "none" else "none"})
    if said.get("compile", False):
        ways.append({"compile": False})
    elif compiled:
        ways.append({"compile": True})
    return [
        ({} if block is None else {"block": block}) | way
        for block, found in sizes.items()
        for way in ways
        if not way or any(size < length for size in found)
    ]


def _sizes(graph: LevelGraph, length: int, block: int | None) -> tuple[int, ...]:
    """Ticks of a piece in each level that has a loop; one piece is one piece, however long it might be."""
    others = tuple((n, v) for n, v in graph.execution if n != "block")
    plan = lower(replace(graph, execution=others + ((("block", block),) if block else ())))
    return tuple(min(level.size, length) for level in plan.levels.values() if level.size)


def drawn(i: InputSpec, rows: int, ticks: int, device: torch.device) -> Tensor:
    """An input of a spec, within its bounds; always the same."""
    made = torch.Generator().manual_seed(0)
    shape = (rows, *([ticks] if i.type.clock else []), *i.type.shape)
    if i.type.dtype == "int":
        low = int(i.low) if i.low is not None else 0
        high = int(i.high) if i.high is not None and math.isfinite(i.high) else low + 1
        return torch.randint(low, max(high, low) + 1, shape, generator=made).to(device)
    x = torch.randn(shape, generator=made)
    return (x > 0 if i.type.dtype == "bool" else x).to(device)
