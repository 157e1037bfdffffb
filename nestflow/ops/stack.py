"""A matrix of a memory and the slots of its rule as one tensor, in closed form: a *stack*.

A rule that is linear in its p starts X_j (the weight, its slots) and in the errors G_s = e_s h_sᵀ gives at tick t

    W_t x = Σ_j P[t, j] X_j x + Σ_s L[t, s] e_s (h_s · x)

(`nestflow.ops.coefficients`). With the starts below each other, [p·in, out], the first sum is one product: of x,
written p times, each times what its start weighs. So is the state after the piece: one product mixes the starts, one adds the
errors. What of this no state enters (queries, keys and rates that are known) is made for all pieces before the loop.

Shapes: G = rows × heads; n ticks of a piece; stack [..., p, in, out]; x, h [..., n, in]; e [..., n, out].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nestflow.ops.causal import earlier, lower


class Old(NamedTuple):
    """What the weight is made of at each tick: old [G, n, p] of the starts, new [G, n, n] of the errors."""

    old: Tensor
    new: Tensor


class Ends(NamedTuple):
    """What all starts are made of after the piece: start [G, p, p], end [G, n, p]."""

    start: Tensor
    end: Tensor


class Look(NamedTuple):
    """What reads a stack: x [G, n, p·in], weighed; scores, one for each factor: (x hᵀ) ⊙ L [G, n, n]."""

    x: Tensor
    scores: tuple[Tensor, ...]


def stacked(*starts: Tensor) -> Tensor:
    """p of [..., out, in] -> [..., p, in, out]"""
    return torch.stack([x.mT for x in starts], -3)


def unstacked(stack: Tensor) -> tuple[Tensor, ...]:
    """[..., p, in, out] -> p of [..., out, in]"""
    return tuple(x.mT.contiguous() for x in stack.unbind(-3))


def slot(stack: Tensor, j: int) -> Tensor:
    """Start number j, [..., out, in], where it stands."""
    return stack.select(-3, j).mT


# ---- before the loop, of all pieces. rows [..., pieces, K, p + K], or the same for all: [K, p + K], [..., 1, K, p + K]


def olds(rows: Tensor, sizes: Sequence[int], stack: Tensor) -> list[Old]:
    """Rows of the weight, ready to read, one for each piece."""
    found: list[Old] = []
    for own, _, count, _ in _alike(rows, sizes, stack):
        found += _each(Old(*own.split([stack.shape[-3], own.shape[-2]], -1)), count)
    return found


def ends(rows: Sequence[Tensor], sizes: Sequence[int], stack: Tensor) -> list[Ends]:
    """The last rows of all starts, in their order, one for each piece."""
    found: list[Ends] = []
    for parts in zip(*(_alike(x, sizes, stack) for x in rows)):
        last = _beside(*(own[..., -1, :] for own, *_ in parts))
        start, end = last.split([stack.shape[-3], last.shape[-2] - stack.shape[-3]], -2)
        found += _each(Ends(start.mT, end), parts[0][2])
    return found


def looks(x: Tensor, rows: Tensor, sizes: Sequence[int], stack: Tensor, *h: Tensor) -> list[Look]:
    """`look` of every piece. x, h [..., T, in]"""
    found: list[Look] = []
    for own, n, count, at in _alike(rows, sizes, stack):
        old = Old(*own.split([stack.shape[-3], n], -1))
        made = _look(_ticks(x, stack, at, count, n), old, [_ticks(y, stack, at, count, n) for y in h])
        found += _each(made, count)
    return found


def leavings(h: Tensor, rows: Sequence[Tensor], sizes: Sequence[int], stack: Tensor) -> list[Tensor]:
    """`leaving` of every piece. h [..., T, in]"""
    found: list[Tensor] = []
    for parts in zip(*(_alike(x, sizes, stack) for x in rows)):
        _, n, count, at = parts[0]
        end = _beside(*(own[..., -1, stack.shape[-3] :] for own, *_ in parts))
        found += _each((_weighed(_ticks(h, stack, at, count, n), end).mT,), count, whole=False)
    return found


def _alike(rows: Tensor, sizes: Sequence[int], stack: Tensor) -> Iterator[tuple[Tensor, int, int, int]]:
    """Pieces of one length that follow each other: their rows [G, pieces or 1, n, p + n], n, how many, ticks before."""
    rows = rows if rows.dim() > 2 else rows[None]
    lead = stack.shape[:-3]
    rows = rows.expand(*lead, *rows.shape[-3:]).reshape(-1, *rows.shape[-3:])
    width, piece, tick = stack.shape[-3], 0, 0
    for n, run in groupby(sizes):
        count = len(list(run))
        own = rows if rows.shape[1] == 1 else rows[:, piece : piece + count]
        yield own[..., :n, : width + n], n, count, tick
        piece, tick = piece + count, tick + count * n


def _beside(*last: Tensor) -> Tensor:
    """Rows of states, some the same in all pieces, as the last axis."""
    return torch.stack(torch.broadcast_tensors(*last), -1)


def _ticks(x: Tensor, stack: Tensor, at: int, count: int, n: int) -> Tensor:
    """[..., T, width] -> [G, pieces, n, width]"""
    x = x.expand(*stack.shape[:-3], *x.shape[-2:]) if x.shape[:-2] != stack.shape[:-3] else x
    x = x.reshape(-1, *x.shape[-2:])
    return x.narrow(1, at, count * n).unflatten(1, (count, n)) if x.shape[1] > 1 or count * n == 1 else x[:, None]


def _each(made: Any, count: int, whole: bool = True) -> list[Any]:
    """A tuple of tensors [G, pieces or 1, ...], of lists of such too, one for each piece."""

    def cut(x: Any) -> Sequence[Any]:
        if isinstance(x, tuple):
            return list(zip(*(cut(y) for y in x))) if x else [()] * count
        return x.unbind(1) if x.shape[1] == count else [x.squeeze(1)] * count

    parts = zip(*(cut(x) for x in made), strict=True)
    return [type(made)(*x) if whole else x[0] for x in parts]


# ---- in a piece


def look(x: Tensor, old: Old, stack: Tensor, *h: Tensor) -> Look:
    """x [..., n, in], weighed by what the starts are at each tick, and how much of each error it meets."""
    return _look(_flat(x, stack), old, [_flat(y, stack) for y in h])


def _look(x: Tensor, old: Old, h: Sequence[Tensor]) -> Look:
    return Look(_weighed(x, old.old), tuple(lower((x @ y.mT) * old.new) for y in h))


def leaving(h: Tensor, at: Ends, stack: Tensor) -> Tensor:
    """h [..., n, in], weighed by what its errors are to each start after the piece: [G, p·in, n]"""
    return _weighed(_flat(h, stack), at.end).mT


def _weighed(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n, in] by weight [..., n, p] -> [..., n, p·in]"""
    return x * weight if weight.shape[-1] == 1 else (weight.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)


