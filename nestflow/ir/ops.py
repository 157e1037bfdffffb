"""The operations of the IR: constructors that check shapes and infer types.

A constructor raises `ShapeError` (a plain sentence); whoever knows the place in the text makes a diagnostic of it.

Leaves
  const(value)                      a number
  fill(kind, shape)                 zeros, ones or eye of a feature shape
  slot(name)                        an input of the enclosing flow, level, memory function ("key") or of the model
  weight(path)                      a slow weight; path is relative to the enclosing instance
  theta(tensor)                     a state tensor of the memory whose function this is (relative path)
  position()                        t, from 1, counted from the sequence's start
  head()                            the head's index, from 0
  training()                        true in the forward pass of a step that learns
Leaves in update rules (`like` types are tensors of the shape of w)
  g w w0 w_chunk                    gradient, weight as it stands, at its start, as its chunk began
  n_ticks updates                   numbers: ticks summed in g; updates since the reset, this one included
  slot_old(name) slot_new(name)     a rule memory before and after its own update in this tick
  hyper(name)                       an argument of the rule (Rule.arguments[name])
  fact(name)                        ndim, rows, cols of w (per weight, known when compiling), path (a string)
Elementwise (broadcast): UNARY, BINARY, where(c, a, b)
Reductions over feature axes: sum mean amax (attrs axes: tuple, keep: bool)
Algebra: linear(x, w) x's last axis with w [out, in]; matmul(a, b); transpose(x); outer(a, b); inner(a, b)
Rows (last axis): softmax log_softmax l2norm(x; eps) rmsnorm(x, gain; eps) layernorm(x, gain, bias; eps)
Shape: concat(xs...; last axis) stack(xs...; new last axis) index(x; items) reshape(x; shape)
Tables: embed(i, w)
Look-back: short_conv(x, w [, b]; tail, n) previous(x; tail, n) rope(x; base, reset)
  tail: state path in the instance
  window(x; tail, n) the last n values, own tick first, along a new first feature axis
Heads: split_heads(x; heads) merge_heads(x) grouped(x): a value per group, seen by all heads of it;
  spread(x; heads): the same whole value seen by every head (only where an op needs it said)
Time: next(x)
stop(x)                             constant for every level
each(values...; by, names)          a value for each tensor of a memory, or round of a tick: see nestflow.ir.choices
call(args...; child, names)         a flow or level instance; names are its slots' names in order
recall(x; memory, mode)             a memory of this level at x. mode: "chunk" state as the chunk began (names, fields),
                                    "objective" (the recall that is differentiated), "return" (by the level's `read`).
                                    Memories without a key (like, vector, scalar) have no argument.
newton_schulz(x; iters, coefficients, eps, dtype)
poly(x, w; p)                       monomials of degree 0 to p
Model-wide (outside flows): cross_entropy(p, y [, mask]; smoothing) one number: the mean over unmasked terms;
  mean_all(x) mean over features, batch and ticks; sum_features
emit(x, values...; names)           x; the values are published under the names (`emit aux = e`)
emitted(calls...; name)             outside flows: what those calls published under a name, summed over the instances
Rules only: norm_all(x) l2 norm over all weights of the level; total(x); debias(slot_new, retain; slot);
  schedule(peak, ...; kind, ...) a number by ticks of the level's clock; norm_w(x) the norm of this one tensor;
  norm_rows(x) that of each row (the last axis, kept at size 1)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable
from typing import Any

from nestflow.diagnostics.core import Span
from nestflow.ir.node import Node, Type, make

UNARY = frozenset(
    [
        "neg",
        "exp",
        "log",
        "sqrt",
        "abs",
        "sign",
        "square",
        "relu",
        "sigmoid",
        "tanh",
        "silu",
        "gelu",
        "softplus",
        "elu1",
        "not",
        "log_sigmoid",
        "gelu_tanh",
        "inverse_softplus",
    ]
)
BINARY = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "max",
        "min",
        "floordiv",
        "mod",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "and",
        "or",
    ]
)
COMPARE = frozenset(["lt", "le", "gt", "ge", "eq", "ne"])


class ShapeError(Exception):
    """A plain sentence about shapes or types that do not fit; help: a way out, where one is known."""

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.help = help


def const(value: float | int | bool, span: Span | None = None) -> Node:
    dtype = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
    return make("const", (), Type(dtype), span, value=value)


def is_const(node: Node, value: float | None = None) -> bool:
    return node.op == "const" and (value is None or node.value == value)


def leaf(op: str, type: Type, span: Span | None = None, **attrs: Hashable) -> Node:
    return make(op, (), type, span, **attrs)


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
        clock = clock or t.clock
    return Type(
        batch=any(t.batch for t in types),
        clock=clock,
        heads=heads,
        short=max(t.short for t in types),
        like=any(t.like for t in types),
    )


def _mix_check(types: tuple[Type, ...]) -> None:
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


_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "^", "mod": "%", "floordiv": "//"}
_FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "max": max,
    "min": min,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
    "mod": operator.mod,
    "floordiv": lambda a, b: a // b,
}


def binary(op: str, a: Node, b: Node, span: Span | None = None) -> Node:
    """Elementwise, broadcasting. Constants fold; x*1, x+0, x/1 are x."""
    if is_const(a) and is_const(b):
        folded = _fold(op, a.value, b.value)
        if folded is not None:
            return const(folded, span)
    for x in (a, b) if op in ("and", "or") else ():
        if x.type.dtype != "bool":
            raise ShapeError(f"`{op}` joins what is true or false, and this is {x.type}", "compare it: `x > 0`")
    _mix_check((a.type, b.type))
    if op == "pow" and "float" not in (a.type.dtype, b.type.dtype) and not (is_const(b) and b.value >= 0):
        # an integer to a negative power is no integer: 2 ^ (-5 - head)
        a = const(float(a.value), span) if is_const(a) else binary("mul", a, const(1.0), span)
    base = carried(a.type, b.type)
    shape = () if base.like else sized(broadcast_shapes(a.type.shape, b.type.shape))
    if op in COMPARE or op in ("and", "or"):
        dtype = "bool"
    elif op == "div":
        dtype = "float"
    else:
        dtype = "float" if "float" in (a.type.dtype, b.type.dtype) else "int"
    result = base.with_(dtype=dtype, shape=shape)
    if op in ("mul", "div") and is_const(b, 1) and a.type == result:
        return a
    if op == "mul" and is_const(a, 1) and b.type == result:
        return b
    if op in ("add", "sub") and is_const(b, 0) and a.type == result:
        return a
    if op == "add" and is_const(a, 0) and b.type == result:
        return b
    return make(op, (a, b), result, span)


def _fold(op: str, a: float, b: float) -> float | int | bool | None:
    if op in ("div", "mod", "floordiv") and b == 0:
        raise ShapeError("division by zero")
    try:
        return _finite(_folded(op, a, b))
    except (OverflowError, ZeroDivisionError, ValueError) as e:
        raise ShapeError(f"{_SIGNS.get(op, op)} of {a} and {b} is no number") from e


def _folded(op: str, a: float, b: float) -> float | int | bool | None:
    if op == "div":
        if isinstance(a, int) and isinstance(b, int) and not isinstance(a, bool) and a % b == 0:
            return a // b
        return a / b
    if op == "pow":
        if abs(b) > 4096 or (isinstance(a, int) and abs(a) > 1 and abs(b) * math.log2(abs(a)) > 64):
            a = float(a)
        value: Any = a**b
        if isinstance(value, complex):
            raise ShapeError(f"{a} ^ {b} is no real number")
        return value
    return _FOLD[op](a, b) if op in _FOLD else None


def _finite(value: float | int | bool | None) -> float | int | bool | None:
    """Integers beyond 64 bits go on as floats, so that no chain of products grows without end."""
    if isinstance(value, int) and abs(value) >= 2**63:
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError
    return value


def unary(op: str, x: Node, span: Span | None = None) -> Node:
    if is_const(x):
        folded = _fold_unary(op, x.value)
        if folded is not None:
            return const(folded, span)
    if op == "not" and x.type.dtype != "bool" and not is_const(x):
        raise ShapeError(f"`not` takes what is true or false, and this is {x.type}", "compare it: `x > 0`")
    dtype = "bool" if op == "not" else (x.type.dtype if op in ("neg", "abs", "square", "sign") else "float")
    return make(op, (x,), x.type.with_(dtype=dtype), span)


_FOLD_UNARY: dict[str, Callable[[Any], float | int | bool]] = {
    "neg": operator.neg,
    "not": operator.not_,
    "abs": abs,
    "square": lambda v: v * v,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "tanh": math.tanh,
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)) if v > -700 else math.exp(max(v, -740.0)),
    "softplus": lambda v: math.log1p(math.exp(v)) if v < 30 else float(v),
    "inverse_softplus": lambda v: math.log(math.expm1(v)) if v < 30 else float(v),
}


def _fold_unary(op: str, v: float) -> float | int | bool | None:
    if op not in _FOLD_UNARY:
        return None
    try:
        return _finite(_FOLD_UNARY[op](v))
    except (ValueError, OverflowError) as e:
        raise ShapeError(f"{op}({v}) is no number") from e


def where(c: Node, a: Node, b: Node, span: Span | None = None) -> Node:
    if is_const(c):
        return a if c.value else b
    if c.type.dtype != "bool":
        raise ShapeError(f"a condition is true or false, and this is {c.type}", "compare it: `x > 0`")
    _mix_check((c.type, a.type, b.type))
    base = carried(c.type, a.type, b.type)
    shape = () if base.like else broadcast_shapes(c.type.shape, a.type.shape, b.type.shape)
    dtype = "float" if "float" in (a.type.dtype, b.type.dtype) else a.type.dtype
    return make("where", (c, a, b), base.with_(shape=shape, dtype=dtype), span)


def root(x: Node, span: Span | None = None) -> Node:
    """√x whose derivative is 0 where x = 0, as that of a norm is: a length of zero must not turn gradients into NaN."""
    none = binary("eq", x, const(0.0), span)
    return where(none, const(0.0), unary("sqrt", where(none, const(1.0), x, span), span), span)


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
    return make(op, (x,), x.type.with_(shape=shape, dtype=dtype), span, axes=axes, keep=keep)


def linear(x: Node, w: Node, span: Span | None = None) -> Node:
    """y = W x on the last axis: w [out, in] (with the heads of w, if it has them)."""
    if not x.type.shape:
        raise ShapeError("linear needs a value with at least one feature axis")
    out, width = w.type.shape
    if x.type.shape[-1] != width:
        raise ShapeError(f"a weight for width {width} meets a value of width {x.type.shape[-1]}")
    base = carried(x.type, w.type)
    return make("linear", (x, w), base.with_(dtype="float", shape=(*x.type.shape[:-1], out)), span)


def embed(i: Node, w: Node, span: Span | None = None) -> Node:
    if i.type.dtype != "int":
        raise ShapeError(f"embed needs integers, and this is {i.type}")
    base = carried(i.type, w.type)
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
    _mix_check((a.type, b.type))
    shape = sa[:-1] + (() if len(sb) == 1 else (*(sb[:-2] if len(sa) == 1 else ()), sb[-1]))
    if len(sb) > 2 and len(sa) > 1:
        raise ShapeError(f"`@` of {list(sa)} and {list(sb)}: the right side may have at most two axes")
    return make("matmul", (a, b), base.with_(dtype="float", shape=shape), span)


def transpose(x: Node, span: Span | None = None) -> Node:
    if x.type.like:
        return make("transpose", (x,), x.type, span)
    if len(x.type.shape) < 2:
        raise ShapeError("transpose needs two feature axes")
    s = x.type.shape
    return make("transpose", (x,), x.type.with_(shape=(*s[:-2], s[-1], s[-2])), span)


def outer(a: Node, b: Node, span: Span | None = None) -> Node:
    base = carried(a.type, b.type)
    return make("outer", (a, b), base.with_(dtype="float", shape=sized((a.type.shape[-1], b.type.shape[-1]))), span)


def inner(a: Node, b: Node, span: Span | None = None) -> Node:
    """Σ over the last axis: one number."""
    _mix_check((a.type, b.type))
    shape = broadcast_shapes(a.type.shape, b.type.shape)
    base = carried(a.type, b.type)
    if not shape and not base.like:
        return binary("mul", a, b, span)
    return make("inner", (a, b), base.with_(dtype="float", shape=shape[:-1]), span)


def rowwise(op: str, x: Node, *weights: Node, span: Span | None = None, **attrs: Hashable) -> Node:
    """softmax, log_softmax, l2norm, rmsnorm, layernorm over the last axis."""
    if not x.type.shape and not x.type.like:
        raise ShapeError(f"{op} needs a feature axis")
    base = carried(x.type, *(w.type for w in weights))
    return make(op, (x, *weights), base.with_(dtype="float", shape=x.type.shape), span, **attrs)


def concat(xs: tuple[Node, ...], span: Span | None = None) -> Node:
    if not xs:
        raise ShapeError("concat needs a value")
    _mix_check(tuple(x.type for x in xs))
    lead = {x.type.shape[:-1] for x in xs}
    if len(lead) != 1 or not all(x.type.shape for x in xs):
        raise ShapeError(
            "concat needs equal shapes but for the last axis: " + ", ".join(str(list(x.type.shape)) for x in xs)
        )
    width = sum(x.type.shape[-1] for x in xs)
    return make(
        "concat",
        xs,
        carried(*(x.type for x in xs)).with_(dtype=xs[0].type.dtype, shape=sized((*xs[0].type.shape[:-1], width))),
        span,
    )


def stack(xs: tuple[Node, ...], span: Span | None = None) -> Node:
    if all(is_const(x) for x in xs):  # none at all is among these
        raise ShapeError("stack needs values, and no bare numbers")
    _mix_check(tuple(x.type for x in xs))
    shape = broadcast_shapes(*(x.type.shape for x in xs))
    return make(
        "stack", xs, carried(*(x.type for x in xs)).with_(dtype=xs[0].type.dtype, shape=sized((*shape, len(xs)))), span
    )


def index(x: Node, item: int | tuple[int, int], span: Span | None = None) -> Node:
    """x[i] or x[i:j] on feature axis 0."""
    if not x.type.shape:
        raise ShapeError("a number has no axis to index")
    n = x.type.shape[0]
    if isinstance(item, int):
        if not -n <= item < n:
            raise ShapeError(f"index {item} is outside an axis of {n}")
        return make("index", (x,), x.type.with_(shape=x.type.shape[1:]), span, item=item % n)
    start, stop = item
    if not 0 <= start < stop <= n:
        raise ShapeError(f"slice {start}:{stop} is outside an axis of {n}")
    return make("index", (x,), x.type.with_(shape=(stop - start, *x.type.shape[1:])), span, item=(start, stop))


def reshape(x: Node, shape: tuple[int, ...], span: Span | None = None) -> Node:
    if math.prod(shape) != math.prod(x.type.shape):
        raise ShapeError(f"{list(x.type.shape)} cannot become {list(shape)}")
    return x if shape == x.type.shape else make("reshape", (x,), x.type.with_(shape=shape), span, shape=shape)


def _ticks(x: Node, what: str) -> None:
    if not x.type.clock:
        raise ShapeError(
            f"{what} looks along the token axis, and this value has none: {x.type}", "`float[T, 8]` has it"
        )


def short_conv(x: Node, w: Node, bias: Node | None, n: int, tail: str, span: Span | None = None) -> Node:
    """Depthwise and causal: Σ_{j<n} w[:, j] ⊙ x_{t−j}; w [width, n]. `tail` names the n−1 kept inputs."""
    _ticks(x, "short_conv")
    base = carried(x.type, w.type)
    args = (x, w) if bias is None else (x, w, bias)
    return make("short_conv", args, base.with_(dtype="float", shape=x.type.shape), span, n=n, tail=tail)


def previous(x: Node, n: int, tail: str, span: Span | None = None) -> Node:
    _ticks(x, "previous")
    return make("previous", (x,), x.type, span, n=n, tail=tail)


def poly(x: Node, w: Node, p: int, span: Span | None = None) -> Node:
    """All monomials of degree 0 … p of a vector, those of degree i times w[i]; w [p + 1]."""
    if len(x.type.shape) != 1:
        raise ShapeError(f"poly takes a vector, and this is {x.type}")
    width = math.comb(x.type.shape[0] + p, p)
    if width > 2**20:
        raise ShapeError(f"{x.type.shape[0]} features have {width:,} monomials up to degree {p}")
    return make("poly", (x, w), carried(x.type, w.type).with_(dtype="float", shape=(width,)), span, p=p)


def window(x: Node, n: int, tail: str, span: Span | None = None) -> Node:
    """x_{t−a} for a = 0 … n − 1 along a new first feature axis; zeros before the sequence's start."""
    return make("window", (x,), x.type.with_(shape=(n, *x.type.shape), batch=True), span, n=n, tail=tail)


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
    if not x.type.clock:
        raise ShapeError("next needs a value with a token axis")
    return make("next", (x,), x.type.with_(short=x.type.short + 1), span)


