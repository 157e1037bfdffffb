"""Memories that are networks: gradients by autograd at the state a chunk began with, learned from tick by tick."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Net = Callable[[Sequence[Tensor], Tensor], Tensor]
Loss = Callable[..., Tensor]
Weights = list[Tensor]


def apply(w: Tensor, x: Tensor) -> Tensor:
    """W x for w [B, H, out, in], x [B, H, in]."""
    return torch.einsum("bhoi,bhi->bho", w, x)


def mlp(residual: bool) -> Net:
    """(x +) W₂ gelu(W₁ x)"""

    def net(w: Sequence[Tensor], x: Tensor) -> Tensor:
        y = apply(w[1], torch.nn.functional.gelu(apply(w[0], x)))
        return x + y if residual else y

    return net


def norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean 0, biased variance 1."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def miras(w: Sequence[Tensor], x: Tensor) -> Tensor:
    """x + LN(W₂ gelu(W₁ x))"""
    return x + norm(mlp(False)(w, x))


def swiglu(w: Sequence[Tensor], x: Tensor) -> Tensor:
    """W_down (silu(W_gate x) ⊙ W_up x), w = [gate, up, down]"""
    return apply(w[2], torch.nn.functional.silu(apply(w[0], x)) * apply(w[1], x))


def l2(p: Tensor, v: Tensor) -> Tensor:
    """½‖p − v‖²"""
    return (p - v).square().sum(-1) / 2


def dot(p: Tensor, v: Tensor) -> Tensor:
    """−⟨p, v⟩"""
    return -(p * v).sum(-1)


def cubic(p: Tensor, v: Tensor) -> Tensor:
    """Σ|e|³/3"""
    return (p - v).abs().pow(3).sum(-1) / 3


def huber_mixture(p: Tensor, v: Tensor, delta: Tensor) -> Tensor:
    """½‖e‖₂² where ‖e‖₂ ≤ δ, else δ‖e‖₁ (MIRAS 16, with ½); δ [B, H, 1], or [B, H, D]: each coordinate for itself."""
    e = p - v
    return torch.where(e.norm(dim=-1, keepdim=True) <= delta, e.square() / 2, delta * e.abs()).sum(-1)


def gradients(loss: Tensor, weights: Weights) -> Weights:
    """∂ Σ loss / ∂ weights, differentiable again; each row and head has weights of its own."""
    return list(torch.autograd.grad(loss.sum(), weights, create_graph=True))


def copies(start: Sequence[Tensor], like: Tensor) -> Weights:
    """[H, ...] learned starts as [B, H, ...]."""
    many = [w.expand(like.shape[0], *w.shape) for w in start]
    return [w if w.requires_grad else w.clone().requires_grad_() for w in many]


def number(x: Tensor, w: Tensor) -> Tensor:
    """[B, H, 1] beside a weight [B, H, ...]."""
    return x.reshape(*x.shape[:2], *[1] * (w.ndim - 2))


def each(x: Tensor, weights: Weights) -> Weights:
    """A gate or rate beside each of two layers: a number [B, H, 1]; or [B, H, D], on what enters the first layer and on
    what leaves the second."""
    if x.shape[-1] == 1:
        return [number(x, w) for w in weights]
    return [x[..., None, :], x[..., :, None]]


def lq(w: Tensor) -> Tensor:
    """A / ‖A‖₄² over the whole tensor (MIRAS 24)."""
    return w / w.pow(4).flatten(2).sum(-1).pow(0.5).reshape(*w.shape[:2], *[1] * (w.ndim - 2))


MUON = ((3.4445, -4.7750, 2.0315),) * 5
LACT = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012))  # fmt: skip


def newton_schulz(x: Tensor, steps: Sequence[tuple[float, float, float]] = MUON) -> Tensor:
    """Quintic steps on the shorter side, each with coefficients of its own."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.flatten(2).norm(dim=-1).clamp(min=1e-7)[..., None, None]
    for one, three, five in steps:
        a = x @ x.mT
        x = one * x + (three * a + five * a @ a) @ x
    return x.mT if tall else x


def chunked(
    net: Net,
    loss: Loss,
    start: Sequence[Tensor],
    streams: tuple[Tensor, Tensor, Tensor],
    rate: Tensor,
    retain: Tensor,
    chunk: int,
    *,
    extra: Tensor | None = None,
    link: Callable[[Tensor], Tensor] = lambda a: a,
    span: int = 1,
    beta: Tensor | None = None,
    ages: Tensor | None = None,
) -> Tensor:
    """A_t = α_t A_{t−1} − η_t Σ_{i>t−span} ∇ℓ(W_a; k_i, v_i), W = link(A), a the tick before t's chunk, y = W_t(q).

    rate, retain: [B, H, T, 1], or [B, H, T, D] (`each`). ages: weights of the window's places, [H, span], newest first.
    beta: Atlas instead, S_t = β_t S_{t−1} − Σ ∇ℓ and A_t = α_t A_{t−1} + η_t NS(S_t).
    """
    key, value, query = streams
    state = copies(start, key)
    momentum = [torch.zeros_like(w) for w in state]
    outputs = []
    for t in range(key.shape[2]):
        if t % chunk == 0:
            anchor = [link(a) for a in state]
        total = [torch.zeros_like(w) for w in state]
        for i in range(max(0, t - span + 1), t + 1):
            more = () if extra is None else (extra[:, :, i],)
            term = gradients(loss(net(anchor, key[:, :, i]), value[:, :, i], *more), anchor)
            if ages is not None:
                term = [number(ages[None, :, t - i, None], g) * g for g in term]
            total = [s + g for s, g in zip(total, term, strict=True)]
        eta, alpha = rate[:, :, t], retain[:, :, t]
        if beta is None:
            step = [-e * g for e, g in zip(each(eta, total), total, strict=True)]
        else:
            momentum = [number(beta[:, :, t], s) * s - g for s, g in zip(momentum, total, strict=True)]
            step = [number(eta, s) * newton_schulz(s) for s in momentum]
        state = [k * a + d for k, a, d in zip(each(alpha, state), state, step, strict=True)]
        outputs.append(net([link(a) for a in state], query[:, :, t]))
    return torch.stack(outputs, 2)


