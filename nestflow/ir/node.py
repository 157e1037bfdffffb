"""The typed expression IR: what is computed at one tick.

A node is an operation on other nodes. Nodes are interned: the same operation on the same arguments is the
same object, so equality is identity and a shared subexpression is shared everywhere. Feature axes only
appear in `type.shape`; the batch, the clock axis and the head axis are carried (`type.batch`,
`type.clock`, `type.heads`) and never indexed. The list of operations is in `nestflow/ir/ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from nestflow.diagnostics.core import Span


@dataclass(frozen=True, slots=True)
class Type:
    """dtype is float, int or bool. shape: the feature axes. batch: varies from row to row. clock: name of the
    token axis it carries, or None. heads: per head (that many), None is whole. short: ticks missing at the end
    (`next`). like: inside update rules, a tensor of the shape of `w` (then shape is () and has no meaning).
    unrolled: feature axis 0 is a token axis of known length (`patches`): levels tick along it."""

    dtype: str = "float"
    shape: tuple[int, ...] = ()
    batch: bool = False
    clock: str | None = None
    heads: int | None = None
    short: int = 0
    like: bool = False
    unrolled: bool = False

    def with_(self, **changes: Any) -> Type:
        return replace(self, **changes)

    @property
    def is_number(self) -> bool:
        """One number per tick (and head): what a gate or a rate may be."""
        size = 1
        for n in self.shape:
            size *= n
        return size == 1 and not self.like

    def __str__(self) -> str:
        if self.like:
            return f"{self.dtype} like w"
        dims = ([self.clock] if self.clock else []) + [str(n) for n in self.shape]
        if self.unrolled:
            dims[-len(self.shape)] += " patches"
        text = f"{self.dtype}[{', '.join(dims)}]" if dims else self.dtype
        return f"{text} per head" if self.heads else text


class Node:
    """One operation. Never construct it directly: `make` interns."""

    __slots__ = ("__weakref__", "args", "attrs", "op", "span", "type")

    def __init__(
        self, op: str, args: tuple[Node, ...], attrs: tuple[tuple[str, Hashable], ...], type: Type, span: Span | None
    ) -> None:
        self.op, self.args, self.attrs, self.type, self.span = op, args, attrs, type, span

    def __getitem__(self, name: str) -> Any:
        """An attribute by name; KeyError where there is none."""
        for key, value in self.attrs:
            if key == name:
                return value
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        for key, value in self.attrs:
            if key == name:
                return value
        return default

    @property
    def value(self) -> Any:
        """The number of a `const`."""
        return self["value"]

    def __repr__(self) -> str:
        from nestflow.ir.printer import show

        return show(self)


_interned: WeakValueDictionary[Any, Node] = WeakValueDictionary()


def make(
    op: str, args: tuple[Node, ...] = (), type: Type = Type(), span: Span | None = None, **attrs: Hashable
) -> Node:
    """The one node of this operation, arguments, attributes and type. The first span wins."""
    items = tuple(sorted(attrs.items()))
    # repr keeps 1, 1.0 and True apart, which are equal as dictionary keys
    key = (op, tuple(id(a) for a in args), repr(items), type)
    node = _interned.get(key)
    if node is None:
        node = Node(op, args, items, type, span)
        _interned[key] = node
    return node


def walk(*roots: Node) -> Iterator[Node]:
    """Every node below the roots once, arguments before users."""
    seen: set[int] = set()
    for root in roots:
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if id(node) in seen:
                continue
            if ready:
                seen.add(id(node))
                yield node
                continue
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.args) if id(a) not in seen)


def rebuild(
    root: Node, change: Callable[[Node, tuple[Node, ...]], Node | None], memo: dict[int, Node] | None = None
) -> Node:
    """The same DAG with some nodes replaced: `change(node, new_args)` gives the replacement, or None to keep it."""
    done: dict[int, Node] = {} if memo is None else memo
    for node in walk(root):
        if id(node) in done:
            continue
        args = tuple(done[id(a)] for a in node.args)
        new = change(node, args)
        if new is None:
            new = (
                node
                if all(a is b for a, b in zip(args, node.args))
                else make(node.op, args, node.type, node.span, **dict(node.attrs))
            )
        done[id(node)] = new
    return done[id(root)]


FLAT = frozenset(("stop", "sign", "floordiv"))  # they change, where they change at all, by jumps


def through(root: Node) -> Iterator[Node]:
    """Every node that a gradient of root can come to: none below a `stop`, a sign, a comparison or a class."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        n = stack.pop()
        if id(n) not in seen and n.op not in FLAT and n.type.dtype not in ("int", "bool"):
            seen.add(id(n))
            yield n
            stack += n.args


def depends(root: Node, test: Callable[[Node], bool]) -> bool:
    """Whether any node at or below root passes the test."""
    return any(test(n) for n in walk(root))
