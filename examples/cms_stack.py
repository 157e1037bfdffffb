"""A network that was trained before goes on learning as a continuum of memories: `python examples/cms_stack.py`.

A small PyTorch network is trained on one cycle of letters as any other. Then the spec `cms_stack` puts levels on it:
the MLP of its first block learns at every step, that of the second once in 4, that of the third once in 16, and the
rest is frozen. It reads another cycle. `rate` says how far it adapts: at 0 it stays what it was, bit for bit.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import nestflow

OLD, NEW = "abcdefgh", "hgfedcba"
BANDS = {"fast": "blocks.0.mlp.**", "middle": "blocks.1.mlp.**", "slow": "blocks.2.mlp.**"}


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)  # the token before
        x = x + self.mix(torch.cat([x, before], -1))
        return x + self.mlp(x)


class Network(nn.Module):
    def __init__(self, letters: int = 8, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(3))
        self.head = nn.Linear(dim, letters)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def text(cycle: str, rows: int = 8, ticks: int = 24) -> Tensor:
    """Rows of a cycle of letters, each from another place."""
    letters = [ord(c) - ord("a") for c in cycle]
    return torch.tensor([[letters[(r + t) % len(letters)] for t in range(ticks)] for r in range(rows)])


def loss_of(net: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(net: nn.Module, opt: torch.optim.Optimizer, tokens: Tensor, steps: int) -> None:
    for _ in range(steps):
        opt.zero_grad()
        loss_of(net, tokens).backward()
        opt.step()


def main(steps: int = 64) -> dict[float, tuple[float, float]]:
    """{rate: (loss on the old text, loss on the new)} after the levels have read the new one."""
    torch.manual_seed(0)
    trained = Network()
    train(trained, torch.optim.AdamW(trained.parameters(), 1e-2), text(OLD), 120)
    result = {}
    for rate in (0.0, 0.3, 1.0):
        net = copy.deepcopy(trained)
        opt = nestflow.optimizer("cms_stack", net=net, rate=rate, lr=2e-3, **BANDS)
        train(net, opt, text(NEW), steps)
        with torch.no_grad():
            result[rate] = float(loss_of(net, text(OLD))), float(loss_of(net, text(NEW)))
            if rate == 0:
                assert torch.equal(net(text(OLD)), trained(text(OLD))), "the network as it was, bit for bit"
        told = {n: r["updates"] for n, r in opt.report().items()}
        print(f"rate {rate:<4} old {result[rate][0]:.3f}   new {result[rate][1]:.3f}   updates {told}")
    return result


if __name__ == "__main__":
    main()
