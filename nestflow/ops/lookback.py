"""Blocks that look back along the token axis and carry their last inputs: short convolutions, shifts, rotations.

The token axis is the last but one of a vector value ([B, T, D] or [B, H, T, D]). Each block gives its result for the
ticks at hand and the inputs to keep, so that a sequence may be split anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def short_conv(x: Tensor, w: Tensor, tail: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution: y_t = Σ_j w[:, j] ⊙ x_{t−j} (+ bias). Returns y and the new tail.

    x [B, T, D] or [B, H, T, D]; w [D, n] or [H, D, n]; tail, the n − 1 inputs before x; bias [D] or [H, D].
    """
    ticks, n = x.shape[-2], w.shape[-1]
    padded = torch.cat([tail.to(x.dtype), x], -2)
    taps = w.movedim(-1, 0).unsqueeze(-2)  # [n, 1, D] or [n, H, 1, D]
    y = padded.narrow(-2, n - 1, ticks) * taps[0]
    for j in range(1, n):
        y = y + padded.narrow(-2, n - 1 - j, ticks) * taps[j]
    return y if bias is None else y + bias.unsqueeze(-2), padded.narrow(-2, ticks, n - 1)


def previous(x: Tensor, tail: Tensor, axis: int = -2) -> tuple[Tensor, Tensor]:
    """x_{t−n}, where tail holds the n inputs before x along the token axis. Returns y and the new tail."""
    ticks, n = x.shape[axis], tail.shape[axis]
    padded = torch.cat([tail.to(x.dtype), x], axis)
    return padded.narrow(axis, 0, ticks), padded.narrow(axis, ticks, n)


def window(x: Tensor, tail: Tensor, axis: int = -2, oldest: bool = False) -> tuple[Tensor, Tensor]:
    """x_{t−a}, a = 0 … n, along a new axis behind the token axis; tail holds the n inputs before x. And the new
    tail. oldest: a = n first."""
    ticks, n = x.shape[axis], tail.shape[axis]
    padded = torch.cat([tail.to(x.dtype), x], axis)
    ages = range(n, -1, -1) if oldest else range(n + 1)
    aged = torch.stack([padded.narrow(axis, n - a, ticks) for a in ages], x.ndim + axis + 1)
    return aged, padded.narrow(axis, ticks, n)


def rope(x: Tensor, t0: int, base: float = 10000.0, reset: int | None = None, axis: int = -2) -> Tensor:
    """Rotary positions: the pair (i, i + d/2) turns by p · base^(−2i/d), p = t − 1 (modulo `reset`).

    x [..., T, d]; t0, ticks before the first one; axis, the token axis. (Su et al. 2021.)
    """
    ticks, half = x.shape[axis], x.shape[-1] // 2
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    p = torch.arange(t0, t0 + ticks, device=x.device)
    p = p % reset if reset else p
    rate = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = p.to(dtype)[:, None] * rate
    for _ in range(-2 - axis):  # features between the token axis and the pairs
        angle = angle.unsqueeze(1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
