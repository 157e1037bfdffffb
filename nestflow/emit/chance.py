"""Draws in torch. Each function: (emitter, node) -> Expr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.operand import ATOM, Expr, expr_of, tensor
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter

CHANCE = "nestflow.ops.chance"


def counter(em: Emitter, node: Node) -> str:
    """`c, path, (rows, heads, ticks), shape, ticks of the sequence before the first`."""
    t = node.type
    path = f'{em.prefix} + "{node["path"]}"' if em.prefix else f'"{node["path"]}"'
    ticks = None if not t.clock else em.ticks if not t.short else f"{em.ticks} - {t.short}"
    return f"c, {path}, ({em.batch}, {t.heads}, {ticks}), {t.shape!r}, {em.sequence if t.clock else 0}"


def draws(em: Emitter, node: Node) -> Expr:
    em.writer.use(CHANCE, node.op)
    return expr_of(f"{node.op}({counter(em, node)})", ATOM)


def dropout(em: Emitter, node: Node) -> Expr:
    em.writer.use(CHANCE, "dropout")
    x = tensor(em, node.args[0], node.type)
    return expr_of(f"dropout({x.text}, {node['p']!r}, {counter(em, node)})", ATOM, x)


OPERATIONS = {"uniform": draws, "noise": draws, "dropout": dropout}
