"""Small level graphs for the tests of the interpreter, with weights and inputs drawn in float64."""

from __future__ import annotations

import torch
from torch import Tensor

import nestflow
from nestflow.graph.model import LevelGraph
from nestflow.reference import Reference

B, H, T, D = 2, 2, 7, 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bare(fields: str, inputs: tuple[str, ...] = ("k", "v", "q"), every: str = "1 token") -> LevelGraph:
    """A level fed from outside: each input has H · D features, `r` one number per head."""
    declared = "\n".join(f"input {n} : float[T, {H if n == 'r' else H * D}]" for n in inputs)
    names = ", ".join(inputs)
    return nestflow.check(
        f"nestflow 1\n{declared}\noutput mem({names})\nlevel mem({names}) {{ every {every}; heads {H}; {fields} }}\n"
    )


SPLIT = "key split_heads(k); value split_heads(v); query split_heads(q)"


def weights_of(graph: LevelGraph, scale: float = 0.4) -> dict[str, Tensor]:
    return {w.path: (scale * draw(*w.full_shape, seed=i)).requires_grad_() for i, w in enumerate(graph.weights)}


def reference(graph: LevelGraph) -> Reference:
    return Reference(graph, weights_of(graph))


def streams(*names: str, rows: int = B, ticks: int = T, seed: int = 100) -> dict[str, Tensor]:
    """[B, T, width], by name."""
    widths = {n: H if n == "r" else H * D for n in names or ("k", "v", "q")}
    return {n: draw(rows, ticks, w, seed=seed + i).requires_grad_() for i, (n, w) in enumerate(widths.items())}


def heads(x: Tensor) -> Tensor:
    """[B, T, H·D] as [B, H, T, D]."""
    return x.unflatten(-1, (H, -1)).transpose(1, 2)


def merged(y: Tensor) -> Tensor:
    """[B, H, T, D] as [B, T, H·D]."""
    return y.transpose(1, 2).flatten(-2)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
