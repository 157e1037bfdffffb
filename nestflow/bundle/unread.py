"""Inputs that are not finite, and gradients of what they did not reach.

Backwards, a tick that no loss asks for brings zeros, and of a number that is not finite the zeros are NaN: they reach
every weight. So where an input holds such numbers the generated code runs twice: without a graph on the inputs as they
are, which gives the values, and with one on inputs that have zeros in those places. Where the two agree, gradients go
through the second; where they do not, the gradient is NaN if it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.ops.causal import all_at_once, filled, sound
from nestflow.ops.runtime import Context


def computed(entry: Callable[..., Any], c: Context, inputs: Sequence[Tensor | None]) -> Any:
    """entry(c, *inputs): a tensor, or tensors by name. c.n takes the state after it. Where answers are waited
    for, one question about numbers that are not finite stands for those of all levels."""
    if c.networks or not waits(c.device):
        return _computed(entry, c, inputs)
    w = c.w

    def again() -> Any:
        c.w = w
        for kept in (c.n, c.now, c.published):
            kept.clear()
        return _computed(entry, c, inputs)

    return all_at_once(lambda: _computed(entry, c, inputs), again)


def waits(device: torch.device) -> bool:
    """Whether asking a tensor for a number waits for all that was sent to its device before."""
    return device.type not in ("cpu", "meta")


def _computed(entry: Callable[..., Any], c: Context, inputs: Sequence[Tensor | None]) -> Any:
    floats = [x for x in inputs if x is not None and x.is_floating_point()]
    # networks of the caller may draw, or count what they have seen: they run once
    if not torch.is_grad_enabled() or c.networks or all(sound(x) for x in floats):
        return entry(c, *inputs)
    there = c.part(n={}, now={}, published={})
    with torch.no_grad():
        values = entry(there, *inputs)
    result = entry(c, *(x if x is None or not x.is_floating_point() else _zeros_for(x) for x in inputs))
    for mine, real in ((c.n, there.n), (c.now, there.now), (c.published, there.published)):
        mine.update({name: _valued(x, real[name]) for name, x in mine.items()})
    if isinstance(result, Mapping):
        return {name: _valued(x, values[name]) for name, x in result.items()}
    return _valued(result, values)


def _zeros_for(x: Tensor) -> Tensor:
    return filled(x, ~x.isfinite(), 0.0)


def _valued(x: Any, value: Any) -> Any:
    """The value, with the gradients of x."""
    if isinstance(x, tuple):
        return tuple(_valued(a, b) for a, b in zip(x, value))
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return value
    return _Valued.apply(x, value)


class _Valued(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(x == value)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        (same,) = ctx.saved_tensors
        return torch.where(same | (g == 0), g, torch.nan), None
