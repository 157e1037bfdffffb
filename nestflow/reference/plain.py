"""An update rule on plain parameters: what an optimizer on the step clock means, one update as one function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from nestflow.ir.node import Node
from nestflow.ir.rule import Rule
from nestflow.reference.rule import Update, Weight, start_slots

Tensors = Mapping[str, Tensor]
Slots = Mapping[str, Tensors]


def init_slots(rule: Rule, w: Tensors, heads: Collection[str] = ()) -> dict[str, dict[str, Tensor]]:
    """path -> the memories of the rule before the first update. heads: paths whose first axis is the head axis."""
    return {p: _all(_plain, start_slots(rule, p, _lift(x, p in heads)), p in heads) for p, x in w.items()}


def run_rule(
    rule: Rule,
    w: Tensors,
    g: Tensors,
    slots: Slots,
    *,
    updates: int,
    n_ticks: int = 1,
    ticks: float | None = None,
    every: int = 1,
    run_length: float | None = None,
    heads: Collection[str] = (),
    w0: Tensors | None = None,
    gram: Tensors | None = None,
    retain: Node | None = None,
    curvature: Tensors | None = None,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """One update of plain tensors by path: the new weights and the new memories of the rule (none changed in place).

    updates: which update this is, from 1. n_ticks: how many ticks g sums. ticks: what a schedule counts (default:
    updates times every). heads: paths whose first axis is the head axis, which ndim, rows, cols, norm(w) and
    Newton–Schulz do not see.
    retain: what A is multiplied by before the step is added.
    gram: K [.., in, in] of the weights that multiply an input (only dgd).
    curvature: z ⊙ Hz by path."""
    ones = []
    for p, x in w.items():
        h = p in heads
        k = _lift(gram[p], h) if gram and p in gram else None
        now, start = _lift(x, h), _lift((w0 or w)[p], h)
        c = _lift(curvature[p], h) if curvature and p in curvature else None
        ones.append(Weight(p, now, _lift(g[p], h), _all(_lift, slots[p], h), start, now, k, curvature=c))
    at = updates * every if ticks is None else ticks
    count = torch.tensor([[updates]])
    Update(rule, ones, count, n_ticks, at, every, run_length, per_copy=False, retain=retain).run()
    return (
        {o.path: _plain(o.w, o.path in heads) for o in ones},
        {o.path: _all(_plain, o.new, o.path in heads) for o in ones},
    )


def eval_weights(
    rule: Rule,
    w: Tensors,
    slots: Slots,
    *,
    updates: int,
    heads: Collection[str] = (),
) -> dict[str, Tensor]:
    """What the module uses when it is not training: the rule's `eval`, or w itself."""
    if rule.eval is None:
        return dict(w)
    result = {}
    for p, x in w.items():
        h = p in heads
        kept, now = _all(_lift, slots[p], h), _lift(x, h)
        one = Weight(p, now, torch.zeros_like(now), kept, now, now, new=kept)
        result[p] = _plain(Update(rule, [one], torch.tensor([[updates]])).value(rule.eval, one).expand_as(now), h)
    return result


def _lift(x: Tensor, per_head: bool) -> Tensor:
    return x.unsqueeze(0) if per_head else x[None, None]


def _plain(x: Tensor, per_head: bool) -> Tensor:
    return x[0] if per_head else x[0, 0]


def _all(change: Callable[[Tensor, bool], Tensor], slots: Tensors, per_head: bool) -> dict[str, Tensor]:
    return {n: change(t, per_head) for n, t in slots.items()}
