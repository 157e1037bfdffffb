"""A memory inside a chunk: what its weights are at each tick, without forming them.

With the rows of a weight (`At`, see `nestflow.ops.coefficients`), its p starts X and the factors h, e of its errors
(G_s = e_s h_sᵀ), the weight of tick t is W_t = Σ_j P[t, j] X_j + Σ_s L[t, s] e_s h_sᵀ.
Leading axes are rows and heads, and broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops.causal import careful, earlier, filled, from_then_on, lower
from nestflow.ops.coefficients import At, decay_matrix

Factors = tuple[Tensor, Tensor]


def linear_at(x: Tensor, at: At, starts: Sequence[Tensor | None], *factors: Factors) -> Tensor:
    """W_t x_t for every tick: Σ_j P_j ⊙ (x X_jᵀ) + ((x hᵀ) ⊙ L) e.

    x [..., n, in]; starts: p of [..., out, in] (None: it does not enter); factors (h [..., n, in], e [..., n, out]).
    """
    terms = [look(x, start, at, j) for j, start in enumerate(starts) if start is not None]
    terms += [earlier(scores(x, h, at), e) for h, e in factors]
    return summed(terms)


def scores(x: Tensor, h: Tensor, at: At) -> Tensor:
    """How much of each error x reads at each tick: (x hᵀ) ⊙ L. x, h [..., n, in] -> [..., n, n]"""
    return lower((x @ h.mT) * at.new)


def look(x: Tensor, start: Tensor, at: At, j: int = 0) -> Tensor:
    """What x reads of start number j at each tick. x [..., n, in], start [..., out, in] -> [..., n, out]"""
    return at.old[j] * (x @ start.mT)


def summed(terms: Sequence[Tensor]) -> Tensor:
    """Their sum, from the left."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def tensor_at(at: At, starts: Sequence[Tensor], gradient: Tensor, rank: int) -> Tensor:
    """A tensor of `rank` feature axes at every tick, from its gradient at every tick: [..., n, *shape].

    starts: p of [..., *shape]; gradient [..., n, *shape].
    """
    shape = gradient.shape[gradient.dim() - rank :]

    def flat(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.dim() - rank], shape.numel())

    y = earlier(at.new, flat(gradient))
    for weight, start in zip(at.old, starts):
        y = y + weight * flat(start).unsqueeze(-2)
    return y.reshape(*y.shape[:-1], *shape)


def matrix_at(at: At, starts: Sequence[Tensor], *factors: Factors) -> Tensor:
    """A matrix itself at every tick, from the factors of its errors: [..., n, out, in].

    starts: p of [..., out, in]; factors (h [..., n, in], e [..., n, out]).
    """
    return tensor_at(at, starts, summed([e[..., :, None] * h[..., None, :] for h, e in factors]), 2)


def matrix_by_channels(gate: Tensor, start: Tensor, *factors: Factors, before: bool = False) -> Tensor:
    """The same where every key channel has a gate of its own (`nestflow.ops.recurrence`). gate [..., n, in]

    before: at W_{t−1} and not W_t.
    """
    n = factors[0][1].shape[-2]
    gate = gate.expand(*gate.shape[:-2], n, gate.shape[-1])
    products = decay_matrix(gate.mT)
    left, new = (products[..., 0] * gate.mT[..., :1]).mT, products.movedim(-3, -1)
    if before:
        left = F.pad(left.narrow(-2, 0, n - 1), (0, 0, 1, 0), value=1.0)
        new = F.pad(new.narrow(-3, 0, n - 1), (0, 0, 0, 0, 1, 0))
    kept = left[..., :, None, :] * start[..., None, :, :]
    # Σ_s e_s ⊗ (h_s ⊙ D[t, s]): one product for each tick
    return summed([kept] + [_each_tick(e, new * h[..., None, :, :]) for h, e in factors])


def _each_tick(e: Tensor, h: Tensor) -> Tensor:
    """Σ_{s ≤ t} e_s ⊗ h[t, s]. e [..., n, out], h [..., n, n, in] -> [..., n, out, in]"""
    if not careful():
        return e.mT[..., None, :, :] @ h
    later = h.new_ones(h.shape[-3:-1], dtype=torch.bool).triu(1)[..., None]
    bad = ~e.isfinite()
    y = filled(e, bad, 0.0).mT[..., None, :, :] @ h.masked_fill(later, 0.0)
    return from_then_on(y.flatten(-2), bad.repeat_interleave(h.shape[-1], -1)).unflatten(-1, y.shape[-2:])


def advance(
    at: At, starts: Sequence[Tensor | None], *factors: Factors, gradient: Tensor | None = None, rank: int = 2
) -> Tensor:
    """The state after the piece: Σ_j P_j X_j + Σ_s L_s G_s, from the rows' last tick.

    starts: p of [..., *shape], `rank` feature axes each (None: it does not enter); factors: pairs (h, e) of a matrix;
    gradient [..., n, *shape]: errors given in full.
    """
    assert at.end_new is not None
    terms = [_number(weight, rank) * start for weight, start in zip(at.end_old, starts) if start is not None]
    terms += [(e * at.end_new).mT @ h for h, e in factors]
    if gradient is not None:
        terms.append((gradient * at.end_new.reshape(*at.end_new.shape[:-1], *[1] * rank)).sum(-1 - rank))
    return summed(terms)


def _number(x: Tensor, rank: int) -> Tensor:
    """Numbers [..., 1, 1] against tensors with `rank` feature axes."""
    return x if rank == 2 else x.reshape((*x.shape[:-2], *[1] * rank))
