"""How weights are drawn, and a tree of modules whose state dict keys are their paths."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn


def draw(path: str, shape: tuple[int, ...], kind: str, a: float, b: float, maps: tuple[str, ...], seed: int) -> Tensor:
    """The start of one weight in float32, from (seed, path) alone: depth, order and device change nothing.

    kind: zeros, ones, eye, series (1/i! along the last axis), constant(a), normal(std a), uniform(a, b),
    log_uniform(a, b). maps: functions of the draw."""
    if kind in ("zeros", "ones", "constant"):
        x = torch.full(shape, {"zeros": 0.0, "ones": 1.0}.get(kind, a))
    elif kind == "series":
        x = torch.exp(-torch.lgamma(torch.arange(shape[-1], dtype=torch.float64) + 1)).float().expand(shape).clone()
    elif kind == "eye":
        x = torch.eye(shape[-2], shape[-1]).expand(shape).clone()
    else:
        digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        if kind == "normal":
            x = torch.randn(shape, generator=generator) * a
        elif kind == "uniform":
            x = torch.rand(shape, generator=generator) * (b - a) + a
        elif kind == "log_uniform":
            x = torch.exp(torch.rand(shape, generator=generator) * (math.log(b) - math.log(a)) + math.log(a))
        else:
            raise ValueError(f"no distribution `{kind}`")
    return mapped(x, maps)


def mapped(x: Tensor, maps: tuple[str, ...]) -> Tensor:
    """Functions of a draw, innermost first."""
    for name in maps:
        x = {
            "log": torch.log,
            "exp": torch.exp,
            "neg": torch.neg,
            "sqrt": torch.sqrt,
            "inverse_softplus": lambda v: v + torch.log(-torch.expm1(-v)),
        }[name](x)
    return x


class Branch(nn.Module):
    """A part of a path. Its children and weights lie in the module's tables only, so that a part may be called
    `half`, `type`, `training` or anything else that a module has as an attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":  # `train()` sets the flag, also where a child or weight is called so
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


def plant(root: nn.Module, path: str, weight: nn.Parameter) -> tuple[nn.Module, str]:
    """Put a weight at `a.b.c` below root; state dict keys are then paths. Returns where it is."""
    *parents, leaf = path.split(".")
    module = root
    for part in parents:
        if part not in module._modules:
            module._modules[part] = Branch()
        child = module._modules[part]
        assert child is not None
        module = child
    module._parameters[leaf] = weight
    return module, leaf
