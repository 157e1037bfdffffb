"""Images, and what runs along an unrolled token axis, in torch. Each function: (emitter, node) -> Expr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.operand import ATOM, Expr, expr_of, variable
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter

IMAGES = "nestflow.ops.images"


def patches(em: Emitter, node: Node) -> Expr:
    em.writer.use(IMAGES, "patches")
    e = em.done[node.args[0]]
    return expr_of(f"patches({e.text}, {node['p']})", ATOM, e)


def conv2d(em: Emitter, node: Node) -> Expr:
    em.writer.use(IMAGES, "conv2d")
    x, w = (em.done[a] for a in node.args)
    extra = f", {node['stride']}" if node["stride"] != 1 else ""
    return expr_of(f"conv2d({x.text}, {w.text}{extra})", ATOM, x, w)


def max_pool(em: Emitter, node: Node) -> Expr:
    em.writer.use(IMAGES, "max_pool")
    e = em.done[node.args[0]]
    extra = f", {node['stride']}" if node["stride"] != 1 else ""
    return expr_of(f"max_pool({e.text}, {node['k']}{extra})", ATOM, e)


def upsample(em: Emitter, node: Node) -> Expr:
    em.writer.use(IMAGES, "upsample")
    e = em.done[node.args[0]]
    return expr_of(f"upsample({e.text}, {node['f']})", ATOM, e)


def count(em: Emitter, node: Node) -> Expr:
    return expr_of(f"torch.arange(1, {node['n'] + 1}, device=c.device)")


def along(em: Emitter, node: Node, function: str, path: str) -> Expr:
    """A call that runs along feature axis 0 inside each example. The ticks around it, if any, become rows."""
    em.writer.use("nestflow.ops.runtime", "along")
    outer = node.type.clock is not None
    parts, texts = [], []
    for a in node.args:
        if a.type.unrolled:
            em.variable(a)  # read twice
        e = variable(em, a) if outer and a.type.batch else em.done[a]
        fold = ".flatten(0, 1)" if a.type.clock else f".repeat_interleave({em.ticks}, 0)"
        parts.append(e)
        texts.append(e.atom + fold if outer and a.type.batch else e.text)
    rows = next(t for a, t in zip(node.args, texts) if a.type.unrolled)
    text = f"along(c, {function}, {path}, INNER, len({rows}), {', '.join(texts)})"
    return expr_of(text + (f".unflatten(0, ({em.batch}, {em.ticks}))" if outer else ""), ATOM, *parts)
