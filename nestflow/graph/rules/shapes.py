"""Shapes inside update rules: a rule is written for any w, and here it meets the tensors that it will update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nestflow.diagnostics.core import NestflowError, Span
from nestflow.ir import ops
from nestflow.ir.construct import construct, rewrite
from nestflow.ir.forms import facts_of, holds, known
from nestflow.ir.node import Node, Type, make, walk
from nestflow.ir.rule import DgdStep, Let, Rule, SlotUpdate

# code, message, span, help -> what is raised where something does not fit: `fail`, `Elaborator.failure`
Told = Callable[..., NestflowError]
LIKE_LEAVES = frozenset(["g", "w", "w0", "w_chunk", "slot_old", "slot_new", "curvature"])


def check_rule(
    told: Told, rule: Rule, shapes: Mapping[tuple[int, ...], str], span: Span | None, matrix: bool = False
) -> None:
    """Raise NF301 for the first operation that does not fit a tensor, and for a step of another shape than w.

    shapes: the shapes of the tensors (without heads), each with the path of one of them. matrix: its rates may be
    vectors (`RuleBuilder.check_axes` has looked at them). span: of the rule, for what has no place of its own.
    """
    for node in walk(*rule.nodes()) if not matrix else ():
        _mixes(told, node, span)
    for shape, path in shapes.items():
        if 0 in shape:  # a weight without numbers: rules leave it alone
            continue
        types: dict[Node, Type] = {}
        own = {s.name: s.shape(shape) for s in rule.slots}
        named: dict[str, Type] = {}
        types_of = Shapes(shape, own, named)
        for statement in rule.program:
            if isinstance(statement, DgdStep) or not holds(statement.where, shape):
                continue
            result = _fits(told, statement.value, types_of, path, types, span)
            if isinstance(statement, Let):
                named[statement.name] = result
                continue
            if isinstance(statement, SlotUpdate) and rule.shaped:
                want = own[statement.slot] or ()
                if ops.broadcast(result.shape, want) != want:
                    message = f"memory `{statement.slot}` of `{path}` is {list(want)}, and becomes {list(result.shape)}"
                    raise told("NF301", message, statement.span or span)
                continue
            whole = not isinstance(statement, SlotUpdate) or statement.value.type.like
            if whole and ops.broadcast(result.shape, shape) != shape:
                message = f"a step for `{path}` is {list(shape)}, and this one comes out as {list(result.shape)}"
                raise told("NF301", message, statement.span or span)
        _fits(told, rule.gradient, types_of, path, types, span)


def _mixes(told: Told, node: Node, span: Span | None) -> None:
    """Numbers scale a tensor like w; a vector of features would need to say along which axis."""
    if not node.type.like or node.op == "each":  # the entries of a record are made to fit their tensors
        return
    for a in node.args:
        if not a.type.like and not a.type.is_number:
            message = f"a tensor like w meets {a.type}: a rate or factor in an update is a number (per head)"
            raise told("NF322", message, node.span or span, "`sigmoid(linear(x, 1))` is one number")


@dataclass(frozen=True)
class Shapes:
    """A shape of w, those of the rule's memories there, and the types of names."""

    w: tuple[int, ...]
    slots: Mapping[str, tuple[int, ...] | None]
    named: Mapping[str, Type]


def _fits(told: Told, root: Node, at: Shapes, path: str, types: dict[Node, Type], span: Span | None) -> Type:
    """The type of an expression of the rule where w has this shape."""
    shape = at.w
    (root,) = rewrite([root], lambda n, args: _fact(n, shape))  # a choice by ndim(w) keeps the branch taken
    for n in walk(root):
        if n in types:
            continue
        try:
            types[n] = _type(n, at, types)
        except ops.ShapeError as e:
            message = f"{e}, where w is `{path}`, {list(shape)}"
            raise told("NF301", message, n.span or span, "transposes, and `ndim(w)`, tell tensors apart") from e
    return types[root]


def _fact(n: Node, shape: tuple[int, ...]) -> Node | None:
    """What is known of a tensor when compiling: ndim, rows, cols."""
    return known(n, shape) if n.op == "fact" else None


def _type(n: Node, at: Shapes, types: dict[Node, Type]) -> Type:
    shape = at.w
    if n.op in ("slot_old", "slot_new") and n.type.like:
        return n.type.with_(like=False, shape=at.slots.get(n["name"]) or (() if n["name"] in at.slots else shape))
    if n.op == "named":
        return at.named[n["name"]]
    if n.op == "as_matrix":
        if len(shape) < 2:
            raise ops.ShapeError("a matrix is wanted, with two axes or more")
        return n.type.with_(like=False, shape=(facts_of(shape)["rows"], facts_of(shape)["cols"]))
    if n.op == "like_w":
        rows_cols = (facts_of(shape)["rows"], facts_of(shape)["cols"])
        if types[n.args[0]].shape != rows_cols:
            raise ops.ShapeError(f"{list(types[n.args[0]].shape)} is not {list(rows_cols)}")
        return n.type.with_(like=False, shape=shape)
    if n.op == "gram":
        return n.type.with_(like=False, shape=(facts_of(shape)["cols"],) * 2)
    if n.op == "eye_of":
        size = int(n.args[0].value)
        return n.type.with_(like=False, shape=(size, size))
    if n.op in LIKE_LEAVES or (n.op == "each" and n.type.like):
        return n.type.with_(like=False, shape=shape) if n.type.like else n.type
    if not n.args:
        return n.type.with_(like=False)
    if not any(a.type.like for a in n.args):
        return n.type
    args = tuple(make("slot", (), types[a], name=f"({i})") for i, a in enumerate(n.args))
    if n.op == "debias":
        return args[0].type
    if n.op == "where" and n.args[0].op == "const":
        return types[n.args[1 if n.args[0].value else 2]]
    return construct(n.op, args, n).type.with_(heads=None)
