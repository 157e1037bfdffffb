"""Which expressions of a level's loop are computed together: memories that run side by side do the same to other
tensors.

*Twins* are one tensor of several memories in one variable, a *pack* a row of nodes of one form, one for each of these
memories or of some that are neighbours there. Nodes of one form have equal depth, so that packs of them never
wait for one another; where forms differ below (memories of other output widths), rows are packed that lead to the
errors of twins, as long as no pack would then wait for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from nestflow.emit.operand import INFIX
from nestflow.emit.pointwise import CALLS
from nestflow.graph.model import MemoryTensor
from nestflow.graph.state import state_tensors
from nestflow.ir.alike import Alike
from nestflow.ir.node import Node, make, walk
from nestflow.lowering.plan import MemoryPlan

READINGS = frozenset(["solved", "linear_at"])  # they name the tensor that they read
PRODUCTS = frozenset(["linear", "matmul"])
ROWS = frozenset(["l2norm", "rmsnorm", "layernorm", "softmax", "log_softmax"])
PACKED = (
    READINGS
    | PRODUCTS
    | ROWS
    | frozenset(INFIX)
    | frozenset(CALLS)
    | {"neg", "not", "elu1", "max", "min", "where", "stop", "sum", "mean", "amax", "inner", "index"}
    | {"gelu_backward", "gelu_tanh_backward"}
)
MANY = 6  # memories whose orders are all tried

Pack = tuple[Node, ...]


@dataclass(frozen=True)
class Twins:
    """One tensor of each of several memories: same path, same shape."""

    members: tuple[tuple[MemoryPlan, MemoryTensor], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.memory.name for p, _ in self.members)

    @property
    def path(self) -> str:
        return self.members[0][1].path

    def leaves(self, leaf: Node) -> Pack:
        """The leaves of all members, where `leaf` is that of one."""
        attrs = dict(leaf.attrs)
        return tuple(make(leaf.op, (), leaf.type, leaf.span, **{**attrs, "memory": name}) for name in self.names)


def twins_of(group: Sequence[MemoryPlan]) -> list[Twins]:
    """The tensors of memories that run side by side, by path and shape."""
    found: dict[Hashable, list[tuple[MemoryPlan, MemoryTensor]]] = {}
    for p in group:
        for t in state_tensors(p.memory):
            found.setdefault((t.path, t.shape), []).append((p, t))
    return [Twins(tuple(members)) for members in found.values() if len(members) > 1]


class Packs:
    """twins; of: node -> its pack and its place there.

    groups: memories that run side by side. roots: what the loop evaluates. errors: of twins, the rows of nodes that
    its members' errors are. rule: of a memory and a tensor, what its rows are made of.
    """

    def __init__(
        self,
        groups: Iterable[Sequence[MemoryPlan]],
        roots: Sequence[Node],
        errors: Callable[[Twins], Iterable[Pack]],
        rule: Callable[[str, str], Hashable],
    ) -> None:
        self.rule, self.order = rule, list(walk(*roots))
        self.twins: list[Twins] = []
        self.of: dict[Node, tuple[Pack, int]] = {}
        self.place: dict[tuple[str, str], tuple[Twins, int]] = {}
        self.rules: dict[Hashable, int] = {}
        self.above: set[Node] = set()  # what a state of twins enters
        for group in groups:
            self._add(twins_of(group))
        forms = self._forms()
        for group in groups:
            self.twins = [s for s in self.twins if s.members[0][0] not in group]
            self._add(twins_of(self._ordered(group, forms)))
        self._states()
        self.owner: dict[Node, str] = {}
        for row in self._forms():
            self._pack(row)
        for own in self.twins:
            for row in errors(own):
                self._merge(row)
        for row in self._left():
            self._merge(row)

    def _add(self, twins: list[Twins]) -> None:
        self.twins += twins
        self.place.update({(p.memory.name, t.path): (s, i) for s in twins for i, (p, t) in enumerate(s.members)})

    def _states(self) -> None:
        for n in self.order:
            if n.op == "state" and (n["memory"], n["tensor"]) in self.place and n not in self.of:
                pack = self.place[n["memory"], n["tensor"]][0].leaves(n)
                self.of.update({x: (pack, i) for i, x in enumerate(pack)})

    # ---- rows of one form

    def _forms(self) -> list[list[Node]]:
        """Nodes of one form, arguments before users."""

        def leaf(n: Node) -> Hashable | None:
            known = self.place.get((n["memory"], n["tensor"])) if n.op == "state" else None
            return None if known is None else (id(known[0]), n["when"])

        alike = Alike(leaf, attrs=self._attrs)
        rows: dict[int, list[Node]] = {}
        for n in self.order:
            code = alike.code(n)
            if n in alike.above and n.op in PACKED and plain(n):
                rows.setdefault(code, []).append(n)
        self.above = alike.above
        return [row for row in rows.values() if len(row) > 1]

    def _attrs(self, n: Node) -> Hashable | None:
        """What must be equal besides the arguments; None for what is never packed."""
        if n.op not in PACKED or not plain(n):
            return None
        attrs = {k: v for k, v in n.attrs if n.op not in READINGS or k not in ("memory", "tensor")}
        if n.op in READINGS:
            known = self.place.get((n["memory"], n["tensor"]))
            if known is None:
                return None
            rule = self.rules.setdefault(self.rule(n["memory"], n["tensor"]), len(self.rules))
            attrs |= {"twin": id(known[0]), "rule": rule}
        return tuple(sorted(attrs.items()))

    def _tensor(self, n: Node) -> tuple[Twins, int] | None:
        """The tensor among twins that a node reads, and its place there."""
        if n.op in READINGS:
            return self.place.get((n["memory"], n["tensor"]))
        if n.op in PRODUCTS and n.args[1].op == "state":
            return self.place.get((n.args[1]["memory"], n.args[1]["tensor"]))
        return None

    def _ordered(self, group: Sequence[MemoryPlan], forms: list[list[Node]]) -> Sequence[MemoryPlan]:
        """An order in which memories that are read alike lie side by side, as far as there is one."""
        names = {p.memory.name for p in group}
        sets: list[set[str]] = []
        for row in forms:
            found = [self._tensor(n) for n in row]
            owners = {s.names[i] for s, i in (x for x in found if x is not None)}
            if owners and owners < names and len(owners) > 1:
                sets.append(owners)
        if not sets or len(group) > MANY:
            return group

        def apart(order: Sequence[MemoryPlan]) -> int:
            at = {p.memory.name: i for i, p in enumerate(order)}
            return sum(max(at[m] for m in s) - min(at[m] for m in s) + 1 - len(s) for s in sets)

        return min(permutations(group), key=apart)

    def _pack(self, row: list[Node]) -> None:
        rows: dict[Hashable, list[Node]] = {}
        for n in row:
            self.owner[n] = self._owner(n, row)
            packs = tuple(id(self.of[a][0]) if a in self.of else 0 for a in n.args)
            turn = 0
            while any(self.owner[x] == self.owner[n] for x in rows.get((packs, turn), ())):
                turn += 1
            rows.setdefault((packs, turn), []).append(n)
        for found in rows.values():
            found.sort(key=self._at)
            for run in self._runs(found):
                if len(run) > 1 and self._fits(run):
                    self._install(run)

    def _owner(self, n: Node, row: list[Node]) -> str:
        """The memory whose node it is: that of the tensor which it reads, or of the argument in which it differs."""
        known = self._tensor(n)
        if known is not None:
            return known[0].names[known[1]]
        for i, a in enumerate(n.args):
            if any(x.args[i] is not a for x in row):
                return self.owner.get(a, "")
        return ""

    def _at(self, n: Node) -> int:
        """Where it comes in its pack: in the order of the twins, or of the pack that it is made from."""
        known = self._tensor(n)
        return known[1] if known else min((self.of[a][1] for a in n.args if a in self.of), default=0)

    def _runs(self, row: list[Node]) -> list[list[Node]]:
        """The row, cut where its tensors do not lie side by side."""
        runs: list[list[Node]] = []
        for n in row:
            known = self._tensor(n)
            last = self._tensor(runs[-1][-1]) if runs else None
            if runs and (known is None or last is None or known[1] == last[1] + 1):
                runs[-1].append(n)
            else:
                runs.append([n])
        return runs

    # ---- whether nodes go together

    def _fits(self, row: Sequence[Node]) -> bool:
        """Nodes that one operation can compute: what differs are tensors side by side, or values of every tick."""
        first = row[0]
        if any(n.op != first.op or n.type != first.type or len(n.args) != len(first.args) for n in row):
            return False
        if not plain(first) or first.op not in PACKED or len({repr(self._attrs(n)) for n in row}) > 1:
            return False
        tensors = [self._tensor(n) for n in row]
        if any(x is not None for x in tensors):
            known = [x for x in tensors if x is not None]
            if len(known) < len(row) or any(
                s is not known[0][0] or i != known[0][1] + k for k, (s, i) in enumerate(known)
            ):
                return False
        for i, args in enumerate(zip(*(n.args for n in row))):
            if len(set(args)) == 1 or (first.op in PRODUCTS and i == 1 and tensors[0] is not None):
                continue
            if any(a.type != args[0].type or not whole(a, first) for a in args):
                return False
        return True

    def _left(self) -> Iterable[Pack]:
        """Rows of nodes that read neighbours among twins, each at an input of its own; users before arguments."""
        rows: dict[Hashable, dict[int, list[Node]]] = {}
        for n in reversed(self.order):
            known = self._tensor(n)
            if known is not None and n not in self.of and self._attrs(n) is not None:
                form = id(known[0]), n.args[1]["when"] if n.op in PRODUCTS else "", n.op, repr(self._attrs(n))
                rows.setdefault(form, {}).setdefault(known[1], []).append(n)
        for places in rows.values():
            for turn in range(max(map(len, places.values()))):
                found = [places[i][turn] for i in sorted(places) if len(places[i]) > turn]
                yield from (tuple(run) for run in self._runs(found) if len(run) > 1)

    def _merge(self, row: Pack) -> None:
        """Pack a row, and what it is made from."""
        if len(set(row)) < len(row) or any(n not in self.above for n in row) or not self._fits(row):
            return
        packs = [self.of[n][0] for n in row if n in self.of]
        if packs and packs[0] == row:
            return
        if any(x not in row for p in packs for x in p):
            return
        before = {n: self.of.pop(n) for n in row if n in self.of}
        self._install(row)
        if not acyclic(self.order, self._unit):
            for n in row:
                del self.of[n]
            self.of.update(before)
            return
        for args in zip(*(n.args for n in row)):
            self._merge(args)

    def _install(self, row: Sequence[Node]) -> None:
        pack = tuple(row)
        self.of.update({n: (pack, i) for i, n in enumerate(pack)})

    def _unit(self, n: Node) -> Pack:
        return self.of[n][0] if n in self.of else (n,)


def acyclic(order: Sequence[Node], unit: Callable[[Node], Pack]) -> bool:
    """Whether nodes can be computed a unit at a time: none waits for itself. order: all nodes."""
    done: set[Pack] = set()
    begun: set[Pack] = set()
    for root in order:
        todo: list[tuple[Pack, bool]] = [(unit(root), False)]
        while todo:
            now, ready = todo.pop()
            if ready:
                begun.discard(now)
                done.add(now)
            elif now in begun:
                return False
            elif now not in done:
                begun.add(now)
                todo.append((now, True))
                todo += [(u, False) for u in {unit(a) for n in now for a in n.args} if u not in done]
    return True


def plain(n: Node) -> bool:
    """A value of every tick with one feature axis at most: an axis in front of all others disturbs nothing."""
    return bool(n.type.batch and n.type.clock) and len(n.type.shape) <= 1 and not n.type.short


def whole(a: Node, like: Node) -> bool:
    """An operand that has all carried axes of the result."""
    return plain(a) and a.type.heads == like.type.heads and a.type.clock == like.type.clock
