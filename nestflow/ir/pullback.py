"""Reverse mode on the IR: the cotangents of an expression, as expressions of the same IR.

Nothing is summed over ticks, rows or heads: every tick carries its own cotangent, so the gradient of a weight that
all ticks share comes out per tick. For `linear(x, w)` it comes out as its two factors, h = x and e = the cotangent of
the output: the gradient of w is e hᵀ. Known derivatives are one operation (`gelu_backward`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make, walk

Pullback = Callable[[Node, Node], tuple["Node | None", ...]]


class NotDifferentiable(Exception):
    """A plain sentence: this operation has no derivative here."""


@dataclass
class Gradients:
    """factors: for each wanted weight the pairs (h, e) of the linears it is the weight of; its gradient is Σ e hᵀ.
    dense: the gradient of its other uses, with the weight's own feature axes (absent: none)."""

    factors: dict[Node, list[tuple[Node, Node]]] = field(default_factory=dict[Node, list[tuple[Node, Node]]])
    dense: dict[Node, Node] = field(default_factory=dict[Node, Node])


def gradient(objective: Node, wrt: Collection[Node], seed: Node | None = None) -> Gradients:
    """∂ objective / ∂ each node of `wrt`; all else is constant. seed: the cotangent of the objective (default 1).
    Raises NotDifferentiable where an operation in between has no derivative."""
    return pull({objective: ops.const(1.0) if seed is None else seed}, wrt)


def pull(seeds: Mapping[Node, Node], wrt: Collection[Node]) -> Gradients:
    """The same from the cotangents of several results."""
    wanted = set(wrt)
    order = list(walk(*seeds))
    active: set[Node] = set()
    for n in order:
        if n in wanted or (n.op != "stop" and any(a in active for a in n.args)):
            active.add(n)
    cotangent: dict[Node, Node] = {}
    result = Gradients()
    for n, s in seeds.items():
        _add(cotangent, n, s, active)
    for n in reversed(order):
        g = cotangent.get(n)
        if g is None or n not in active or n in wanted:
            continue
        if n.op == "linear" and n.args[1] in wanted:
            h, w = n.args
            result.factors.setdefault(w, []).append((h, filled(g, n)))
            if h in active:
                _add(cotangent, h, ops.matmul(filled(g, n), w), active)
            continue
        rule = PULLBACKS.get(n.op)
        if rule is None:
            raise NotDifferentiable(f"`{n.op}` has no derivative inside a memory")
        for a, ga in zip(n.args, rule(n, g)):
            if ga is not None:
                _add(cotangent, a, repeated(ga, n, a) if n.op in STRETCHING else ga, active)
    for w in wanted:
        if w in cotangent:
            result.dense[w] = filled(cotangent[w], w)
    return result


def _add(table: dict[Node, Node], n: Node, g: Node, active: set[Node]) -> None:
    if n in active:
        g = fitted(g, n)
        table[n] = ops.binary("add", table[n], g) if n in table else g


def times(a: Node, b: Node) -> Node:
    """a · b, with the constants in front folded: 2 · (0.5 · x) is x."""
    ca, xa = _constant(a)
    cb, xb = _constant(b)
    c = ca * cb
    if xa is None or xb is None:
        x = xb if xa is None else xa
        if x is None:
            return ops.const(c)
    else:
        x = ops.binary("mul", xa, xb)
    if c == 1:
        return x
    return ops.unary("neg", x) if c == -1 else ops.binary("mul", ops.const(c), x)


def _constant(x: Node) -> tuple[float, Node | None]:
    """x as a constant times the rest (None: 1)."""
    if x.op == "const":
        return float(x.value), None
    if x.op == "neg":
        c, rest = _constant(x.args[0])
        return -c, rest
    if x.op == "mul" and x.args[0].op == "const":
        return float(x.args[0].value), x.args[1]
    return 1.0, x


def fitted(g: Node, like: Node) -> Node:
    """Sum the feature axes along which `like` was stretched."""
    shape, target = g.type.shape, like.type.shape
    while len(shape) > len(target):
        g = ops.reduce("sum", g, 0)
        shape = g.type.shape
    for i in range(len(shape)):
        at = len(target) - len(shape) + i
        if target[at] == 1 and shape[i] != 1:
            g = ops.reduce("sum", g, i, keep=True)
    return g


