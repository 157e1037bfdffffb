"""The honest baseline: Titans' memory as a careful engineer writes it in plain torch, a Python loop over chunks.

Gradients of a chunk are taken at its first state and written out; retention, momentum and the read after every token
are the closed form inside the chunk, so no per-token weight is ever formed. ``tests/test_oracle_benchmarks.py``
holds it to the float64 oracle, gradients included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def decay(log_a_GNC: Tensor) -> Tensor:
    """D[t,s] = Π_{s<j≤t} a_j, lower triangular, by segment sums: a ratio of cumulative products overflows."""
    size = log_a_GNC.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=log_a_GNC.device).tril()
    sums = log_a_GNC.unsqueeze(-1).expand(*log_a_GNC.shape, size).masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~lower, -torch.inf).exp()


def chunk_loop(
    q: Tensor, k: Tensor, v: Tensor, lr: Tensor, log_beta: Tensor, log_alpha: Tensor, w1: Tensor, w2: Tensor, chunk: int
) -> Tensor:
    """y [G,T,D] = M(q_t; θ_t). q, k, v [G,T,D]; lr, log β, log α [G,T]; W1 [G,D,M], W2 [G,M,D], stored in × out.

    S_t = β_t S_{t−1} − η_t G_t, θ_t = α_t θ_{t−1} + S_t, so θ_t = γ_t θ + c_t S + Σ_s L[t,s] G_s within a chunk.
    """
    ticks = q.shape[1]
    extra = -ticks % chunk

    def cut(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0) * (x.ndim - 2) + (0, extra)).unflatten(1, (-1, chunk))

    lr, log_beta, log_alpha = cut(lr), cut(log_beta), cut(log_alpha)
    d_alpha = decay(log_alpha)
    by_momentum = -decay(log_beta) * lr.unsqueeze(-2)
    lower = d_alpha @ by_momentum
    gamma, b = log_alpha.cumsum(-1).exp(), log_beta.cumsum(-1).exp()
    c = (d_alpha @ b.unsqueeze(-1)).squeeze(-1)
    q, k, v = cut(q), cut(k), cut(v)
    scores = (q @ k.mT) * lower
    ready = torch.cat([gamma.unsqueeze(-1) * q, c.unsqueeze(-1) * q, scores], -1)
    keep = torch.stack([gamma[..., -1], c[..., -1], b[..., -1]], -1)[..., None, None]
    last, last_m = lower[..., -1, :, None], by_momentum[..., -1, :, None]

    s1, s2 = torch.zeros_like(w1), torch.zeros_like(w2)
    outputs = []
    # unbind, not x[n]: the backward of a select allocates the whole tensor again, which is quadratic in T
    parts = (x.unbind(1) for x in (ready, k, v, lower, gamma.unsqueeze(-1), c.unsqueeze(-1), keep, last, last_m))
    for ready_n, k_n, v_n, lower_n, gamma_n, c_n, keep_n, last_n, last_m_n in zip(*parts):
        z = k_n @ w1
        h = F.gelu(z)
        e2 = h @ w2 - v_n
        e1 = torch.ops.aten.gelu_backward(e2 @ w2.mT, z)
        a = F.gelu(ready_n @ torch.cat([w1, s1, e1], 1))
        outputs.append(torch.cat([gamma_n * a, c_n * a, (a @ h.mT) * lower_n], -1) @ torch.cat([w2, s2, e2], 1))
        keep_w, keep_s, keep_m = keep_n.unbind(1)
        w1, s1 = keep_w * w1 + keep_s * s1 + (k_n * last_n).mT @ e1, keep_m * s1 + (k_n * last_m_n).mT @ e1
        w2, s2 = keep_w * w2 + keep_s * s2 + (h * last_n).mT @ e2, keep_m * s2 + (h * last_m_n).mT @ e2
    return torch.cat(outputs, 1)[:, :ticks]


class PlainTitans(nn.Module):
    """The layer of ``titans_memory.nl``: projections per head, gates per token, a memory of depth 2."""

    def __init__(self, dim: int = 256, heads: int = 4, expand: int = 2, chunk: int = 16) -> None:
        super().__init__()
        self.heads, self.chunk, width = heads, chunk, dim // heads
        self.to_key, self.to_value, self.to_query, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.to_lr, self.to_beta, self.to_alpha = (nn.Linear(dim, heads, bias=False) for _ in range(3))
        self.w1 = nn.Parameter(torch.randn(heads, expand * width, width) * width**-0.5)
        self.w2 = nn.Parameter(torch.randn(heads, width, expand * width) * (expand * width) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x, y [B,T,dim]."""
        batch = x.shape[0]

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

        def unit(y: Tensor) -> Tensor:
            return y * torch.rsqrt(y.square().sum(-1, keepdim=True) + 1e-6)

        q, k, v = (unit(heads(f(x))) for f in (self.to_query, self.to_key, self.to_value))
        lr, beta, alpha = (heads(f(x)).squeeze(-1) for f in (self.to_lr, self.to_beta, self.to_alpha))
        w1, w2 = (w.mT.expand(batch, -1, -1, -1).flatten(0, 1) for w in (self.w1, self.w2))
        y = chunk_loop(q, k, v, 0.1 * lr.sigmoid(), F.logsigmoid(beta), F.logsigmoid(alpha + 6), w1, w2, self.chunk)
        return self.out(y.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2))

    @torch.no_grad()
    def copy_from(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of the compiled ``titans_memory.nl`` by path; a per-head one is [heads, out, in] there."""
        pairs = {
            "titans.key.linear.weight": self.to_key.weight,
            "titans.value.linear.weight": self.to_value.weight,
            "titans.query.linear.weight": self.to_query.weight,
            "titans.update.linear.weight": self.to_lr.weight,
            "titans.update.linear_2.weight": self.to_beta.weight,
            "titans.retain.linear.weight": self.to_alpha.weight,
            "titans.out.linear.weight": self.out.weight,
            "titans.memory.linear.weight": self.w1,
            "titans.memory.linear_2.weight": self.w2,
        }
        if set(pairs) != set(weights):
            raise KeyError(f"paths differ: {sorted(set(pairs) ^ set(weights))}")
        for path, mine in pairs.items():
            mine.copy_(weights[path].reshape(mine.shape))
