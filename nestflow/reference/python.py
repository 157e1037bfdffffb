"""A user's Python function in the interpreter: rows and heads become its first axis."""

from __future__ import annotations

import torch
from torch import Tensor

from nestflow._python import function
from nestflow.ir.node import Node


def python(node: Node, xs: list[Tensor]) -> Tensor:
    """[B, H, *features] of values [B, H, *features]; in a rule, the tensor of a weight and numbers beside it."""
    if node["rule"]:  # a number comes with as many axes as the tensor that it scales
        rank = max(x.ndim for x in xs)
        xs = [x.reshape(*x.shape[:2], *(1,) * (rank - x.ndim), *x.shape[2:]) for x in xs]
    b, h = torch.broadcast_shapes(*(x.shape[:2] for x in xs))
    rows = iter([x.expand(b, h, *x.shape[2:]).flatten(0, 1) for x in xs])
    args, named = [], {}
    for name, constant in node["form"]:
        value = next(rows) if constant is None else constant
        if name is None:
            args.append(value)
        else:
            named[name] = value
    y = function(node["target"])(*args, **named)
    return y.unflatten(0, (b, h))
