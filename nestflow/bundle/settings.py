"""Arguments of the Python functions that are no data: sizes, seeds, devices, each mistake a coded sentence."""

from __future__ import annotations

import operator
from typing import Any

import torch

from nestflow.diagnostics.core import fail
from nestflow.ops.backends import BACKENDS, usual

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


MOST = 2**63 - 1  # of rows, ticks, steps: what a tensor can be asked for


def whole(value: Any, what: str, least: int | None = None) -> int:
    """A whole number. Raises NF518 where it is none, below `least`, or, of sizes, which have a least one, above any."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise fail("NF518", f"{what} is a whole number, and this is {value!r:.60}") from None
    if least is not None and number < least:
        raise fail("NF518", f"{what} is at least {least}, and this is {number}")
    if least is not None and number > MOST:
        raise fail("NF518", f"{what} is at most {MOST:,}, and this is {number!s:.60}")
    return number


def dtype_of(dtype: Any) -> torch.dtype:
    """A floating type, or its name; None is float32. Raises NF517."""
    if dtype is None:
        return torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in DTYPES:
        raise fail("NF517", f"`{dtype}` is no floating type of weights", help="float32, float64, bfloat16 or float16")
    return found


def device_of(device: Any) -> torch.device | None:
    """A device that is there. Raises NF518."""
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # torch has one of these for each way in which a device is not there: its name, its build, its driver, its kind
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as e:
        raise fail(
            "NF518",
            f"the device `{device!s:.60}` cannot be used here: {str(e).splitlines()[0][:120] if str(e) else 'unknown'}",
            help="cpu is always there; cuda, cuda:1, … where torch was built for them and finds one",
        ) from None
    return found


def backend_of(asked: str, device: torch.device | None, strict: bool = True) -> str:
    """What computes the matrix memories of a module whose weights are on a device (None: a CPU). strict: raises NF550
    where what is asked for cannot be used; else that is `auto`."""
    here = device or torch.device("cpu")
    if asked == "auto":
        return usual(here)
    reason = BACKENDS[asked].not_here(here) if asked in BACKENDS else None
    if reason is not None and not strict:
        return usual(here)
    if reason is not None:
        message = f"`backend {asked}` of `execution` cannot be used here: {reason}"
        raise fail("NF550", message, help="`backend auto` takes it where it can be used, and torch elsewhere")
    return asked


def for_capture(device: torch.device | None) -> None:
    """Raises NF552 where a step cannot be captured as a CUDA graph because its weights are elsewhere."""
    here = device or torch.device("cpu")
    if here.type != "cuda":
        message = f"`capture` of `execution` makes CUDA graphs, and the weights are on `{here}`"
        raise fail("NF552", message, help="leave it out, or give a device: `device cuda`")
