"""Memories whose rates are no single number: per channel, per tensor, per write. One token at a time, float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = list[Tensor]


def outer(u_BHM: Tensor, k_BHD: Tensor) -> Tensor:
    return u_BHM.unsqueeze(-1) * k_BHD.unsqueeze(-2)


def apply(w_BHMD: Tensor, x_BHD: Tensor) -> Tensor:
    return (w_BHMD @ x_BHD.unsqueeze(-1)).squeeze(-1)


def zeros(k_BHTD: Tensor, v_BHTM: Tensor) -> Tensor:
    return k_BHTD.new_zeros(*k_BHTD.shape[:2], v_BHTM.shape[-1], k_BHTD.shape[-1])


def rwkv7(key: Tensor, value: Tensor, query: Tensor, *, gone: Tensor, rate: Tensor, retain: Tensor) -> Tensor:
    """S_t = S_{t−1} (diag(w_t) − κ_t (κ_t ⊙ a_t)ᵀ) + v_t k_tᵀ: the erase acts on the undecayed state, along another key
    than the write, with a rate for each channel."""
    s, outputs = zeros(key, value), []
    for t in range(key.shape[2]):
        kappa = gone[:, :, t]
        transition = torch.diag_embed(retain[:, :, t]) - outer(kappa, kappa * rate[:, :, t])
        s = s @ transition + outer(value[:, :, t], key[:, :, t])
        outputs.append(apply(s, query[:, :, t]))
    return torch.stack(outputs, 2)


def longhorn_diagonal(key: Tensor, value: Tensor, query: Tensor, *, rate: Tensor) -> Tensor:
    """The shipped form: W ⊙ (1 − Δ ⊗ k²) + (Δ ⊙ v) kᵀ, Δ a rate for each value channel."""
    w, outputs = zeros(key, value), []
    for t in range(key.shape[2]):
        k, delta = key[:, :, t], rate[:, :, t]
        w = w * (1 - outer(delta, k * k)) + outer(delta * value[:, :, t], k)
        outputs.append(apply(w, query[:, :, t]))
    return torch.stack(outputs, 2)


def longhorn(key: Tensor, value: Tensor, query: Tensor, *, rate: Tensor) -> Tensor:
    """argmin over W of ‖W − W_{t−1}‖² / β + ‖W k − v‖², by rows (β is one number, or one for each value channel):
    solved as the linear system W (I/β + k kᵀ) = W_{t−1}/β + v kᵀ."""
    w, outputs = zeros(key, value), []
    eye = torch.eye(key.shape[-1], dtype=key.dtype)
    for t in range(key.shape[2]):
        k, v = key[:, :, t], value[:, :, t]
        beta = rate[:, :, t].expand_as(v)
        system = eye / beta[..., None, None] + outer(k, k).unsqueeze(2)
        right = w / beta.unsqueeze(-1) + outer(v, k)
        w = torch.linalg.solve(system, right.unsqueeze(-1)).squeeze(-1)
        outputs.append(apply(w, query[:, :, t]))
    return torch.stack(outputs, 2)


def channel_delta(
    key: Tensor, value: Tensor, query: Tensor, *, rate: Tensor, retain: Tensor | None = None, on: str = "key"
) -> Tensor:
    """W_t = α_t W_{t−1} − (W_{t−1} k_t − v_t) k_tᵀ ⊙ rates: one for each key channel, or for each value channel."""
    w, outputs = zeros(key, value), []
    for t in range(key.shape[2]):
        error = apply(w, key[:, :, t]) - value[:, :, t]
        r = rate[:, :, t].unsqueeze(-2 if on == "key" else -1)
        alpha = 1.0 if retain is None else retain[:, :, t].unsqueeze(-1)
        w = alpha * w - r * outer(error, key[:, :, t])
        outputs.append(apply(w, query[:, :, t]))
    return torch.stack(outputs, 2)


def weighted_dgd(key: Tensor, value: Tensor, query: Tensor, *, rate: Tensor, weight: Tensor, retain: Tensor) -> Tensor:
    """W_t = α W_{t−1} − η (W_{t−1} K + G), K = |ω| k kᵀ, G = ω (W_{t−1} k − v) kᵀ, η = lr/(1 + lr tr K)."""
    w, outputs = zeros(key, value), []
    for t in range(key.shape[2]):
        k, lr, omega = key[:, :, t], rate[:, :, t].unsqueeze(-1), weight[:, :, t].unsqueeze(-1)
        gram = omega.abs() * outer(k, k)
        grad = omega * outer(apply(w, k) - value[:, :, t], k)
        eta = lr / (1 + lr * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None])
        w = retain[:, :, t].unsqueeze(-1) * w - eta * (w @ gram + grad)
        outputs.append(apply(w, query[:, :, t]))
    return torch.stack(outputs, 2)


def swiglu(theta: Rows, x: Tensor) -> Tensor:
    """LaCT's fast weight: w1(silu(w0 x) ⊙ (w2 x)); theta w0, w2, w1."""
    gate, up, down = theta
    return apply(down, F.silu(apply(gate, x)) * apply(up, x))