def ttt(
    net: Net, start: Sequence[Tensor], key: Tensor, value: Tensor, query: Tensor, rate: Tensor, chunk: int,
    gain: Tensor, bias: Tensor, learned: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Token i of a chunk: W_i = W_a − max(1/i + c_i, 0) Σ_{j≤i} η_j G_j; f(x) = x + gain ⊙ norm(net(x)) + bias.
    learned: c [chunk]."""

    def f(w: Sequence[Tensor], x: Tensor) -> Tensor:
        return x + gain * norm(net(w, x)) + bias

    state, outputs = copies(start, key), []
    anchor, total = state, [torch.zeros_like(w) for w in state]
    for t in range(key.shape[2]):
        if t % chunk == 0:
            anchor, total = state, [torch.zeros_like(w) for w in state]
        term = gradients(l2(f(anchor, key[:, :, t]), value[:, :, t]), anchor)
        total = [s + number(rate[:, :, t], g) * g for s, g in zip(total, term, strict=True)]
        tau = 1 / (t % chunk + 1) + (torch.zeros(chunk, dtype=key.dtype) if learned is None else learned)[t % chunk]
        state = [a - tau.clamp(min=0) * s for a, s in zip(anchor, total, strict=True)]
        outputs.append(f(state, query[:, :, t]))
    return torch.stack(outputs, 2)


def lact(
    start: Sequence[Tensor], key: Tensor, value: Tensor, query: Tensor, rates: Tensor, kept: Tensor, chunk: int
) -> Tensor:
    """Read a chunk with the W from before it, then S ← m S − ∇Σ_i η_i ℓ_i, W ← W + NS(S), rows at their first length.

    rates [B, H, T, 3]: for gate, up and down. kept [B, H, T, 1]: m is its mean over the chunk. A last chunk that is not
    whole is not written.
    """
    state = copies(start, key)
    lengths = [w.norm(dim=-1, keepdim=True) for w in state]
    momentum = [torch.zeros_like(w) for w in state]
    outputs = []
    for first in range(0, key.shape[2], chunk):
        ticks = range(first, min(first + chunk, key.shape[2]))
        outputs += [swiglu(state, query[:, :, t]) for t in ticks]
        if len(ticks) < chunk:
            break
        total = [torch.zeros_like(w) for w in state]
        for t in ticks:
            term = gradients(dot(swiglu(state, key[:, :, t]), value[:, :, t]), state)
            eta = rates[:, :, t].split(1, dim=-1)
            total = [s + number(e, g) * g for s, e, g in zip(total, eta, term, strict=True)]
        m = torch.stack([kept[:, :, t] for t in ticks]).mean(0)
        momentum = [number(m, s) * s - g for s, g in zip(momentum, total, strict=True)]
        moved = [w + newton_schulz(s, LACT) for w, s in zip(state, momentum, strict=True)]
        state = [w * n / w.norm(dim=-1, keepdim=True) for w, n in zip(moved, lengths, strict=True)]
    return torch.stack(outputs, 2)


def tnt(
    wide: Sequence[Tensor], near: Sequence[Tensor], key: Tensor, value: Tensor, query: Tensor, weight: Tensor,
    span: int, chunk: int, rates: tuple[float, float],
) -> Tensor:  # fmt: skip
    """y = wide(q) + near(Π q): wide learns the sum over a span, near and Π start anew with each (TNT 5 to 7)."""
    net = mlp(True)
    slow, fresh = copies(wide, key), copies(near, key)
    state, anchor, outputs = fresh, fresh, []
    total = [torch.zeros_like(w) for w in slow]
    seen = key.new_zeros(*key.shape[:2], key.shape[-1], key.shape[-1])
    for t in range(key.shape[2]):
        k, v, q, eta = (x[:, :, t] for x in (key, value, query, weight))
        if t % span == 0:
            state, seen = fresh, torch.zeros_like(seen)
            total = [torch.zeros_like(w) for w in slow]
        if t % span % chunk == 0:
            anchor = state
        g_near = gradients(l2(net(anchor, k), v), anchor)
        state = [a - rates[1] * number(eta, g) * g for a, g in zip(state, g_near, strict=True)]
        g_wide = gradients(l2(net(slow, k), v), slow)
        total = [s + number(eta, g) * g for s, g in zip(total, g_wide, strict=True)]
        seen = seen + k[..., :, None] * k[..., None, :]
        outputs.append(net(slow, q) + net(state, apply(seen, q)))
        if (t + 1) % span == 0:
            slow = [a - rates[0] * g for a, g in zip(slow, total, strict=True)]
    return torch.stack(outputs, 2)


def linear(w: Sequence[Tensor], x: Tensor) -> Tensor:
    """W x + b"""
    return apply(w[0], x) + w[1]


def biased_mlp(w: Sequence[Tensor], x: Tensor) -> Tensor:
    """W₂ gelu(W₁ x + b₁) + b₂"""
    return apply(w[2], torch.nn.functional.gelu(apply(w[0], x) + w[1])) + w[3]
