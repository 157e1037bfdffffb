"""Matrices of a memory that pass through the loop with the slots of their rule below them (`nestflow.ops.stack`).

So do those that learn chunk by chunk in closed form, by rates that no state enters, and begin anew with the sequence
alone. What reads them, and what their errors leave in them, is made ready for all pieces before the loop where no
state enters it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nestflow.emit.levels.facts import packed
from nestflow.emit.levels.nodes import state
from nestflow.emit.levels.rows import RowsKey, starts_of
from nestflow.emit.ops import tensor
from nestflow.graph.model import Memory, MemoryTensor
from nestflow.graph.state import keeps_anchor, state_tensors
from nestflow.ir.node import Node, Type
from nestflow.lowering.linear_rule import AS_CHUNK_BEGAN
from nestflow.lowering.plan import MemoryPlan

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode

STACK = "nestflow.ops.stack"
Key = tuple[str, str]  # memory, tensor


class Stacks:
    """of: memory and tensor -> the variable of the stack. whole: nodes evaluated before the loop."""

    def __init__(self, level: LevelCode, early: Sequence[tuple[MemoryPlan, str]]) -> None:
        self.level, self.of = level, dict[Key, str]()
        self.made: dict[str, str] = {}  # what is made for every piece before the loop -> its variable in a piece
        self.like: dict[RowsKey, str] = {}  # rows -> the first stack that is read by them
        self.fit = {(p.memory.name, t) for p, t in early if self.fits(p, t)}

    def fits(self, p: MemoryPlan, tensor_path: str) -> bool:
        m, rule = p.memory, p.rules[tensor_path]
        spec = next(t for t in state_tensors(m) if t.path == tensor_path)
        begins = m.reset is not None or m.reset_where is not None
        known = rule.dgd is None and AS_CHUNK_BEGAN not in starts_of(rule, m.every)
        pairs = self.level.nodes.errors[m.name].get(tensor_path)
        return p.pattern == "chunk" and len(spec.shape) == 2 and not begins and known and bool(pairs)

    def tensors(self) -> list[tuple[MemoryPlan, MemoryTensor]]:
        """The stacked tensors, in the order of the state."""
        return [
            (p, t)
            for p in self.level.plan.looped
            for t in state_tensors(p.memory)
            if (p.memory.name, t.path) in self.fit
        ]

    # around the loop ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the loop: starts become stacks."""
        for p, t in self.tensors():
            names = self.level.state.starts(p, t)
            stem = names[0].rpartition("_")[0] or names[0]
            name = self.of[p.memory.name, t.path] = self.level.variable(f"{stem}_stack")
            word = self.level.writer.use(STACK, "stacked")
            self.level.writer.line(f"{name} = {word}({', '.join(names)})")
            self.like.setdefault(self.row_key((p.memory.name, t.path)), name)

    def end(self) -> None:
        """Behind it: they are starts again."""
        for p, t in self.tensors():
            names = self.level.state.starts(p, t)
            word = self.level.writer.use(STACK, "unstacked")
            targets = ", ".join(names) + ("," if len(names) == 1 else "")
            self.level.writer.line(f"{targets} = {word}({self.of[p.memory.name, t.path]})")
        for chunk, now in self.anchors():
            self.level.writer.line(f"{chunk} = {now} if {chunk} is None else {chunk}")

    def anchors(self, of: Memory | None = None) -> list[tuple[str, str]]:
        """Variables of the chunk's first state, each beside that of the state now."""
        found = []
        for p, t in self.tensors():
            m = p.memory
            if keeps_anchor(m) and of in (None, m):
                type_ = Type(shape=t.shape, heads=m.heads)
                chunk, now = (self.level.state.names[state(m, t.path, when, type_)] for when in ("chunk", "now"))
                found.append((chunk, now))
        return found

    def unpack(self) -> None:
        """At the beginning of a piece: the starts where they stand in their stacks. What is not used is dropped."""
        for p, t in self.tensors():
            word = self.level.writer.use(STACK, "slot")
            for j, name in enumerate(self.level.state.starts(p, t)):
                self.level.writer.line(f"{name} = {word}({self.of[p.memory.name, t.path]}, {j})")

    # in a piece ----------------------------------------------------------------------------------------

    def recall(self, n: Node) -> str:
        """`linear_at` of a stacked tensor."""
        key = n["memory"], n["tensor"]
        x, *factors = n.args
        h, e = factors[::2], factors[1::2]
        seen = self.look(n, x, h, key)
        word = self.level.writer.use(STACK, "recalled")
        return f"{word}({', '.join([seen, self.of[key], *(self.level.inner.done[y].text for y in e)])})"

    def look(self, n: Node, x: Node, h: Sequence[Node], key: Key) -> str:
        level, rows, like = self.level, self.rows(key, n["place"]), self.like[self.row_key(key)]
        if self.known(x, *h):
            word = level.writer.use(STACK, "looks")
            first = tensor(level.outer, x, n.type.with_(shape=x.type.shape), 1).text
            more = [level.outer.done[y].text for y in h]
            return self.before(f"{word}({', '.join([first, rows, 'sizes', like, *more])})", "look")
        olds, word = level.writer.use(STACK, "olds"), level.writer.use(STACK, "look")
        old = self.before(f"{olds}({rows}, sizes, {like})", "old")
        first = tensor(level.inner, x, n.type.with_(shape=x.type.shape), 1).text
        name = level.variable("look")
        more = [level.inner.done[y].text for y in h]
        level.writer.line(f"{name} = {word}({', '.join([first, old, self.of[key], *more])})")
        return name

    def advance(self, p: MemoryPlan, t: MemoryTensor) -> str:
        """The stack after the piece."""
        level, key = self.level, (p.memory.name, t.path)
        rows, stack, like = packed(self.all_rows(key)), self.of[key], self.like[self.row_key(key)]
        pairs: list[str] = []
        words = {w: level.writer.use(STACK, w) for w in ("ends", "advanced")}
        ends = self.before(f"{words['ends']}({rows}, sizes, {like})", "ends")
        for h, e in level.nodes.errors[p.memory.name][t.path]:
            if self.known(h):
                word, whole = level.writer.use(STACK, "leavings"), level.outer.done[h].text
                left = self.before(f"{word}({whole}, {rows}, sizes, {like})", "left")
            else:
                left = f"{level.writer.use(STACK, 'leaving')}({level.inner.value(h)}, {ends}, {stack})"
            pairs.append(f"({left}, {level.inner.value(e)})")
        return f"{words['advanced']}({', '.join([stack, ends, *pairs])})"

    def known(self, *nodes: Node) -> bool:
        """Whether they are numbers of every tick that no state enters."""
        return all(n in self.level.whole for n in nodes)

    def before(self, text: str, base: str) -> str:
        """Something of every piece, made before the loop: its variable in a piece."""
        if text not in self.made:
            self.made[text] = self.level.split_rows(text, base)
        return self.made[text]

    def rows(self, key: Key, place: str) -> str:
        names = self.level.rows.names[self.row_key(key)]
        if place == "after":
            return names.raw
        self.level.writer.use("nestflow.ops.coefficients", "lag")
        return f"lag({names.raw}, 0)"

    def all_rows(self, key: Key) -> list[str]:
        names, row_key = self.level.rows.names[self.row_key(key)], self.row_key(key)
        return [names.whole[slot] for slot in starts_of(row_key.rule, row_key.every)]

    def row_key(self, key: Key) -> RowsKey:
        plan = self.level.nodes.plans[key[0]]
        return self.level.rows.key(plan, key[1])


__all__ = ["Stacks"]
