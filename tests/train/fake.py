"""A small stand-in for a bundle: the trainer is tested without the compiler.

A byte embedding, a GRU and a head; two step-clock levels: `fast` every step, `slow` every 4 steps with its gradients
summed, so that resuming in the middle of a period is a real test.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FakeModule(nn.Module):
    def __init__(self, width: int = 16, dropout: float = 0.1, vocab: int = 256):
        super().__init__()
        self.emb = nn.Embedding(vocab, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.run(tokens, None)[0]

    def run(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        h_BTD, state = self.gru(self.emb(tokens), state)
        return self.head(self.drop(h_BTD)), state


class FakeStream:
    def __init__(self, module: FakeModule):
        self.module = module
        self.state: Tensor | None = None

    def feed(self, tokens: Tensor) -> Tensor:
        logits_BTV, self.state = self.module.run(tokens, self.state)
        return logits_BTV


class FakeBundle:
    def __init__(self, seed: int = 0, low: float | None = 0, high: float | None = 255, vocab: int = 256):
        torch.manual_seed(seed)
        self.module = FakeModule(vocab=vocab)
        slow = list(self.module.head.parameters())
        fast = [p for n, p in self.module.named_parameters() if not n.startswith("head")]
        self.fast = torch.optim.AdamW(fast, lr=3e-3)
        self.slow = torch.optim.AdamW(slow, lr=3e-3)
        self.optimizer = self.fast
        self.count = 0
        self.total = 0
        self.extra: dict[str, Any] = {}
        self.params = {"vocab": vocab}
        level = SimpleNamespace(clock="token", every=1, count=2, title="memory")
        one = SimpleNamespace(name="tokens", low=low, high=high, span=None)
        self.graph = SimpleNamespace(inputs=(one,), levels=(level,))

    def set_total_steps(self, n: int) -> None:
        self.total = n

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_BT = batch["tokens"]
        return F.cross_entropy(self.module(tokens=x_BT)[:, :-1].flatten(0, 1), x_BT[:, 1:].flatten())

    def step(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        loss = self.loss(batch)
        self.fast.zero_grad()
        loss.backward()
        self.fast.step()
        self.count += 1
        due = self.count % 4 == 0
        if due:
            self.slow.step()
            self.slow.zero_grad()
        levels = {"fast": {"updated": True, "every": 1}, "slow": {"updated": due, "every": 4}}
        return {"loss": float(loss.detach()), "levels": levels}

    def stream(self, batch: int = 1) -> FakeStream:
        return FakeStream(self.module)

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        path = Path(path)
        path.mkdir(parents=True)
        torch.save(
            {
                "module": self.module.state_dict(),
                "pending": [None if p.grad is None else p.grad.clone() for p in self.module.head.parameters()],
                "fast": self.fast.state_dict(),
                "slow": self.slow.state_dict(),
                "count": self.count,
            },
            path / "bundle.pt",
        )
        (path / "extra.json").write_text(json.dumps(extra))


def load(path: str | Path) -> FakeBundle:
    path = Path(path)
    state = torch.load(path / "bundle.pt")
    b = FakeBundle()
    b.module.load_state_dict(state["module"])
    for p, g in zip(b.module.head.parameters(), state["pending"]):
        p.grad = g
    b.fast.load_state_dict(state["fast"])
    b.slow.load_state_dict(state["slow"])
    b.count = state["count"]
    b.extra = json.loads((path / "extra.json").read_text())
    return b
