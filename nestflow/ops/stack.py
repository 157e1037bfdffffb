"""A matrix of a memory and the slots of its rule as one tensor, in closed form: a *stack*.

A rule that is linear in its p starts X_j (the weight, its slots) and in the errors G_s = e_s h_sᵀ gives at tick t

    W_t x = Σ_j P[t, j] X_j x + Σ_s L[t, s] e_s (h_s · x)

(`nestflow.ops.coefficients`). With the starts below each other, [p·in, out], the first sum is one product: of x,
written p times, each times what its start weighs. So is the state after the piece: one product mixes the starts, one
adds the errors. What of this no state enters (queries, keys and rates that are known) is made for all pieces before the
loop.

Shapes: lead, the axes of rows and heads; G, their product; n ticks of a piece; stack [G, p·in, out]; x, h [*lead, n,
in]; e [*lead, n, out]. Rows of all pieces [*lead, pieces, K, p + K], or the same for all: [K, p + K], [*lead, 1,
K, p + K].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nestflow.ops.causal import careful, earlier, lower
from nestflow.ops.chunk import summed
from nestflow.ops.delta import scaled, solved_for, system_of

Lead = tuple[int, ...]


class Old(NamedTuple):
    """What the weight is made of at each tick: old [G, n, p, 1] of the starts, new [G, n, n] of the errors."""

    old: Tensor
    new: Tensor


class Ends(NamedTuple):
    """What all starts are made of after the piece: start [G, p, p], end [G, n, p, 1]."""

    start: Tensor
    end: Tensor


class Look(NamedTuple):
    """What reads a stack: x [G, n, p·in], weighed; scores, one for each factor: (x hᵀ) ⊙ L [G, n, n]; where the errors
    are known before the loop, what x meets of them instead: known [G, n, out]."""

    x: Tensor
    scores: tuple[Tensor, ...] = ()
    known: tuple[Tensor, ...] = ()


def stacked(*starts: Tensor) -> Tensor:
    """p of [*lead, out, in] -> [G, p·in, out]"""
    return torch.cat([x.flatten(0, -3).mT for x in starts], 1)


def unstacked(stack: Tensor, lead: Lead, count: int, rank: int) -> tuple[Tensor, ...]:
    """The starts, [*lead, out, in] each; of rank 1 [*lead, out]."""
    found = (x.mT.unflatten(0, lead).contiguous() for x in stack.chunk(count, 1))
    return tuple(x.squeeze(-1) if rank == 1 else x for x in found)


def slot(stack: Tensor, lead: Lead, j: int, count: int, rank: int) -> Tensor:
    """Start number j of so many, [*lead, out, in] or [*lead, out], where it stands."""
    if rank == 1:
        return stack.select(1, j).unflatten(0, lead)
    width = stack.shape[1] // count
    part = stack.narrow(1, j * width, width).mT
    return part if len(lead) == 1 else part.unflatten(0, lead)


def begun(stack: Tensor, j: int, count: int) -> Tensor:
    """The stack as a chunk begins: start number j of so many is what the weight, the first, is now."""
    parts = list(stack.chunk(count, 1))
    return torch.cat([*parts[:j], parts[0], *parts[j + 1 :]], 1)


def folded(x: Tensor | None, lead: Lead) -> Tensor | None:
    """Rows and heads as one axis: [*lead, ...] -> [G, ...]"""
    if x is None:
        return None
    x = x if x.shape[: len(lead)] == lead else x.expand(*lead, *x.shape[len(lead) :])
    return x.flatten(0, len(lead) - 1)


def unfolded(x: Tensor | None, lead: Lead) -> Tensor | None:
    """[G, ...] -> [*lead, ...]"""
    return None if x is None else x.unflatten(0, lead)


# ---- before the loop, of all pieces


def olds(rows: Tensor, sizes: Sequence[int], lead: Lead) -> list[Old]:
    """Rows of the weight, ready to read, one for each piece."""
    found: list[Old] = []
    for own, run in _alike(rows, sizes, lead):
        found += _each(_old(own), run.pieces)
    return found


def ends(rows: Sequence[Tensor], sizes: Sequence[int], lead: Lead) -> list[Ends]:
    """The last rows of all starts, in their order, one for each piece."""
    found: list[Ends] = []
    for parts in zip(*(_alike(x, sizes, lead) for x in rows)):
        last = _beside(*(own[..., -1, :] for own, _ in parts))
        start, end = last.split([len(rows), last.shape[-2] - len(rows)], -2)
        found += _each(Ends(start.mT, end[..., None]), parts[0][1].pieces)
    return found


def looks(
    x: Tensor, rows: Tensor, sizes: Sequence[int], lead: Lead, *h: Tensor, errors: Sequence[Tensor] = ()
) -> list[Look]:
    """`look` of every piece. x, h [*lead, T, in]; errors: of all factors [*lead, T, out], where they are known"""
    found: list[Look] = []
    for own, run in _alike(rows, sizes, lead):
        made = _look(_ticks(x, lead, run).contiguous(), _old(own), [_ticks(y, lead, run) for y in h])
        if errors:
            met = [earlier(a, _ticks(e, lead, run)) for a, e in zip(made.scores, errors, strict=True)]
            made = Look(made.x, (), (summed(met),))
        found += _each(made, run.pieces)
    return found


class Solution(NamedTuple):
    """The errors of a delta rule, u = error + x W, as what solves its system for both parts: error [G, n, out], x
    [G, n, p·in]."""

    error: Tensor
    x: Tensor


def solutions(
    x: Tensor,
    h: Tensor,
    scale: Tensor | float,
    rows: Tensor,
    sizes: Sequence[int],
    lead: Lead,
    error: Tensor,
) -> list[Solution]:
    """The systems of `nestflow.ops.delta`, solved for all pieces before the state is known that they look at. The
    arguments are those of `delta_system` and `solve_errors`, of all ticks; rows: those of W_{t−1}."""
    found: list[Solution] = []
    for own, run in _alike(rows, sizes, lead):
        old, x_t, b = _old(own), _ticks(x, lead, run).contiguous(), _ticks(error, lead, run)
        h_t, a = x_t if h is x else _ticks(h, lead, run), _numbers(scale, lead, run)
        looks = scaled(a, _weighed(x_t, old.old))
        system = system_of(lower(_scores(x_t, h_t) * old.new), a, None)
        found += _each(Solution(*solved_for(system, b, looks)), run.pieces)
    return found


def looks_of_one(rows: Tensor, sizes: Sequence[int], lead: Lead) -> list[Look]:
    """`look` of every piece for a vector: a matrix with one input, which is always one."""
    return [Look(at.old[..., 0], (at.new,)) for at in olds(rows, sizes, lead)]


def leavings(
    h: Tensor, rows: Sequence[Tensor], sizes: Sequence[int], lead: Lead, error: Tensor | None = None
) -> list[Tensor]:
    """`leaving` of every piece. h [*lead, T, in]; error [*lead, T, out]: where it is known, what both leave in the
    stack, [G, p·in, out]"""
    found: list[Tensor] = []
    for parts in zip(*(_alike(x, sizes, lead) for x in rows)):
        run = parts[0][1]
        end = _beside(*(own[..., -1, len(rows) :] for own, _ in parts))
        left = _weighed(_ticks(h, lead, run), end[..., None]).mT
        left = left if error is None else left @ _ticks(error, lead, run)
        found += left.unbind(1)
    return found


class _Run(NamedTuple):
    """Pieces of one length that follow each other: ticks in each, how many, ticks before them."""

    n: int
    pieces: int
    before: int


def _alike(rows: Tensor, sizes: Sequence[int], lead: Lead) -> Iterator[tuple[Tensor, _Run]]:
    """Rows [G, pieces or 1, n, p + n] of pieces of one length."""
    width = rows.shape[-1] - rows.shape[-2]
    rows = rows if rows.dim() > 2 else rows[None]
    rows = rows.expand(*lead, *rows.shape[-3:]).flatten(0, -4)
    piece = tick = 0
    for n, run in groupby(sizes):
        count = len(list(run))
        own = rows if rows.shape[1] == 1 else rows[:, piece : piece + count]
        yield own[..., :n, : width + n], _Run(n, count, tick)
        piece, tick = piece + count, tick + count * n


def _old(own: Tensor) -> Old:
    old, new = own.split([own.shape[-1] - own.shape[-2], own.shape[-2]], -1)
    return Old(old[..., None], new)


def _beside(*last: Tensor) -> Tensor:
    """Rows of states, some the same in all pieces, as the last axis."""
    return torch.stack(torch.broadcast_tensors(*last), -1)


def _ticks(x: Tensor, lead: Lead, run: _Run) -> Tensor:
    """[*lead, T, width] -> [G, pieces, n, width]; what is the same at all ticks, [*lead, 1, width]: [G, 1, 1, width]"""
    x = _flat(x, lead)
    if x.shape[1] == 1:
        return x[:, None]
    return x.narrow(1, run.before, run.pieces * run.n).unflatten(1, (run.pieces, run.n))


def _numbers(x: Tensor | float, lead: Lead, run: _Run) -> Tensor | float:
    """[*lead, T], or a number -> [G, pieces, n]"""
    return _ticks(x[..., None], lead, run)[..., 0] if isinstance(x, Tensor) else x


def _each(made: Any, count: int) -> list[Any]:
    """A tuple of tensors [G, pieces or 1, ...], and of tuples of such, as one for each piece."""

    def cut(x: Any) -> Sequence[Any]:
        if isinstance(x, tuple):
            return list(zip(*(cut(y) for y in x))) if x else [()] * count
        return x.unbind(1) if x.shape[1] == count else [x.squeeze(1)] * count

    return [type(made)(*x) for x in zip(*(cut(x) for x in made), strict=True)]


# ---- in a piece


def look(x: Tensor, old: Old, lead: Lead, *h: Tensor) -> Look:
    """x [*lead, n, in], weighed by what the starts are at each tick, and how much of each error it meets."""
    return _look(_flat(x, lead), old, [_flat(y, lead) for y in h])


def _look(x: Tensor, old: Old, h: Sequence[Tensor]) -> Look:
    return Look(_weighed(x, old.old), tuple(lower(_scores(x, y) * old.new) for y in h))


def _scores(x: Tensor, h: Tensor) -> Tensor:
    """x hᵀ, [..., n, n]"""
    if x.dim() == 3:
        return torch.bmm(x, h.mT)  # one operation, where `matmul` is six
    # of all pieces: laid out in their order first, which is a faster copy than the one of hᵀ that `matmul` would make
    G, pieces = x.shape[:2]
    flat = (y.expand(G, pieces, *y.shape[2:]).reshape(-1, *y.shape[2:]) for y in (x, h))
    return torch.bmm(next(flat), next(flat).mT).unflatten(0, (G, pieces))


def leaving(h: Tensor, at: Ends, lead: Lead) -> Tensor:
    """h [*lead, n, in], weighed by what its errors are to each start after the piece: [G, p·in, n]"""
    return _weighed(_flat(h, lead), at.end).mT


def leaving_one(at: Ends) -> Tensor:
    """The same of a vector's input, which is one: [G, p, n]"""
    return at.end[..., 0].mT


