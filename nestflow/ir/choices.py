"""Values that are not one and the same: `{gate: r1, up: r2}`, a value for each tensor of a memory, and `[b1, b2]`, one
for each round of a tick.

Both are one operation, `each(values...; by, names)`, which stands where its value is used until the tensor or the round
is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nestflow.ir import ops
from nestflow.ir.construct import number, rewrite
from nestflow.ir.node import Node, depends, make


def per_tensor(entries: Mapping[str, Node]) -> Node:
    """One value for each tensor; a name means the tensor of that path, or all below it (`gate`: `gate.weight`)."""
    return _each("tensor", tuple(entries), tuple(entries.values()))


def per_channel(entries: Mapping[str, Node]) -> Node:
    """One value for each tensor, in its shape, by the full paths. In an update it is a tensor like `w`."""
    values = tuple(entries.values())
    type_ = ops.carried(*(v.type for v in values)).with_(shape=(), dtype="float", like=True)
    return make("each", values, type_, values[0].span, by="tensor", names=tuple(entries))


def per_round(values: Sequence[Node]) -> Node:
    """One value for each round."""
    return values[0] if len(values) == 1 else _each("round", tuple(map(str, range(len(values)))), tuple(values))


def _each(by: str, names: tuple[str, ...], values: tuple[Node, ...]) -> Node:
    values = tuple(number(v) if v.type.is_number else v for v in values)
    shapes = {v.type.shape for v in values}
    if len(shapes) != 1:
        found = ", ".join(str(v.type) for v in values)
        help_ = "all entries have one shape: `number + 0 * vector` is the number for each channel of the vector"
        raise ops.ShapeError(f"the entries differ: {found}", help_)
    floats = any(v.type.dtype == "float" for v in values)
    type_ = ops.carried(*(v.type for v in values)).with_(
        shape=shapes.pop(), dtype="float" if floats else values[0].type.dtype
    )
    return make("each", values, type_, values[0].span, by=by, names=names)


def names_tensor(entry: str, path: str) -> bool:
    """Whether an entry of a record means the tensor at this path."""
    return path == entry or path.startswith(entry + ".")


def chosen(n: Node, args: Sequence[Node], path: str) -> Node | None:
    """The value of an `each` by tensor for the tensor at this path."""
    if n.op != "each" or n["by"] != "tensor":
        return None
    return next(a for name, a in zip(n["names"], args, strict=True) if names_tensor(name, path))


def for_tensor(node: Node, path: str) -> Node:
    """The node as the tensor at this path sees it."""
    if not depends(node, lambda n: n.op == "each"):
        return node
    return rewrite([node], lambda n, args: chosen(n, args, path))[0]


def for_round(node: Node, turn: int) -> Node:
    """The node as the round `turn` (from 0) sees it."""
    if not depends(node, lambda n: n.op == "each"):
        return node
    return rewrite([node], lambda n, args: args[turn] if n.op == "each" and n["by"] == "round" else None)[0]


__all__ = ["chosen", "for_round", "for_tensor", "names_tensor", "per_channel", "per_round", "per_tensor"]
