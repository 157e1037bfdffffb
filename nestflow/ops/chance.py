"""Chance by counter: a draw is a function of (seed, path, step, row, tick, head, feature) and of nothing else.

So sequences may be split, runs resumed and executions changed, and every draw is the same. The generator is a chain of
the finaliser of SplitMix64 (Steele et al. 2014): z ← mix(z + G·(word + 1)) for each word of the counter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from nestflow.ops.weights import mapped

Axes = tuple[int, int | None, int | None]
G = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number


def mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64, which wraps; shifts fill with zeros."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def counters(c: Any, path: str, axes: Axes, shape: tuple[int, ...], t0: int) -> Tensor:
    """A hash for each draw, int64 [B, H, T, *shape], axes (rows, heads, ticks) that are None left out."""
    rows, heads, ticks = axes
    words = torch.tensor([c.seed, word_of(path), c.step], device=c.device).unbind()
    z = torch.zeros((), dtype=torch.int64, device=c.device)
    for word in words:
        z = mix(z + G * (word + 1))
    row = torch.arange(rows, device=c.device) if c.rows is None else c.rows
    first = 1 if ticks is None else t0 + 1  # what has no token axis is drawn once
    tick = torch.arange(first, first + (1 if ticks is None else ticks), device=c.device)
    head = torch.arange(heads or 1, device=c.device)
    feature = torch.arange(math.prod(shape), device=c.device)
    z = mix(z + G * (row + 1))[:, None]
    z = mix(z + G * (tick + 1))[:, None, :]
    z = mix(z + G * (head[:, None] + 1))[..., None]
    z = mix(z + G * (feature + 1)).unflatten(-1, shape) if shape else mix(z + G * (feature + 1))[..., 0]
    z = z if ticks is not None else z.squeeze(2)
    return z if heads is not None else z.squeeze(1)


def word_of(path: str) -> int:
    """A path as a signed number of 64 bits."""
    return int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little", signed=True)


def flat(z: Tensor) -> Tensor:
    """The upper 53 bits as a float64 in [0, 1)."""
    return ((z >> 11) & 0x1FFFFFFFFFFFFF).double() * 2.0**-53


def uniform(c: Any, path: str, axes: Axes, shape: tuple[int, ...], t0: int) -> Tensor:
    """Flat on [0, 1), float64."""
    return flat(counters(c, path, axes, shape, t0))


def noise(c: Any, path: str, axes: Axes, shape: tuple[int, ...], t0: int) -> Tensor:
    """Normal with mean 0 and variance 1, by Box and Muller from two draws."""
    z = counters(c, path, axes, shape, t0)
    length = torch.sqrt(-2 * torch.log1p(-flat(z)))
    return (length * torch.cos(2 * math.pi * flat(mix(z + G)))).to(c.dtype)


def dropout(x: Tensor, p: float, c: Any, path: str, axes: Axes, shape: tuple[int, ...], t0: int) -> Tensor:
    """While training: 0 with probability p, else x / (1 − p)."""
    if not c.training:
        return x
    return torch.where(uniform(c, path, axes, shape, t0) >= p, x / (1 - p), 0.0)


def drawn_start(c: Any, path: str, shape: Sequence[int], heads: bool, t: int, draw: tuple[Any, ...]) -> Tensor:
    """Where a memory that is drawn starts at tick t + 1, [rows, (heads,) *shape]. draw: kind (normal, uniform,
    log_uniform), its two numbers, functions of the draw."""
    kind, a, b, maps = draw
    axes = shape[0], shape[1] if heads else None, 1
    z = counters(c, path, axes, tuple(shape[2 if heads else 1 :]), t).squeeze(2 if heads else 1)
    u = flat(z)
    if kind == "normal":
        x = a * torch.sqrt(-2 * torch.log1p(-u)) * torch.cos(2 * math.pi * flat(mix(z + G)))
    elif kind == "uniform":
        x = a + (b - a) * u
    else:
        x = torch.exp(math.log(a) + (math.log(b) - math.log(a)) * u)
    return mapped(x, maps).to(c.dtype)
