"""Inputs that read one tensor, below one another: one product where each had one of its own.

Keys and what a memory makes its own targets of read it at one state; as rows of one operand they are one product, and
so is what follows from both alike. Where the ways part, so do the rows:
  below(x, ...)     ticks of several values, one behind the other
  part(x; at, of)   those of one of them again
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Sequence

from nestflow.emit.levels.packs import PACKED, READINGS, Pack, acyclic, plain
from nestflow.ir.node import Node, make, walk

ALIKE = (PACKED - READINGS) | {"lanes"}


class Below:
    """put: an expression of the loop, with the rows put in.

    roots: what the loop evaluates. fits: the tensors of which this is to be done. wide: values with the axis A, which
    are rows of their own. made: told of every node that takes the place of others, and of one of these.
    """

    def __init__(
        self,
        roots: Sequence[Node],
        fits: Callable[[Node], bool],
        wide: Container[Node],
        made: Callable[[Node, Node], None],
    ) -> None:
        self.order = list(walk(*roots))
        self.of: dict[Node, tuple[Pack, int]] = {}
        self.inputs: set[Pack] = set()
        self.users: dict[Node, list[Node]] = defaultdict(list)
        self.memo: dict[Node, Node] = {}
        self.tell = made
        for n in self.order:
            for a in dict.fromkeys(n.args):
                self.users[a].append(n)
        readers: dict[tuple[Node, bool], list[Node]] = defaultdict(list)
        for n in self.order:
            if n.op == "linear" and fits(n.args[1]) and plain(n.args[0]) and len(n.args[0].type.shape) == 1:
                readers[n.args[1], n.args[0] in wide].append(n)
        for found in readers.values():
            self._start([n for n in found if plain(n) and len(n.type.shape) == 1])

    def _start(self, found: list[Node]) -> None:
        row: list[Node] = []
        for n in found:
            alike = not row or n.args[0].type == row[0].args[0].type
            if n not in self.of and alike and acyclic(self.order, lambda x, own=(*row, n): self._unit(x, own)):
                row.append(n)
        if len(row) > 1:
            self.inputs.add(tuple(n.args[0] for n in row))
            self._add(tuple(row))

    def _unit(self, n: Node, more: Pack = ()) -> Pack:
        return more if n in more else self.of[n][0] if n in self.of else (n,)

    def _add(self, row: Pack) -> None:
        """Note a row, and those that are made of it alike."""
        self.of.update({n: (row, i) for i, n in enumerate(row)})
        for user in self.users[row[0]]:
            others = [next((u for u in self.users[n] if self._fit(user, u, row)), None) for n in row[1:]]
            further = (user, *(u for u in others if u is not None))
            if len(further) == len(row) and not any(n in self.of for n in further):
                rows = [tuple(args) for args in zip(*(n.args for n in further))]
                alike = all(self._row(r) or (len(set(r)) == 1 and not r[0].type.clock) for r in rows)
                if alike and acyclic(self.order, lambda x, own=further: self._unit(x, own)):
                    self._add(further)

    def _row(self, r: Pack) -> bool:
        return r[0] in self.of and self.of[r[0]][0] == r

    @staticmethod
    def _fit(a: Node, b: Node, row: Pack) -> bool:
        """Whether two nodes do the same, the second with another member of the row than the first."""
        same = a.op == b.op and a.attrs == b.attrs and a.type == b.type and len(a.args) == len(b.args)
        places = [x in row for x in a.args] == [x in row for x in b.args]
        return same and a is not b and places and a.op in ALIKE and plain(a) and len(a.type.shape) == 1

    # ---- put in

    def put(self, root: Node) -> Node:
        for n in walk(root):
            if n not in self.memo:
                self.memo[n] = self._one(n)
        return self.memo[root]

    def _one(self, n: Node) -> Node:
        if n in self.of:
            row, at = self.of[n]
            found = make("part", (self._made(row),), n.type, n.span, at=at, of=len(row))
            self.tell(found, n)
            return found
        args = tuple(self.put(a) for a in n.args)
        if all(a is b for a, b in zip(args, n.args)):
            return n
        found = make(n.op, args, n.type, n.span, **dict(n.attrs))
        self.tell(found, n)
        return found

    def _made(self, row: Pack) -> Node:
        first, args = row[0], []
        for r in zip(*(n.args for n in row)):
            if r in self.inputs and not self._row(r):
                args.append(make("below", tuple(self.put(a) for a in r), r[0].type))
                self.tell(args[-1], r[0])
            else:
                args.append(self._made(self.of[r[0]][0]) if self._row(r) else self.put(r[0]))
        found = make(first.op, tuple(args), first.type, first.span, **dict(first.attrs))
        self.tell(found, first)
        return found
