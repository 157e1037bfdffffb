"""Gates and rates that differ within a tensor of a memory: vectors on its axes, in a record with one entry for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.graph.model import MemoryTensor
from nestflow.graph.values import OnValue
from nestflow.ir import ops
from nestflow.ir.construct import number
from nestflow.ir.node import Node, Type
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild


def channels(m: MemoryBuild, t: MemoryTensor, value: Node | OnValue, site: tree.Node, what: str) -> Node:
    """The entry of a record for one tensor, in the shape of that tensor: a number everywhere; of a weight out × in a
    vector on the key axis (in), `on_value` on the value axis (out); elementwise. Raises NF322, NF319."""
    on_value, x = isinstance(value, OnValue), value.node if isinstance(value, OnValue) else value
    if m.level.env.heads and x.type.heads is None and x.type.batch and not x.type.is_number:
        message = f"under `heads` {what} is per head, and this one is whole: {x.type}"
        raise m.elab.failure("NF319", message, x.span or site.span, "`split_heads`, or a `linear` of its own")
    shape, given = t.shape, x.type.shape
    if x.type.is_number:
        x = number(x)
    elif len(shape) == 2 and on_value and given == shape[:1]:
        x = ops.reshape(x, (shape[0], 1))
    elif not (given == shape and not on_value) and not (len(shape) == 2 and given in (shape[1:], (shape[0], 1))):
        sizes = f"{shape[1]} features, `on_value` with {shape[0]}" if len(shape) == 2 else f"{list(shape)}"
        message = f"{what} gives `{t.path}` of `{m.name}`, {list(shape)}, the shape {list(given)}"
        raise m.elab.failure("NF322", message, x.span or site.span, f"a number, or {sizes}")
    return ops.binary("mul", x, ops.leaf("fill", Type(shape=shape), site.span, kind="ones"))


__all__ = ["channels"]
