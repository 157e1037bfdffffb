"""Updates that are known without a gradient's step size: `replace`, and the proximal step of a quadratic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.ir import ops
from nestflow.ir.construct import number
from nestflow.ir.node import Node
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild


def replaced(m: MemoryBuild, site: tree.Node) -> Node:
    """The value that the memory becomes: A_t = v_t."""
    value = m.context("value")
    if value is None:
        raise m.elab.failure("NF233", f"`replace` needs the `value` of `{m.name}`", site.span, "`value …`")
    tensors = m.function.tensors if m.function is not None else ()
    same = len(tensors) == 1 and (
        value.type.shape == tensors[0].shape or (value.type.is_number and not tensors[0].shape)
    )
    if not same:
        kept = ", ".join(f"`{t.path}` {list(t.shape)}" for t in tensors)
        message = (
            f"`replace` puts the value in the memory's place: `{m.name}` has {kept}, and the value is {value.type}"
        )
        raise m.elab.failure("NF319", message, site.span, "`memory vector`, `scalar` or `like(value)` keep a value")
    return number(value) if value.type.is_number else value


def prox(m: MemoryBuild, lr: Node, site: tree.Node) -> Node:
    """The rate of −η G that is the exact minimum of ω ½‖A k − v‖² + ‖A − A_{t−1}‖²/(2 lr): η = lr/(1 + lr ω ‖k‖²)."""
    from nestflow.graph.levels.learning import clock, weight

    f = m.field("objective")
    if m.kind != "matrix" or f is None or not (isinstance(f.value, tree.Name) and f.value.name == "l2"):
        message = "`prox` is the exact step of `objective l2` on a `matrix`"
        raise m.elab.failure("NF416", message, site.span, "elsewhere: `dgd(lr)`, `gd(lr)`")
    if clock(m) != (1, 1):
        message = "`prox` is exact for one pair at the state before it: `every 1 token`, chunk 1"
        raise m.elab.failure("NF416", message, site.span, "leave `chunk` and `every` at 1 token")
    key = m.key_node()
    size, own = ops.inner(key, key), weight(m)
    if own is not None:
        size = ops.binary("mul", number(own), size)
    rate = number(lr) if lr.type.is_number else lr
    return ops.binary("div", rate, ops.binary("add", ops.const(1.0), ops.binary("mul", rate, size)))


__all__ = ["prox", "replaced"]
