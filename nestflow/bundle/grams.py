"""What dgd on the step clock needs besides gradients: Σ x xᵀ over the inputs x of a weight in the forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nestflow.diagnostics.core import fail
from nestflow.graph.model import StepLevel
from nestflow.ir.node import walk

_MT: Any = getattr(Tensor.mT, "__get__")  # noqa: B009  (pyright takes it for a tensor)


class InputGrams(TorchFunctionMode):
    """Collects Σ x xᵀ of watched weights, divided by `terms`, while a forward pass runs under it.

    It sees the three ways in which generated code multiplies by a weight: F.linear(x, w), F.linear(x, w.flatten(0, 1))
    for all heads at once, and x @ w.mT per head. wanted: weight path -> whether inputs are scaled to unit length.
    """

    def __init__(self, weights: Mapping[str, Tensor], wanted: Mapping[str, bool], terms: int) -> None:
        super().__init__()
        self.paths = {id(weights[p]): p for p in wanted}
        self.wanted, self.terms = wanted, terms
        self.views: dict[int, tuple[Tensor, str]] = {}  # views of watched weights; the tensor keeps its id taken
        self.grams: dict[str, Tensor] = {}
        self.heads = {p: weights[p].shape[0] if weights[p].ndim == 3 else 0 for p in wanted}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.flatten, _MT) and id(args[0]) in self.paths:
            self.views[id(result)] = (result, self.paths[id(args[0])])
        elif func is F.linear:
            path = self.paths.get(id(args[1])) or self.views.get(id(args[1]), (None, None))[1]
            if path is not None:
                self._add(path, args[0], per_head=False)
        elif func in (Tensor.__matmul__, Tensor.matmul, torch.matmul) and id(args[1]) in self.views:
            path = self.views[id(args[1])][1]
            self._add(path, args[0], per_head=bool(self.heads[path]))
        return result

    def _add(self, path: str, x: Tensor, per_head: bool) -> None:
        with torch.no_grad():
            x = x.detach()
            if self.wanted[path]:
                x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            if per_head:  # [B, H, T, d]: a sum for each head
                rows = x.movedim(1, 0).flatten(1, -2)
                gram = rows.mT @ rows
            else:
                rows = x.flatten(0, -2)
                gram = rows.mT @ rows
                if self.heads[path]:
                    gram = gram.expand(self.heads[path], -1, -1)
            self.grams[path] = self.grams.get(path, 0) + gram / self.terms


def terms_of(level: StepLevel, batch: Mapping[str, Tensor]) -> int:
    """How many terms the level's objective averages: B · T less what `next` takes. Raises NF515 under a mask."""
    assert level.objective is not None
    rows = next((x.shape[0] for x in batch.values()), 1)
    for node in walk(level.objective):
        if node.op.startswith("cross_entropy") and len(node.args) > 2:
            raise fail(
                "NF515",
                f"dgd in level `{level.name}` cannot yet count the terms of a masked loss",
                level.span,
                "leave the mask out, or use another update",
            )
        if node.op in ("cross_entropy", "mean_all"):
            operands = list(node.args)
            t, short = operands[0].type, max(a.type.short for a in operands)
            ticks = next((list(x.shape)[1] for x in batch.values() if x.ndim > 1), 1) if t.clock else 1
            each = math.prod(t.shape) if node.op == "mean_all" else 1
            return max(1, rows * (ticks - short) * each)
    return rows
