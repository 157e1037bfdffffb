"""A memory that learns, one token at a time, with what MIRAS, Atlas, LaCT and TNT add to it: links, windows of pairs,
projections, ticks that bring nothing, starts in the middle of a sequence. Written from the papers, by autograd alone.

    G_t = Σ_{i > t−W} γ_{t,i} w_i ∇_θ ℓ(M(k_i; θ_a), v_i),  θ = link(A),  A_t = project(α_t A_{t−1} − η_t Σ G)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles.mlp import mlp
from tests.oracles.titans import Objective, gradient, l2

Tensors = list[Tensor]
Map = Callable[[Tensor], Tensor]


def kl_link(scale: float = 1.0) -> Map:
    """Memora: θ = scale · softmax(A) over the key (in) axis."""
    return lambda a: scale * torch.exp(a - torch.logsumexp(a, -1, keepdim=True))


def lq_link(q: float) -> Map:
    """Moneta: θ = A / ‖A‖_q^(q−2), the norm over the whole matrix of a head."""

    def link(a: Tensor) -> Tensor:
        size = a.abs().pow(q).sum((-2, -1), keepdim=True).pow(1 / q)
        return torch.where(size == 0, torch.zeros_like(a), a / torch.where(size == 0, 1.0, size).pow(q - 2))

    return link


def rows_restored(w: Tensor, start: Tensor) -> Tensor:
    """LaCT: every row has the length that it began with."""
    return w / w.norm(dim=-1, keepdim=True) * start.norm(dim=-1, keepdim=True)


def in_ball(radius: float) -> Callable[[Tensor, Tensor], Tensor]:
    """‖w‖ at most the radius, each matrix of a head on its own."""

    def project(w: Tensor, start: Tensor) -> Tensor:
        size = w.square().sum((-2, -1), keepdim=True).sqrt()
        return torch.where(size > radius, w * radius / size, w)

    return project


@dataclass(frozen=True)
class Learner:
    """rate, retain, weight, beta: [B,H,T,1] or None. aged: γ by age. when, begins: [B,T] bool, ticks that bring a pair,
    ticks at whose beginning the memory starts anew."""

    rate: Tensor
    retain: Tensor | None = None
    weight: Tensor | None = None
    beta: Tensor | None = None
    chunk: int = 1
    every: int = 1
    read: str = "after"
    objective: Objective = l2
    link: Map = lambda a: a
    project: Callable[[Tensor, Tensor], Tensor] = lambda w, start: w
    window: int = 1
    aged: Sequence[Tensor] | None = None
    when: Tensor | None = None
    begins: Tensor | None = None
    keep_rule: bool = False

    def run(self, key: Tensor, value: Tensor, query: Tensor, weights: Tensors) -> Tensor:
        """Outputs [B,H,T,D], row by row: a row has its own clock."""
        rows = [self.row(b, key[b], value[b], query[b], weights) for b in range(key.shape[0])]
        return torch.stack(rows)

    def row(self, b: int, key: Tensor, value: Tensor, query: Tensor, weights: Tensors) -> Tensor:
        start = [w.expand(key.shape[0], *w.shape[-2:]) for w in weights]
        a, s = start, [torch.zeros_like(w) for w in start]
        anchor, pending, seen, t, outputs = a, None, 0, 0, []
        pairs: list[tuple[int, Tensor | float]] = []
        for i in range(key.shape[1]):
            if self.begins is not None and bool(self.begins[b, i]):
                a, t, pending, pairs, seen = start, 0, None, [], 0
                s = s if self.keep_rule else [torch.zeros_like(w) for w in start]
            if t % self.chunk == 0:
                anchor = a
            t += 1
            before, brings = a, self.when is None or bool(self.when[b, i])
            weight = 1.0 if self.weight is None else self.weight[b, :, i].unsqueeze(-1)
            pairs = [*pairs, (i, weight if brings else 0.0)][-self.window :]
            seen += brings
            if brings:
                g = self.error(anchor, key, value, pairs)
                pending = g if pending is None else [p + x for p, x in zip(pending, g, strict=True)]
            if t % self.every == 0:
                if seen:
                    assert pending is not None
                    a, s = self.learn(b, i, a, s, pending, start)
                pending, seen = None, 0
            at = {"after": a, "before": before, "chunk_start": anchor}[self.read]
            outputs.append(mlp([self.link(w) for w in at], query[:, i]))
        return torch.stack(outputs, 1)

    def error(self, anchor: Tensors, key: Tensor, value: Tensor, pairs: list[tuple[int, Tensor | float]]) -> Tensors:
        theta = [self.link(w) for w in anchor]
        total = [torch.zeros_like(w) for w in theta]
        for age, (i, weight) in enumerate(reversed(pairs)):
            gamma = 1.0 if self.aged is None else self.aged[age]
            g = gradient(theta, key[:, i], value[:, i], self.objective, mlp)
            total = [x + gamma * weight * y for x, y in zip(total, g, strict=True)]
        return total

    def learn(self, b: int, i: int, a: Tensors, s: Tensors, g: Tensors, start: Tensors) -> tuple[Tensors, Tensors]:
        def gate(x: Tensor | None, default: float) -> Tensor | float:
            return default if x is None else x[b, :, i].unsqueeze(-1)

        eta, beta, alpha = gate(self.rate, 1.0), gate(self.beta, 0.0), gate(self.retain, 1.0)
        s = [beta * old - eta * x for old, x in zip(s, g, strict=True)]
        a = [self.project(alpha * w + step, w0) for w, step, w0 in zip(a, s, start, strict=True)]
        return a, s
