"""The loop of a level over its pieces: piece after piece, a state that passes through them, recalls that are collected.

`in_turn` is where `execution` acts: the pieces of a segment may be one call of compiled code, and a segment may keep
nothing for the backward pass but the state it began with (`checkpointing`), or all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.ops.runtime import Context

State = tuple[Tensor, ...]
Piece = Callable[..., tuple[State, tuple[Tensor, ...]]]


def in_turn(
    c: Context, piece: Piece, t: int, sizes: Sequence[int], state: State, lists: Sequence[Any], axes: Sequence[int]
) -> tuple[State, tuple[Tensor, ...]]:
    """The state after all pieces, and what each of them recalled, joined along the ticks.

    piece(t, n, state, *inputs) -> (state, recalls): t ticks before it, n ticks in it. lists: for each input one value
    a piece. axes: of each recall, where its ticks lie.
    """
    found: tuple[list[Tensor], ...] = tuple([] for _ in axes)
    for n, *inputs in zip(sizes, *lists):
        state, recalls = piece(t, n, state, *inputs)
        t += n
        for part, x in zip(found, recalls):
            part.append(x)
    return state, tuple(torch.cat(part, axis) for part, axis in zip(found, axes))
