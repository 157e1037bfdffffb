"""Matrices of a memory that pass through the loop with the slots of their rule below them (`nestflow.ops.stack`).

So do those that learn chunk by chunk in closed form, by rates that no state enters, and begin anew with the sequence
alone. What reads them, and what their errors leave in them, is made ready for all pieces before the loop where no
state enters it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nestflow.emit.levels.facts import packed
from nestflow.emit.levels.nodes import per_tick, state
from nestflow.emit.levels.rows import COEFFICIENTS, RowsKey, starts_of
from nestflow.emit.ops import tensor
from nestflow.graph.model import MemoryTensor
from nestflow.graph.state import keeps_anchor, state_tensors
from nestflow.ir.node import Node, Type, walk
from nestflow.lowering.linear_rule import AS_CHUNK_BEGAN
from nestflow.lowering.plan import MemoryPlan

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode

STACK = "nestflow.ops.stack"
Key = tuple[str, str]  # memory, tensor


class Stacks:
    """of: memory and tensor -> the variable of the stack. whole: nodes evaluated before the loop."""

    def __init__(self, level: LevelCode, early: Sequence[tuple[MemoryPlan, str]], loop: set[Node]) -> None:
        self.level, self.of, self.loop = level, dict[Key, str](), loop
        self.made: dict[str, str] = {}  # what is made for every piece before the loop -> its variable in a piece
        # heads, memories side by side -> the variable with the axes before a weight's own
        self.leads: dict[tuple[int | None, int], str] = {}
        self.fit = {(p.memory.name, t) for p, t in early if self.fits(p, t)}

    def fits(self, p: MemoryPlan, tensor_path: str) -> bool:
        m, rule = p.memory, p.rules[tensor_path]
        spec = next(t for t in state_tensors(m) if t.path == tensor_path)
        begins = m.reset is not None or m.reset_where is not None
        pairs = self.level.nodes.errors[m.name].get(tensor_path, ())
        solved = [n for pair in pairs for n in walk(*pair) if n.op == "solved"]
        ahead = all(a.op == "const" or (a.type.clock and a not in self.loop) for n in solved for a in n.args)
        dense = self.level.nodes.dense[m.name].get(tensor_path) is not None
        vector = len(spec.shape) == 1 and dense and not pairs
        matrix = len(spec.shape) == 2 and bool(pairs) and not dense
        alone = self.level.abreast.twin_of(m.name, tensor_path) is None
        if not alone and (vector or AS_CHUNK_BEGAN in starts_of(rule, m.every)):
            return False
        return (matrix or vector) and not begins and rule.dgd is None and ahead

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
            key = self.lead_key(p.memory.name, t.path)
            if key not in self.leads:
                self.leads[key] = lead = self.level.variable("lead")
                self.level.writer.line(f"{lead} = tuple({names[0]}.shape[:-{len(t.shape)}])")
            if len(t.shape) == 1:  # a vector is a matrix with one input, which is always one
                names = [f"{x}[..., None]" for x in names]
            self.level.writer.line(f"{name} = {word}({', '.join(names)})")

    def lay_out(self, given: Sequence[str]) -> None:
        """Vectors of all ticks that are read several times for the loop lie in the order of its pieces. given: what the
        loop is given for every piece."""
        words = Counter(w for text in given for w in set(re.findall(r"\w+", text))) if self.of else Counter[str]()
        vectors = dict.fromkeys(self.level.outer.done[n].text for n in self.level.whole if len(n.type.shape) == 1)
        for x in sorted(x for x in vectors if words[x] > 1):
            self.level.writer.line(f"{x} = {x}.contiguous()")

    def end(self) -> None:
        """Behind it: they are starts again."""
        for p, t in self.tensors():
            names = self.level.state.starts(p, t)
            word, stack = self.level.writer.use(STACK, "unstacked"), self.of[p.memory.name, t.path]
            self.level.writer.line(
                f"{packed(names)} = {word}({stack}, {self.lead(p.memory.name, t.path)}, {len(names)}, {len(t.shape)})"
            )
        for chunk, now in self.anchors():
            self.level.writer.line(f"{chunk} = {now} if {chunk} is None else {chunk}")

    def anchors(self) -> list[tuple[str, str]]:
        """Variables of the chunk's first state, each beside that of the state now."""
        found = []
        for p, t in self.tensors():
            m = p.memory
            if keeps_anchor(m) and self.began(p, t) is None:
                type_ = Type(shape=t.shape, heads=m.heads)
                leaves = (self.level.abreast.leaf(state(m, t.path, when, type_)) for when in ("chunk", "now"))
                chunk, now = (self.level.state.names[x] for x in leaves)
                found.append((chunk, now))
        return found

    def began(self, p: MemoryPlan, t: MemoryTensor) -> int | None:
        """Where in the stack the chunk's first state stands, if the rule goes on from it."""
        starts = starts_of(p.rules[t.path], p.memory.every)
        return starts.index(AS_CHUNK_BEGAN) if AS_CHUNK_BEGAN in starts else None

    def chunk_ends(self, chunk: int) -> set[str]:
        """Some stacks have what the chunk begins with as a start of its own; the variables of these."""
        within: set[str] = set()
        for p, t in self.tensors():
            j = self.began(p, t)
            if j is not None and p.memory.chunk == chunk:
                stack, names = self.of[p.memory.name, t.path], self.level.state.starts(p, t)
                word = self.level.writer.use(STACK, "begun")
                self.level.writer.line(f"{stack} = {word}({stack}, {j}, {len(names)})")
                within.add(names[j])
        return within

    def unpack(self) -> None:
        """At the beginning of a piece: the starts where they stand in their stacks. What is not used is dropped."""
        for p, t in self.tensors():
            word = self.level.writer.use(STACK, "slot")
            names, stack = self.level.state.starts(p, t), self.of[p.memory.name, t.path]
            lead = self.lead(p.memory.name, t.path)
            for j, name in enumerate(names):
                self.level.writer.line(f"{name} = {word}({stack}, {lead}, {j}, {len(names)}, {len(t.shape)})")

    # in a piece ----------------------------------------------------------------------------------------

    def takes(self, n: Node) -> bool:
        """Whether a reading is of a stack, and of all memories in it that run side by side."""
        lanes, twins = n.get("lanes"), self.level.abreast.twin_of(n["memory"], n["tensor"])
        all_ = twins is None or (lanes == (0, len(twins[0].members)) and not n["alone"])
        return (n["memory"], n["tensor"]) in self.of and all_

    def recall(self, n: Node) -> str:
        """`linear_at` of a stacked tensor."""
        level, key = self.level, (n["memory"], n["tensor"])
        x, *factors = n.args
        h, e = factors[::2], factors[1::2]
        lead, rows = self.lead(*key), self.rows(key, n["place"])
        word, wide = level.writer.use(STACK, "recalled"), n.type.with_(shape=x.type.shape)
        later = [level.inner.done[y].text for y in e]
        if self.known(x, *h):
            parts = [tensor(level.outer, x, wide, 1).text, rows, "sizes", lead, *(level.outer.done[y].text for y in h)]
            if self.known(*e):
                parts.append(f"errors={packed([level.outer.done[y].text for y in e])}")
                later = []
            look = self.before(f"{level.writer.use(STACK, 'looks')}({', '.join(parts)})", "look")
        else:
            old = self.before(f"{level.writer.use(STACK, 'olds')}({rows}, sizes, {lead})", "old")
            parts = [tensor(level.inner, x, wide, 1).text, old, lead, *(level.inner.done[y].text for y in h)]
            make = level.writer.use(STACK, "look")  # first: a variable may not have its name
            look = level.variable("look")
            level.writer.line(f"{look} = {make}({', '.join(parts)})")
        return f"{word}({', '.join([look, self.of[key], lead, *later])})"

    def recall_vector(self, n: Node) -> str:
        """`tensor_at` of a stacked vector."""
        level, key = self.level, (n["memory"], n["tensor"])
        lead, word = self.lead(*key), level.writer.use(STACK, "recalled")
        text = f"{level.writer.use(STACK, 'looks_of_one')}({self.rows(key, n['place'])}, sizes, {lead})"
        g = tensor(level.inner, n.args[0], n.type).text
        return f"{word}({self.before(text, 'look')}, {self.of[key]}, {lead}, {g})"

    def solve(self, n: Node) -> str:
        """The errors of a delta rule."""
        level, (x, h, a, b) = self.level, n.args  # a rate of the errors' own comes from a state, and is not known
        memory = level.nodes.plans[n["memory"]].memory
        lead, number = self.lead(n["memory"], n["tensor"]), per_tick(memory)
        for y in n.args:  # all are known: this writes nothing
            level.outer.expression(y)
        scale = tensor(level.outer, a, number).text
        vectors = [tensor(level.outer, y, per_tick(memory, y.type.shape), 1).text for y in (x, h, b)]
        rows, word = self.rows((n["memory"], n["tensor"]), "before"), level.writer.use(STACK, "solutions")
        parts = [*vectors[:2], scale, rows, "sizes", lead, vectors[2]]
        solved = self.before(f"{word}({', '.join(parts)})", "solved")
        return f"{level.writer.use(STACK, 'errors_at')}({solved}, {self.of[n['memory'], n['tensor']]}, {lead})"

    def advance(self, p: MemoryPlan, t: MemoryTensor) -> str:
        """The stack after the piece."""
        level, key = self.level, (p.memory.name, t.path)
        rows, stack, lead = packed(self.all_rows(key)), self.of[key], self.lead(*key)
        ends = self.before(f"{level.writer.use(STACK, 'ends')}({rows}, sizes, {lead})", "ends")
        pairs, known = [], []
        for h, e in level.nodes.errors[p.memory.name].get(t.path, ()):
            if self.known(h):
                parts = [level.outer.done[h].text, rows, "sizes", lead]
                parts += [f"error={level.outer.done[e].text}"] if self.known(e) else []
                left = self.before(f"{level.writer.use(STACK, 'leavings')}({', '.join(parts)})", "left")
            else:
                left = f"{level.writer.use(STACK, 'leaving')}({level.inner.value(h)}, {ends}, {lead})"
            if self.known(h, e):
                known.append(left)
            else:
                pairs.append(f"({left}, {level.inner.value(e)})")
        g = level.nodes.dense[p.memory.name].get(t.path)
        if g is not None:
            pairs.append(f"({level.writer.use(STACK, 'leaving_one')}({ends}), {level.inner.value(g)})")
        pairs += [f"known={packed(known)}"] if known else []
        return f"{level.writer.use(STACK, 'advanced')}({', '.join([stack, ends, lead, *pairs])})"

    def known(self, *nodes: Node) -> bool:
        """Whether they are numbers of every tick that no state enters."""
        return all(n in self.level.whole for n in nodes)

    def before(self, text: str, base: str) -> str:
        """Something of every piece, made before the loop: its variable in a piece."""
        if text not in self.made:
            self.made[text] = self.level.split_rows(text, base)
        return self.made[text]

    def rows(self, key: Key, place: str) -> str:
        """The weight's rows after each tick, or before it, of all pieces."""
        raw = self.level.rows.names[self.row_key(key)].raw
        return raw if place == "after" else f"{self.level.writer.use(COEFFICIENTS, 'lag')}({raw}, 0)"

    def all_rows(self, key: Key) -> list[str]:
        names, row_key = self.level.rows.names[self.row_key(key)], self.row_key(key)
        return [names.whole[slot] for slot in starts_of(row_key.rule, row_key.every)]

    def lead(self, memory: str, tensor_path: str) -> str:
        """The variable with the axes of memories side by side, of rows and of heads."""
        return self.leads[self.lead_key(memory, tensor_path)]

    def lead_key(self, memory: str, tensor_path: str) -> tuple[int | None, int]:
        twins = self.level.abreast.twin_of(memory, tensor_path)
        return self.level.nodes.plans[memory].memory.heads, 1 if twins is None else len(twins[0].members)

    def row_key(self, key: Key) -> RowsKey:
        plan = self.level.nodes.plans[key[0]]
        return self.level.rows.key(plan, key[1])


__all__ = ["Stacks"]
