"""Numbers that are not finite stay with their tick and the ticks after it.

Closed forms multiply what tick s brings by zero at the ticks before s. Of an inf or NaN that zero is a NaN. Watching
every product would cost time in every run, so a level is computed as if all were finite, its recalls are looked at, and
only where one is not finite the level is computed again *with care*: then masks are cut and not multiplied. What
the ticks before give is the same bit for bit as if the later ones were finite; from the bad tick on it is NaN.

Traced code (torch.compile, export, vmap) cannot ask a tensor for a number: there the promise holds for finite numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

CARE: ContextVar[bool] = ContextVar("nestflow_care", default=False)


class NotFinite(Exception):
    """A recall that is not finite: the level is to be computed again, with care."""


def careful() -> bool:
    """Whether the code at hand is to be computed with care."""
    return not torch.compiler.is_compiling() and CARE.get()


def sound(y: Tensor) -> bool:
    """Whether all numbers of y are finite (False too if they are so large that their sum is not); True where a tensor
    cannot be asked."""
    if torch.compiler.is_compiling() or y.device.type == "meta":
        return True
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]  # public, but not in torch's list
        return True
    if y.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    wide = torch.float32 if y.dtype in (torch.float16, torch.bfloat16) else y.dtype
    try:
        return bool(y.detach().sum(dtype=wide).isfinite())
    except RuntimeError:  # inside vmap, or of a tensor without numbers
        return True


def again_with_care(level: Callable[..., Any]) -> Callable[..., Any]:
    """A level's function that is computed a second time where `joined` finds a number that is not finite."""

    @functools.wraps(level)
    def run(c: Any, *inputs: Any) -> Any:
        emitted = dict(c.now)
        try:
            return level(c, *inputs)
        except NotFinite:
            c.now.clear()
            c.now.update(emitted)
        token = CARE.set(True)
        try:
            return level(c, *inputs)
        finally:
            CARE.reset(token)

    return run


def joined(ys: Sequence[Tensor], axis: int) -> Tensor:
    """The recalls of all pieces, one behind the other. Raises NotFinite where one is not, unless care is taken."""
    y = torch.cat(list(ys), axis)
    if y.shape[axis] > 1 and not careful() and not sound(y):
        raise NotFinite
    return y


def lower(x: Tensor) -> Tensor:
    """x [..., t, s], whose entries above the diagonal are products with zero."""
    return x.clone().tril_() if careful() else x


def earlier(weight: Tensor, x: Tensor) -> Tensor:
    """Σ_{s ≤ t} weight[t, s] x_s. weight [..., n, n], zeros above the diagonal; x [..., n, m]."""
    if not careful():
        return weight @ x
    bad = ~x.isfinite()
    y = lower(weight) @ filled(x, bad, 0.0)
    return from_then_on(y, bad)


def from_then_on(y: Tensor, bad: Tensor) -> Tensor:
    """y [..., n, m], NaN at the ticks where `bad` [..., n, m or 1] holds, and at those after them."""
    return filled(y, bad.cumsum(-2) > 0, torch.nan)


def filled(x: Tensor, where: Tensor, value: float) -> Tensor:
    """x with a number at some places, in the memory layout of x (`masked_fill` gives it up): products of tensors that
    lie otherwise may round otherwise."""
    return x.clone().masked_fill_(where, value)