def stop(x: Node, span: Span | None = None) -> Node:
    return x if is_const(x) else make("stop", (x,), x.type, span)


def cross_entropy(p: Node, y: Node, mask: Node | None = None, smoothing: float = 0.0, span: Span | None = None) -> Node:
    """The mean of −log softmax(p)[y] over the unmasked terms of the whole batch: one number."""
    if not p.type.shape:
        raise ShapeError("cross_entropy needs scores over classes on the last axis")
    if y.type.dtype != "int" or not y.type.batch:
        raise ShapeError(f"cross_entropy's second argument is the class, an integer, and this is {y.type}")
    args = (p, y) if mask is None else (p, y, mask)
    return make("cross_entropy", args, Type(), span, smoothing=smoothing)


def mean_all(x: Node, span: Span | None = None) -> Node:
    """Mean over features, ticks and batch: one number."""
    return make("mean_all", (x,), Type(), span)


def emit(x: Node, published: list[tuple[str, Node]]) -> Node:
    """x itself; what stands beside it is published under its name each time this is computed."""
    if not published:
        return x
    names = tuple(n for n, _ in published)
    return make("emit", (x, *(v for _, v in published)), x.type, x.span, names=names)


def emitted(name: str, calls: tuple[Node, ...], types: list[Type], span: Span | None = None) -> Node:
    """Σ over the instances of what they publish under a name; a value per head counts once for each head."""
    base = carried(*(t.with_(heads=None) for t in types))
    shape = broadcast_shapes(*(t.shape for t in types))
    return make("emitted", calls, base.with_(dtype="float", shape=shape), span, name=name)
