r"""Linear update rules in closed form: coefficients instead of tensors.

A rule that is linear in the memory, in its own slots and in the error g makes every state of a block of n ticks a
combination of p *starts* (the memory and the rule's slots as the block began) and the block's n errors:

    X_t = Σ_j P[t, j] X_j + Σ_{s ≤ t} L[t, s] G_s

`rows` [..., n, p + n] holds [P | L]: row t says what X_t is made of. Rows are built from few words, in the order a
rule is written: `decays` (products of a gate), `errors` (the rows of g), `accumulate` and `carry` (decaying sums),
`lag` (the tick before), and scaling by numbers. All exact for gates of any sign, 0 and 1 included: no logarithm, no
division.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops.causal import earlier, lower


def chunk_sizes(ticks: int, before: int, size: int) -> list[int]:
    """Lengths of the pieces of a call of `ticks` ticks that follows `before` ticks: each ends at a multiple of
    `size`."""
    sizes = [min(ticks, size - before % size)]
    rest = ticks - sizes[0]
    sizes += [size] * (rest // size)
    return sizes + ([rest % size] if rest % size else [])


def errors(ticks: int, starts: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Rows of g: the error of each tick itself. [n, p + n]"""
    eye = torch.eye(ticks, dtype=dtype, device=device)
    return F.pad(eye, (starts, 0))


def decay_matrix(decay: Tensor) -> Tensor:
    """D[t, s] = Π_{s < j ≤ t} decay_j below and on the diagonal (which is 1), else 0. [..., n] -> [..., n, n]"""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return _products(decay)
    return Products.apply(decay)  # pyright: ignore[reportReturnType]  # torch types it loosely


def _products(decay: Tensor) -> Tensor:
    n = decay.shape[-1]
    below = torch.ones(n, n, dtype=torch.bool, device=decay.device).tril(-1)
    factors = torch.where(below, decay[..., :, None], 1)  # ones where nothing decays: the product never meets them
    return factors.cumprod(-2).tril()


