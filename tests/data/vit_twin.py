"""A vision transformer as a torch module, written from the paper; the weights of specs/vision/vit.nl go into it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, bias=False, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        n = self.first(x)
        x = x + self.attention(n, n, n, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Twin(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, size: int, channels: int, patch: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros((size // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).mT + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self(image), label)


def copied(weights: dict[str, Tensor], twin: Twin) -> dict[str, nn.Parameter]:
    """Give the twin the spec's weights; path -> its parameter, whose gradient has the shape `like` asks for."""
    pairs: dict[str, Tensor] = {
        "model.linear.weight": twin.embed.weight,
        "model.linear.bias": twin.embed.bias,
        "model.learned": twin.position,
        "model.layernorm.weight": twin.norm.weight,
        "model.layernorm.bias": twin.norm.bias,
        "model.linear_2.weight": twin.head.weight,
        "model.linear_2.bias": twin.head.bias,
    }
    for i, b in enumerate(twin.blocks):
        at = f"model.block.{i}."
        for ours, theirs in (("layernorm", b.first), ("layernorm_2", b.second)):
            pairs |= {f"{at}{ours}.weight": theirs.weight, f"{at}{ours}.bias": theirs.bias}
        for ours, theirs in (("linear", b.mlp[0]), ("linear_2", b.mlp[2])):
            pairs |= {f"{at}mlp.{ours}.weight": theirs.weight, f"{at}mlp.{ours}.bias": theirs.bias}
        pairs[f"{at}attention.out.linear.weight"] = b.attention.out_proj.weight
        with torch.no_grad():
            parts = [weights[f"{at}attention.{f}.linear.weight"].flatten(0, 1) for f in ("query", "key", "value")]
            b.attention.in_proj_weight.copy_(torch.cat(parts))
    with torch.no_grad():
        for path, parameter in pairs.items():
            parameter.copy_(weights[path].reshape(parameter.shape))
    return pairs
