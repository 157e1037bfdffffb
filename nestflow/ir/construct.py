"""An operation by its name, its type inferred anew: what a rewriting pass builds with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nestflow.ir import ops
from nestflow.ir.node import Node, make, walk

_ROWS = frozenset(["softmax", "log_softmax", "l2norm", "rmsnorm", "layernorm"])


def number(x: Node) -> Node:
    """A value of size 1 without feature axes."""
    while x.type.shape and not x.type.like:
        x = ops.index(x, 0)
    return x


def construct(op: str, args: tuple[Node, ...], like: Node) -> Node:
    """The operation of `like` (or `op` with its attributes) on other arguments: shapes and carried axes follow them,
    constants fold. Raises ops.ShapeError where they do not fit."""
    build = _BUILD.get(op)
    if build is not None:
        return build(args, like)
    if op in ops.UNARY:
        return ops.unary(op, args[0], like.span)
    if op in ops.BINARY:
        return ops.binary(op, args[0], args[1], like.span)
    if op in _ROWS:
        return ops.rowwise(op, *args, span=like.span, **dict(like.attrs))
    return make(op, args, like.type, like.span, **dict(like.attrs))


def _reduce(args: tuple[Node, ...], like: Node) -> Node:
    axes, x = like["axes"], args[0]
    if x.type.like or (len(axes) == len(x.type.shape) and not like["keep"]) or (not axes and like.args[0].type.like):
        return ops.reduce(like.op, x, None, span=like.span)
    keep_all = len(axes) == len(x.type.shape)
    return ops.reduce(like.op, x, None if keep_all and len(axes) != 1 else axes[0], like["keep"], like.span)


def _index(args: tuple[Node, ...], like: Node) -> Node:
    return ops.index(args[0], like["item"], like.span)


def _python(args: tuple[Node, ...], like: Node) -> Node:
    shape = next((a.type.shape for a, old in zip(args, like.args) if old.type.like), like.type.shape)
    type_ = ops.carried(*(a.type for a in args)).with_(dtype=like.type.dtype, shape=shape)
    if any(a.type.like for a in args):
        type_ = like.type
    return make("py", args, type_, like.span, **dict(like.attrs))


def _conv(args: tuple[Node, ...], like: Node) -> Node:
    return ops.short_conv(args[0], args[1], args[2] if len(args) > 2 else None, like["n"], like["tail"], like.span)


_BUILD: dict[str, Callable[[tuple[Node, ...], Node], Node]] = {
    "where": lambda a, n: ops.where(*a, span=n.span),
    "sum": _reduce,
    "mean": _reduce,
    "amax": _reduce,
    "index": _index,
    "short_conv": _conv,
    "linear": lambda a, n: ops.linear(a[0], a[1], n.span),
    "embed": lambda a, n: ops.embed(a[0], a[1], n.span),
    "matmul": lambda a, n: ops.matmul(a[0], a[1], n.span),
    "transpose": lambda a, n: ops.transpose(a[0], n.span),
    "dropout": lambda a, n: ops.dropout(a[0], n["p"], n["path"], n.span),
    "diag": lambda a, n: ops.diag(a[0], n.span),
    "diagonal": lambda a, n: ops.diag(a[0], n.span) if not a[0].type.like else make("diagonal", a, a[0].type, n.span),
    "solve": lambda a, n: ops.solve(a[0], a[1], n["method"], n["iters"], n.span),
    "matrix_root": lambda a, n: ops.matrix_function("matrix_root", a[0], n.span, p=n["p"]),
    "eigenvectors": lambda a, n: ops.matrix_function("eigenvectors", a[0], n.span),
    "qr": lambda a, n: ops.qr(a[0], n.span),
    "one_hot": lambda a, n: ops.one_hot(a[0], n["n"], n.span),
    "outer": lambda a, n: ops.outer(a[0], a[1], n.span),
    "inner": lambda a, n: ops.inner(a[0], a[1], n.span),
    "concat": lambda a, n: ops.concat(a, n.span),
    "stack": lambda a, n: ops.stack(a, n.span),
    "reshape": lambda a, n: ops.reshape(a[0], n["shape"], n.span),
    "previous": lambda a, n: ops.previous(a[0], n["n"], n["tail"], n.span),
    "poly": lambda a, n: ops.poly(a[0], a[1], n["p"], n.span),
    "window": lambda a, n: ops.window(a[0], n["n"], n["tail"], n.span, n.get("oldest", False)),
    "rope": lambda a, n: ops.rope(a[0], n["base"], n["reset"], n.span),
    "split_heads": lambda a, n: ops.split_heads(a[0], n.type.heads or 1, n.span),
    "grouped": lambda a, n: ops.grouped(a[0], n.type.heads or 1, n.span),
    "merge_heads": lambda a, n: ops.merge_heads(a[0], n.span),
    "next": lambda a, n: ops.next_(a[0], n.span),
    "stop": lambda a, n: ops.stop(a[0], n.span),
    "py": lambda a, n: _python(a, n),
    "newton_schulz": lambda a, n: make("newton_schulz", a, a[0].type, n.span, **dict(n.attrs)),
    "norm_w": lambda a, n: make("norm_w", a, a[0].type.with_(like=False, shape=()), n.span),
    "norm_all": lambda a, n: make("norm_all", a, a[0].type.with_(like=False, shape=()), n.span),
    "total": lambda a, n: make("total", a, a[0].type.with_(like=False, shape=()), n.span),
}


for _op in ("matrix_root", "eigenvectors", "qr"):
    _BUILD[f"{_op}_backward"] = lambda a, n: make(
        n.op, a, ops.carried(*(x.type for x in a)).with_(shape=a[1].type.shape), n.span, **dict(n.attrs)
    )


def rewrite(
    roots: Iterable[Node], change: Callable[[Node, tuple[Node, ...]], Node | None], memo: dict[Node, Node] | None = None
) -> list[Node]:
    """Like `ir.node.rebuild`, for several roots that share parts, with types inferred anew above every change."""
    done: dict[Any, Node] = {} if memo is None else memo
    roots = list(roots)
    for node in walk(*roots):
        if node in done:
            continue
        args = tuple(done[a] for a in node.args)
        new = change(node, args)
        if new is None:
            same = all(a is b for a, b in zip(args, node.args))
            new = node if same else construct(node.op, args, node)
        done[node] = new
    return [done[r] for r in roots]
