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
# what is to be asked when all is computed: on a device, an answer waits for all that was sent to it before
LATER: ContextVar[list[Tensor] | None] = ContextVar("nestflow_later", default=None)


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
    later = LATER.get()
    try:
        found = y.detach().sum(dtype=exact(y)).isfinite()
        if later is None or torch._C._are_functorch_transforms_active():
            return bool(found)
    except RuntimeError:  # inside vmap, or of a tensor without numbers
        return True
    later.append(found)
    return True


def all_at_once(run: Callable[[], Any], again: Callable[[], Any]) -> Any:
    """What `run` gives, computed with one question about numbers for all levels in it; where one is not finite, what
    `again` gives, with care."""
    asked: list[Tensor] = []
    token = LATER.set(asked)
    try:
        result = run()
    except Exception:  # over numbers that are not finite a level may raise anything; over others it is a fault
        if all(bool(x) for x in asked):
            raise
        result = None  # what met numbers that are not finite without care
        asked = [torch.tensor(False)]
    finally:
        LATER.reset(token)
    if not asked or bool(torch.stack(asked).all()):
        return result
    token = CARE.set(True)
    try:
        return again()
    finally:
        CARE.reset(token)


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


def joined(parts: Sequence[Sequence[Tensor]], axes: Sequence[int]) -> tuple[Tensor, ...]:
    """The recalls of all pieces, one behind the other. parts: of each piece; axes: of each recall, where its ticks lie.
    Raises NotFinite where a number is not finite, unless care is taken: one question for all of them."""
    found = tuple(torch.cat(ys, axis) for ys, axis in zip(zip(*parts), axes))
    looked_at = [y for y, axis in zip(found, axes) if y.shape[axis] > 1]
    if looked_at and not careful():
        wide = [y if y.is_floating_point() else y.to(torch.float32) for y in looked_at]
        y = wide[0] if len(wide) == 1 else torch.stack([x.detach().sum(dtype=exact(x)) for x in wide])
        if not sound(y):
            raise NotFinite
    return found


def exact(x: Tensor) -> torch.dtype:
    """The type in which numbers of x are summed."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


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
