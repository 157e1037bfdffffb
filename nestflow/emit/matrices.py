"""Square matrices and classes in torch. Each function: (emitter, node) -> Expr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.operand import ATOM, Expr, expr_of, tensor
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter

MATRICES = "nestflow.ops.matrices"


def diag(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return expr_of(f"torch.diag_embed({e.text})", ATOM, e)


def diagonal(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return expr_of(f"{e.atom}.diagonal(dim1=-2, dim2=-1)", ATOM, e)


def solve(em: Emitter, node: Node) -> Expr:
    em.writer.use(MATRICES, "solve")
    a, b = node.args
    vector = len(b.type.shape) == 1
    left, right = tensor(em, a, node.type, 2), tensor(em, b, node.type, len(b.type.shape))
    how = f', method="cg", iters={node["iters"]}' if node["method"] == "cg" else ""
    if vector:
        return expr_of(f"solve({left.text}, {right.atom}[..., None]{how})[..., 0]", ATOM, left, right)
    return expr_of(f"solve({left.text}, {right.text}{how})", ATOM, left, right)


def matrix_function(em: Emitter, node: Node) -> Expr:
    """matrix_root, eigenvectors, qr, and their derivatives (g, A)."""
    em.writer.use(MATRICES, node.op)
    alone = len(node.args) == 1
    parts = [em.done[a] if alone else tensor(em, a, node.type, 2) for a in node.args]
    text = [p.text for p in parts] + ([repr(node["p"])] if node.get("p") is not None else [])
    return expr_of(f"{node.op}({', '.join(text)})", ATOM, *parts)


def one_hot(em: Emitter, node: Node) -> Expr:
    em.writer.use(MATRICES, "one_hot")
    e = em.done[node.args[0]]
    return expr_of(f"one_hot({e.text}, {node['n']})", ATOM, e)


_FUNCTIONS = ("matrix_root", "eigenvectors", "qr")
OPERATIONS = {
    "diag": diag,
    "diagonal": diagonal,
    "solve": solve,
    "one_hot": one_hot,
    **dict.fromkeys((*_FUNCTIONS, *(f"{f}_backward" for f in _FUNCTIONS)), matrix_function),
}
