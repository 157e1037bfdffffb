"""Matrices and axes in an update rule as torch code: sums along an axis, products, roots, bases.

The shape of w is not known when the code is written: `fact` has it, and `fact.heads` says whether a head axis leads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nestflow.emit.numbers import ATOM, Text
from nestflow.ir import ops
from nestflow.ir.forms import Form
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.emit.tensors import Tensors

Writer = Callable[["Tensors", Node], Text]
WRITERS: dict[str, Writer] = {}


def writes(*ops: str) -> Callable[[Writer], Writer]:
    """Register the writer of an operation."""

    def register(writer: Writer) -> Writer:
        WRITERS.update(dict.fromkeys(ops, writer))
        return writer

    return register


@writes("as_matrix")
def as_matrix(tensors: Tensors, n: Node) -> Text:
    return Text(f"{tensors.helper('as_matrix')}({tensors.brief(n.args[0]).text}, fact)")


@writes("like_w")
def like_w(tensors: Tensors, n: Node) -> Text:
    inside = tensors.brief(n.args[0])
    return Text(f"{inside.at(ATOM)}.reshape(w.shape)", ATOM, inside.fresh)


@writes("eye_of")
def eye_of(tensors: Tensors, n: Node) -> Text:
    size = tensors.number(n.args[0]).text
    return Text(f"torch.eye({size}, dtype=w.dtype, device=w.device)", ATOM, True)


@writes("sum", "mean", "amax")
def reduced(tensors: Tensors, n: Node) -> Text:
    x = tensors.text(n.args[0])
    if n["axes"]:
        return Text(f"{x.at(ATOM)}.{n.op}({n['axes'][0]}, keepdim=True)", ATOM, True)
    return Text(f"{tensors.helper(n.op + '_of')}({x.text}, fact.heads)")


@writes("norm_rows")
def norm_rows(tensors: Tensors, n: Node) -> Text:
    return Text(f"{tensors.helper('norm_rows')}({tensors.text(n.args[0]).text}, fact.heads)", ATOM, True)


@writes("matrix_root")
def matrix_root(tensors: Tensors, n: Node) -> Text:
    return Text(f"{tensors.helper('matrix_root')}({tensors.text(n.args[0]).text}, {n['p']!r})", ATOM, True)


@writes("eigenvectors", "qr")
def basis(tensors: Tensors, n: Node) -> Text:
    function = {"qr": "qr_of"}.get(n.op, n.op)
    return Text(f"{tensors.helper(function)}({tensors.text(n.args[0]).text})", ATOM, True)


@writes("diagonal")
def diagonal(tensors: Tensors, n: Node) -> Text:
    return Text(f"{tensors.text(n.args[0]).at(ATOM)}.diagonal(dim1=-2, dim2=-1)")


def zeros(form: Form, sizes: Callable[[Node], str]) -> tuple[str, str]:
    """(helper, its call) of a memory of this form, zeros."""
    if form.sizes is None:
        axes = ", ".join(map(str, sorted(form.single)))
        return "zeros_along", f"zeros_along(w, {axes})"
    return "zeros_of", f"zeros_of(w, fact.heads, {', '.join(sizes(n) for n in form.sizes)})"


def scaled_eye(init: Node) -> tuple[Node, float] | None:
    """(size, c) where a memory starts at c times the identity."""
    scale, rest = init.args if init.op == "mul" else (ops.const(1.0), init)
    scale, rest = (rest, scale) if rest.op == "const" else (scale, rest)
    return (rest.args[0], float(scale.value)) if scale.op == "const" and rest.op == "eye_of" else None


__all__ = ["WRITERS", "scaled_eye", "zeros"]
