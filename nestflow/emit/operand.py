"""Expressions as text with a precedence, and operands aligned for an operation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nestflow.emit.layout import index_to
from nestflow.ir.node import Node, Type

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter

ATOM = 100  # precedence of names, calls and brackets
INFIX = {
    "add": ("+", 10),
    "sub": ("-", 10),
    "mul": ("*", 20),
    "div": ("/", 20),
    "floordiv": ("//", 20),
    "mod": ("%", 20),
    "pow": ("**", 40),
    "lt": ("<", 2),
    "le": ("<=", 2),
    "gt": (">", 2),
    "ge": (">=", 2),
    "eq": ("==", 2),
    "ne": ("!=", 2),
    "and": ("&", 2),
    "or": ("|", 2),
}
# of Python numbers these are Python numbers
TRANSPARENT = frozenset(INFIX) | {"not", "neg", "sum", "mean", "amax", "inner", "stop", "where"}


@dataclass(frozen=True)
class Expr:
    """Python text of a value, its precedence, and the nodes whose variables it reads."""

    text: str
    precedence: int = ATOM
    reads: tuple[Node, ...] = ()

    def at_least(self, precedence: int) -> str:
        """The text, in brackets where it binds weaker than asked."""
        return self.text if self.precedence >= precedence else f"({self.text})"

    @property
    def atom(self) -> str:
        return self.at_least(ATOM)


def expr_of(text: str, precedence: int = ATOM, *parts: Expr) -> Expr:
    """An expression made from parts: it reads what they read."""
    return Expr(text, precedence, tuple(r for p in parts for r in p.reads))


def number(value: Any) -> str:
    """A Python literal of a constant."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def is_python(node: Node) -> bool:
    """Whether the value is a plain Python number or bool in the generated code, not a tensor."""
    seen: set[Node] = set()
    stack = [node]
    while stack:  # no recursion: a thousand unrolled layers are one deep expression
        n = stack.pop()
        if n in seen or n.op in ("const", "training", "updates_of"):
            continue
        if n.type.batch or not n.args or n.op not in TRANSPARENT:
            return False
        seen.add(n)
        stack.extend(n.args)
    return True


def tensor(em: Emitter, node: Node, target: Type | None = None, features: int | None = None) -> Expr:
    """The operand as an atom or indexed atom, aligned with `target`; integers become floats where target is float."""
    e = em.done[node]
    if is_python(node):
        return e
    text = e.text
    changed = False
    if target is not None and em.writer.one_token and node.op in ("last", "index"):
        found = _by_axes_of_one(em, node, target, features)
        if found is not None:
            return found
    if target is not None:
        index = index_to(node.type, target, features)
        if index:
            text, changed = e.atom + index, True
        if target.dtype == "float" and node.type.dtype != "float":
            text, changed = (text if changed else e.atom) + ".to(c.dtype)", True
        elif target.dtype == "int" and node.type.dtype == "bool":
            text, changed = (text if changed else e.atom) + ".long()", True
    return expr_of(text, ATOM if changed else e.precedence, e)


def _by_axes_of_one(em: Emitter, node: Node, target: Type, features: int | None) -> Expr | None:
    """What lost its axis of the one token, or its only feature, may keep it as the axis that `target` asks for."""
    (x,) = node.args
    rank = len(target.shape) if features is None else features
    if rank <= len(node.type.shape) or x not in em.done or target.dtype != node.type.dtype:
        return None
    if node.op == "last":
        if target.clock:
            return None
        return tensor(em, x, target.with_(clock="T"), rank - 1)
    return tensor(em, x, target, rank) if x.type.shape == (1,) and em.done[x].text.isidentifier() else None


def as_tensor(em: Emitter, node: Node) -> Expr:
    """Like the operand itself, but a Python number becomes a tensor without axes (which does not promote others)."""
    e = em.done[node]
    return expr_of(f"torch.tensor(float({e.text}), dtype=torch.float64, device=c.device)") if is_python(node) else e


def variable(em: Emitter, node: Node) -> Expr:
    """The operand as a name, for operations that write it twice."""
    e = as_tensor(em, node)
    if not is_python(node) and not e.text.isidentifier():
        em.assign(node, e)
        e = em.done[node]
    return e
