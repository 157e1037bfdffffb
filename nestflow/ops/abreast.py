"""Memories that run side by side: a tensor of each of them in one, [A, rows, ...], while a level's loop runs."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor


def side_by_side(state: Mapping[str, Tensor], level: str, memories: Sequence[str], path: str) -> Tensor:
    """What the state has at LEVEL + MEMORY.PATH, memory by memory. level: with a dot behind it. [A, ...]"""
    return torch.stack([state[f"{level}{m}.{path}"] for m in memories])


def one_by_one(state: MutableMapping[str, Tensor], level: str, memories: Sequence[str], path: str, x: Tensor) -> None:
    """The reverse: x [A, ...] goes back to its places."""
    for m, own in zip(memories, x.unbind(), strict=True):
        state[f"{level}{m}.{path}"] = own
