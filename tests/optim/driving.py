"""Parameters, gradients and level graphs that the tests of optimizers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nestflow.bundle.optimizer import optimizer_class
from nestflow.bundle.step_optimizer import StepOptimizer
from nestflow.graph.build import build
from nestflow.language.resolve import load

SHAPES = ((5, 7), (7, 3), (6,), ())


def draw(seed: int, shapes: Iterable[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def parameters(dtype: torch.dtype = torch.float64, shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(w) for w in draw(0, shapes, dtype)]


def drive(
    opt: torch.optim.Optimizer, params: list[nn.Parameter], steps: int, first: int = 0, clip: float | None = None
) -> None:
    """Steps with gradients that depend on the step's number alone. Gradients are cleared after each, as loops do."""
    for t in range(first, first + steps):
        for p, g in zip(params, draw(1000 + t, [tuple(p.shape) for p in params], params[0].dtype), strict=True):
            p.grad = g
        if clip is not None:
            nn.utils.clip_grad_norm_(params, clip)
        opt.step()
        opt.zero_grad()


def level_optimizer(
    levels: str, body: str = "return linear(x, 3)", **settings: Any
) -> tuple[StepOptimizer, dict[str, nn.Parameter]]:
    """The optimizer of a small spec with these levels on flow `net`, and its weights by path, drawn from a seed."""
    graph = build(
        load(f"""nestflow 1
input x : float[T, 4]
output net(x)
flow net(x) {{ {body} }}
loss = mean(net(x) ^ 2)
{levels}
""")
    )
    weights = {
        w.path: nn.Parameter(v)
        for w, v in zip(graph.weights, draw(7, [w.full_shape for w in graph.weights]), strict=True)
    }
    return optimizer_class(graph)(weights, **settings), weights


def feed(opt: StepOptimizer, weights: dict[str, nn.Parameter], steps: int, first: int = 0) -> None:
    drive(opt, list(weights.values()), steps, first)