class Products(torch.autograd.Function):
    """D with a derivative that is made of products alone: D[r, t] D[t−1, s] for s < t ≤ r. That of `cumprod` divides,
    and asks the device for that whether a factor is zero; it takes two to three times as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        d = _products(decay)
        ctx.save_for_backward(d)
        return d

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (d,) = ctx.saved_tensors
        before = F.pad(d[..., :-1, :], (0, 0, 1, 0))  # D[t−1, s]
        return ((d.mT @ grad) * before).sum(-1)


class Decays(NamedTuple):
    """matrix D [..., n, n]: what is left at tick t of what came in at tick s. start [..., n]: of what was there
    before."""

    matrix: Tensor
    start: Tensor


def decays(decay: Tensor | float, ticks: int, dtype: torch.dtype, device: torch.device | str) -> Decays:
    """The products of a gate over a piece. decay [..., n], [..., 1] or a number: the same at all ticks."""
    exact = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype  # products of many gates near 1
    gate = decay.to(exact) if isinstance(decay, Tensor) else torch.full((ticks,), decay, dtype=exact, device=device)
    gate = gate.expand(*gate.shape[:-1], ticks)
    matrix = decay_matrix(gate)
    return Decays(matrix.to(dtype), (matrix[..., 0] * gate[..., :1]).to(dtype))


def accumulate(decay: Decays, rate: Tensor | float, start: int, starts: int) -> Tensor:
    """Rows of x_t = decay_t x_{t−1} + rate_t g_t, where x began as start number `start` of `starts`. rate [..., n] or
    a number."""
    weight = rate[..., None, :] if isinstance(rate, Tensor) else rate
    past = lower(decay.matrix * weight)
    return torch.cat([_column(decay.start, past, start, starts), past], -1)


def _column(gamma: Tensor, past: Tensor, start: int, starts: int) -> Tensor:
    """γ in column `start` of an otherwise empty block of p columns, with the leading axes of `past`."""
    block = F.pad(gamma[..., None], (start, starts - 1 - start))
    return block.expand(*past.shape[:-1], starts)


def carry(decay: Decays, drive: Tensor, start: int) -> Tensor:
    """Rows of x_t = decay_t x_{t−1} + drive_t, where x began as start number `start`. drive, the result: [..., n, p +
    n]."""
    width = drive.shape[-1]
    return earlier(decay.matrix, drive) + F.pad(decay.start[..., None], (start, width - 1 - start))


def lag(rows: Tensor, start: int) -> Tensor:
    """Rows of x_{t−1}, where x began as start number `start`."""
    first = torch.eye(start + 1, rows.shape[-1], dtype=rows.dtype, device=rows.device)[start:]
    return torch.cat([first.expand(*rows.shape[:-2], 1, rows.shape[-1]), rows[..., :-1, :]], -2)


def pieces(x: Tensor, sizes: list[int], size: int) -> Tensor:
    """Numbers per tick [..., T] cut in pieces of one length: [..., n, size]. Numbers that are the same at all ticks,
    [..., 1], are so in all pieces: [..., 1, 1], and rows that are made of such alone are made once.

    The first and last piece may be short: they are filled up with ones, which `split_rows` cuts off again.
    """
    x = torch.atleast_1d(x)  # a weight of one number
    if len(sizes) == 1 or x.shape[-1] == 1:
        return x[..., None, :]
    first, middle, last = sizes[0], sum(sizes[1:-1]), sizes[-1]
    head, body, end = x.split([first, middle, last], -1)
    parts = [F.pad(head, (0, size - first), value=1.0)[..., None, :]]
    if middle:
        parts.append(body.unflatten(-1, (-1, size)))
    parts.append(F.pad(end, (0, size - last), value=1.0)[..., None, :])
    return torch.cat(parts, -2)


def piece_length(sizes: list[int], size: int) -> int:
    """The common length that `pieces` cuts to."""
    return sizes[0] if len(sizes) == 1 else size


class At(NamedTuple):
    """Rows taken apart for reading: old, p of [..., n, 1], what each start weighs at each tick; new [..., n, n], what
    each error does; end_old, p of [..., 1, 1], and end_new [..., n, 1]: the same at the last tick (empty where
    nothing asks)."""

    old: tuple[Tensor, ...]
    new: Tensor
    end_old: tuple[Tensor, ...] = ()
    end_new: Tensor | None = None


def reading(rows: Tensor, starts: int, end: bool = True) -> At:
    """Take rows [..., n, p + n] apart. end: their last tick too, for the state after the piece."""
    ticks = rows.shape[-2]
    widths = [1] * starts + [rows.shape[-1] - starts]
    *old, new = rows.split(widths, -1)
    if not end:
        return At(tuple(old), new)
    *end_old, end_new = rows.narrow(-2, ticks - 1, 1).split(widths, -1)
    return At(tuple(old), new, tuple(end_old), end_new.mT)


def running(decay: Decays) -> At:
    """The rows of x_t = decay_t x_{t−1} + g_t, ready to read."""
    last = decay.matrix.shape[-2] - 1
    end = decay.matrix.narrow(-2, last, 1)
    return At((decay.start[..., None],), decay.matrix, (decay.start.narrow(-1, last, 1)[..., None],), end.mT)


def running_before(decay: Decays) -> At:
    """The rows of x_{t−1} for the same x."""
    n = decay.matrix.shape[-2]
    old = F.pad(decay.start.narrow(-1, 0, n - 1), (1, 0), value=1.0)
    return At((old[..., None],), F.pad(decay.matrix.narrow(-2, 0, n - 1), (0, 0, 1, 0)))


def split_rows(rows: Tensor, sizes: list[int], starts: int) -> tuple[At, ...]:
    """Rows of all pieces [..., pieces, size, p + size] (or the same for all: [size, p + size], [..., 1, size,
    p + size]), ready to read, one for each."""
    if rows.dim() == 2 or rows.shape[-3] == 1:
        whole = rows if rows.dim() == 2 else rows.squeeze(-3)
        made = {n: reading(whole[..., :n, : starts + n], starts) for n in set(sizes)}
        return tuple(made[n] for n in sizes)
    length = rows.shape[-2]
    at = reading(rows, starts)
    assert at.end_new is not None
    parts = zip(
        zip(*(x.unbind(-3) for x in at.old)),
        at.new.unbind(-3),
        zip(*(x.unbind(-3) for x in at.end_old)),
        at.end_new.unbind(-3),
        rows.unbind(-3),
        sizes,
        strict=True,
    )
    return tuple(At(*whole) if n == length else reading(own[..., :n, : starts + n], starts) for *whole, own, n in parts)
