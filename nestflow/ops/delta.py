"""Errors that read the state they change: one triangular system for a block of ticks.

In a delta rule the error of tick t looks at the weight of tick t − 1, u_t = a_t W_{t−1} x_t + b_t, and W_{t−1} is made
of the block's earlier errors. With the rows of W_{t−1} (`lag`) this is linear in U (the WY form, DeltaNet):

    (I − a ⊙ tril₋(x hᵀ ⊙ L⁻)) U = a ⊙ Σ_j P⁻_j ⊙ (x X_jᵀ) + b

Solved by substitution. (The log-depth product of the Neumann series is not: with nearly equal keys, which ordinary
text has, it loses all digits in float32.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nestflow.ops.causal import careful, earlier, exact, filled, from_then_on
from nestflow.ops.chunk import look, scores
from nestflow.ops.coefficients import At
from nestflow.ops.recurrence import Channels


def delta_system(x: Tensor, h: Tensor, scale: Tensor | float, before: At, rate: Tensor | float | None = None) -> Tensor:
    """The matrix of the system, unit triangular (its diagonal is not written): −a ⊙ (x hᵀ ⊙ L⁻). [..., n, n]

    x, h [..., n, in]: what the error looks at the weight with, and the input of its outer product u hᵀ; scale a
    [..., n] or a number; before: the rows of W_{t−1}; rate η: errors are −η (a W x + b) and not a W x + b.
    """
    return system_of(scores(x, h, before), scale, rate)


def system_of(looks: Tensor, scale: Tensor | float, rate: Tensor | float | None) -> Tensor:
    """The same from what each look meets of each error, x hᵀ ⊙ L⁻."""
    system = scaled(scale, looks)
    return -system if rate is None else scaled(rate, system)


def solve_errors(
    system: Tensor,
    x: Tensor,
    scale: Tensor | float,
    error: Tensor,
    before: At,
    starts: Sequence[Tensor],
    first: Tensor | None = None,
    rate: Tensor | float | None = None,
) -> Tensor:
    """U of the system above: the error of every tick at the weight that this tick finds. [..., n, out]

    error b [..., n, out]; starts: p of [..., out, in]; first: x X_0ᵀ where it is known.
    """
    if first is not None:
        seen = before.old[0] * first
    else:
        seen = look(x, starts[0], before)
    for j in range(1, len(starts)):
        seen = seen + look(x, starts[j], before, j)
    return _solved(system, seen, scale, error, rate)


def errors_by_channels(
    before: Channels, start: Tensor, scale: Tensor | float, error: Tensor, rate: Tensor | float | None = None
) -> Tensor:
    """U where every key channel has a gate of its own. before: of x and h (`channels(x, h, ..., before=True)`); start
    [..., out, in]; the rest as above. [..., n, out]"""
    return _solved(system_of(before.scores, scale, rate), before.old @ start.mT, scale, error, rate)


def _solved(system: Tensor, seen: Tensor, scale: Tensor | float, error: Tensor, rate: Tensor | float | None) -> Tensor:
    right = scaled(scale, seen) + error
    return solution(system, right if rate is None else scaled(-rate, right))


def solution(system: Tensor, right: Tensor) -> Tensor:
    """What solves the unit triangular system. system [..., n, n], right [..., n, width]"""
    lead = torch.broadcast_shapes(system.shape[:-2], right.shape[:-2])
    if system.shape[:-2].numel() < lead.numel() and right.shape[-1] > 1:  # one system for many
        return solved_for(system, right)[0]
    system, exactly = (x.to(exact(right)).expand(*lead, *x.shape[-2:]) for x in (system, right))
    return _substituted(system, exactly).to(right.dtype)


def solved_for(system: Tensor, *right: Tensor) -> tuple[Tensor, ...]:
    """The same for several right sides, together wider than the system is long: by its inverse, which is found once."""
    kind = exact(right[0])
    one = torch.eye(system.shape[-1], dtype=kind, device=system.device)
    inverse = _substituted(system.to(kind), one.expand(system.shape))
    return tuple(earlier(inverse, x.to(kind)).to(x.dtype) for x in right)


def _substituted(system: Tensor, right: Tensor) -> Tensor:
    if not careful():
        return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    below = system.clone().tril_(-1)  # solvers work in blocks, where a row meets later ones
    bad = ~right.isfinite() | ~below.isfinite().all(-1, keepdim=True)
    below, right = filled(below, ~below.isfinite(), 0.0), filled(right, bad, 0.0)
    return from_then_on(torch.linalg.solve_triangular(below, right, upper=False, unitriangular=True), bad)


def scaled(factor: Tensor | float, x: Tensor) -> Tensor:
    """Numbers per tick [..., n], or one number, times x [..., n, width]."""
    if isinstance(factor, Tensor):
        return factor[..., None] * x
    return x if factor == 1 else factor * x
