"""Reductions, products, rows, and the shapes of feature axes."""

from __future__ import annotations

import math
from collections.abc import Hashable

from nestflow.diagnostics.core import Span
from nestflow.ir.elementwise import binary, is_const
from nestflow.ir.node import Node, make
from nestflow.ir.shapes import ShapeError, broadcast_shapes, carried, mix_check, sized, unrolled


def reduce(op: str, x: Node, axis: int | None = None, keep: bool = False, span: Span | None = None) -> Node:
    """sum, mean or amax over one feature axis, or over all of them (axis None)."""
    if is_const(x) and axis is None:
        return x
    rank = len(x.type.shape)
    if x.type.like:
        return make(op, (x,), x.type.with_(like=False), span, axes=(), keep=False)
    if axis is None:
        axes = tuple(range(rank))
    else:
        if not -rank <= axis < rank:
            raise ShapeError(f"axis {axis} of a value with {rank} feature axes")
        axes = (axis % rank,)
    dtype = "float" if op == "mean" else "int" if op == "sum" and x.type.dtype == "bool" else x.type.dtype
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.type.shape) if keep or i not in axes)
    along = x.type.unrolled and 0 not in axes
    return make(op, (x,), x.type.with_(shape=shape, dtype=dtype, unrolled=along), span, axes=axes, keep=keep)


def linear(x: Node, w: Node, span: Span | None = None) -> Node:
    """y = W x on the last axis: w [out, in] (with the heads of w, if it has them)."""
    if not x.type.shape:
        raise ShapeError("linear needs a value with at least one feature axis")
    out, width = w.type.shape
    if x.type.shape[-1] != width:
        raise ShapeError(f"a weight for width {width} meets a value of width {x.type.shape[-1]}")
    base = carried(x.type, w.type).with_(unrolled=x.type.unrolled and len(x.type.shape) > 1)
    return make("linear", (x, w), base.with_(dtype="float", shape=(*x.type.shape[:-1], out)), span)


def embed(i: Node, w: Node, span: Span | None = None) -> Node:
    if i.type.dtype != "int":
        raise ShapeError(f"embed needs integers, and this is {i.type}")
    base = carried(i.type, w.type).with_(unrolled=i.type.unrolled)
    return make("embed", (i, w), base.with_(dtype="float", shape=(*i.type.shape, w.type.shape[1])), span)


def matmul(a: Node, b: Node, span: Span | None = None) -> Node:
    """a's last axis with b's last but one (a vector: its only one)."""
    sa, sb = a.type.shape, b.type.shape
    base = carried(a.type, b.type)
    if base.like:
        return make("matmul", (a, b), base, span)
    if not sa or not sb:
        raise ShapeError("`@` needs at least one feature axis on both sides")
    inner = sb[-1] if len(sb) == 1 else sb[-2]
    if sa[-1] != inner:
        raise ShapeError(f"`@`: {list(sa)} meets {list(sb)}: {sa[-1]} is not {inner}")
    mix_check((a.type, b.type))
    shape = sa[:-1] + (() if len(sb) == 1 else (*(sb[:-2] if len(sa) == 1 else ()), sb[-1]))
    if len(sb) > 2 and len(sa) > 1:
        raise ShapeError(f"`@` of {list(sa)} and {list(sb)}: the right side may have at most two axes")
    along = a.type.unrolled and len(sa) > 1
    return make("matmul", (a, b), base.with_(dtype="float", shape=shape, unrolled=along), span)


def transpose(x: Node, span: Span | None = None) -> Node:
    if x.type.like:
        return make("transpose", (x,), x.type, span)
    if len(x.type.shape) < 2:
        raise ShapeError("transpose needs two feature axes")
    s = x.type.shape
    along = x.type.unrolled and len(s) > 2
    return make("transpose", (x,), x.type.with_(shape=(*s[:-2], s[-1], s[-2]), unrolled=along), span)


def outer(a: Node, b: Node, span: Span | None = None) -> Node:
    base = carried(a.type, b.type)
    return make("outer", (a, b), base.with_(dtype="float", shape=sized((a.type.shape[-1], b.type.shape[-1]))), span)


