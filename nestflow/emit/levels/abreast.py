"""Memories that run side by side, in a level's loop: what was one node for each of them becomes one for all.

The value of a pack has an axis A in front of all others, with one entry for each memory; what its operations read of
no memory broadcasts against it. Besides the operations themselves:
  lane(x; at), lanes(x; first, last)   one entry of such a value; some that lie side by side
  joined(x, ...)                       entries of several packs, one behind the other
  abreast(x, ...)                      values that were apart
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from nestflow.emit.levels.below import Below
from nestflow.emit.levels.leaves import start_leaves
from nestflow.emit.levels.packs import READINGS, Pack, Packs, Twins
from nestflow.emit.levels.roots import roots_of
from nestflow.ir.node import Node, make, walk
from nestflow.lowering.linear_rule import LinearRule

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode

Run = tuple[int, int]


class Abreast:
    """wide: the nodes that have the axis A. runs: node -> which of its entries are read apart from the others; counts:
    how many it has."""

    def __init__(self, level: LevelCode) -> None:
        self.level, self.nodes = level, level.nodes
        self.memo: dict[Node, Node] = {}
        self.made: dict[Pack, Node] = {}
        self.wide: set[Node] = set()
        self.runs: dict[Node, dict[Run, None]] = {}
        self.counts: dict[Node, int] = {}
        self.packs: Packs | None = None
        if level.plan.groups:
            table = level.nodes.plans
            self.packs = Packs(
                level.plan.groups,
                roots_of(level),
                self._errors,
                lambda memory, tensor: level.nodes.rule(table[memory], tensor),
            )
            self._replace()
            self._below()

    @property
    def twins(self) -> list[Twins]:
        return self.packs.twins if self.packs is not None else []

    def twin_of(self, memory: str, tensor: str) -> tuple[Twins, int] | None:
        """The twins of a tensor, itself among them, and its place there."""
        return None if self.packs is None else self.packs.place.get((memory, tensor))

    def beside(self, memory: str) -> list[str]:
        """The memory, and those that learn where it does: of the twins whose first is its own."""
        return list(dict.fromkeys((memory, *(name for s in self.twins if s.names[0] == memory for name in s.names))))

    def leaf(self, leaf: Node) -> Node:
        """The state of all twins, where `leaf` is that of one of its tensors."""
        known = self.twin_of(leaf["memory"], leaf["tensor"].removeprefix("slot:")) if leaf.op == "state" else None
        if known is None:
            return leaf
        first = known[0].leaves(leaf)[0]
        found = make(first.op, (), first.type, first.span, **dict(first.attrs), lanes=len(known[0].members))
        self.wide.add(found)
        return found

    def starts(self, n: Node) -> list[Node]:
        """The states that a reading starts from: of a pack its tensors, else its own."""
        p, own = self.nodes.plans[n["memory"]], self._twins_read(n)
        return [self.of(n, x) for x in start_leaves(p, own.members[0][1])]

    def of(self, n: Node, leaf: Node) -> Node:
        """Of the state that `leaf` is part of, what a reading reads."""
        own = self._twins_read(n)
        return self._run(self.leaf(leaf), len(own.members), *n["lanes"], alone=n["alone"])

    def _twins_read(self, n: Node) -> Twins:
        known = self.twin_of(n["memory"], n["tensor"])
        assert known is not None, "only readings of twins have lanes"
        return known[0]

    # ---- what is there already, replaced

    def _errors(self, own: Twins) -> Iterable[Pack]:
        pairs = zip(*(self.nodes.errors[name][own.path] for name in own.names), strict=True)
        for row in pairs:
            for at in (1, 0):
                yield tuple(pair[at] for pair in row)

    def _replace(self) -> None:
        """Errors, rates and recalls of the level. The errors of twins are those of its first memory from now on."""
        nodes, level = self.nodes, self.level
        errors = {
            (s.names[0], s.path): tuple((self._joined(h), self._joined(e)) for e, h in in_pairs(self._errors(s)))
            for s in self.twins
        }
        for name, own in nodes.errors.items():
            kept = {t: pairs for t, pairs in own.items() if self.twin_of(name, t) is None}
            nodes.errors[name] = {t: tuple((self.put(h), self.put(e)) for h, e in p) for t, p in kept.items()}
            nodes.errors[name] |= {t: pairs for (m, t), pairs in errors.items() if m == name}
        nodes.dense = {m: {t: self.put(g) for t, g in own.items()} for m, own in nodes.dense.items()}
        nodes.rules = {key: with_numbers(rule, self.put) for key, rule in nodes.rules.items()}
        level.reads = [self.put(y) for y in level.reads]
        nodes.put = self.put

    def _below(self) -> None:
        """Inputs that read the same twins, below one another."""
        nodes, level = self.nodes, self.level

        def fits(w: Node) -> bool:
            w = w.args[0] if w.op in ("lane", "lanes") else w
            return w.op == "state" and w.get("lanes") is not None

        rows = Below(roots_of(level), fits, self.wide, self._like)
        for table in nodes.errors.values():
            table.update({t: tuple((rows.put(h), rows.put(e)) for h, e in pairs) for t, pairs in table.items()})
        for table in nodes.dense.values():
            table.update({t: rows.put(g) for t, g in table.items()})
        nodes.rules = {key: with_numbers(rule, rows.put) for key, rule in nodes.rules.items()}
        level.reads = [rows.put(y) for y in level.reads]
        nodes.put = lambda n: rows.put(self.put(n))

    def _like(self, new: Node, old: Node) -> None:
        """A node that takes the place of another has the axes of that one."""
        if old in self.wide:
            self.wide.add(new)
        if old in self.counts:
            self.counts[new] = self.counts[old]

    def look(self, roots: Iterable[Node]) -> None:
        """Note which entries of values the loop reads apart. roots: all that it evaluates."""
        for n in walk(*roots):
            reading = n.get("lanes") is not None and n.op in READINGS and (n.op != "linear_at" or n.get("place"))
            for x in [n, *(self.starts(n) if reading else ())]:
                if x.op in ("lane", "lanes"):
                    self.runs.setdefault(x.args[0], {})[run_of(x)] = None

    def put(self, root: Node) -> Node:
        """An expression of the loop, with packs put in."""
        if self.packs is None:
            return root
        for n in walk(root):
            if n not in self.memo:
                self.memo[n] = self._one(n)
        return self.memo[root]

    def _one(self, n: Node) -> Node:
        assert self.packs is not None
        if n in self.packs.of:
            pack, at = self.packs.of[n]
            return self._run(self._pack(pack), len(pack), at, at + 1, alone=True)
        args = tuple(self.put(a) for a in n.args)
        attrs = dict(n.attrs)
        known = self.twin_of(n["memory"], n["tensor"]) if n.op in READINGS and n.get("lanes") is None else None
        if known is not None:
            attrs |= {"lanes": (known[1], known[1] + 1), "alone": True}
        elif all(a is b for a, b in zip(args, n.args)):
            return n
        return make(n.op, args, n.type, n.span, **attrs)

    def _pack(self, pack: Pack) -> Node:
        """The one node of a pack."""
        if pack not in self.made:
            self.made[pack] = self._whole(pack)
            self.wide.add(self.made[pack])
        return self.made[pack]

    def _whole(self, pack: Pack) -> Node:
        first = pack[0]
        if first.op == "state":
            return self.leaf(first)
        args = tuple(self._operand(args) for args in zip(*(n.args for n in pack)))
        attrs = dict(first.attrs)
        if first.op in READINGS:
            known = self.twin_of(first["memory"], first["tensor"])
            assert known is not None
            attrs |= {"lanes": (known[1], known[1] + len(pack)), "alone": False}
        return make(first.op, args, first.type, first.span, **attrs)

    def _operand(self, row: Pack) -> Node:
        return self.put(row[0]) if all(a is row[0] for a in row) else self._joined(row)

    def _joined(self, row: Pack) -> Node:
        """Values of several memories with the axis A: entries of packs as they lie, others put beside them."""
        assert self.packs is not None
        if all(a is row[0] for a in row):
            return self.put(row[0])
        parts: list[Node] = []
        at = 0
        while at < len(row):
            known = self.packs.of.get(row[at])
            end = at + 1
            if known is None:
                while end < len(row) and row[end] not in self.packs.of:
                    end += 1
                parts.append(self._made("abreast", tuple(self.put(a) for a in row[at:end]), row[at]))
            else:
                pack, first = known
                while end < len(row) and self.packs.of.get(row[end]) == (pack, first + end - at):
                    end += 1
                parts.append(self._run(self._pack(pack), len(pack), first, first + end - at, alone=False))
            at = end
        return parts[0] if len(parts) == 1 else self._made("joined", tuple(parts), row[0])

    def _made(self, op: str, args: tuple[Node, ...], like: Node) -> Node:
        found = make(op, args, like.type, like.span)
        self.wide.add(found)
        return found

    def _run(self, x: Node, count: int, first: int, last: int, *, alone: bool) -> Node:
        """Some entries of a value with the axis A. alone: the one entry without that axis."""
        if not alone and (first, last) == (0, count):
            return x
        self.counts[x] = count
        if alone:
            return make("lane", (x,), x.type, x.span, at=first)
        found = make("lanes", (x,), x.type, x.span, first=first, last=last)
        self.wide.add(found)
        return found


def with_numbers(rule: LinearRule, put: Callable[[Node], Node]) -> LinearRule:
    """The recurrence with its numbers put in another way."""
    carries = (replace(c, decay=put(c.decay), drive=tuple((w, put(k)) for w, k in c.drive)) for c in rule.carries)
    return LinearRule(tuple(carries), rule.dgd)


def in_pairs(rows: Iterable[Pack]) -> Iterable[tuple[Pack, Pack]]:
    found = iter(rows)
    return zip(found, found)


def run_of(n: Node) -> Run:
    """Which entries a `lane` or `lanes` is."""
    return (n["at"], n["at"] + 1) if n.op == "lane" else (n["first"], n["last"])


def apart(runs: Iterable[Run]) -> list[Run]:
    """Those of the runs that one `split` gives, in order: no entry is in two of them, long ones go first."""
    found: list[Run] = []
    for first, last in sorted(runs, key=lambda r: (r[0] - r[1], r)):
        if all(last <= a or b <= first for a, b in found):
            found.append((first, last))
    return sorted(found)
