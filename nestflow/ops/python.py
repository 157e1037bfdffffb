"""Calls of a user's Python function from generated code: everything that is carried becomes its first axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow._python import function
from nestflow.diagnostics.core import fail

Form = Sequence[tuple[str | None, Any]]


def python_call(
    target: str, form: Form, lead: int, shape: tuple[int, ...], *tensors: Tensor, rule: bool = False
) -> Tensor:
    """The function at every row, tick and head. lead: how many axes of the tensors are carried; shape: features of
    the result. form: keyword or None, and a constant or None where the next tensor stands. rule: of an update, where
    a number comes with as many axes as the tensor that it scales."""
    tensors = tuple(x.reshape((1,) * lead) if not x.ndim else x for x in tensors)
    if rule:
        tensors = tuple(_widened(x, lead, len(shape)) for x in tensors)
    carried = torch.broadcast_shapes(*(x.shape[:lead] for x in tensors))
    flat = [x.expand(*carried, *x.shape[lead:]).reshape(-1, *x.shape[lead:]) for x in tensors]
    y = _called(target, form, flat)
    if not isinstance(y, Tensor) or y.shape != (flat[0].shape[0], *shape):
        got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise fail(
            "NF573", f"`{target}` gives {got} for {flat[0].shape[0]} rows, and {[flat[0].shape[0], *shape]} is due"
        )
    return y.reshape(*carried, *shape)


def python_step(target: str, form: Form, heads: int, *tensors: Any) -> Tensor:
    """The function on what belongs to one weight, heads (or one) first. heads: 1 where the tensors have that axis."""
    like = [x for x in tensors if isinstance(x, Tensor)]
    first = max(like, key=lambda x: x.ndim)
    given: list[Any] = []
    for x in tensors:
        if not isinstance(x, Tensor) or (not x.ndim and first is not x):
            given.append(
                torch.as_tensor(x, dtype=first.dtype, device=first.device).reshape((1,) * (first.ndim + 1 - heads))
            )
        else:
            given.append(x if heads else x.unsqueeze(0))
    y = _called(target, form, given)
    y = y if heads or not isinstance(y, Tensor) else y.squeeze(0)
    if not isinstance(y, Tensor) or y.shape != first.shape:
        got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise fail(
            "NF573", f"`{target}` gives {got} for a tensor {list(first.shape)}: a step has the shape of its weight"
        )
    return y


def _widened(x: Tensor, lead: int, rank: int) -> Tensor:
    missing = rank - (x.ndim - lead)
    return x.reshape(*x.shape[:lead], *(1,) * missing, *x.shape[lead:]) if missing > 0 else x


def _called(target: str, form: Form, tensors: Sequence[Any]) -> Any:
    run: Callable[..., Any] = function(target)
    rest = iter(tensors)
    values = [(n, next(rest) if c is None else c) for n, c in form]
    return run(*(v for n, v in values if n is None), **{n: v for n, v in values if n is not None})
