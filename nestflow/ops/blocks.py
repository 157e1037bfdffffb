"""Row-wise blocks that generated code calls: norms, softmax, per-head products, losses.

They know tensors only. Norms, softmax and losses are computed in at least float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops.norms import of_size_one

QUINTIC = (3.4445, -4.7750, 2.0315)  # Muon's


def at_least_float32(x: Tensor) -> Tensor:
    """x itself, or in float32 if its type is narrower."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def rmsnorm(x: Tensor, gain: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """x / √(mean x² + eps) ⊙ gain over the last axis."""
    y = of_size_one(at_least_float32(x), x.shape[-1], eps).to(x.dtype)
    return y if gain is None else y * gain


def poly(x: Tensor, w: Tensor, p: int) -> Tensor:
    """All monomials of degree 0 … p of the last axis, each once, in lexicographic order, those of degree i times w[i].

    x [..., d], w [..., p + 1]; the result [..., binom(d + p, p)]. (Atlas, φ_p; w starts at 1/i!.)
    """
    parts = [w[..., :1].expand(*torch.broadcast_shapes(x.shape[:-1], w.shape[:-1]), 1)]
    for degree in range(1, p + 1):
        chosen = list(itertools.combinations_with_replacement(range(x.shape[-1]), degree))
        terms = w[..., degree : degree + 1]
        for factor in zip(*chosen):
            terms = terms * x.index_select(-1, torch.tensor(factor, device=x.device))
        parts.append(terms)
    return torch.cat(parts, -1)


def l2norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / √(Σ x² + eps) over the last axis; eps inside the root, so a zero row has a zero gradient."""
    return of_size_one(at_least_float32(x), 1, eps).to(x.dtype)


def layernorm(x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x − mean) / √(var + eps) ⊙ gain + bias over the last axis, biased variance."""
    z = at_least_float32(x)
    z = z - z.mean(-1, keepdim=True)
    y = (z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    y = y if gain is None else y * gain
    return y if bias is None else y + bias


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis."""
    return at_least_float32(x).softmax(-1).to(x.dtype)


def log_softmax(x: Tensor) -> Tensor:
    """Log-softmax over the last axis."""
    return at_least_float32(x).log_softmax(-1).to(x.dtype)


def linear_heads(x: Tensor, w: Tensor, axis: int = 1) -> Tensor:
    """A whole x [B, T, ..., d] seen by every head's weight w [H, n, d]: [B, H, T, ..., n], in one product.

    axis: where the head axis goes (0 where there is no batch axis).
    """
    return F.linear(x, w.flatten(0, 1)).unflatten(-1, (w.shape[0], w.shape[1])).movedim(-2, axis)


def embed_heads(i: Tensor, w: Tensor, axis: int = 1) -> Tensor:
    """Rows i [B, T] of every head's table w [H, vocab, d]: [B, H, T, d]."""
    rows = w.index_select(1, i.reshape(-1))  # w[:, i] would take a negative index from the end
    return rows.unflatten(1, i.shape).movedim(0, axis)


def maximum(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The larger of a tensor and a number; at a tie half the gradient goes to each."""
    return torch.maximum(*_pair(a, b))


def minimum(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The smaller of a tensor and a number; at a tie half the gradient goes to each."""
    return torch.minimum(*_pair(a, b))


def _pair(a: Tensor | float, b: Tensor | float) -> tuple[Tensor, Tensor]:
    x = a if isinstance(a, Tensor) else torch.as_tensor(b)
    full = (v if isinstance(v, Tensor) else torch.full((), v, dtype=x.dtype, device=x.device) for v in (a, b))
    return next(full), next(full)


def choose(condition: Tensor, a: float, b: float, dtype: torch.dtype) -> Tensor:
    """a where the condition holds, b elsewhere."""
    return torch.full(condition.shape, b, dtype=dtype, device=condition.device).masked_fill(condition, a)


def cross_entropy(p: Tensor, y: Tensor, mask: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean of −log softmax(p)[y] over the unmasked terms; 0 if none is left.

    p [..., V] scores, y [...] classes, mask [...] (true or 1: the term counts).
    """
    terms = cross_entropy_terms(p, y, mask, smoothing)
    if mask is None:
        return terms.sum() / max(1, terms.numel())
    return terms.sum() / mask.expand(terms.shape).to(terms.dtype).sum().clamp(min=1.0)


def cross_entropy_terms(p: Tensor, y: Tensor, mask: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """−log softmax(p)[y] for each class [...] beside its scores [..., V], times the mask."""
    lead = torch.broadcast_shapes(p.shape[:-1], y.shape)
    scores, classes = at_least_float32(p).expand(*lead, -1).flatten(0, -2), y.expand(lead).flatten()
    weight = None if mask is None else mask.expand(lead).flatten().to(scores.dtype)
    if weight is not None:
        classes = torch.where(weight != 0, classes, 0)  # a masked term may have no class, −100 say
    # every class counts: torch by itself would leave out −100
    terms = F.cross_entropy(scores, classes, reduction="none", label_smoothing=smoothing, ignore_index=-(2**62))
    if weight is not None:  # a masked term may be infinite: it must not become NaN by 0 · inf
        terms = torch.where(weight != 0, terms * weight, 0.0)
    return terms.view(lead)


def hits(p: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How many classes y [...] have the largest score in p [..., V], and of how many; masked terms do not count."""
    lead = torch.broadcast_shapes(p.shape[:-1], y.shape)
    right = p.expand(*lead, -1).argmax(-1) == y.expand(lead)
    counts = torch.ones_like(right) if mask is None else mask.expand(lead) != 0
    return (right & counts).sum(), counts.sum()


def triples(coefficients: Sequence[float] | Sequence[Sequence[float]], iters: int) -> list[tuple[float, float, float]]:
    """(a, b, c) of every iteration."""
    once = [c for c in coefficients if isinstance(c, (int, float))]
    rows = [once] * iters if once else [c for c in coefficients if not isinstance(c, (int, float))]
    return [(a, b, c) for a, b, c in rows]


def newton_schulz(
    x: Tensor,
    iters: int = 5,
    coefficients: Sequence[float] | Sequence[Sequence[float]] = QUINTIC,
    eps: float = 1e-7,
    dtype: str | None = None,
) -> Tensor:
    """Towards the nearest orthogonal matrix: X / max(‖X‖, eps), then `iters` times aX + (bA + cA²)X with A = XXᵀ.

    x [..., rows, cols]; A is on the shorter side. A vector or number passes unchanged. coefficients: (a, b, c), or one
    such triple for each iteration. (Jordan et al. 2024, Muon.)
    """
    if x.ndim < 2:
        return x
    z = x.to(getattr(torch, dtype)) if dtype else at_least_float32(x)
    tall = z.shape[-2] > z.shape[-1]
    z = z.mT if tall else z
    z = z / z.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for a, b, c in triples(coefficients, iters):
        gram = z @ z.mT
        z = a * z + (b * gram + c * gram @ gram) @ z
    return (z.mT if tall else z).to(x.dtype)
