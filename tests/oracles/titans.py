"""Titans' neural memory (arXiv 2501.00663, eq. 8-18), one token at a time, on an MLP of any depth.

With θ_a the state that the chunk of token t began with, ℓ the objective and G_t = ∇ℓ(M(k_t; θ_a), v_t):

    S_t = β_t S_{t−1} − η_t G_t        θ_t = α_t θ_{t−1} + S_t        y_t = M(q_t; θ)

``every N`` sums N of the G_t and learns once, with the rate, momentum and gate of the token that learns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.oracles.mlp import alias, mlp

Objective = Callable[[Tensor, Tensor], Tensor]


def l2(p: Tensor, v: Tensor) -> Tensor:
    """½‖p − v‖²"""
    return 0.5 * (p - v).square().sum()


def dot(p: Tensor, v: Tensor) -> Tensor:
    """−⟨p, v⟩"""
    return -(p * v).sum()


def huber(delta: float) -> Objective:
    """Per coordinate ½e² inside ±δ, δ(|e| − δ/2) outside."""

    def loss(p: Tensor, v: Tensor) -> Tensor:
        size = (p - v).abs()
        return torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta)).sum()

    return loss


def gradient(
    weights: list[Tensor], key: Tensor, value: Tensor, objective: Objective, recall: Callable[..., Tensor]
) -> list[Tensor]:
    """∇_θ ℓ(M(k; θ), v), by autograd, differentiable again; key, value and θ stay in the outer graph."""
    with torch.enable_grad():
        theta = alias(weights)
        return list(torch.autograd.grad(objective(recall(theta, key), value), theta, create_graph=True))


def titans_memory(
    key: Tensor,
    value: Tensor,
    query: Tensor,
    weights: list[Tensor],
    *,
    rate: Tensor,
    beta: Tensor | None = None,
    retain: Tensor | None = None,
    chunk: int = 1,
    every: int = 1,
    read: str = "after",
    objective: Objective = l2,
    act: str = "gelu",
    residual: bool = False,
    momentum: list[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs [B,H,T,D], the last θ and the last S. ``weights`` [H,out,in] (or [B,H,out,in]) is the state at the start.

    ``beta=None`` is plain gradient descent, ``retain=None`` keeps all. ``read`` is ``after`` (θ_t), ``before``
    (θ_{t−1}) or ``chunk_start`` (θ_a).
    """
    batch, heads, ticks = key.shape[:3]

    def recall(theta: list[Tensor], x: Tensor) -> Tensor:
        return mlp(theta, x, act=act, residual=residual)

    def gate(values: Tensor | None, t: int, default: float) -> Tensor | float:
        return default if values is None else values[:, :, t].unsqueeze(-1)

    theta = [w.expand(batch, heads, *w.shape[-2:]) for w in weights]
    s = [torch.zeros_like(w) for w in theta] if momentum is None else momentum
    anchor, pending, outputs = theta, None, []
    for t in range(ticks):
        if t % chunk == 0:
            anchor = theta
        before = theta
        grads = gradient(anchor, key[:, :, t], value[:, :, t], objective, recall)
        pending = grads if pending is None else [p + g for p, g in zip(pending, grads, strict=True)]
        if (t + 1) % every == 0:
            eta, b, alpha = gate(rate, t, 1.0), gate(beta, t, 0.0), gate(retain, t, 1.0)
            s = [b * old - eta * g for old, g in zip(s, pending, strict=True)]
            theta = [alpha * w + step for w, step in zip(theta, s, strict=True)]
            pending = None
        at = {"after": theta, "before": before, "chunk_start": anchor}[read]
        outputs.append(recall(at, query[:, :, t]))
    return torch.stack(outputs, 2), theta, s
