"""Chance: draws that are functions of a counter."""

from __future__ import annotations

from typing import Any

from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.vocabulary.record import word

SAME = "The draw is a function of the seed, the place, the step, the tick and the row: splits and resumes agree."


@word(
    "dropout(x, p in [0, 1))",
    also="Dropout drop",
    doc=f"While training, 0 with probability p, else x / (1 − p). {SAME}",
)
def dropout(site: Any, x: Any, p: Any) -> Node:
    share = float(site.number(p, "p"))
    x = site.real(x, "dropout")
    path = site.drawn()
    return x if share == 0 else ops.dropout(x, share, path, site.span)


@word(
    "noise(shape...)", also="randn gaussian normal_like", doc=f"Normal numbers, mean 0 and variance 1, always. {SAME}"
)
def noise(site: Any, *shape: Any) -> Node:
    sizes = tuple(site.size(n, "an axis of noise") for n in shape)
    return ops.draws("noise", site.each_tick(sizes), site.drawn(), site.span)


@word(
    "bernoulli(p in [0, 1], like = none)",
    also="coin rand",
    doc=f"1 with probability p, else 0, always; as many as `like` has. {SAME}",
)
def bernoulli(site: Any, p: Any, like: Any) -> Node:
    chance = site.node(p, "bernoulli")
    shape = site.node(like, "bernoulli").type if like is not None else site.each_tick(chance.type.shape)
    flat = ops.draws("uniform", shape, site.drawn(), site.span)
    return ops.where(ops.binary("lt", flat, chance, site.span), ops.const(1.0), ops.const(0.0), site.span)
