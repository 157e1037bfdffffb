"""x / √(Σ x² / n + eps) over the last axis: what `l2norm` and `rmsnorm` are.

Plain autograd goes back through five operations, each of them a pass over memory; the gradient in closed form,

    r g − x r³ (Σ g x) / n,   r = 1 / √(Σ x² / n + eps),

needs three. Traced code and transforms of `torch.func` see the plain formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def of_size_one(x: Tensor, n: int, eps: float) -> Tensor:
    """x / √(Σ x² / n + eps) over the last axis, x [..., d] in at least float32; a zero row has a zero gradient."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return x * _inverse(x, n, eps)
    if torch.is_grad_enabled() and x.requires_grad:
        return OfSizeOne.apply(x, n, eps)
    return x * _inverse_of_known(x, n, eps)


def _inverse(x: Tensor, n: int, eps: float) -> Tensor:
    squares = x.square().sum(-1, keepdim=True)
    return torch.rsqrt((squares if n == 1 else squares / n) + eps)


def _inverse_of_known(x: Tensor, n: int, eps: float) -> Tensor:
    """The same where no gradient is asked for: one pass over x, and nothing as large as x in between."""
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return (squares if n == 1 else squares.div_(n)).add_(eps).rsqrt_()


class OfSizeOne(torch.autograd.Function):
    """The function above; its gradient may be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int, eps: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        r = _inverse_of_known(x, n, eps)
        ctx.save_for_backward(x, r)
        ctx.n, ctx.eps = n, eps
        return x * r

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            r = _inverse(x, ctx.n, ctx.eps)
        along = (g * x).sum(-1, keepdim=True) * r.square()
        return torch.addcmul(g, x, along, value=-1 / ctx.n) * r, None, None
