"""What a pass launches, multiplies and holds, counted while it runs: no clock, so the same on every machine.

Each operation is counted where it is written: at the level whose code runs it (nearest in the tree of instances).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nestflow.bundle.bundle import Bundle
from nestflow.bundle.candidates import drawn

SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")
"""Operations for which the program waits until a device has computed all that is before them."""


@dataclass
class Count:
    """Of one level (or "", what is outside of levels). launches: operations that compute (views cost nothing).
    multiply_adds: those of matrix products, convolutions and attention. held: bytes kept for the backward pass, the
    weights apart. ops: launches by name."""

    launches: int = 0
    multiply_adds: int = 0
    held: int = 0
    ops: Counter[str] = field(default_factory=Counter)

    @property
    def syncs(self) -> int:
        return sum(n for op, n in self.ops.items() if op in SYNCS)


def counted(bundle: Bundle, rows: int, ticks: int, backward: bool = False) -> dict[str, Count]:
    """The counts of one pass over inputs drawn at random, by the path of the level.

    backward: the pass is followed by one back from the mean of the output's squares, counted under "backward". The
    bundle is left as it was.
    """
    module = bundle.module
    needed = [i for i in bundle.graph.inputs if i.name in bundle.graph.needed]
    inputs = {i.name: drawn(i, rows, ticks, module.device) for i in needed}
    watch = Watch({p: f"{p}." for p in bundle.plan.levels})
    own = {w.untyped_storage().data_ptr() for w in (*module.parameters(), *inputs.values())}
    seen: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        at = x.untyped_storage().data_ptr()
        if at not in own and at not in seen:
            seen[at] = x  # kept, so that no other tensor is put in its place
            watch.at(watch.place()).held += x.untyped_storage().nbytes()
        return x

    with _as_it_was(module), torch.enable_grad():
        with watch, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = module(**inputs)
        if backward:
            values = list(out.values()) if isinstance(out, Mapping) else [out]
            watch.fixed = "backward"
            loss = torch.stack([y.float().square().mean() for y in values]).sum()
            if loss.requires_grad:
                with watch:
                    loss.backward()
    return watch.found


class Watch(TorchDispatchMode):
    """Counts operations by place. levels: path of a level -> what its paths begin with. fixed: a place for all."""

    def __init__(self, levels: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.levels = dict(levels or {})
        self.found: dict[str, Count] = {}
        self.fixed: str | None = None

    def at(self, place: str) -> Count:
        return self.found.setdefault(place, Count())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func not in FREE:
            count = self.at(self.place())
            count.launches += 1
            count.ops[func.overloadpacket.__name__] += 1
            flops = _flops(func.overloadpacket)
            if flops is not None:
                count.multiply_adds += flops(*args, **(kwargs or {}), out_val=out) // 2
        return out

    def place(self) -> str:
        """The level whose code is running."""
        if self.fixed is not None:
            return self.fixed
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<nestflow_"):
                path = frame.f_locals.get("p")
                if isinstance(path, str):
                    inside = [p for p, start in self.levels.items() if path.startswith(start)]
                    if inside:
                        return max(inside, key=len)
            frame = frame.f_back
        return ""


def _flops(op: Any) -> Callable[..., int] | None:
    """What torch counts of an operation. Two kinds it does not know, though they are products: those that write to
    their first argument (`baddbmm_`), and attention where it runs on a CPU."""
    name = op.__name__.removesuffix("_").replace("_for_cpu", "")
    return flop_registry.get(op) or flop_registry.get(getattr(torch.ops.aten, name, None))


FREE = frozenset([torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default])
"""Operations that compute nothing, and are no views by their schema."""


@contextmanager
def _as_it_was(module: Any) -> Iterator[None]:
    """Gradients, memories of the model, mode and counts of passes are put back."""
    mode, passes = module.training, module.__dict__["_passes"]
    kept = {p: x.detach().clone() for p, x in module.kept.items()}
    gradients = {w: w.grad for w in module.parameters()}
    for w in gradients:
        w.grad = None
    try:
        yield
    finally:
        for w, g in gradients.items():
            w.grad = g
        with torch.no_grad():
            for p, x in module.kept.items():
                x.copy_(kept[p])
        module.__dict__["_passes"] = passes
        module.train(mode)


__all__ = ["SYNCS", "Count", "Watch", "counted"]