def _weighed(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n, in] by weight [..., n, p, 1] -> [..., n, p·in]"""
    return (weight * x.unsqueeze(-2)).flatten(-2)


def _flat(x: Tensor, lead: Lead) -> Tensor:
    """[*lead, n, width] -> [G, n, width]"""
    if len(lead) == 1 and x.shape[0] == lead[0]:
        return x
    if x.shape[:-2] != lead:
        x = x.expand(*lead, *x.shape[-2:])
    return x if x.dim() == 3 else x.flatten(0, -3)


def recalled(seen: Look, stack: Tensor, lead: Lead, *e: Tensor) -> Tensor:
    """W_t x_t for every tick: [*lead, n, out]. e: of each factor that is not known yet, [*lead, n, out]"""
    x, scores, known = seen
    if known:
        y = torch.baddbmm(known[0], x, stack)
    else:
        product = earlier if careful() else torch.bmm
        met = product(scores[0], _flat(e[0], lead))
        for a, b in zip(scores[1:], e[1:], strict=True):
            met = met + product(a, _flat(b, lead))
        y = _plus(met, x, stack)
    return y if len(lead) == 1 else y.unflatten(0, lead)


def errors_at(solved: Solution, stack: Tensor, lead: Lead) -> Tensor:
    """The errors of a delta rule: [*lead, n, out]"""
    u = torch.baddbmm(solved.error, solved.x, stack)
    return u if len(lead) == 1 else u.unflatten(0, lead)


def _autocast(x: Tensor) -> bool:
    """Whether products on x's device are made in another type."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def advanced(
    stack: Tensor, at: Ends, lead: Lead, *factors: tuple[Tensor, Tensor], known: Sequence[Tensor] = ()
) -> Tensor:
    """The stack after the piece. factors: pairs (`leaving` of h, e [*lead, n, out]); known: what others leave in it"""
    p = at.start.shape[-1]
    if p == 1:
        kept = torch.addcmul(known[0], at.start, stack) if known else at.start * stack
    elif torch.compiler.is_compiling() or _autocast(stack):  # one loop with what is added; a state keeps its digits
        kept = (at.start[..., None, None] * stack.unflatten(1, (1, p, -1))).sum(2).flatten(1, 2)
        kept = kept + known[0] if known else kept
    else:
        mixed = torch.bmm(at.start, stack.view(stack.shape[0], p, -1))
        kept = torch.ops.aten._unsafe_view(mixed, stack.shape)
        kept = kept + known[0] if known else kept
    for left in known[1:]:
        kept = kept + left
    for left, e in factors:
        kept = _plus(kept, left, _flat(e, lead))
    return kept


def _plus(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a b. total is no view and no gradient asks for it, so it may be written to: a copy less."""
    if total.dtype == a.dtype == b.dtype and not torch._C._are_functorch_transforms_active():
        return total.baddbmm_(a, b)
    return total + torch.bmm(a, b)
