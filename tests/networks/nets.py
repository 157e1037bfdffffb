"""Small networks, and specs that run on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VOCAB, WIDTH = 7, 6


class Causal(nn.Module):
    """Looks at the past only. Its head shares the table of its embedding; it counts its passes in training."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)) for _ in range(layers)
        )
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.emb.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, input_ids: Tensor, scale: float = 1.0) -> Tensor:
        if self.training:
            self.passes += 1
        x: Any = self.emb(input_ids)
        for layer in self.layers:
            x = x + layer(x.cumsum(1) / 5)
        return self.head(x) * scale


class Noisy(nn.Module):
    """Two parts with dropout and a batch norm each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.second = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Result(dict[str, Tensor]):
    """A result with parts, as libraries of language models give them."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Scored(nn.Module):
    """Gives `.logits`, and `.loss` where labels come."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Causal(1)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Result:
        logits = self.inner(input_ids)
        if labels is None:
            return Result(logits=logits)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Result(logits=logits, loss=loss)


HEAD = f"nestflow 1\ninput tokens : int[T] in [0, {VOCAB})\n"
MODEL = (
    HEAD
    + f"""
extern net(input_ids, scale = 2.0) : float[T, {VOCAB}]
output model(tokens)
flow model(tokens) {{ h = net(tokens); return h + linear(h, {VOCAB}) }}
loss = cross_entropy(model(tokens), next(tokens))
level fast   {{ every 1 step; memory weights(net, "layers.0.**"); objective loss; update adam(1e-2) }}
level slow   {{ every 2 steps; memory weights(net, "layers.1.**"); objective loss; update (g / n_ticks) |> adam(1e-2) }}
level frozen {{ every never; memory rest(net) }}
level own    {{ every 1 step; memory rest(model); objective loss; update adam(1e-2) }}
"""
)
LEVELS = """nestflow 1
extern net
level fast   { every 1 step; memory weights(net, "layers.0.**"); update adamw(1e-2) }
level slow   { every 3 steps; memory weights(net, "layers.1.**"); update sgd(0.1, momentum = 0.9) }
level frozen { every never; memory rest(net) }
"""


def causal(layers: int = 3) -> Causal:
    """The same network each time, in float64."""
    torch.manual_seed(5)
    return Causal(layers).double()


def tokens(rows: int = 2, ticks: int = 6) -> Tensor:
    return torch.randint(0, VOCAB, (rows, ticks), generator=torch.Generator().manual_seed(3))


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    """Bit for bit: the raw bytes, so that -0.0 is not 0.0."""
    x, y = a.state_dict(), b.state_dict()
    assert x.keys() == y.keys()
    for n in x:
        assert x[n].numpy().tobytes() == y[n].numpy().tobytes(), n
