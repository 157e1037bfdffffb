"""One token of a stream: code of its own (`nestflow.emit.token`), and nothing checked twice.

`OneToken.step` takes what is plain: rows at one place, inputs of the module's type on its device. It gives None where
something is not, and the module's `run` then says what. A state that it has given is known to be the spec's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nestflow.bundle.source import load_source
from nestflow.bundle.state import Mark, State
from nestflow.diagnostics.core import NestflowError
from nestflow.emit.token import emit_token, has_token
from nestflow.graph.model import InputSpec, LevelGraph
from nestflow.ops.runtime import Context

FEW = 64  # numbers whose bounds are looked at one by one


def undisturbed() -> bool:
    """Whether a call is plain: nothing asks for gradients, and nothing traces it."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]  # public, but not in torch's list


class OneToken:
    """The code of one token of a graph. plain: whether a call is nothing but that code (no draws, networks, copies that
    all streams share)."""

    def __init__(self, graph: LevelGraph, plain: bool) -> None:
        self.program: ModuleType = load_source(emit_token(graph), f"{graph.name}_token")
        self.forward = self.program.forward
        self.specs = [i for i in graph.inputs if i.name in graph.needed]
        self.names = [i.name if i.name in graph.needed else None for i in graph.inputs]
        self.plain = plain

    def mark(self, dtype: torch.dtype, device: torch.device) -> Mark:
        """What a state has that this code gave, of a module of this type on this device."""
        return self.program.__name__, dtype, device

    def step(
        self, module: Any, state: State, args: tuple[Any, ...], inputs: Mapping[str, Any], training: bool
    ) -> tuple[Any, State] | None:
        """Output and state after one token, None where the call is not plain."""
        dtype, device = module._kind()
        mark = self.mark(dtype, device)
        if not self.plain or len(state.groups) != 1 or state.mark != mark:
            return None
        if args:
            if len(args) != 1 or inputs or len(self.specs) != 1:
                return None
            inputs = {self.specs[0].name: args[0]}
        elif len(inputs) != len(self.specs):
            return None
        (group,) = state.groups
        rows = len(group.rows)
        for spec in self.specs:
            if not _fits(spec, inputs.get(spec.name), rows, dtype, device):
                return None
        c = Context(module.weights, group.tensors, group.t, training, dtype, device, None, group.age)
        try:
            result = self.forward(c, *[None if n is None else inputs[n] for n in self.names])
        except IndexError:  # an index outside a table
            return None
        return result, State((group.moved(1, {**group.tensors, **c.n}),), mark)


def one_token(module: Any) -> OneToken | None:
    """The code of one token of a module, made at the first; None where its spec has none."""
    given = module.__dict__
    if given["_token"]:
        return given["_token"]
    if given["_token"] is None:
        plain = not (given["_kept"] or given["_networks"] or given["_draws_at_random"])
        try:
            given["_token"] = OneToken(given["_graph"], plain) if has_token(given["_graph"]) else False
        except NestflowError:  # what a scan cannot do yet the module's own code may
            given["_token"] = False
    return given["_token"] or None


def fast(
    module: Any, state: Any, args: tuple[Any, ...], inputs: Mapping[str, Any], training: bool
) -> tuple[Any, State] | None:
    """Output and state of a call that brings one token to a state that code of one token gave; None for all others."""
    if not isinstance(state, State) or not state.mark or not undisturbed():
        return None
    token = one_token(module)
    return None if token is None else token.step(module, state, args, inputs, training)


def _fits(spec: InputSpec, x: Any, rows: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether an input is one token of each row, as the module takes it."""
    if not isinstance(x, Tensor) or x.shape != (rows, 1, *spec.type.shape) or x.device != device or x.is_sparse:
        return False
    if spec.type.dtype == "float":
        return x.dtype == dtype and spec.low is None and spec.high is None
    if x.dtype != (torch.int64 if spec.type.dtype == "int" else torch.bool):
        return False
    if spec.low is None and spec.high is None:
        return True
    low = -math.inf if spec.low is None else spec.low
    high = math.inf if spec.high is None else spec.high
    if x.numel() == 1:
        return low <= x.item() <= high
    return x.numel() <= FEW and all(low <= value <= high for value in x.flatten().tolist())


__all__ = ["OneToken", "one_token", "undisturbed"]
