"""The table of operations: how each node of the IR is written in torch. Here: tables, look-back, calls, losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nestflow.emit import algebra as A
from nestflow.emit import chance, matrices, outside
from nestflow.emit import images as I
from nestflow.emit import pointwise as P
from nestflow.emit import records as R
from nestflow.emit.algebra import BLOCKS, expanded
from nestflow.emit.layout import head_axis, tick_axis
from nestflow.emit.operand import ATOM, INFIX, Expr, as_tensor, expr_of, is_python, tensor
from nestflow.graph.published import published
from nestflow.ir.node import Node, Type
from nestflow.ir.ops import carried

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter

Operation = Callable[["Emitter", Node], Expr]
LOOKBACK = "nestflow.ops.lookback"
# get a variable even if used once
ALWAYS_NAMED = frozenset({"position", "short_conv", "previous", "window", "fill", "recall", "emit", "network"}) | {
    "uniform",
    "noise",
}


# ---- tables, look-back, calls


def embed(em: Emitter, node: Node) -> Expr:
    i, w = (em.done[a] for a in node.args)
    if node.args[1].type.heads:
        em.writer.use(BLOCKS, "embed_heads")
        return expr_of(f"embed_heads({i.text}, {w.text}, {head_axis(node.type)})", ATOM, i, w)
    return expr_of(f"F.embedding({i.text}, {w.text})", ATOM, i, w)


def _tail(em: Emitter, node: Node) -> tuple[str, str]:
    """Where a block that looks back finds its last inputs, and where it leaves those for the next call."""
    known = em.tails.get(node["tail"])
    if known is not None:
        return known, f", {known}"
    path = f'{em.prefix} + "{node["tail"]}"' if em.prefix else f'"{node["tail"]}"'
    return f"c.s[{path}]", f", c.n[{path}]"


def short_conv(em: Emitter, node: Node) -> Expr:
    em.writer.use(LOOKBACK, "short_conv")
    x, w, *bias = node.args
    if len(em.done[x].text) > 48:  # the statement has two results and two more arguments: keep it readable
        em.variable(x)
    parts = [tensor(em, x, node.type, 1), em.done[w]] + [em.done[b] for b in bias]
    if w.type.heads and not x.type.heads:
        parts[0] = expanded(em, x, node.type)
    before, after = _tail(em, node)
    extra = f", {parts[2].text}" if bias else ""
    e = expr_of(f"short_conv({parts[0].text}, {parts[1].text}, {before}{extra})", ATOM, *parts)
    em.assign(node, e, targets=after)
    return e


def previous(em: Emitter, node: Node) -> Expr:
    em.writer.use(LOOKBACK, "previous")
    x, (before, after) = em.done[node.args[0]], _tail(em, node)
    e = expr_of(f"previous({x.text}, {before}, {tick_axis(node.type)})", ATOM, x)
    em.assign(node, e, targets=after)
    return e


def window(em: Emitter, node: Node) -> Expr:
    em.writer.use(LOOKBACK, "window")
    (x,), (before, after) = node.args, _tail(em, node)
    part = tensor(em, x, x.type.with_(batch=True))
    order = ", oldest=True" if node.get("oldest") else ""
    e = expr_of(f"window({part.text}, {before}, {tick_axis(x.type)}{order})", ATOM, part)
    em.assign(node, e, targets=after)
    return e


def rope(em: Emitter, node: Node) -> Expr:
    em.writer.use(LOOKBACK, "rope")
    x = em.done[node.args[0]]
    extra = f", base={node['base']!r}" if node["base"] != 10000.0 else ""
    extra += f", reset={node['reset']!r}" if node["reset"] else ""
    extra += f", axis={tick_axis(node.type)}" if tick_axis(node.type) != -2 else ""
    return expr_of(f"rope({x.text}, {em.sequence}{extra})", ATOM, x)


def call(em: Emitter, node: Node) -> Expr:
    child = node["child"]
    if em.instance is None:
        raise KeyError(f"a call of `{child}` outside an instance")
    function = em.writer.function(em.instance.child(child))
    parts = [em.done[a] for a in node.args]
    of = [node["of"]] if node.get("of") else []  # only read: where the level's own state is
    paths = [f'{em.prefix} + "{name}."' if em.prefix else f'"{name}."' for name in (child, *of)]
    if node.get("ticks") is not None:
        e = I.along(em, node, function, paths[0])
    else:
        e = expr_of(f"{function}({', '.join(['c', *paths, *(p.text for p in parts)])})", ATOM, *parts)
    if child in em.copies or child in em.workers:  # the values that have no rows stand in the function
        return _by_copy(em, node, function, parts)
    if em.instance.kind == "root" and published(em.instance.child(child)):
        name = em.assign(node, e, child)
        em.published[node] = em.fresh(f"{child}_published", Type())
        em.writer.line(f"{em.published[node]} = c.publish()  # what `emit` gave in {name}, by name")
        return e
    if node not in em.names and (em.uses[node] > 1 or len(e.text) > em.wide):
        words = [x for x in child.split(".") if not x.isdigit()]
        em.assign(node, e, words[-1] if words else "x")
    return e


def _by_copy(em: Emitter, node: Node, function: str, parts: list[Expr]) -> Expr:
    by, count = ("by_worker", f", {em.workers[node['child']]}") if node["child"] in em.workers else ("by_copy", "")
    em.writer.use("nestflow.ops.workers" if count else "nestflow.ops.inner", by)
    rows = [p for a, p in zip(node.args, parts, strict=True) if a.type.batch]
    names = iter(f"x{i}" for i in range(len(rows)))
    inside = [next(names) if a.type.batch else p.text for a, p in zip(node.args, parts, strict=True)]
    own = ", ".join(["c", "p", *(f"x{i}" for i in range(len(rows)))])
    whole = function if len(rows) == len(parts) else f"lambda {own}: {function}({', '.join(['c', 'p', *inside])})"
    return expr_of(
        f'{by}({whole}, c, LEVELS["{node["child"]}"]{count}, {", ".join(p.text for p in rows)})', ATOM, *parts
    )


def emit(em: Emitter, node: Node) -> Expr:
    x, *values = node.args
    for name, v in zip(node["names"], values, strict=True):
        e = as_tensor(em, v)
        heads = f".sum({head_axis(v.type)})" if v.type.heads else ""
        em.writer.line(f'c.emit("{name}", {e.atom if heads else e.text}{heads})')
    return em.done[x]


def emitted(em: Emitter, node: Node) -> Expr:
    terms = [f'{em.published[a]}["{node["name"]}"]' for a in node.args]
    return expr_of(" + ".join(terms), ATOM if len(terms) == 1 else 10)


def beside(em: Emitter, node: Node) -> Expr:
    """The first value; the others are computed for what they keep."""
    first, *others = node.args
    for other in others:
        em.variable(other)
    return em.done[first]


def recall(em: Emitter, node: Node) -> Expr:
    raise KeyError(f"a recall of `{node['memory']}` ({node['mode']}) was not bound by the level's code")


# ---- the whole model


def cross_entropy(em: Emitter, node: Node) -> Expr:
    em.writer.use(BLOCKS, node.op)
    parts = scored(em, node)
    text = [x.text for x in parts] + ([f"smoothing={node['smoothing']!r}"] if node.get("smoothing") else [])
    return expr_of(f"{node.op}({', '.join(text)})", ATOM, *parts)


def hits(em: Emitter, node: Node) -> str:
    """How many of the classes of a cross entropy had the largest score, and of how many."""
    return f"{em.writer.use(BLOCKS, 'hits')}({', '.join(x.text for x in scored(em, node))})"


def scored(em: Emitter, node: Node) -> list[Expr]:
    """Scores, classes and mask of a cross entropy, their carried axes in line: all that any of them has."""
    lead = carried(*(a.type for a in node.args))
    _, y, *_ = node.args
    ranks = [len(y.type.shape) + 1, *[len(y.type.shape)] * 2]
    return [tensor(em, a, lead.with_(dtype=a.type.dtype), rank) for a, rank in zip(node.args, ranks)]


def mean_all(em: Emitter, node: Node) -> Expr:
    e = as_tensor(em, node.args[0])
    cast = ".to(c.dtype)" if node.args[0].type.dtype != "float" else ""
    return expr_of(f"{e.atom}{cast}.mean()", ATOM, e)


def outputs(em: Emitter, node: Node) -> Expr:
    parts = [em.done[a] for a in node.args]
    return expr_of("{" + ", ".join(f'"{n}": {p.text}' for n, p in zip(node["names"], parts)) + "}", ATOM, *parts)


def sum_features(em: Emitter, node: Node) -> Expr:
    e, rank = em.done[node.args[0]], len(node.args[0].type.shape)
    return expr_of(f"{e.atom}.sum({tuple(range(-rank, 0))})", ATOM, e) if rank else e


OPERATIONS: dict[str, Operation] = {
    "const": P.const,
    "fill": P.fill,
    "weight": P.weight,
    "slot": P.slot,
    "position": P.position,
    "head": P.head,
    "training": P.training,
    "neg": P.neg,
    "not": P.not_,
    "elu1": P.elu1,
    "inverse_softplus": P.inverse_softplus,
    "max": P.extremum,
    "min": P.extremum,
    "where": P.where,
    "stop": P.stop,
    "sum": A.reduce,
    "mean": A.reduce,
    "amax": A.reduce,
    "inner": A.inner,
    "outer": A.outer,
    "linear": A.linear,
    "matmul": A.matmul,
    "transpose": A.transpose,
    "softmax": A.rowwise,
    "log_softmax": A.rowwise,
    "l2norm": A.rowwise,
    "rmsnorm": A.rowwise,
    "layernorm": A.rowwise,
    "newton_schulz": A.newton_schulz,
    "poly": A.poly,
    "concat": A.concat,
    "stack": A.stack,
    "index": A.index,
    "reshape": A.reshape,
    "split_heads": A.split_heads,
    "merge_heads": A.merge_heads,
    "grouped": A.grouped,
    "spread": A.spread,
    "next": A.next_,
    "patches": I.patches,
    "conv2d": I.conv2d,
    "max_pool": I.max_pool,
    "upsample": I.upsample,
    "count": I.count,
    "embed": embed,
    "short_conv": short_conv,
    "previous": previous,
    "window": window,
    "rope": rope,
    "call": call,
    **outside.OPERATIONS,
    "recall": recall,
    "emit": emit,
    "emitted": emitted,
    "beside": beside,
    "record": R.record,
    "total": R.total,
    "average": R.average,
    "norm_all": R.norm_all,
    "norm_w": R.norm_each,
    "cross_entropy": cross_entropy,
    "cross_entropy_terms": cross_entropy,
    "mean_all": mean_all,
    "outputs": outputs,
    "sum_features": sum_features,
    **chance.OPERATIONS,
    **matrices.OPERATIONS,
    **dict.fromkeys(INFIX, P.infix),
    **dict.fromkeys(P.CALLS, P.call_of),
}

CHEAP = frozenset(OPERATIONS) - ALWAYS_NAMED  # may stand inside their user

__all__ = ["CHEAP", "OPERATIONS", "is_python", "tensor"]
