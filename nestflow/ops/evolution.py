"""Gradients estimated from values alone: evolution strategies with antithetic pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.ops.chance import noise
from nestflow.ops.runtime import Context, fresh_state


def estimated(
    c: Context,
    function: Callable[..., Tensor],
    inputs: Sequence[Any],
    table: list[tuple],
    sigma: float,
    pairs: int,
    paths: Sequence[str],
) -> Tensor:
    """function(c, *inputs), one number, whose gradient in the tensors at `paths` is the estimate

        Σ (f(w + σε) − f(w − σε)) ε / (2σ·pairs)

    over `pairs` draws of ε, normal by counter (seed, path, step, pair). table: the generated STATE table, since states
    may start from a weight. Nothing of the passes is kept, so memory does not grow with their number (Salimans et al.
    2017, with the antithetic pairs of Geweke 1988)."""
    with torch.no_grad():
        value = function(c, *inputs)
    if not torch.is_grad_enabled() or not paths:
        return value
    rows = next(iter(c.s.values())).shape[0] if c.s else 1
    with torch.no_grad():
        slopes = {p: torch.zeros_like(c.w[p]) for p in paths}
        for i in range(pairs):
            draws = {p: drawn(c, p, i, c.w[p]) for p in paths}
            up, down = (
                function(moved(c, {p: c.w[p] + s * draws[p] for p in paths}, table, rows), *inputs)
                for s in (sigma, -sigma)
            )
            k = (up - down) / (2 * sigma * pairs)
            slopes = {p: g + k * draws[p] for p, g in slopes.items()}
    # a plane through the value with these slopes: it can stand in any expression
    return value + torch.stack([((c.w[p] - c.w[p].detach()) * slopes[p]).sum() for p in paths]).sum()


def drawn(c: Context, path: str, pair: int, w: Tensor) -> Tensor:
    """ε of one pair for one tensor."""
    one = c.part(rows=torch.tensor([pair], device=w.device))
    return noise(one, f"es:{path}", (1, None, None), tuple(w.shape), 0)[0].to(w.dtype)


def moved(c: Context, tensors: Mapping[str, Tensor], table: list[tuple], rows: int) -> Context:
    """The call from its beginning with other tensors: fresh states, and nothing kept or published."""
    w = {**c.w, **tensors}
    start = fresh_state(table, w, rows, c.dtype, c.device)
    return c.part(w=w, s=start, n={}, now={}, published={})


__all__ = ["estimated"]
