"""Tensor functions that generated optimizers call. `heads` is 1 where the tensor has a leading head axis, else 0:
norms, sums and Newton-Schulz then see each head's tensor alone. No name here is that of another function that generated
models call: where weights learn while the model reads, both stand in one file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.ops.blocks import QUINTIC, triples
from nestflow.ops.matrices import eigenvectors as eigenvectors
from nestflow.ops.matrices import matrix_root as matrix_root
from nestflow.ops.python import python_step as python_step


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """What an optimizer's memory is kept in: at least float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def zeros(w: Tensor) -> Tensor:
    """A memory `like(w)`, zeros."""
    return torch.zeros_like(w, dtype=state_dtype(w.dtype), memory_format=torch.preserve_format)


def copy_of(w: Tensor) -> Tensor:
    """A memory `like(w)` with `init w`."""
    return w.detach().to(dtype=state_dtype(w.dtype), copy=True)


def zeros_of(w: Tensor, heads: int, *sizes: int) -> Tensor:
    """A memory of these axes (per head where w has a head axis), zeros."""
    return w.new_zeros((*w.shape[:heads], *sizes), dtype=state_dtype(w.dtype))


def number_of(w: Tensor, heads: int, value: float) -> Tensor:
    """A memory that is one number (per head, kept broadcastable, where w has a head axis)."""
    shape = (*w.shape[:heads], *[1] * (w.ndim - heads)) if heads else ()
    return w.new_full(shape, value, dtype=state_dtype(w.dtype))


