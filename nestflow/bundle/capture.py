"""`execution { capture true }`: a step's gradients as a CUDA graph, captured once for each shape of a batch.

A captured graph is launched as one: the host, which would launch thousands of small operations, waits for none of them.
It reads and writes the memory that it was captured with. So inputs are copied into tensors of its own, and what it
gives is copied out of such, for an optimizer may keep it. Weights are read where they lie; where one has come to lie
elsewhere, another graph is captured. Not run on a GPU yet: tests replay by computing again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nestflow.graph.model import LevelGraph
from nestflow.ops.loop import built, flattened

MOST = 8  # graphs that a module keeps, each with the memory of a step
WARM = 3  # runs before one is captured: what is compiled or tuned at first use is not part of it


@dataclass
class Captured:
    """replay computes `outputs` anew from what lies in `inputs`. form: of what the outputs are parts."""

    inputs: list[Tensor]
    replay: Callable[[], Any]
    outputs: list[Tensor]
    form: Any


Graphs = dict[Hashable, Captured | None]  # None: it could not be captured

_kept: WeakKeyDictionary[nn.Module, Graphs] = WeakKeyDictionary()


def wanted(graph: LevelGraph, device: torch.device) -> bool:
    """Whether steps are captured: asked for, on a CUDA device."""
    return bool(dict(graph.execution).get("capture", False)) and device.type == "cuda"


def captured(
    module: nn.Module, what: Hashable, inputs: Mapping[str, Tensor | None], compute: Callable[..., Any]
) -> Any:
    """compute(inputs), nested tuples, lists and dicts of tensors, by a captured graph. what: all else that it is a
    function of, beside the module's tensors."""
    graphs = _kept.setdefault(module, {})
    given, form = flattened(dict(inputs))
    shapes = tuple((tuple(x.shape), x.dtype) for x in given)
    where = tuple(x.data_ptr() for x in (*module.parameters(), *module.buffers()))
    key = (what, tuple(inputs), shapes, where)
    if key not in graphs:
        if len(graphs) >= MOST:
            graphs.clear()
        own = [x.clone() for x in given]
        graphs[key] = _tried(lambda: compute(built(form, own)), own)
    found = graphs[key]
    if found is None:
        return compute(inputs)
    for mine, x in zip(found.inputs, given, strict=True):
        mine.copy_(x)
    found.replay()
    return built(found.form, [x.clone() for x in found.outputs])


def _tried(function: Callable[[], Any], inputs: list[Tensor]) -> Captured | None:
    """The captured graph, or None, with a warning, where the device does not capture what the function does."""
    try:
        return record(function, inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        warnings.warn(f"`execution {{ capture true }}` has no effect: {reason:.200}", stacklevel=2)
        return None


def record(function: Callable[[], Any], inputs: list[Tensor]) -> Captured:
    """Capture what a function does on the device."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs, form = flattened(function())
    return Captured(inputs, graph.replay, [x.detach() for x in outputs], form)
