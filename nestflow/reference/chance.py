"""Chance in the interpreter, on `[B, H, *features]`: draws by counter (language.md §3.10).

The counter is (seed, path, step, row, tick, head, feature), each a word of 64 bits. A hash starts at 0 and takes each
word in turn, h ← mix(h + G·(word + 1)) modulo 2⁶⁴, G = 0x9E3779B97F4A7C15, mix that of SplitMix64. A flat draw is the
upper 53 bits over 2⁵³; a normal one √(−2 ln(1 − u)) cos(2π v), u from h, v from mix(h + G).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from nestflow.graph.model import Init


def wrapped(number: int) -> int:
    """A number modulo 2⁶⁴, as int64 has it."""
    return (number + 2**63) % 2**64 - 2**63


GOLDEN = wrapped(0x9E3779B97F4A7C15)
FACTORS = (wrapped(0xBF58476D1CE4E5B9), wrapped(0x94D049BB133111EB))


def shifted(h: Tensor, n: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    return torch.bitwise_and(torch.bitwise_right_shift(h, n), 2 ** (64 - n) - 1)


def mix(h: Tensor) -> Tensor:
    h = torch.bitwise_xor(h, shifted(h, 30)) * FACTORS[0]
    h = torch.bitwise_xor(h, shifted(h, 27)) * FACTORS[1]
    return torch.bitwise_xor(h, shifted(h, 31))


def taken(h: Tensor, word: Tensor | int) -> Tensor:
    """The hash after one more word."""
    word = torch.as_tensor(word, dtype=torch.int64, device=h.device)
    return mix(h + GOLDEN * (word + 1))


def hashes(seed: int, path: str, step: int, tick: Tensor, heads: int, shape: tuple[int, ...], first: int = 0) -> Tensor:
    """A hash for each draw. tick: [B, 1], each row's own. first: the number of the first of these rows."""
    name = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little", signed=True)
    rows = tick.shape[0]
    h = torch.zeros(rows, heads, *shape, dtype=torch.int64, device=tick.device)
    for word in (seed, name, step):
        h = taken(h, word)

    def along(x: Tensor, axis: int) -> Tensor:
        return x.reshape([-1 if i == axis else 1 for i in range(h.ndim)])

    h = taken(h, along(torch.arange(first, first + rows, device=tick.device), 0))
    h = taken(h, along(tick.reshape(-1), 0))
    h = taken(h, along(torch.arange(heads, device=tick.device), 1))
    return taken(h, torch.arange(math.prod(shape), device=tick.device).reshape(1, 1, *shape))


def flat(h: Tensor) -> Tensor:
    return shifted(h, 11).to(torch.float64) / 2**53


def normal(h: Tensor) -> Tensor:
    u, v = flat(h), flat(mix(h + GOLDEN))
    return (-2 * (1 - u).log()).sqrt() * (2 * torch.pi * v).cos()


def drawn_start(
    init: Init, chance: tuple[int, int], path: str, tick: Tensor, heads: int, shape: tuple[int, ...], first: int = 0
) -> Tensor:
    """Where a memory starts that is drawn anew, [B, heads, *shape]. tick: [B, 1], the first one of its new life.
    first: the number of the first row."""
    seed, step = chance
    h = hashes(seed, path, step, tick, heads, shape, first)
    if init.kind == "normal":
        x = init.a * normal(h)
    else:
        low, high = (init.a, init.b) if init.kind == "uniform" else (math.log(init.a), math.log(init.b))
        x = low + (high - low) * flat(h)
        x = x.exp() if init.kind == "log_uniform" else x
    for name in init.maps:
        if name == "inverse_softplus":
            x = x.expm1().log()
        else:
            x = -x if name == "neg" else {"log": torch.log, "exp": torch.exp, "sqrt": torch.sqrt}[name](x)
    return x