STRETCHING = frozenset(["add", "sub", "mul", "div", "pow", "max", "min", "where"])


def repeated(g: Node, n: Node, a: Node) -> Node:
    """The cotangent of an operand that n stretched, where g itself is short of the stretched axes (the same all along
    them): their sum is a multiple."""
    count = 1
    for i in range(1, len(n.type.shape) + 1):
        whole, own, given = (x.type.shape[-i] if i <= len(x.type.shape) else 1 for x in (n, a, g))
        if own == given == 1:
            count *= whole
    return g if count == 1 else times(ops.const(float(count)), g)


def filled(g: Node, like: Node) -> Node:
    """g with all feature axes at full size, and with the clock and rows of `like`."""
    t, want = g.type, like.type
    if t.shape == want.shape and (t.clock or not want.clock) and (t.batch or not want.batch):
        return g
    zero = ops.binary("mul", ops.const(0.0), like)
    return ops.binary("add", zero, g)


def _mul(n: Node, g: Node) -> tuple[Node | None, ...]:
    a, b = n.args
    return times(g, b), times(g, a)


def _div(n: Node, g: Node) -> tuple[Node | None, ...]:
    b = n.args[1]
    ga = ops.binary("div", g, b)
    return ga, None if b.op == "const" else ops.unary("neg", ops.binary("mul", ga, n))


def _pow(n: Node, g: Node) -> tuple[Node | None, ...]:
    a, b = n.args
    less = ops.binary("sub", b, ops.const(1))
    ga = times(times(g, b), a if ops.is_const(less, 1) else ops.binary("pow", a, less))
    return ga, None if b.op == "const" else ops.binary("mul", ops.binary("mul", g, n), ops.unary("log", a))


def _extremum(op: str) -> Pullback:
    def rule(n: Node, g: Node) -> tuple[Node | None, ...]:
        a, b = n.args
        half = ops.where(ops.binary("eq", a, b), times(ops.const(0.5), g), ops.const(0.0))
        return (ops.where(ops.binary(op, a, b), g, half), ops.where(ops.binary(op, b, a), g, half))

    return rule


def _unary(factor: Callable[[Node, Node], Node]) -> Pullback:
    """From the derivative as an expression of x and y = f(x)."""
    return lambda n, g: (times(g, factor(n.args[0], n)),)


def _one_minus(x: Node) -> Node:
    return ops.binary("sub", ops.const(1.0), x)


def _fused(name: str) -> Pullback:
    def rule(n: Node, g: Node) -> tuple[Node | None, ...]:
        x = n.args[0]
        g = filled(g, x)
        return (make(name, (g, x), ops.binary("mul", g, x).type),)

    return rule


def _silu(x: Node, y: Node) -> Node:
    """σ + y (1 − σ): torch's own backward has no second derivative."""
    s = ops.unary("sigmoid", x)
    return ops.binary("add", s, ops.binary("mul", y, _one_minus(s)))


def _where(n: Node, g: Node) -> tuple[Node | None, ...]:
    c, zero = n.args[0], ops.const(0.0)
    return None, ops.where(c, g, zero), ops.where(c, zero, g)


def _kept(n: Node, g: Node) -> Node:
    """The cotangent of a reduction with the reduced axes back at size 1."""
    if n["keep"] or not g.type.shape:
        return g
    shape = tuple(1 if i in n["axes"] else s for i, s in enumerate(n.args[0].type.shape))
    return ops.reshape(g, shape) if math.prod(shape) == math.prod(g.type.shape) else g


def _sum(n: Node, g: Node) -> tuple[Node | None, ...]:
    return (_kept(n, g),)


def _mean(n: Node, g: Node) -> tuple[Node | None, ...]:
    axes: tuple[int, ...] = n["axes"]
    count = math.prod(n.args[0].type.shape[i] for i in axes)
    return (times(_kept(n, g), ops.const(1.0 / count)),)


def _amax(n: Node, g: Node) -> tuple[Node | None, ...]:
    x = n.args[0]
    top = (
        n
        if n["keep"] or not n.type.shape
        else ops.reshape(n, tuple(1 if i in n["axes"] else s for i, s in enumerate(x.type.shape)))
    )
    hit = ops.where(ops.binary("eq", x, top), ops.const(1.0), ops.const(0.0))
    count = hit
    for axis in n["axes"]:
        count = ops.reduce("sum", count, axis, keep=True)
    return (ops.binary("mul", _kept(n, g), ops.binary("div", hit, count)),)


