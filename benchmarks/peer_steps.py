"""A step of our optimizers beside one of torch.optim's, on the same parameters and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import nestflow
from benchmarks.pair import CLOSE, Pair
from benchmarks.same import apart

# ours with its settings, torch's with its own, the forms that torch has
OPTIMIZERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], tuple[str, ...]]] = {
    "sgd, momentum": ("sgd", {"lr": 0.05, "momentum": 0.9}, "SGD", {"lr": 0.05, "momentum": 0.9},
                      ("for-loop", "foreach", "fused")),
    "adamw": ("adamw", {"lr": 3e-3, "weight_decay": 0.1}, "AdamW", {"lr": 3e-3, "weight_decay": 0.1},
              ("for-loop", "foreach", "fused")),
    "rmsprop": ("rmsprop", {"lr": 0.01}, "RMSprop", {"lr": 0.01}, ("for-loop", "foreach")),
    "adagrad": ("adagrad", {"lr": 0.01}, "Adagrad", {"lr": 0.01}, ("for-loop", "foreach", "fused")),
    "adafactor": ("adafactor", {"lr": 0.01}, "Adafactor", {"lr": 0.01}, ("for-loop", "foreach")),
    "muon": ("muon", {"lr": 0.02, "weight_decay": 0.1, "half": True}, "Muon", {"lr": 0.02, "weight_decay": 0.1}, ("",)),
}  # fmt: skip
LIMITS = {"muon": 1e-3}  # both iterate in bfloat16
FORMS: dict[str, dict[str, bool]] = {
    "": {}, "for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True},
}  # fmt: skip


def shapes(dim: int, blocks: int) -> list[tuple[int, int]]:
    """The matrices of a transformer."""
    return [
        (256, dim),
        *[(dim, dim)] * 4 * blocks,
        *[(8 * dim // 3, dim)] * 2 * blocks,
        *[(dim, 8 * dim // 3)] * blocks,
    ]


def parameters(sizes: list[tuple[int, int]], device: str) -> list[nn.Parameter]:
    """The same numbers each time, with gradients."""
    source = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(s, generator=source).to(device)) for s in sizes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=source).to(device)
    return made


def optimizers(quick: bool, device: str) -> Iterator[Pair]:
    """Our step beside torch.optim's, on the same parameters and gradients."""
    sizes = shapes(64, 2) if quick else shapes(384, 6)
    for what, (name, ours, theirs, settings, forms) in OPTIMIZERS.items():
        for form in forms:
            a, b = parameters(sizes, device), parameters(sizes, device)
            mine = nestflow.optimizer(name, a, **ours)
            peer = getattr(torch.optim, theirs)(b, **settings, **FORMS[form])
            for _ in range(3):
                mine.step()
                peer.step()
            error = apart(a, b)
            label = f"torch.optim.{theirs}{', ' + form if form else ''}"
            count = sum(p.numel() for p in a)
            limit = LIMITS.get(what, CLOSE)
            steps = {"step": mine.step}, {"step": peer.step}
            yield Pair(what, label, torch.__version__, *steps, error, limit=limit, settings={"parameters": count})
