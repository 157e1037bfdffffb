"""Images in generated code: x [..., channels, rows, columns], whatever stands in front is carried along."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def patches(x: Tensor, p: int) -> Tensor:
    """The p × p squares, row by row: [..., squares, channels · p²], channel first. (Dosovitskiy et al. 2021.)"""
    squares = x.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # [..., c, row, i, column, j]
    return squares.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def conv2d(x: Tensor, w: Tensor, stride: int = 1) -> Tensor:
    """w [n, channels, k, k]; padded with ⌊(k − 1)/2⌋ zeros on each side."""
    y = F.conv2d(x.reshape(-1, *x.shape[-3:]), w, stride=stride, padding=(w.shape[-1] - 1) // 2)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def max_pool(x: Tensor, k: int, stride: int = 1) -> Tensor:
    """The largest of each k × k window; padded with ⌊(k − 1)/2⌋ on each side, where nothing is."""
    y = F.max_pool2d(x.reshape(-1, *x.shape[-3:]), k, stride, (k - 1) // 2)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def upsample(x: Tensor, f: int) -> Tensor:
    """Every pixel f × f times."""
    return x.repeat_interleave(f, -2).repeat_interleave(f, -1)
