"""`execution { backend … }`: what computes a memory that is one matrix, where it can, and why not where it cannot.

A level whose plan names a backend asks `at_once` first. Where that gives None, the loop in torch runs: whatever a
kernel does not do (second derivatives, float64, care about numbers that are not finite) is done there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from nestflow.ops.causal import NotFinite, careful, sound
from nestflow.ops.loop import as_it_stands
from nestflow.ops.runtime import Context
from nestflow.ops.whole import LEAST, Memory, in_pieces

WIDEST = 256  # numbers of a key that a program of a kernel keeps a row of W for
TYPES = frozenset([torch.float32, torch.bfloat16, torch.float16])


@dataclass(frozen=True)
class Backend:
    """package: what must be installed. computes: the call, all ticks of a level at once. widest: numbers of a key.
    interpreted: it also runs on a CPU, for tests, with TRITON_INTERPRET=1; anywhere: on every device. usual_delta: of
    delta rules it knows the usual one alone, whose error looks with the key at what the gate has left."""

    name: str
    package: str
    computes: Callable[[Memory, int], tuple[Tensor, Tensor]]
    widest: int
    interpreted: bool = False
    anywhere: bool = False
    usual_delta: bool = False
    types: frozenset[torch.dtype] = TYPES

    def not_here(self, device: torch.device) -> str | None:
        """Why it cannot run on this device, in words, or None."""
        if find_spec(self.package) is None:
            return f"the package `{self.package}` is not installed"
        if not self.runs_on(device):
            return f"its kernels run on a CUDA device, and the weights are on `{device}`"
        return None

    def runs_on(self, device: torch.device) -> bool:
        """Whether its kernels run on such a device."""
        return (
            self.anywhere or device.type == "cuda" or (self.interpreted and os.environ.get("TRITON_INTERPRET") == "1")
        )


def _whole(m: Memory, size: int) -> tuple[Tensor, Tensor]:
    return in_pieces(m, size, "torch")


def _triton(m: Memory, size: int) -> tuple[Tensor, Tensor]:
    return in_pieces(m, size, "triton")


def _fla(m: Memory, size: int) -> tuple[Tensor, Tensor]:
    from nestflow.kernels.fla import computed

    return computed(m)


BACKENDS = {
    b.name: b
    for b in (
        Backend("whole", "torch", _whole, 2**31, anywhere=True, types=TYPES | {torch.float64}),
        Backend("triton", "triton", _triton, WIDEST, interpreted=True),
        Backend("fla", "fla", _fla, WIDEST, usual_delta=True),
    )
}


def usual(device: torch.device) -> str:
    """What `backend auto` is: Triton on a CUDA device where it is installed, else torch."""
    return "triton" if device.type == "cuda" and BACKENDS["triton"].not_here(device) is None else "torch"


_failed: set[str] = set()


def at_once(
    c: Context,
    by: str,
    ticks: int,
    size: int,
    start: Tensor,
    x: Tensor,
    h: Tensor,
    error: Tensor,
    gate: Tensor | float,
    rate: Tensor | float = 1.0,
    look: Tensor | None = None,
    scale: Tensor | float = 1.0,
    channels: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """The memory after the call's ticks [..., out, in], and what x read at each [..., T, out]; None: not by a kernel
    (few ticks at a time are one piece of the loop).

    start [..., out, in]; x, h, look [..., T or 1, in]; error [..., T or 1, out]; rate, scale [..., T or 1] or a number;
    gate likewise, with `channels` [..., T or 1, in]. See `nestflow.ops.whole`. Raises NotFinite.
    """
    if ticks < LEAST or careful() or as_it_stands() or c.dtype not in BACKENDS[by].types or by in _failed:
        return None
    if not BACKENDS[by].runs_on(start.device):  # the module has been moved
        return None
    lead, memory = aligned(ticks, Memory(start, x, h, error, gate, rate, look, scale), channels)
    found = _tried(by, memory, size)
    if found is None:
        return None
    state, y = (part.unflatten(0, lead) for part in found)
    if not sound(y):
        raise NotFinite
    return state, y


def _tried(by: str, memory: Memory, size: int) -> tuple[Tensor, Tensor] | None:
    """What the backend makes of it; if it fails on this machine, None, with a warning, and it is not asked again."""
    if torch.compiler.is_compiling():
        return BACKENDS[by].computes(memory, size)
    try:
        return BACKENDS[by].computes(memory, size)
    except torch.OutOfMemoryError:
        raise
    except Exception as e:  # whatever a compiler of kernels and its driver raise: torch can still compute it
        _failed.add(by)
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        warnings.warn(f"`execution {{ backend {by} }}` has no effect: {reason:.200}", stacklevel=2)
        return None


def aligned(ticks: int, m: Memory, channels: bool) -> tuple[torch.Size, Memory]:
    """The leading axes of all, and the memory with these as one."""

    def shape(v: Tensor | float | None, features: int) -> torch.Size:
        return v.shape[: v.dim() - features] if isinstance(v, Tensor) else torch.Size()

    vectors = [(v, 2) for v in (m.start, m.x, m.h, m.error, m.look)]
    numbers = [(m.gate, 2 if channels else 1), (m.rate, 1), (m.scale, 1)]
    lead = torch.broadcast_shapes(*(shape(v, n) for v, n in [*vectors, *numbers]))

    def whole(v: Tensor, features: int) -> Tensor:
        return v.expand(*lead, *v.shape[v.dim() - features :]).flatten(0, len(lead) - 1)

    def vector(v: Tensor) -> Tensor:
        return whole(v.expand(*v.shape[:-2], ticks, v.shape[-1]), 2)

    def number(v: Tensor | float) -> Tensor | float:
        return whole(v.expand(*v.shape[:-1], ticks), 1) if isinstance(v, Tensor) else v

    gate = vector(m.gate) if channels and isinstance(m.gate, Tensor) else number(m.gate)
    look = None if m.look is None else vector(m.look)
    x, h, error = (vector(v) for v in (m.x, m.h, m.error))
    return lead, Memory(whole(m.start, 2), x, h, error, gate, number(m.rate), look, number(m.scale))