def inner(a: Node, b: Node, span: Span | None = None) -> Node:
    """Σ over the last axis: one number."""
    mix_check((a.type, b.type))
    shape = broadcast_shapes(a.type.shape, b.type.shape)
    base = carried(a.type, b.type)
    if not shape and not base.like:
        return binary("mul", a, b, span)
    along = len(shape) > 1 and unrolled(len(shape), a.type, b.type)
    return make("inner", (a, b), base.with_(dtype="float", shape=shape[:-1], unrolled=along), span)


def rowwise(op: str, x: Node, *weights: Node, span: Span | None = None, **attrs: Hashable) -> Node:
    """softmax, log_softmax, l2norm, rmsnorm, layernorm over the last axis."""
    if not x.type.shape and not x.type.like:
        raise ShapeError(f"{op} needs a feature axis")
    base = carried(x.type, *(w.type for w in weights)).with_(unrolled=x.type.unrolled)
    return make(op, (x, *weights), base.with_(dtype="float", shape=x.type.shape), span, **attrs)


def concat(xs: tuple[Node, ...], span: Span | None = None) -> Node:
    if not xs:
        raise ShapeError("concat needs a value")
    mix_check(tuple(x.type for x in xs))
    lead = {x.type.shape[:-1] for x in xs}
    if len(lead) != 1 or not all(x.type.shape for x in xs):
        raise ShapeError(
            "concat needs equal shapes but for the last axis: " + ", ".join(str(list(x.type.shape)) for x in xs)
        )
    width = sum(x.type.shape[-1] for x in xs)
    return make(
        "concat",
        xs,
        carried(*(x.type for x in xs)).with_(
            dtype=xs[0].type.dtype,
            shape=sized((*xs[0].type.shape[:-1], width)),
            unrolled=len(xs[0].type.shape) > 1 and any(x.type.unrolled for x in xs),
        ),
        span,
    )


def stack(xs: tuple[Node, ...], span: Span | None = None) -> Node:
    if all(is_const(x) for x in xs):  # none at all is among these
        raise ShapeError("stack needs values, and no bare numbers")
    mix_check(tuple(x.type for x in xs))
    shape = broadcast_shapes(*(x.type.shape for x in xs))
    return make(
        "stack",
        xs,
        carried(*(x.type for x in xs)).with_(
            dtype=xs[0].type.dtype,
            shape=sized((*shape, len(xs))),
            unrolled=unrolled(len(shape), *(x.type for x in xs)),
        ),
        span,
    )


def index(x: Node, item: int | tuple[int, int], span: Span | None = None) -> Node:
    """x[i] or x[i:j] on feature axis 0."""
    if not x.type.shape:
        raise ShapeError("a number has no axis to index")
    n = x.type.shape[0]
    if isinstance(item, int):
        if not -n <= item < n:
            raise ShapeError(f"index {item} is outside an axis of {n}")
        return make("index", (x,), x.type.with_(shape=x.type.shape[1:], unrolled=False), span, item=item % n)
    start, stop = item
    if not 0 <= start < stop <= n:
        raise ShapeError(f"slice {start}:{stop} is outside an axis of {n}")
    return make("index", (x,), x.type.with_(shape=(stop - start, *x.type.shape[1:])), span, item=(start, stop))


def reshape(x: Node, shape: tuple[int, ...], span: Span | None = None) -> Node:
    if math.prod(shape) != math.prod(x.type.shape):
        raise ShapeError(f"{list(x.type.shape)} cannot become {list(shape)}")
    if shape == x.type.shape:
        return x
    along = x.type.unrolled and shape[:1] == x.type.shape[:1]
    return make("reshape", (x,), x.type.with_(shape=shape, unrolled=along), span, shape=shape)


def poly(x: Node, w: Node, p: int, span: Span | None = None) -> Node:
    """All monomials of degree 0 … p of a vector, those of degree i times w[i]; w [p + 1]."""
    if len(x.type.shape) != 1:
        raise ShapeError(f"poly takes a vector, and this is {x.type}")
    width = math.comb(x.type.shape[0] + p, p)
    if width > 2**20:
        raise ShapeError(f"{x.type.shape[0]} features have {width:,} monomials up to degree {p}")
    return make("poly", (x, w), carried(x.type, w.type).with_(dtype="float", shape=(width,)), span, p=p)
