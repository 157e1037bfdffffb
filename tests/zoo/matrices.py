"""Memories that are one matrix W, from zeros: y_t = W_t q_t, one tick after another as the papers print them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def outer(u: Tensor, k: Tensor) -> Tensor:
    """u kᵀ"""
    return u[..., :, None] * k[..., None, :]


def times(w: Tensor, x: Tensor) -> Tensor:
    """W x"""
    return (w @ x[..., None])[..., 0]


def recur(step: Callable[..., Tensor], query: Tensor, value: Tensor, *streams: Tensor) -> Tensor:
    """y_t = W_t q_t with W_t = step(W_{t−1}, value_t, streams_t...), W_0 = 0."""
    w = torch.zeros(*query.shape[:2], value.shape[-1], query.shape[-1], dtype=query.dtype)
    outputs = []
    for q, *tick in zip(query.unbind(2), value.unbind(2), *(s.unbind(2) for s in streams), strict=True):
        w = step(w, *tick)
        outputs.append(times(w, q))
    return torch.stack(outputs, 2)


def retnet(k: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """S ← γ_h S + v kᵀ, γ_h = 1 − 2^(−5−h)."""
    gamma = (1 - 2.0 ** (-5 - torch.arange(k.shape[1], dtype=k.dtype)))[:, None, None]
    return recur(lambda w, v, k: gamma * w + outer(v, k), q, v, k)


def gla(k: Tensor, v: Tensor, q: Tensor, a: Tensor) -> Tensor:
    """S ← S diag(α) + v kᵀ, α one per key channel."""
    return recur(lambda w, v, k, a: w @ torch.diag_embed(a) + outer(v, k), q, v, k, a)


def hgrn2(f: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """S ← S diag(f) + v (1 − f)ᵀ."""
    return recur(lambda w, v, f: w @ torch.diag_embed(f) + outer(v, 1 - f), q, v, f)


def mamba2(b: Tensor, x: Tensor, c: Tensor, dt: Tensor, a: Tensor, skip: Tensor) -> Tensor:
    """S ← exp(−A Δ) S + Δ x Bᵀ, y = S C + D x; a = A and skip = D: [H, 1]."""
    y = recur(lambda w, x, b, dt: torch.exp(-a[..., None] * dt[..., None]) * w + outer(dt * x, b), c, x, b, dt)
    return y + skip[:, None] * x


def deltanet(k: Tensor, v: Tensor, q: Tensor, beta: Tensor) -> Tensor:
    """S ← S (I − β k kᵀ) + β v kᵀ."""
    eye = torch.eye(k.shape[-1], dtype=k.dtype)
    return recur(lambda w, v, k, b: w @ (eye - outer(b * k, k)) + outer(b * v, k), q, v, k, beta)


def gated_deltanet(k: Tensor, v: Tensor, q: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """S ← α S (I − β k kᵀ) + β v kᵀ, α a number."""
    eye = torch.eye(k.shape[-1], dtype=k.dtype)

    def step(w: Tensor, v: Tensor, k: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return a[..., None] * (w @ (eye - outer(b * k, k))) + outer(b * v, k)

    return recur(step, q, v, k, beta, alpha)


def kda(k: Tensor, v: Tensor, q: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """S ← S diag(α) (I − β k kᵀ) + β v kᵀ, α one per key channel."""
    eye = torch.eye(k.shape[-1], dtype=k.dtype)

    def step(w: Tensor, v: Tensor, k: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return w @ torch.diag_embed(a) @ (eye - outer(b * k, k)) + outer(b * v, k)

    return recur(step, q, v, k, beta, alpha)


def deltaproduct(keys: list[Tensor], values: list[Tensor], q: Tensor, betas: list[Tensor], alpha: Tensor) -> Tensor:
    """S ← α S once a token, then a delta rule for each pair of the token in turn."""
    eye = torch.eye(q.shape[-1], dtype=q.dtype)
    n = len(keys)

    def step(w: Tensor, _: Tensor, a: Tensor, *pairs: Tensor) -> Tensor:
        w = a[..., None] * w
        for k, v, b in zip(pairs[:n], pairs[n : 2 * n], pairs[2 * n :], strict=True):
            w = w @ (eye - outer(b * k, k)) + outer(b * v, k)
        return w

    return recur(step, q, values[0], alpha, *keys, *values, *betas)


def comba(k: Tensor, p: Tensor, v: Tensor, q: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """S ← α S; e = v − S p; S ← S + β e kᵀ: erased along p, written along k."""

    def step(w: Tensor, v: Tensor, k: Tensor, p: Tensor, b: Tensor, a: Tensor) -> Tensor:
        w = a[..., None] * w
        return w + outer(b * (v - times(w, p)), k)

    return recur(step, q, v, k, p, beta, alpha)


def rwkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor) -> Tensor:
    """S ← S (diag(w) − κ̂ (κ̂ ⊙ a)ᵀ) + v k̃ᵀ, y = S r: the erase acts on the undecayed S."""

    def step(s: Tensor, v: Tensor, w: Tensor, k: Tensor, kappa: Tensor, a: Tensor) -> Tensor:
        return s @ (torch.diag_embed(w) - outer(kappa, kappa * a)) + outer(v, k)

    return recur(step, r, v, w, k, kappa, a)


def longhorn(k: Tensor, v: Tensor, q: Tensor, beta: Tensor, exact: bool) -> Tensor:
    """argmin ‖S − S₀‖² + Σ_i β_i ((S k − v)_i)², solved row by row; or with the diagonal of k kᵀ alone."""

    def solved(w: Tensor, v: Tensor, k: Tensor, b: Tensor) -> Tensor:
        # row i: s (I + β_i k kᵀ) = s₀ + β_i v_i kᵀ
        eye = torch.eye(k.shape[-1], dtype=k.dtype)
        system = eye + b[..., :, None, None] * outer(k, k)[..., None, :, :]
        return torch.linalg.solve(system, (w + outer(b * v, k))[..., None])[..., 0]

    def shipped(w: Tensor, v: Tensor, k: Tensor, b: Tensor) -> Tensor:
        delta = b / (1 + b * k.square().sum(-1, keepdim=True))
        return w * (1 - outer(delta, k * k)) + outer(delta * v, k)

    return recur(solved if exact else shipped, q, v, k, beta)


def attention(k: Tensor, v: Tensor, q: Tensor, window: int) -> Tensor:
    """Softmax attention over the last `window` ticks, own included, scores over √d."""
    outputs = []
    for t in range(k.shape[2]):
        near = slice(max(0, t - window + 1), t + 1)
        score = torch.einsum("bhd,bhnd->bhn", q[:, :, t], k[:, :, near]) / k.shape[-1] ** 0.5
        outputs.append(torch.einsum("bhn,bhnd->bhd", score.softmax(-1), v[:, :, near]))
    return torch.stack(outputs, 2)


def mesa(k: Tensor, v: Tensor, q: Tensor, beta: Tensor, gamma: Tensor, ridge: Tensor) -> Tensor:
    """H ← γ H + β k kᵀ, G ← γ G + β v kᵀ, y = G (H + Λ)⁻¹ q; ridge Λ: [H, D]."""
    h = torch.zeros(*k.shape[:2], k.shape[-1], k.shape[-1], dtype=k.dtype)
    g = torch.zeros(*k.shape[:2], v.shape[-1], k.shape[-1], dtype=k.dtype)
    outputs = []
    for k_t, v_t, q_t, b_t, a_t in zip(*(s.unbind(2) for s in (k, v, q, beta, gamma)), strict=True):
        h = a_t[..., None] * h + outer(b_t * k_t, k_t)
        g = a_t[..., None] * g + outer(b_t * v_t, k_t)
        outputs.append(times(g, torch.linalg.solve(h + torch.diag_embed(ridge), q_t)))
    return torch.stack(outputs, 2)


def normalized(k: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """Σ_{i≤t} v_i (k_iᵀ q) / Σ_{i≤t} k_iᵀ q, as attention over all pairs."""
    scores = (q @ k.mT).tril()
    return scores @ v / (scores.sum(-1, keepdim=True) + 1e-6)
