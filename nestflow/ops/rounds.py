"""Several updates in a tick, each from the state that the one before left: to a closed form they are ticks themselves.

What a round has at every tick is woven with what the others have, [t0 r0, t0 r1, t1 r0, t1 r1, ...]; the decay of the
tick acts in its first round. What the level sees of a tick is its last row (or its first: the state that it found).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def woven(
    xs: Sequence[Tensor | float], ticks: int, features: int, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """What the K rounds have at `ticks` ticks, as ticks of their own: [..., n K, *features].

    xs: K of [..., n or 1, *features], or numbers. features: the axes behind that of the ticks.
    """
    axis = -1 - features
    tensors = [
        x if isinstance(x, Tensor) else torch.full((1,) * (1 + features), x, dtype=dtype, device=device) for x in xs
    ]
    shape = list(torch.broadcast_shapes(*(x.shape for x in tensors)))
    shape[axis] = ticks
    return torch.stack([x.expand(shape) for x in tensors], axis).flatten(axis - 1, axis)


def unwoven(y: Tensor, rounds: int, which: int, features: int) -> Tensor:
    """What woven ticks hold of one round: [..., n K, *features] -> [..., n, *features]"""
    return y.unflatten(-1 - features, (-1, rounds)).select(-1 - features, which)
