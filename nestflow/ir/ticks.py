"""Operations that look along the token axis, or at the heads; gradients stopped; losses of a whole model."""

from __future__ import annotations

from collections.abc import Mapping

from nestflow.diagnostics.core import Span
from nestflow.ir.elementwise import is_const
from nestflow.ir.node import Node, Type, make
from nestflow.ir.shapes import ShapeError, carried


def _ticks(x: Node, what: str) -> None:
    if x.type.clock == "N":
        raise ShapeError(f"{what} looks along the token axis, and N counts examples, which have no order: {x.type}")
    if not x.type.clock:
        message = f"{what} looks along the token axis, and this value has none: {x.type}"
        if len(x.type.shape) == 3:
            raise ShapeError(message, "an image: `conv2d(n, k)` looks around in it, `patches(p)` makes tokens of it")
        raise ShapeError(message, "`float[T, 8]` has it")


def short_conv(x: Node, w: Node, bias: Node | None, n: int, tail: str, span: Span | None = None) -> Node:
    """Depthwise and causal: Σ_{j<n} w[:, j] ⊙ x_{t−j}; w [width, n]. `tail` names the n−1 kept inputs."""
    _ticks(x, "short_conv")
    base = carried(x.type, w.type)
    args = (x, w) if bias is None else (x, w, bias)
    return make("short_conv", args, base.with_(dtype="float", shape=x.type.shape), span, n=n, tail=tail)


def previous(x: Node, n: int, tail: str, span: Span | None = None) -> Node:
    _ticks(x, "previous")
    return make("previous", (x,), x.type, span, n=n, tail=tail)


def window(x: Node, n: int, tail: str, span: Span | None = None, oldest: bool = False) -> Node:
    """x_{t−a} for a = 0 … n − 1 along a new first feature axis (oldest: a = n − 1 first); zeros before the sequence's
    start."""
    type_ = x.type.with_(shape=(n, *x.type.shape), batch=True)
    attrs = {"oldest": True} if oldest else {}
    return make("window", (x,), type_, span, n=n, tail=tail, **attrs)


def rope(x: Node, base: float = 10000.0, reset: int | None = None, span: Span | None = None) -> Node:
    _ticks(x, "rope")
    if not x.type.shape or x.type.shape[-1] % 2:
        raise ShapeError(f"rope turns pairs of features, and this width is odd: {list(x.type.shape)}")
    return make("rope", (x,), x.type.with_(dtype="float", batch=True), span, base=base, reset=reset)


def split_heads(x: Node, heads: int, span: Span | None = None) -> Node:
    if x.type.heads:
        raise ShapeError("split_heads of a value that is already per head")
    if not x.type.shape:
        raise ShapeError("split_heads of a number: there is nothing to share")
    if x.type.shape[-1] % heads:
        raise ShapeError(f"{heads} heads do not divide a width of {x.type.shape[-1]}")
    return make(
        "split_heads", (x,), x.type.with_(heads=heads, shape=(*x.type.shape[:-1], x.type.shape[-1] // heads)), span
    )


def grouped(x: Node, heads: int, span: Span | None = None) -> Node:
    """A value for each group, seen by all heads of it: head i sees group ⌊i·n/heads⌋."""
    if not x.type.heads or heads % x.type.heads:
        raise ShapeError(f"{x.type.heads} groups do not divide {heads} heads")
    return x if x.type.heads == heads else make("grouped", (x,), x.type.with_(heads=heads), span)


def merge_heads(x: Node, span: Span | None = None) -> Node:
    if not x.type.heads:
        raise ShapeError("merge_heads of a value that is whole already")
    if len(x.type.shape) != 1:
        raise ShapeError(f"merge_heads joins vectors, and this is {x.type}")
    return make("merge_heads", (x,), x.type.with_(heads=None, shape=(x.type.heads * x.type.shape[-1],)), span)


def next_(x: Node, span: Span | None = None) -> Node:
    if x.type.clock != "T":
        raise ShapeError("next needs a value with a token axis")
    return make("next", (x,), x.type.with_(short=x.type.short + 1), span)


def stop(x: Node, span: Span | None = None) -> Node:
    return x if is_const(x) else make("stop", (x,), x.type, span)


def cross_entropy(
    p: Node, y: Node, mask: Node | None = None, smoothing: float = 0.0, span: Span | None = None, terms: bool = False
) -> Node:
    """The mean of −log softmax(p)[y] over the unmasked terms of the whole batch: one number. terms: each term for
    itself, 0 where it is masked."""
    if not p.type.shape:
        raise ShapeError("cross_entropy needs scores over classes on the last axis")
    if y.type.dtype != "int" or not y.type.batch:
        raise ShapeError(f"cross_entropy's second argument is the class, an integer, and this is {y.type}")
    if p.type.shape[:-1] != y.type.shape:
        message = f"cross_entropy has one class for each row of scores, and {p.type} meets {y.type}"
        raise ShapeError(message, "classes stand on the last axis of the scores: `float[10]` beside `int`")
    if mask is not None and mask.type.shape not in ((), y.type.shape):
        raise ShapeError(f"a mask is true, false or a weight for each class, and {mask.type} meets {y.type}")
    if not 0 <= smoothing <= 1:
        raise ShapeError(f"`smoothing` is between 0 and 1, and this is {smoothing:g}")
    args = (p, y) if mask is None else (p, y, mask)
    if not terms:
        return make("cross_entropy", args, Type(), span, smoothing=smoothing)
    t = carried(*(a.type for a in args)).with_(shape=y.type.shape, unrolled=y.type.unrolled)
    return make("cross_entropy_terms", args, t, span, smoothing=smoothing)


def outputs(values: Mapping[str, Node], span: Span | None = None) -> Node:
    """Several results of the model, by name."""
    return make("outputs", tuple(values.values()), Type(), span, names=tuple(values))


def mean_all(x: Node, span: Span | None = None) -> Node:
    """Mean over features, ticks and batch: one number."""
    return make("mean_all", (x,), Type(), span)
