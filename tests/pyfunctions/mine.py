"""Functions that the specs of these tests name. Their tensors have rows first, then features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CALLS: list[tuple[int, ...]] = []
NUMBER = 3


def swish(x: Tensor, by: float = 1.0) -> Tensor:
    CALLS.append(tuple(x.shape))
    return x * torch.sigmoid(by * x)


def pair(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x.sum(-1), (x * y).sum(-1)], -1)


def mean(x: Tensor) -> Tensor:
    return x.mean()


def broken(x: Tensor) -> Tensor:
    raise KeyError("no such thing")


def sign_step(g: Tensor, lr: float = 0.1) -> Tensor:
    return -lr * torch.sign(g)


def normed_step(g: Tensor, w: Tensor, lr: Any) -> Tensor:
    """Of each copy by itself: the norm is over what stands behind the first axis."""
    size = g.flatten(1).norm(dim=1).reshape(-1, *[1] * (g.ndim - 1))
    return -lr * (g + 0.1 * w) / (1 + size)