def fast_swiglu(
    key: Tensor, value: Tensor, query: Tensor, theta: Rows, *, rates: Rows, retains: Rows | None = None, every: int = 1
) -> Tensor:
    """ℓ = −⟨f(k), v⟩; each weight matrix has a rate of its own for each token, which weighs the token's gradient;
    learned from once every N tokens, from the sum. theta [H,out,in] each."""
    theta = [w.expand(key.shape[0], *w.shape) for w in theta]
    pending, outputs = [torch.zeros_like(w) for w in theta], []
    for t in range(key.shape[2]):
        alias = [w.detach().requires_grad_() if not w.requires_grad else w.clone() for w in theta]
        with torch.enable_grad():
            loss = -(swiglu(alias, key[:, :, t]) * value[:, :, t]).sum()
            grads = torch.autograd.grad(loss, alias, create_graph=True)
        pending = [p + r[:, :, t].unsqueeze(-1) * g for p, r, g in zip(pending, rates, grads, strict=True)]
        if (t + 1) % every == 0:
            kept = [1.0] * 3 if retains is None else [a[:, :, t].unsqueeze(-1) for a in retains]
            theta = [a * w - p for a, w, p in zip(kept, theta, pending, strict=True)]
            pending = [torch.zeros_like(w) for w in theta]
        outputs.append(swiglu(theta, query[:, :, t]))
    return torch.stack(outputs, 2)


def delta_product(
    keys: Rows, values: Rows, query: Tensor, *, rates: Rows, retain: Tensor, beta: Tensor | None = None
) -> Tensor:
    """Per token W ← α W once, then for each pair W ← W (I − β_j k_j k_jᵀ) + β_j v_j k_jᵀ; read after the last.
    With ``beta`` the steps pass through a momentum of one decay a token: S ← b S + step, W ← W + S."""
    w, outputs = zeros(keys[0], values[0]), []
    s = torch.zeros_like(w)
    for t in range(query.shape[2]):
        w = retain[:, :, t].unsqueeze(-1) * w
        for k, v, r in zip((x[:, :, t] for x in keys), (x[:, :, t] for x in values), rates, strict=True):
            step = -r[:, :, t].unsqueeze(-1) * outer(apply(w, k) - v, k)
            s = step if beta is None else beta[:, :, t].unsqueeze(-1) * s + step
            w = w + s
        outputs.append(apply(w, query[:, :, t]))
    return torch.stack(outputs, 2)


def inner_steps(key: Tensor, value: Tensor, query: Tensor, *, rate: Tensor, retain: Tensor, rounds: int) -> Tensor:
    """n steps of −η_t/(i) G on the token's own pair, i the count of all steps so far; first the gate, once."""
    w, outputs, count = zeros(key, value), [], 0
    for t in range(query.shape[2]):
        k, v = key[:, :, t], value[:, :, t]
        w = retain[:, :, t].unsqueeze(-1) * w
        for _ in range(rounds):
            count += 1
            step = rate[:, :, t].unsqueeze(-1) / count * outer(apply(w, k) - v, k)
            w = w - step
        outputs.append(apply(w, query[:, :, t]))
    return torch.stack(outputs, 2)
