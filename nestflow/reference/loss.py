"""Expressions outside flows, an objective of the whole model first of all: language.md §3.8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ir.node import Node, walk
from nestflow.reference.networks import Networks
from nestflow.reference.values import align, apply, leaf

Records = Callable[[str, str], Mapping[str, Tensor]]
"""(level, "now" | "before" | "gradient" | "copies") -> its tensors by name."""


def in_records(node: Node) -> bool:
    """Whether the value is one for each tensor of a record."""
    return node.op == "record" or (node.op != "total" and any(in_records(a) for a in node.args))


class Loss:
    """Values over the whole run, [B, T, *features]. known: what the calls of root flows gave, by node id."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        known: Mapping[int, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        networks: Networks | None = None,
        records: Records | None = None,
    ) -> None:
        self.networks, self.raw = networks, dict[int, Any]()
        self.records = records
        self.weights, self.inputs, self.memo, self.dtype, self.device = weights, inputs, dict(known), dtype, device

    def eval(self, node: Node) -> Tensor:
        if id(node) not in self.memo:
            self.memo[id(node)] = self.compute(node)
        return self.memo[id(node)]

    def compute(self, node: Node) -> Tensor:
        op = node.op
        if op == "slot":
            x = self.inputs[node["name"]]
            return x if node.type.clock else x.unsqueeze(1)
        if op == "weight":
            return self.weights[node["path"]][None, None]
        if op == "total":
            return self.total(node)
        known = leaf(node, self.dtype, self.device)
        if known is not None:
            return known
        xs = [self.eval(a) for a in node.args]
        if op == "network" and self.networks is not None:  # the whole sequence at once
            self.raw[id(node)] = self.networks.run(node, dict(zip(node["names"], xs)))
            return xs[0].new_zeros(1, 1)
        if op == "network_result" and self.networks is not None:
            value = self.networks.part(node, self.raw[id(node.args[0])])
            return value if node.type.clock else value.unsqueeze(1) if value.ndim else value.reshape(1, 1)
        if op == "next":  # x at t + 1; the last tick has no term and is left out below
            return torch.cat([xs[0][:, 1:], xs[0][:, -1:]], 1)
        if op == "cross_entropy_terms":
            return self.cross_entropy(node, *xs)
        if op in ("cross_entropy", "mean_all"):
            short = max(a.type.short for a in node.args)
            xs = [x[:, : x.shape[1] - short] if a.type.clock else x for a, x in zip(node.args, xs)]
            return xs[0].mean().reshape(1, 1) if op == "mean_all" else self.cross_entropy(node, *xs)
        if op == "sum_features":
            return xs[0].flatten(2).sum(-1) if xs[0].ndim > 2 else xs[0]
        return apply(node, xs, self.dtype)

    def each(self, node: Node, name: str, memo: dict[int, Tensor]) -> Tensor:
        """An expression in records, for the tensor `name` of them: [1, 1, *shape]."""
        if not in_records(node):
            return self.eval(node)
        if id(node) not in memo:
            if node.op == "record":
                if self.records is None:
                    raise LookupError("no levels are known here")
                memo[id(node)] = self.records(node["level"], node["what"])[name][None, None]
            elif node.op == "average":  # over the copies, the first axis of the tensor
                memo[id(node)] = self.each(node.args[0], name, memo).mean(2)
            else:
                xs = [self.each(a, name, memo) for a in node.args]
                if node.op == "sqrt":  # as in an update: the derivative is 0 where the value is
                    zero = xs[0] == 0
                    memo[id(node)] = torch.where(zero, 0.0, torch.where(zero, 1.0, xs[0]).sqrt())
                elif node.op == "norm_w":
                    memo[id(node)] = torch.linalg.vector_norm(xs[0]).reshape(1, 1)
                else:
                    memo[id(node)] = apply(node, xs, self.dtype)
        return memo[id(node)]

    def total(self, node: Node) -> Tensor:
        """Σ over all tensors of the records."""
        leaf_ = next(n for n in walk(node) if n.op == "record")
        if self.records is None:
            raise LookupError("no levels are known here")
        names = self.records(leaf_["level"], leaf_["what"])
        parts = [self.each(node.args[0], name, {}).sum() for name in names]
        return torch.stack(parts).sum().reshape(1, 1)

    def cross_entropy(self, node: Node, p: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean of −log softmax(p)[y] over the unmasked terms; 0 where none is left. Or each of them."""
        logs = F.log_softmax(p, -1)
        logs, y = align(logs, y.unsqueeze(-1))
        lead = torch.broadcast_shapes(logs.shape[:-1], y.shape[:-1])
        logs, y = logs.expand(*lead, -1), y.expand(*lead, -1)
        if mask is not None:  # a masked term may have no class
            y = torch.where(align(mask.unsqueeze(-1), y)[0] != 0, y, 0)
        terms = -logs.gather(-1, y).squeeze(-1)
        s = node["smoothing"]
        terms = (1 - s) * terms - s * logs.mean(-1)
        keep = torch.ones_like(terms) if mask is None else align(mask.to(terms.dtype), terms)[0].expand_as(terms)
        if node.op == "cross_entropy_terms":
            return torch.where(keep != 0, terms * keep, 0.0)
        return (terms * keep).sum().reshape(1, 1) / keep.sum().clamp(min=1)
