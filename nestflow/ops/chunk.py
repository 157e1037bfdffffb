"""A memory inside a chunk: what its weights are at each tick, without forming them.

With `rows` of a weight (see `nestflow.ops.coefficients`), its p starts X and the factors h, e of its errors
(G_s = e_s h_sᵀ), the weight of tick t is W_t = Σ_j P[t, j] X_j + Σ_s L[t, s] e_s h_sᵀ.
Leading axes are rows and heads, and broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]


def linear_at(x: Tensor, rows: Tensor, starts: Sequence[Tensor], *factors: Factors) -> Tensor:
    """W_t x_t for every tick: Σ_j P_j ⊙ (x X_jᵀ) + ((x hᵀ) ⊙ L) e.

    x [..., n, in]; rows [..., n, p + n]; starts: p of [..., out, in]; factors (h [..., n, in], e [..., n, out]).
    """
    p = len(starts)
    y = rows[..., :1] * (x @ starts[0].mT)
    for j in range(1, p):
        y = y + rows[..., j : j + 1] * (x @ starts[j].mT)
    past = rows[..., p:]
    for h, e in factors:
        y = y + ((x @ h.mT) * past) @ e
    return y


def tensor_at(rows: Tensor, starts: Sequence[Tensor], gradient: Tensor, rank: int) -> Tensor:
    """A tensor of `rank` feature axes at every tick, from its gradient at every tick: [..., n, *shape].

    starts: p of [..., *shape]; gradient [..., n, *shape].
    """
    shape = gradient.shape[gradient.dim() - rank :]
    old = torch.stack([s.reshape(*s.shape[: s.dim() - rank], shape.numel()) for s in starts], -2)
    new = gradient.reshape(*gradient.shape[: gradient.dim() - rank], shape.numel())
    lead = torch.broadcast_shapes(old.shape[:-2], new.shape[:-2])
    both = torch.cat([old.expand(*lead, *old.shape[-2:]), new.expand(*lead, *new.shape[-2:])], -2)
    y = rows @ both
    return y.reshape(*y.shape[:-1], *shape)


def advance(last: Tensor, starts: Sequence[Tensor], *factors: Factors, gradient: Tensor | None = None,
            rank: int = 2) -> Tensor:
    """The state after the block: Σ_j P_j X_j + Σ_s L_s G_s, from its last row `last` [..., p + n].

    starts: p of [..., *shape], `rank` feature axes each; factors: pairs (h, e) of a matrix; gradient [..., n, *shape]:
    errors given in full.
    """
    p, number = len(starts), (...,) + (None,) * rank
    x = last[..., 0][number] * starts[0]
    for j in range(1, p):
        x = x + last[..., j][number] * starts[j]
    past = last[..., p:]
    for h, e in factors:
        x = x + (e * past[..., None]).mT @ h
    if gradient is not None:
        x = x + (gradient * past[number]).sum(-1 - rank)
    return x
