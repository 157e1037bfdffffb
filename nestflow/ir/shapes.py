"""What fits with what: shapes that stretch, and the axes that a value carries beside them."""

from __future__ import annotations

import math

from nestflow.diagnostics.core import Span
from nestflow.ir.node import Type


class ShapeError(Exception):
    """A plain sentence about shapes or types that do not fit; help: a way out, where one is known; parts: pieces of
    the text with what each is, to be drawn under the expression."""

    def __init__(self, message: str, help: str | None = None, parts: tuple[tuple[Span, str], ...] = ()) -> None:
        super().__init__(message)
        self.help = help
        self.parts = parts


MAX_FEATURES = 2**31


def sized(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a value, where it can be: values that double at each line reach any size in a few."""
    if math.prod(shape) > MAX_FEATURES:
        raise ShapeError(f"a value of shape {list(shape)} has {math.prod(shape):,} features; 2^31 are the most")
    return shape


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of both together, or None where they do not fit."""
    try:
        return broadcast_shapes(a, b)
    except ShapeError:
        return None


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Missing leading axes and axes of size 1 stretch; all else is an error that prints the shapes."""
    rank = max(len(s) for s in shapes)
    result = [1] * rank
    for s in shapes:
        for i, n in enumerate(s):
            j = rank - len(s) + i
            if n != 1 and result[j] != 1 and result[j] != n:
                raise ShapeError("shapes " + " and ".join(str(list(x)) for x in shapes) + " do not fit together")
            result[j] = max(result[j], n) if n != 0 else 0
    return tuple(result)


def carried(*types: Type) -> Type:
    """The carried axes that a value made from these has; whole and per-head do not mix unless one is constant."""
    heads: int | None = None
    clock: str | None = None
    for t in types:
        if t.heads is not None:
            if heads is not None and heads != t.heads:
                raise ShapeError(f"{heads} heads meet {t.heads} heads")
            heads = t.heads
        if clock and t.clock and clock != t.clock:
            raise ShapeError(f"a value along the axis {clock} meets one along {t.clock}")
        clock = clock or t.clock
    return Type(
        batch=any(t.batch for t in types),
        clock=clock,
        heads=heads,
        short=max(t.short for t in types),
        like=any(t.like for t in types),
    )


def unrolled(rank: int, *types: Type) -> bool:
    """Whether feature axis 0 of a result of this rank is a token axis: it is that of a value of the same rank."""
    return any(t.unrolled and len(t.shape) == rank for t in types)


def mix_check(types: tuple[Type, ...]) -> None:
    """A whole value of features beside a per-head one is an error; numbers, weights and constants stretch."""
    per_head = next((t for t in types if t.heads), None)
    if per_head is None or per_head.heads is None:
        return
    for whole in types:
        if whole.heads is None and whole.batch and not whole.is_number and not whole.like:
            fits = bool(whole.shape) and whole.shape[-1] % per_head.heads == 0
            share = whole.shape[-1] // per_head.heads if fits else 0
            split = f"`split_heads` gives each of the {per_head.heads} heads {share} features of the whole value"
            merge = "`merge_heads` joins the per-head value to a whole one"
            raise ShapeError(
                f"a whole value meets a per-head value: {whole} and {per_head}", f"{split}; {merge}" if fits else merge
            )