def _flat(x: Tensor, stack: Tensor) -> Tensor:
    """[..., n, width] -> [G, n, width]"""
    lead = stack.shape[:-3]
    return (x if x.shape[:-2] == lead else x.expand(*lead, *x.shape[-2:])).flatten(0, -3)


def recalled(seen: Look, stack: Tensor, *e: Tensor) -> Tensor:
    """W_t x_t for every tick: [..., n, out]. e: of each factor, [..., n, out]"""
    x, scores = seen
    starts = stack.flatten(0, -4).flatten(1, 2)
    y = None
    for score, one in zip(scores, e, strict=True):
        part = earlier(score, _flat(one, stack))
        y = part if y is None else y + part
    y = x @ starts if y is None else torch.baddbmm(y, x, starts)
    return y.unflatten(0, stack.shape[:-3])


def advanced(stack: Tensor, at: Ends, *factors: tuple[Tensor, Tensor]) -> Tensor:
    """The stack after the piece. factors: pairs (`leaving` of h, e [..., n, out])"""
    p = stack.shape[-3]
    starts = stack.flatten(0, -4)
    rows = starts.flatten(2)
    kept = (at.start * rows if p == 1 else at.start @ rows).view(starts.shape).flatten(1, 2)
    for left, e in factors:
        kept = torch.baddbmm(kept, left, _flat(e, stack))
    return kept.view(stack.shape)