def _linear(n: Node, g: Node) -> tuple[Node | None, ...]:
    x, w = n.args
    g = filled(g, n)
    return ops.matmul(g, w), ops.outer(g, x) if len(x.type.shape) == 1 else ops.matmul(ops.transpose(g), x)


def _matmul(n: Node, g: Node) -> tuple[Node | None, ...]:
    a, b = n.args
    ra, rb = len(a.type.shape), len(b.type.shape)
    if ra == 1 and rb == 1:
        return times(g, b), times(g, a)
    g = filled(g, n)
    if ra == 1:
        return ops.matmul(g, ops.transpose(b)), ops.outer(a, g)
    if rb == 1:
        return ops.outer(g, b), ops.matmul(ops.transpose(a), g)
    return ops.matmul(g, ops.transpose(b)), ops.matmul(ops.transpose(a), g)


def _outer(n: Node, g: Node) -> tuple[Node | None, ...]:
    a, b = n.args
    g = filled(g, n)
    return ops.matmul(g, b), ops.matmul(ops.transpose(g), a)


def _inner(n: Node, g: Node) -> tuple[Node | None, ...]:
    a, b = n.args
    if g.type.shape:
        g = ops.reshape(g, (*g.type.shape, 1))
    return times(g, b), times(g, a)


def _row_sum(x: Node) -> Node:
    return ops.reduce("sum", x, -1, keep=True)


def _row_mean(x: Node) -> Node:
    return ops.reduce("mean", x, -1, keep=True)


def _softmax(n: Node, g: Node) -> tuple[Node | None, ...]:
    return (ops.binary("mul", n, ops.binary("sub", g, _row_sum(ops.binary("mul", g, n)))),)


def _log_softmax(n: Node, g: Node) -> tuple[Node | None, ...]:
    g = filled(g, n)
    return (ops.binary("sub", g, ops.binary("mul", ops.unary("exp", n), _row_sum(g))),)


def _l2norm(n: Node, g: Node) -> tuple[Node | None, ...]:
    x = n.args[0]
    size = ops.unary("sqrt", ops.binary("add", _row_sum(ops.unary("square", x)), ops.const(n["eps"])))
    return (ops.binary("div", ops.binary("sub", g, ops.binary("mul", n, _row_sum(ops.binary("mul", g, n)))), size),)


def _rmsnorm(n: Node, g: Node) -> tuple[Node | None, ...]:
    x, gain = n.args[0], n.args[1] if len(n.args) > 1 else None
    rms = ops.unary("sqrt", ops.binary("add", _row_mean(ops.unary("square", x)), ops.const(n["eps"])))
    unit = ops.binary("div", x, rms)
    inner = times(g, gain) if gain is not None else g
    gx = ops.binary(
        "div", ops.binary("sub", inner, ops.binary("mul", unit, _row_mean(ops.binary("mul", inner, unit)))), rms
    )
    return (gx,) if gain is None else (gx, times(g, unit))


def _layernorm(n: Node, g: Node) -> tuple[Node | None, ...]:
    x = n.args[0]
    centred = ops.binary("sub", x, _row_mean(x))
    std = ops.unary("sqrt", ops.binary("add", _row_mean(ops.unary("square", centred)), ops.const(n["eps"])))
    unit = ops.binary("div", centred, std)
    inner = filled(times(g, n.args[1]) if len(n.args) > 1 else g, x)
    along = ops.binary("mul", unit, _row_mean(ops.binary("mul", inner, unit)))
    gx = ops.binary("div", ops.binary("sub", ops.binary("sub", inner, _row_mean(inner)), along), std)
    return (gx, times(g, unit), g)[: len(n.args)]


def _concat(n: Node, g: Node) -> tuple[Node | None, ...]:
    g = filled(g, n)
    flip = len(n.type.shape) == 2
    if len(n.type.shape) > 2:
        raise NotDifferentiable("`concat` of values with more than two feature axes has no derivative inside a memory")
    parts: list[Node | None] = []
    at = 0
    for a in n.args:
        width = a.type.shape[-1]
        piece = ops.index(ops.transpose(g) if flip else g, (at, at + width))
        parts.append(ops.transpose(piece) if flip else piece)
        at += width
    return tuple(parts)


