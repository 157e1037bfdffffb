"""`es(e, sigma, pairs)`: the gradient of a number, estimated from its values at disturbed tensors: language.md §3.9."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nestflow.ir.node import Node
from nestflow.reference.chance import hashes, normal


def estimate(
    node: Node, value: Callable[[Mapping[str, Tensor]], Tensor], tensors: Mapping[str, Tensor], chance: tuple[int, int]
) -> Tensor:
    """e, with Σ (e(w + σε) − e(w − σε)) ε / (2σ·pairs) as its gradient in the tensors that the node names.

    value(tensors): e with these in place of the others. chance: seed and step."""
    own = {p: tensors[p] for p in node["weights"]}
    pairs, sigma = node["pairs"], node["sigma"]
    first = torch.ones(pairs, 1, dtype=torch.int64)  # the tick: it is drawn once a step; a row of draws for each pair
    with torch.no_grad():
        e = value(dict(tensors))
        if not any(w.requires_grad for w in own.values()):
            return e
        draws = {
            p: normal(hashes(chance[0], f"es:{p}", chance[1], first.to(w.device), 1, tuple(w.shape)))[:, 0].to(w.dtype)
            for p, w in own.items()
        }
        gradient = {p: torch.zeros_like(w) for p, w in own.items()}
        for i in range(pairs):
            above = value({**tensors, **{p: w + sigma * draws[p][i] for p, w in own.items()}})
            below = value({**tensors, **{p: w - sigma * draws[p][i] for p, w in own.items()}})
            for p in own:
                gradient[p] += (above - below).sum() * draws[p][i] / (2 * sigma * pairs)
    for p, w in own.items():
        e = e + ((w - w.detach()) * gradient[p]).sum()
    return e
