"""Images in the interpreter: x [B, H, channels, rows, columns], window by window."""

from __future__ import annotations

import torch
from torch import Tensor

from nestflow.ir.node import Node


def windows(x: Tensor, k: int, stride: int, padding: int, fill: float) -> Tensor:
    """Every k × k window of the padded image: [B, H, channels, rows, columns, k, k]."""
    *lead, rows, columns = x.shape
    framed = x.new_full((*lead, rows + 2 * padding, columns + 2 * padding), fill)
    framed[..., padding : padding + rows, padding : padding + columns] = x
    found = [
        torch.stack([framed[..., i : i + k, j : j + k] for j in range(0, columns + 2 * padding - k + 1, stride)], -3)
        for i in range(0, rows + 2 * padding - k + 1, stride)
    ]
    return torch.stack(found, -4)


def apply(node: Node, xs: list[Tensor]) -> Tensor:
    """The value of an operation on images."""
    x = xs[0]
    if node.op == "patches":  # each square, channel first, one after the other
        squares = windows(x, node["p"], node["p"], 0, 0.0)
        rows = [squares[..., i, j, :, :].flatten(2) for i in range(squares.shape[3]) for j in range(squares.shape[4])]
        return torch.stack(rows, 2)
    if node.op == "conv2d":
        k = xs[1].shape[-1]
        seen = windows(x, k, node["stride"], (k - 1) // 2, 0.0)
        return torch.einsum("bhcrsij,bhncij->bhnrs", seen, xs[1].expand(*x.shape[:2], *xs[1].shape[2:]))
    if node.op == "max_pool":
        k = node["k"]
        seen = windows(x, k, node["stride"], (k - 1) // 2, float("-inf"))
        return seen.flatten(-2).max(-1).values
    return x.repeat_interleave(node["f"], -1).repeat_interleave(node["f"], -2)  # upsample