def drawn(w: Tensor, fact: Any, name: str, sizes: tuple[int, ...] | None, kind: str, a: float, b: float) -> Tensor:
    """A memory that starts from a draw by its path: normal(a) or uniform(a, b), the same on every run. sizes: its axes
    (None: w's)."""
    digest = hashlib.sha256(f"{fact.path}.{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    shape = (*w.shape[: fact.heads], *(w.shape[fact.heads :] if sizes is None else sizes))
    x = torch.randn(shape, generator=generator) * a if kind == "normal" else torch.rand(shape, generator=generator)
    return (x if kind == "normal" else x * (b - a) + a).to(device=w.device, dtype=state_dtype(w.dtype))


def eye_like(w: Tensor, heads: int, size: int, scale: float = 1.0) -> Tensor:
    """A memory that starts at scale · I (per head where w has a head axis)."""
    eye = torch.eye(size, dtype=state_dtype(w.dtype), device=w.device) * scale
    return eye.expand(*w.shape[:heads], size, size).clone()


def zeros_along(w: Tensor, *axes: int) -> Tensor:
    """A memory of w's axes, those listed of size 1, zeros."""
    shape = [1 if i - w.ndim in axes else n for i, n in enumerate(w.shape)]
    return w.new_zeros(shape, dtype=state_dtype(w.dtype))


def as_matrix(x: Tensor, fact: Any) -> Tensor:
    """rows × cols of a tensor like w: the first axis, and all others as one; a vector is a column."""
    return x if fact.ndim == 2 else x.reshape(*x.shape[: fact.heads], fact.rows, fact.cols)


def norm_rows(x: Tensor, heads: int = 0) -> Tensor:
    """‖·‖₂ along the last axis, kept at size 1; of a number its absolute value."""
    return x.abs() if x.ndim == heads else torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def qr_of(x: Tensor) -> Tensor:
    """Q of A = QR, where the diagonal of R is positive."""
    q, r = torch.linalg.qr(x)
    signs = r.diagonal(dim1=-2, dim2=-1).sign()
    return q * torch.where(signs == 0, 1, signs).unsqueeze(-2)


def _own_axes(x: Tensor, heads: int) -> tuple[int, ...]:
    return tuple(range(heads, x.ndim))


def norm_of(x: Tensor, heads: int = 0) -> Tensor:
    """‖x‖₂, one number (per head, kept broadcastable)."""
    if heads and x.ndim == 1:
        return x.abs()
    return torch.linalg.vector_norm(x, dim=_own_axes(x, heads), keepdim=True) if heads else torch.linalg.vector_norm(x)


def sum_of(x: Tensor, heads: int = 0) -> Tensor:
    """Σ over all axes of the tensor (per head, kept broadcastable)."""
    if heads and x.ndim == 1:
        return x
    return x.sum(_own_axes(x, heads), keepdim=True) if heads else x.sum()


def mean_of(x: Tensor, heads: int = 0) -> Tensor:
    """The mean over all axes of the tensor (per head, kept broadcastable)."""
    if heads and x.ndim == 1:
        return x
    return x.mean(_own_axes(x, heads), keepdim=True) if heads else x.mean()


def amax_of(x: Tensor, heads: int = 0) -> Tensor:
    """The greatest element (per head, kept broadcastable)."""
    if heads and x.ndim == 1:
        return x
    return x.amax(_own_axes(x, heads), keepdim=True) if heads else x.amax()


def _whole(number: Tensor) -> Tensor:
    """Of sharded weights each rank needs the whole norm."""
    gather = getattr(number, "full_tensor", None)
    return number if gather is None else gather()


def norm_of_all(tensors: Sequence[Tensor]) -> Tensor:
    """√Σ‖x‖² over all tensors of a level: as torch.nn.utils.clip_grad_norm_ computes it."""
    return _whole(torch.nn.utils.get_total_norm(list(tensors)))


def sum_of_all(tensors: Sequence[Tensor]) -> Tensor:
    """Σ of all elements of all tensors of a level."""
    device = tensors[0].device
    number = torch.stack([x.sum().to(device) for x in tensors]).sum()
    return _whole(number)


def newton_schulz_of(
    x: Tensor,
    iters: int = 5,
    coefficients: Sequence[float] | Sequence[Sequence[float]] = QUINTIC,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
    heads: int = 0,
) -> Tensor:
    """X / max(‖X‖_F, eps), then iters times X ← aX + (bA + cA²)X with A = XXᵀ on the shorter side (torch.optim.Muon's
    order of operations; it computes in bfloat16). Below rank 2 unchanged, above it rows × the rest.
    coefficients: (a, b, c), or one such triple for each iteration."""
    if x.ndim - heads < 2:
        return x
    shape = x.shape
    x_NRC = x.reshape(-1, shape[heads], math.prod(shape[heads + 1 :])) if heads else x.reshape(1, shape[0], -1)
    wide_NRC = x_NRC.to(dtype or x.dtype)
    tall = wide_NRC.shape[-2] > wide_NRC.shape[-1]
    if tall:
        wide_NRC = wide_NRC.mT
    wide_NRC = wide_NRC / torch.linalg.vector_norm(wide_NRC, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for a, b, c in triples(coefficients, iters):
        gram_NRR = wide_NRC @ wide_NRC.mT
        mix_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        wide_NRC = torch.baddbmm(wide_NRC, mix_NRR, wide_NRC, beta=a)
    if tall:
        wide_NRC = wide_NRC.mT
    return wide_NRC.reshape(shape).to(x.dtype)


def delta_step(w: Tensor, g: Tensor, gram: Tensor | None, lr: float, exact: bool = True) -> Tensor:
    """Delta gradient descent: −η(W K + g), K [in, in] the sum of x xᵀ over the inputs of W [out, in] (a leading head
    axis in all three where W has it); η = lr/(1 + lr·tr K) if exact, else lr. Without inputs: −lr·g."""
    if gram is None:
        return -lr * g
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    rate = lr / (1 + lr * trace) if exact else lr
    return -rate * (w @ gram + g)


def _warm(tick: float, peak: float, warmup: float) -> float | None:
    return peak * tick / warmup if tick <= warmup else None


def cosine(tick: float, peak: float, warmup: float, total: float, floor: float, every: int) -> float:
    """peak·tick/warmup up to warmup, then half a cosine to floor, which is reached at total + every, so that the
    last update still learns. tick: of the level's clock, from 1."""
    value = _warm(tick, peak, warmup)
    if value is not None:
        return value
    end = total + every
    if tick >= end:
        return floor
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (tick - warmup) / (end - warmup)))


def linear_decay(tick: float, peak: float, warmup: float, total: float, floor: float, every: int) -> float:
    """As cosine, straight."""
    value = _warm(tick, peak, warmup)
    if value is not None:
        return value
    end = total + every
    return floor if tick >= end else floor + (peak - floor) * (1 - (tick - warmup) / (end - warmup))


def wsd(tick: float, peak: float, warmup: float, stable: float, decay: float) -> float:
    """Up over warmup ticks, peak for stable ticks, straight to 0 over decay ticks."""
    value = _warm(tick, peak, warmup)
    if value is not None:
        return value
    past = tick - warmup - stable
    if past <= 0:
        return peak
    return 0.0 if past >= decay else peak * (1 - past / decay)
