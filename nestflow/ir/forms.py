"""The shapes of the values of a rule. A rule is written for any w, so a shape is said in facts of w.

A value has w's own axes, some of which may be of size 1 (a sum over them), or axes whose sizes are given, each a number
over `fact` leaves. Operations on matrices see w as rows × cols, a vector as a column; what comes out as rows × cols has
w's axes again. `settled` writes both steps out, as the operations `as_matrix` and `like_w`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nestflow.diagnostics.core import Span
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make, rebuild, walk


@dataclass(frozen=True)
class Form:
    """sizes: the axes, each a node over facts; None: w's axes, those in `single` (−1 is the last) of size 1."""

    sizes: tuple[Node, ...] | None = None
    single: frozenset[int] = frozenset()

    @property
    def like(self) -> str:
        """w, number or tensor."""
        if self.sizes is None:
            return "tensor" if self.single else "w"
        return "tensor" if self.sizes else "number"


W, NUMBER = Form(), Form(())
ROWS, COLS = (ops.leaf("fact", Type("int"), name=n) for n in ("rows", "cols"))
MATRIX = frozenset(["matmul", "transpose", "matrix_root", "eigenvectors", "qr", "diagonal", "solve", "outer", "inner"])
LEAVES = frozenset(["g", "w", "w0", "w_chunk", "curvature"])


def facts_of(shape: tuple[int, ...]) -> dict[str, int]:
    """What a rule may ask of a weight of this shape (its head axis left away)."""
    return {"ndim": len(shape), "rows": shape[0] if shape else 1, "cols": math.prod(shape[1:])}


def known(node: Node, shape: tuple[int, ...]) -> Node:
    """A number over facts where w has this shape: a constant."""
    facts = facts_of(shape)

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "fact":
            return ops.const(facts[n["name"]])
        if n.op == "where":
            return ops.where(args[0], args[1], args[2])
        if n.op in ops.BINARY:
            return ops.binary(n.op, args[0], args[1])
        return ops.unary(n.op, args[0]) if n.op in ops.UNARY else None

    return rebuild(node, change)


def holds(where: Node | None, shape: tuple[int, ...]) -> bool:
    """Whether a statement or memory under `if` on facts is there for a weight of this shape."""
    return where is None or bool(known(where, shape).value)


def shape_of(form: Form, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a value of this form where w has this shape."""
    if form.sizes is not None:
        return tuple(int(known(n, shape).value) for n in form.sizes)
    return tuple(1 if i - len(shape) in form.single else n for i, n in enumerate(shape))


def matrix(form: Form) -> tuple[Node, ...] | None:
    """The two axes of a value that stands in a product of matrices; None where it is no matrix."""
    if form == W:
        return ROWS, COLS
    return form.sizes if form.sizes is not None and len(form.sizes) == 2 else None


class Forms:
    """The forms of the expressions of a rule whose memories have these. Raises ShapeError where two do not fit."""

    def __init__(self, slots: Mapping[str, Form], named: Mapping[str, Form] | None = None) -> None:
        self.slots, self.named = slots, named or {}
        self.memo: dict[Node, Form] = {}

    def of(self, root: Node) -> Form:
        for n in walk(root):
            if n not in self.memo:
                self.memo[n] = self.one(n)
        return self.memo[root]

    def one(self, n: Node) -> Form:
        if n.op in ("slot_old", "slot_new"):
            return self.slots.get(n["name"], W if n.type.like else NUMBER)
        if n.op in LEAVES:
            return W
        if n.op == "named":
            return self.named.get(n["name"], W if n.type.like else NUMBER)
        if n.op == "gram":
            return Form((COLS, COLS))
        if n.op == "draw":
            return self.slots.get(n["slot"], W)
        if n.op == "eye_of":
            return Form((n.args[0], n.args[0]))
        if n.op == "as_matrix":
            return Form((ROWS, COLS))
        if n.op == "like_w":
            return W
        if not n.type.like:
            return NUMBER
        if n.op in MATRIX:
            return canonical(self.product(n))
        if n.op in ("sum", "mean", "amax") and n["axes"]:
            return self.reduced(n)
        if n.op == "norm_rows":
            return self.single(self.memo[n.args[0]], -1)
        return self.together([self.memo[a] for a in n.args])

    def reduced(self, n: Node) -> Form:
        return self.single(self.memo[n.args[0]], n["axes"][0])

    @staticmethod
    def single(form: Form, axis: int) -> Form:
        if form.sizes is None:
            return Form(None, form.single | {axis})
        if axis < -len(form.sizes):
            raise ops.ShapeError(f"axis {axis} of a value with {len(form.sizes)} axes")
        return Form(tuple(ops.const(1) if i == axis % len(form.sizes) else s for i, s in enumerate(form.sizes)))

    def product(self, n: Node) -> Form:
        parts = [matrix(self.memo[a]) for a in n.args]
        if n.op == "matmul":
            return self.matmul(n, parts)
        found = parts[0]
        if found is None:
            raise ops.ShapeError(f"`{n.op}` takes a matrix, and this is none")
        if n.op == "transpose":
            return Form(found[::-1])
        if n.op == "diagonal":
            return Form(found[:1])
        return self.memo[n.args[1]] if n.op == "solve" else Form(found)

    def matmul(self, n: Node, parts: list[tuple[Node, ...] | None]) -> Form:
        vectors = [
            f.sizes if f.sizes is not None and len(f.sizes) == 1 else None for f in map(self.memo.get, n.args) if f
        ]
        a, b = parts
        if a is not None and b is not None:
            return Form((a[0], b[1]))
        if a is not None and vectors[1] is not None:
            return Form(a[:1])
        if vectors[0] is not None and b is not None:
            return Form(b[1:])
        raise ops.ShapeError("`@` in an update takes matrices: w and what has its shape, and `matrix` memories")

    @staticmethod
    def together(forms: list[Form]) -> Form:
        """Elementwise: numbers and axes of size 1 stretch."""
        result = NUMBER
        for f in forms:
            if result == NUMBER or f == NUMBER:
                result = f if result == NUMBER else result
            elif f.sizes is None and result.sizes is None:
                result = Form(None, f.single & result.single)
            elif f.sizes is not None and result.sizes is not None and len(f.sizes) == len(result.sizes):
                one = ops.const(1)
                result = Form(tuple(y if x is one else x for x, y in zip(result.sizes, f.sizes, strict=True)))
            else:
                raise ops.ShapeError("a tensor like w meets one of other axes")
        return result


def canonical(form: Form) -> Form:
    """A value of rows × cols has the axes of w."""
    return W if form.sizes == (ROWS, COLS) else form


def settled(node: Node, forms: Forms) -> Node:
    """The same with `as_matrix` where a matrix is wanted of what has w's axes, and `like_w` where w's axes come out."""

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        form = forms.of(n)
        if not n.type.like or n.op not in MATRIX:
            return None
        seen = tuple(as_matrix(a, n.span) if forms.of(old) == W else a for old, a in zip(n.args, args, strict=True))
        new = make(n.op, seen, n.type, n.span, **dict(n.attrs))
        return make("like_w", (new,), n.type, n.span) if form == W else new

    return rebuild(node, change)


def as_matrix(x: Node, span: Span | None) -> Node:
    """rows × cols of what has w's axes."""
    return x.args[0] if x.op == "like_w" else make("as_matrix", (x,), x.type, x.span or span)
