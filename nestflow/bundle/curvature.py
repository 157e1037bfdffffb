"""What `curvature(hutchinson)` on the step clock needs: z ⊙ Hz, H the second derivatives of a level's objective."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nestflow.ops.loop import plainly


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by its formula and loops that run plainly: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH), plainly():
        yield


def signs(path: str, step: int, seed: int, like: Tensor) -> Tensor:
    """z = ±1, of w's shape: a function of (seed, path, update)."""
    digest = hashlib.sha256(f"{seed}:{path}:{step}:curvature".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    z = torch.randint(0, 2, tuple(like.shape), generator=generator) * 2 - 1
    return z.to(device=like.device, dtype=like.dtype)


def curvatures(weights: Mapping[str, tuple[Tensor, Tensor]], steps: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """z ⊙ Hz for the weights of one level. weights: each with its gradient, which was taken with its graph. steps:
    which update this is for each."""
    zs = {p: signs(p, steps[p], seed, w) for p, (w, _) in weights.items()}
    smooth = [(g, zs[p]) for p, (_, g) in weights.items() if g.requires_grad]
    second: Sequence[Tensor | None] = [None] * len(weights)
    if smooth:
        outputs, along = zip(*smooth, strict=True)
        leaves = [w for w, _ in weights.values()]
        second = torch.autograd.grad(outputs, leaves, along, allow_unused=True, retain_graph=True)
    found: dict[str, Tensor] = {}
    for (p, (w, _)), h in zip(weights.items(), second, strict=True):
        found[p] = torch.zeros_like(w) if h is None else (zs[p] * h).detach()
    return found


__all__ = ["curvatures", "signs", "twice_differentiable"]