def _index(n: Node, g: Node) -> tuple[Node | None, ...]:
    x, item = n.args[0], n["item"]
    if len(x.type.shape) > 2:
        raise NotDifferentiable("an index into more than two feature axes has no derivative inside a memory")
    flip = len(x.type.shape) == 2
    start, stop = (item, item + 1) if isinstance(item, int) else (item[0], item[1])
    g = filled(g, n)
    piece = ops.reshape(g, (1, *g.type.shape)) if isinstance(item, int) else g
    piece = ops.transpose(piece) if flip else piece
    lead, size = piece.type.shape[:-1], x.type.shape[0] if x.type.shape else 0

    def zeros(width: int) -> list[Node]:
        return [ops.leaf("fill", Type(shape=(*lead, width)), kind="zeros")] if width else []

    whole = ops.concat((*zeros(start), piece, *zeros(size - stop)))
    return (ops.transpose(whole) if flip else whole,)


def _fused_matrix(n: Node, g: Node) -> tuple[Node | None, ...]:
    x = n.args[0]
    g = filled(g, n)
    type_ = ops.carried(g.type, x.type).with_(shape=x.type.shape)
    attrs: dict[str, Any] = dict(n.attrs)
    return (make(f"{n.op}_backward", (g, x), type_, **attrs),)


PULLBACKS: dict[str, Pullback] = {
    "dropout": lambda n, g: (ops.dropout(filled(g, n), n["p"], n["path"]),),
    "diag": lambda n, g: (ops.diag(filled(g, n)),),
    "diagonal": lambda n, g: (ops.diag(filled(g, n)),),
    "solve": lambda n, g: ops.solve_pullback(n, filled(g, n)),
    **dict.fromkeys(["matrix_root", "eigenvectors", "qr"], _fused_matrix),
    "add": lambda n, g: (g, g),
    "sub": lambda n, g: (g, times(ops.const(-1.0), g)),
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "max": _extremum("gt"),
    "min": _extremum("lt"),
    "where": _where,
    "neg": lambda n, g: (times(ops.const(-1.0), g),),
    "exp": _unary(lambda x, y: y),
    "log": lambda n, g: (ops.binary("div", g, n.args[0]),),
    "sqrt": lambda n, g: (ops.binary("div", times(ops.const(0.5), g), n),),
    "abs": _unary(lambda x, y: ops.unary("sign", x)),
    "square": lambda n, g: (times(times(ops.const(2.0), g), n.args[0]),),
    "relu": lambda n, g: (ops.where(ops.binary("gt", n.args[0], ops.const(0.0)), g, ops.const(0.0)),),
    "sigmoid": _unary(lambda x, y: ops.binary("mul", y, _one_minus(y))),
    "tanh": _unary(lambda x, y: _one_minus(ops.unary("square", y))),
    "silu": _unary(_silu),
    "gelu": _fused("gelu_backward"),
    "gelu_tanh": _fused("gelu_tanh_backward"),
    "softplus": _unary(lambda x, y: ops.unary("sigmoid", x)),
    "elu1": _unary(lambda x, y: ops.where(ops.binary("gt", x, ops.const(0.0)), ops.const(1.0), y)),
    "log_sigmoid": _unary(lambda x, y: ops.unary("sigmoid", ops.unary("neg", x))),
    "inverse_softplus": lambda n, g: (ops.binary("div", g, _one_minus(ops.unary("exp", ops.unary("neg", n.args[0])))),),
    "sum": _sum,
    "mean": _mean,
    "amax": _amax,
    "linear": _linear,
    "matmul": _matmul,
    "transpose": lambda n, g: (ops.transpose(filled(g, n)),),
    "outer": _outer,
    "inner": _inner,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "l2norm": _l2norm,
    "rmsnorm": _rmsnorm,
    "layernorm": _layernorm,
    "concat": _concat,
    "index": _index,
    "reshape": lambda n, g: (ops.reshape(filled(g, n), n.args[0].type.shape),),
    **dict.fromkeys(
        ["one_hot", "sign", "not", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "floordiv", "mod"],
        lambda n, g: tuple(None for _ in n.args),
    ),
}
"""Operations that are constant almost everywhere give nothing back, as in torch."""
