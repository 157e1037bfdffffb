"""Matrix memories, one token at a time: W ∈ R^{out×in}, recall y_t = W_t q_t, write v kᵀ."""

from __future__ import annotations

import torch
from torch import Tensor

Result = tuple[Tensor, Tensor]


def _ones(key_BHTD: Tensor) -> Tensor:
    return torch.ones_like(key_BHTD[..., :1])


def _start(key_BHTD: Tensor, value_BHTM: Tensor, initial: Tensor | None) -> Tensor:
    batch, heads, _, width = key_BHTD.shape
    if initial is None:
        return key_BHTD.new_zeros(batch, heads, value_BHTM.shape[-1], width)
    return initial.expand(batch, heads, *initial.shape[-2:])


def _apply(w_BHMD: Tensor, x_BHD: Tensor) -> Tensor:
    return torch.einsum("bhmd,bhd->bhm", w_BHMD, x_BHD)


def _outer(u_BHM: Tensor, k_BHD: Tensor) -> Tensor:
    return torch.einsum("bhm,bhd->bhmd", u_BHM, k_BHD)


def linear_attention(
    key: Tensor,
    value: Tensor,
    query: Tensor,
    *,
    rate: Tensor | None = None,
    retain: Tensor | None = None,
    initial: Tensor | None = None,
) -> Result:
    """W_t = W_{t−1} diag(α_t) + η_t v_t k_tᵀ, y_t = W_t q_t.

    ``retain`` [B,H,T,1] is one gate a token (RetNet, Mamba-2), [B,H,T,D] one per key channel (GLA).
    """
    rate = _ones(key) if rate is None else rate
    retain = _ones(key) if retain is None else retain
    w, outputs = _start(key, value, initial), []
    for t in range(key.shape[2]):
        w = w * retain[:, :, t].unsqueeze(-2) + rate[:, :, t].unsqueeze(-1) * _outer(value[:, :, t], key[:, :, t])
        outputs.append(_apply(w, query[:, :, t]))
    return torch.stack(outputs, 2), w


def delta_rule(
    key: Tensor,
    value: Tensor,
    query: Tensor,
    *,
    rate: Tensor,
    retain: Tensor | None = None,
    initial: Tensor | None = None,
) -> Result:
    """W_t = W_{t−1} diag(α_t) − η_t (W_{t−1} k_t − v_t) k_tᵀ: the error is that of the state *before* it decays."""
    retain = _ones(key) if retain is None else retain
    w, outputs = _start(key, value, initial), []
    for t in range(key.shape[2]):
        error = _apply(w, key[:, :, t]) - value[:, :, t]
        w = w * retain[:, :, t].unsqueeze(-2) - _outer(rate[:, :, t] * error, key[:, :, t])
        outputs.append(_apply(w, query[:, :, t]))
    return torch.stack(outputs, 2), w


def gated_delta(
    key: Tensor, value: Tensor, query: Tensor, *, rate: Tensor, retain: Tensor, initial: Tensor | None = None
) -> Result:
    """Gated DeltaNet, KDA (decay first): W_t = W_{t−1} diag(α_t) (I − η_t k_t k_tᵀ) + η_t v_t k_tᵀ."""
    w, outputs = _start(key, value, initial), []
    eye = torch.eye(key.shape[-1], dtype=key.dtype)
    for t in range(key.shape[2]):
        k, eta = key[:, :, t], rate[:, :, t].unsqueeze(-1)
        w = (w * retain[:, :, t].unsqueeze(-2)) @ (eye - eta * _outer(k, k)) + eta * _outer(value[:, :, t], k)
        outputs.append(_apply(w, query[:, :, t]))
    return torch.stack(outputs, 2), w


def momentum_delta(
    key: Tensor,
    value: Tensor,
    query: Tensor,
    *,
    rate: Tensor,
    beta: Tensor,
    retain: Tensor | None = None,
    initial: Tensor | None = None,
) -> Result:
    """Titans on a matrix at chunk 1: S_t = β_t S_{t−1} − η_t (W_{t−1} k_t − v_t) k_tᵀ, W_t = α_t W_{t−1} + S_t."""
    retain = _ones(key) if retain is None else retain
    w = _start(key, value, initial)
    s, outputs = torch.zeros_like(w), []
    for t in range(key.shape[2]):
        error = _apply(w, key[:, :, t]) - value[:, :, t]
        s = beta[:, :, t].unsqueeze(-1) * s - _outer(rate[:, :, t] * error, key[:, :, t])
        w = w * retain[:, :, t].unsqueeze(-2) + s
        outputs.append(_apply(w, query[:, :, t]))
    return torch.stack(outputs, 2), w
