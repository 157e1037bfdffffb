"""Leaves, and the operations that act element by element: numbers fold, shapes stretch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable
from typing import Any

from nestflow.diagnostics.core import Span
from nestflow.ir.node import Node, Type, make
from nestflow.ir.shapes import ShapeError, broadcast_shapes, carried, mix_check, sized, unrolled

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
        "cos",
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


def const(value: float | int | bool, span: Span | None = None) -> Node:
    dtype = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
    return make("const", (), Type(dtype), span, value=value)


def is_const(node: Node, value: float | None = None) -> bool:
    return node.op == "const" and (value is None or node.value == value)


def leaf(op: str, type: Type, span: Span | None = None, **attrs: Hashable) -> Node:
    return make(op, (), type, span, **attrs)


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
    if op in ("mod", "floordiv") and is_const(b, 0):  # the generated code divides Python's numbers too: t % 0
        raise ShapeError("division by zero")
    for x in (a, b) if op in ("and", "or") else ():
        if x.type.dtype != "bool":
            raise ShapeError(f"`{op}` joins what is true or false, and this is {x.type}", "compare it: `x > 0`")
    mix_check((a.type, b.type))
    if op == "pow" and "float" not in (a.type.dtype, b.type.dtype) and not (is_const(b) and b.value >= 0):
        # an integer to a negative power is no integer: 2 ^ (-5 - head)
        a = const(float(a.value), span) if is_const(a) else binary("mul", a, const(1.0), span)
    a, b = _along(a, b)
    base = carried(a.type, b.type)
    shape = () if base.like else sized(broadcast_shapes(a.type.shape, b.type.shape))
    if op in COMPARE or op in ("and", "or"):
        dtype = "bool"
    elif op == "div":
        dtype = "float"
    else:
        dtype = "float" if "float" in (a.type.dtype, b.type.dtype) else "int"
    result = base.with_(dtype=dtype, shape=shape, unrolled=unrolled(len(shape), a.type, b.type))
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
    mix_check((c.type, a.type, b.type))
    c, a, b = _along(c, a, b)
    base = carried(c.type, a.type, b.type)
    shape = () if base.like else broadcast_shapes(c.type.shape, a.type.shape, b.type.shape)
    dtype = "float" if "float" in (a.type.dtype, b.type.dtype) else a.type.dtype
    marked = unrolled(len(shape), c.type, a.type, b.type)
    return make("where", (c, a, b), base.with_(shape=shape, dtype=dtype, unrolled=marked), span)


def _along(*xs: Node) -> list[Node]:
    """Values whose first feature axis is a token axis meet along it: one number a tick beside a vector a tick."""
    rank = max((len(x.type.shape) for x in xs if x.type.unrolled), default=0)
    found: list[Node] = []
    for x in xs:
        missing = rank - len(x.type.shape)
        if x.type.unrolled and missing:
            shape = (x.type.shape[0], *[1] * missing, *x.type.shape[1:])
            x = make("reshape", (x,), x.type.with_(shape=shape), x.span, shape=shape)
        found.append(x)
    return found


def root(x: Node, span: Span | None = None) -> Node:
    """√x whose derivative is 0 where x = 0, as that of a norm is: a length of zero must not turn gradients into NaN."""
    none = binary("eq", x, const(0.0), span)
    return where(none, const(0.0), unary("sqrt", where(none, const(1.0), x, span), span), span)
