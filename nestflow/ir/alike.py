"""Which expressions are of one form: the same operations around other leaves.

A code is a number: nodes with equal codes differ in nothing but what `leaf` takes to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from nestflow.ir.node import Node, walk


class Alike:
    """leaf(node): how a node counts whose form goes no further (None: it is no such leaf). free(node): the same for
    what lies above no leaf, the node itself by default. attrs(node): what of an operation's attributes counts."""

    def __init__(
        self,
        leaf: Callable[[Node], Hashable | None],
        free: Callable[[Node], Hashable] = id,
        attrs: Callable[[Node], Hashable | None] = lambda n: n.attrs,
    ) -> None:
        self.leaf, self.free, self.attrs = leaf, free, attrs
        self.codes: dict[Hashable, int] = {}
        self.known: dict[Node, int] = {}
        self.above: set[Node] = set()  # nodes with a leaf at or below them

    def code(self, root: Node) -> int:
        for n in walk(root):
            if n not in self.known:
                self.known[n] = self.codes.setdefault(self._form(n), len(self.codes))
        return self.known[root]

    def _form(self, n: Node) -> Hashable:
        leaf = self.leaf(n)
        if leaf is not None:
            self.above.add(n)
            return "leaf", leaf
        if not any(a in self.above for a in n.args):
            return "free", self.free(n)
        self.above.add(n)
        attrs = self.attrs(n)
        # repr keeps 1, 1.0 and True apart
        return (n.op, n.type, repr(attrs), *(self.known[a] for a in n.args)) if attrs is not None else ("own", id(n))
