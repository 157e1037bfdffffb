"""Models whose weights learn while they read, and the equations of a continuum of MLPs as a plain loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow

HEAD = """nestflow 1
input tokens : int[T] in [0, 8)
output model(tokens)
flow fast(x) { return x + (x |> linear(6) |> silu |> linear(4)) }
flow slow(x) { return x + (x |> linear(6) |> silu |> linear(4)) }
loss = cross_entropy(model(tokens), next(tokens))
level outer { every 1 step; memory weights(model); objective loss; update adam(1e-3) }
"""
PLAIN = "flow model(tokens) { return embed(tokens, 8, 4) |> fast |> slow |> linear(8) }\n"
FAST = 'level one { every 4 tokens; memory weights(model, "fast.**"); objective loss; update gd(0.1) }\n'


def compiled(text: str, scale: float = 0.5) -> nestflow.Bundle:
    """In float64, with weights large enough that what is learned shows."""
    b = nestflow.compile(text, dtype=torch.float64)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in b.module.weights.values():
            w.copy_(torch.randn(w.shape, generator=source, dtype=torch.float64) * scale)
    return b


def tokens(rows: int = 2, ticks: int = 19, seed: int = 1) -> Tensor:
    return torch.randint(0, 8, (rows, ticks), generator=torch.Generator().manual_seed(seed))


def near(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@dataclass
class Block:
    """MLP weights that learn every so many tokens: θ ← θ − rate Σ ∇ℓ (a step that a rule may change)."""

    names: tuple[str, str]
    every: int
    rate: float = 0.1
    retain: float = 1.0
    adam: bool = False
    start: tuple[str, str] | None = None
    back: Block | None = None  # it goes back to this block's state after each of its updates
    now: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    m: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)
    ticks: int = 0
    updates: int = 0

    def begin(self, weights: dict[str, Tensor]) -> None:
        self.now = [weights[n] for n in self.start or self.names]
        self.clear()

    def clear(self) -> None:
        self.sums, self.m, self.v = ([torch.zeros_like(w) for w in self.now] for _ in range(3))
        self.ticks = self.updates = 0

    def due(self) -> bool:
        return self.ticks % self.every == 0

    def learn(self) -> None:
        self.updates += 1
        for i, g in enumerate(self.sums):
            step = -self.rate * g
            if self.adam:
                self.m[i], self.v[i] = 0.9 * self.m[i] + 0.1 * g, 0.999 * self.v[i] + 0.001 * g * g
                m, v = self.m[i] / (1 - 0.9**self.updates), self.v[i] / (1 - 0.999**self.updates)
                step = -self.rate * m / (v.sqrt() + 1e-8)
            self.now[i] = self.retain * self.now[i] + step
        self.sums = [torch.zeros_like(w) for w in self.now]


def mlp(x: Tensor, w: list[Tensor]) -> Tensor:
    return x + F.silu(x @ w[0].T) @ w[1].T


def continuum(
    weights: dict[str, Tensor],
    row: Tensor,
    blocks: list[Block],
    mask: Tensor | None = None,
    added: Tensor | None = None,
    penalty: float = 0.0,
) -> Tensor:
    """The scores of one row, tick by tick: segments of the shortest period, each with the weights that the ones before
    have left; reading the token after a segment makes its last loss known, and then the blocks that are due learn.
    added: joins the embeddings, [T, 4]. penalty: of the mean square of what the head reads."""
    size = min(b.every for b in blocks)
    embed, head = weights["model.embed.weight"], weights["model.linear.weight"]
    for b in blocks:
        b.begin(weights)
    outs: list[Tensor] = []
    for at in range(0, len(row), size):
        here = row[at : at + size]
        x = embed[here] if added is None else embed[here] + added[at : at + size]

        def net(x: Tensor, all_w: list[list[Tensor]]) -> Tensor:
            for w in all_w:
                x = mlp(x, w)
            return x

        outs.append(net(x, [b.now for b in blocks]) @ head.T)
        if at + size >= len(row):
            break
        held = [[w.detach().clone().requires_grad_() for w in b.now] for b in blocks]
        h = net(x, held)
        losses = F.cross_entropy(h @ head.T, row[at + 1 : at + size + 1], reduction="none")
        losses = losses + penalty * h.square().mean(-1)
        total = (losses if mask is None else losses * mask[at : at + size]).sum()
        grads = iter(torch.autograd.grad(total, [w for ws in held for w in ws]))
        for b in blocks:
            b.sums = [s + next(grads) for s in b.sums]
            b.ticks += size
        due = [b for b in blocks if b.due()]
        for b in due:
            b.learn()
        for b in blocks:
            if b.back is not None and any(b.back is d for d in due):
                b.now = list(b.back.now)
                b.clear()
    return torch.cat(outs)
