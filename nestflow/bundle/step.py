"""One step of training, by language.md §3.7: the objectives in order, the levels of each together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.bundle.grams import InputGrams, terms_of
from nestflow.bundle.module import Module
from nestflow.bundle.step_optimizer import StepOptimizer
from nestflow.graph.model import StepLevel


def take_step(
    module: Module,
    optimizer: StepOptimizer,
    objectives: Mapping[str, Sequence[StepLevel]],
    inputs: Mapping[str, Tensor],
) -> dict[str, Any]:
    """One tick of every level of the step clock. The gradients of one objective are taken at one state, then its levels
    learn; the next objective sees what they have become."""
    published: dict[str, Tensor] = {}
    losses: dict[str, float] = {}
    for name, levels in objectives.items():
        with _grams(module, optimizer, levels, inputs) as grams:
            value = module.objective(name, inputs, published)
        optimizer.input_grams = grams() if grams else {}
        weights = module.weights
        owned = [weights[p] for level in levels for p in level.weights if weights[p].requires_grad]
        gradients = torch.autograd.grad(value, owned, allow_unused=True) if owned else ()
        for weight, gradient in zip(owned, gradients, strict=True):
            weight.grad = gradient
        optimizer._step_levels([level.name for level in levels])
        for weight in weights.values():
            weight.grad = None
        losses[name] = float(value.detach())
    emitted = {n: float(v.detach().float().mean()) for n, v in published.items()}
    return {"loss": next(iter(losses.values())), "losses": losses, "levels": optimizer.report(), "emitted": emitted}


@contextlib.contextmanager
def _grams(
    module: Module, optimizer: StepOptimizer, levels: Sequence[StepLevel], inputs: Mapping[str, Tensor]
) -> Iterator[Any]:
    """Watches the inputs of the weights whose rule reads them (dgd)."""
    wanted = {p: n for p, n in optimizer.needs_inputs.items() if any(p in level.weights for level in levels)}
    if not wanted:
        yield None
        return
    first = next(level for level in levels if set(level.weights) & set(wanted))
    with InputGrams(module.weights, wanted, terms_of(first, inputs)) as watch:
        yield lambda: watch.grams
