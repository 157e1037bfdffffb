"""The state of a level in its function: variables that hold tensors, anchors, rule slots and pending sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from nestflow.emit.layout import ABREAST
from nestflow.emit.levels.facts import packed, start_of
from nestflow.emit.levels.leaves import start_leaves
from nestflow.emit.levels.nodes import state
from nestflow.emit.levels.packs import Twins
from nestflow.emit.levels.rule import RuleCode, decayed, slot_leaf
from nestflow.emit.writer import identifier
from nestflow.graph.model import Init, Memory, MemoryTensor
from nestflow.graph.state import (
    CHUNK,
    GRAM,
    PENDING,
    SINCE,
    TICKS,
    counters,
    has_dgd,
    keeps_anchor,
    slot_start,
    state_tensors,
)
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, depends, make
from nestflow.lowering.plan import MemoryPlan

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode


OPS = "nestflow.ops.abreast"


def quoted(names: Iterable[str]) -> str:
    """A tuple of words, as text."""
    return packed([f'"{name}"' for name in names])


class StateNames:
    """names: state leaf -> variable. kept: (variable, state path behind p), in the order of the schema; of twins the
    paths behind the names of its memories."""

    def __init__(self, level: LevelCode) -> None:
        self.level, self.writer = level, level.writer
        self.names: dict[Node, str] = {}
        self.kept: list[tuple[str, str | tuple[tuple[str, ...], str]]] = []

    def read(self) -> None:
        """Bring the state into variables."""
        for p in self.level.plan.looped:
            own = [t for t in state_tensors(p.memory) if self.level.abreast.twin_of(p.memory.name, t.path) is None]
            if own or counters(p.memory) or not state_tensors(p.memory):
                self.writer.line(f"# the state of `{p.memory.name}`")
            for t in own:
                self.tensor(p.memory, t)
            for counter in counters(p.memory):
                leaf = state(p.memory, "", counter, Type("int", heads=p.memory.heads))
                self.add(leaf, counter[1:], p.memory.name + counter)
            for slot in p.memory.rule.slots if p.memory.rule is not None else ():
                if slot.shared:
                    leaf = slot_leaf(p.memory, state_tensors(p.memory)[0], slot.name)
                    self.add(leaf, slot.name, f"{p.memory.name}.{slot.name}")
        for names, twins in groupby(self.level.abreast.twins, lambda s: s.names):
            self.writer.line(f"# the state of {', '.join(f'`{name}`' for name in names)}, side by side")
            for own in twins:
                self.twins(own)
        self.begin()
        self.again()

    def begin(self) -> None:
        """A call that begins with a chunk takes its errors at the state itself, not at an equal copy."""
        stacked = self.level.stacks.anchors()
        twins = {name for name, path in self.kept if not isinstance(path, str)}  # theirs are so already
        for chunk, pairs in self.anchors().items():
            lines = [
                f"{a} = {'None' if (a, b) in stacked else b}" for a, b in pairs if a not in twins or (a, b) in stacked
            ]
            if lines:
                with self.writer.block(f"if {self.level.t0} % {chunk} == 0:  # a chunk begins"):
                    self.writer.line("\n".join(lines))

    def begin_piece(self) -> None:
        """Starts that pass through the loop in stacks; a chunk that begins takes its errors at them."""
        self.level.stacks.unpack()
        stacked = self.level.stacks.anchors()
        for chunk, pairs in self.anchors().items():
            ours = [pair for pair in pairs if pair in stacked]
            if ours:
                with self.writer.block(f"if t % {chunk} == 0:  # a chunk begins: it takes its errors here"):
                    for anchor, now in ours:
                        self.writer.line(f"{anchor} = {now}")

    def again(self) -> None:
        """Further rounds of a tick find a memory where the one before has left it: in the same variables."""
        for p in self.level.plan.looped:
            for r in p.apart:
                for leaf, name in list(self.names.items()):
                    if leaf["memory"] == p.memory.name:
                        attrs = {**dict(leaf.attrs), "memory": r.memory.name}
                        self.names[make(leaf.op, leaf.args, leaf.type, leaf.span, **attrs)] = name

    def tensor(self, m: Memory, t: MemoryTensor) -> None:
        type_, path = Type(shape=t.shape, heads=m.heads), f"{m.name}.{t.path}"
        stem = identifier(t.path.removesuffix(".weight"))
        if len(self.level.plan.looped) > 1:
            stem = f"{identifier(m.name)}_{stem}"
        now, *others = self.parts(m, t, stem)
        name = self.add(now[0], now[1], path)
        self.names[state(m, t.path, "new", type_)] = name
        for leaf, own, behind in others:
            self.add(leaf, own, f"{m.name}.{behind}")
        if self.reads_start(m):
            start = state(m, t.path, "start", type_)
            self.names[start] = start_of(self.writer, m, t, name)

    @staticmethod
    def parts(m: Memory, t: MemoryTensor, stem: str) -> Iterator[tuple[Node, str, str]]:
        """What is kept of a tensor, itself first: leaf, stem of the variable, path behind the memory's name."""
        type_ = Type(shape=t.shape, heads=m.heads)
        yield state(m, t.path, "now", type_), stem, t.path
        if keeps_anchor(m):
            yield state(m, t.path, "chunk", type_), f"{stem}_0", t.path + CHUNK
        for slot in m.rule.slots if m.rule is not None else ():
            if not slot.shared and slot.shape(t.shape) is not None:
                yield slot_leaf(m, t, slot.name), f"{slot.name}_{stem}", f"{slot.name}.{t.path}"
        if m.every > 1:
            yield state(m, t.path, PENDING, type_), f"pending_{stem}", t.path + PENDING
            if has_dgd(m) and len(t.shape) == 2:
                gram = Type(shape=(t.shape[1], t.shape[1]), heads=m.heads)
                yield state(m, t.path, GRAM, gram), f"gram_{stem}", t.path + GRAM

    def twins(self, twins: Twins) -> None:
        """The same tensor of several memories in one variable."""
        p, t = twins.members[0]
        now = ""
        for leaf, stem, path in self.parts(p.memory, t, identifier(t.path.removesuffix(".weight"))):
            name = self.level.outer.fresh(stem, leaf.type, ABREAST)
            self.level.outer.holder[name] = None
            own = f'{self.writer.use(OPS, "side_by_side")}(c.s, p, {quoted(twins.names)}, "{path}")'
            now = now or name
            if leaf["when"] == "chunk":
                own = f"{now} if {self.level.t0} % {p.memory.chunk} == 0 else {own}"
            self.writer.line(f"{name} = {own}")
            self.names[self.level.abreast.leaf(leaf)] = name
            self.names.update({x: f"{name}[{i}]" for i, x in enumerate(twins.leaves(leaf))})
            self.kept.append((name, (twins.names, path)))

    @staticmethod
    def reads_start(m: Memory) -> bool:
        return m.rule is not None and any(depends(n, lambda x: x.op == "w0") for n in m.rule.nodes())

    def add(self, leaf: Node, stem: str, path: str) -> str:
        name = self.level.outer.fresh(stem, leaf.type)
        self.level.outer.holder[name] = None
        self.writer.line(f'{name} = c.s[p + "{path}"]')
        self.names[leaf] = name
        self.kept.append((name, path))
        return name

    def tail(self, path: str) -> None:
        """The last inputs of a block that looks back at what a memory recalls: they pass from piece to piece."""
        name = self.level.variable("tail")
        self.writer.line(f'{name} = c.s[p + "{path}"]')
        self.level.inner.tails[path] = name
        self.kept.append((name, path))

    def starts(self, p: MemoryPlan, t: MemoryTensor) -> list[str]:
        """The variables of a closed form's starts, in order."""
        return [self.names[self.level.abreast.leaf(x)] for x in start_leaves(p, t)]

    def decay(self, p: MemoryPlan) -> None:
        """`decay_first`: errors are taken at the decayed state."""
        m = p.memory
        assert m.retain is not None
        (gate,) = [self.level.nodes.rate(m, m.retain)]
        code = RuleCode(self.writer, self.level.nodes, self.level.inner, [p], self.names)
        for t in code.tensors:
            now = code.leaf(m, t.spec, "now")
            last = code.gate(t)
            node = decayed(m, now, last)
            name = self.level.inner.fresh("decayed", t.type)
            self.writer.line(f"{name} = {self.level.inner.value(node)}")
            self.level.inner.holder[name] = None
            self.names[code.leaf(m, t.spec, "error")] = name
        assert gate is not None

    def reset(self, p: MemoryPlan) -> None:
        """A reset within a sequence: what the piece begins with is the start, but for what `keep = rule` spares."""
        m = p.memory
        if m.reset is not None:
            with self.writer.block(f"if t % {m.reset} == 0:  # `{m.name}` starts anew"):
                for name, start in self.fresh_values(m):
                    self.writer.line(f"{name} = {start}")
        elif m.reset_where is not None:
            (where,) = [self.level.nodes.rate(m, m.reset_where)]
            due = self.level.inner.variable(make("last", (where,), where.type.with_(clock=None)), "due")
            whole = m.heads and not where.type.heads
            front, less = (", 1", " - 1") if whole else ("", "")
            for name, start in self.fresh_values(m):
                shape = f"(*{due}.shape{front}, *[1] * ({name}.ndim - {due}.ndim{less}))"
                self.writer.line(f"{name} = torch.where({due}.reshape({shape}), {start}, {name})")
            if SINCE in counters(m):
                self.begin_chunks(m)

    def begin_chunks(self, m: Memory) -> None:
        """Rows that start anew at ticks of their own begin their chunks there."""
        since = self.names[state(m, "", SINCE, Type("int", heads=m.heads))]
        self.writer.line(f"{since} = {since} + 1")
        for t in state_tensors(m) if keeps_anchor(m) else ():
            type_ = Type(shape=t.shape, heads=m.heads)
            chunk, now = (self.names[state(m, t.path, when, type_)] for when in ("chunk", "now"))
            begins = f"(({since} - 1) % {m.chunk} == 0)[..., {', '.join(['None'] * len(t.shape))}]"
            begins = begins if t.shape else f"({since} - 1) % {m.chunk} == 0"
            self.writer.line(f"{chunk} = torch.where({begins}, {now}, {chunk})")

    def fresh_values(self, m: Memory) -> list[tuple[str, str]]:
        """Variables of the memory's state, and what each starts with."""
        found: list[tuple[str, str]] = []
        for t in state_tensors(m):
            type_ = Type(shape=t.shape, heads=m.heads)
            now = self.names[state(m, t.path, "now", type_)]
            start = start_of(self.writer, m, t, now)
            if t.source is not None:  # the other memory's state, which has not learned from this tick yet
                start = self.names[state(self.memory(t.source[0]), t.source[1], "now", type_)]
            found.append((now, start))
            if keeps_anchor(m):
                found.append((self.names[state(m, t.path, "chunk", type_)], start))
            for when in (PENDING, GRAM):
                found += [
                    (v, f"torch.zeros_like({v})")
                    for n, v in self.names.items()
                    if n["memory"] == m.name and n["tensor"] == t.path and n["when"] == when
                ]
            rule = m.rule
            for slot in () if rule is None or m.keep_rule else rule.slots:
                if slot.shape(t.shape) is None:
                    continue
                variable = self.names[slot_leaf(m, t, slot.name)]
                init = Init("zeros") if rule is None or slot.init.op in ("w", "w0") else slot_start(rule, slot)
                own = f"torch.zeros_like({variable})"
                if slot.init.op in ("w", "w0"):
                    own = start
                elif init.kind == "eye":
                    square = f"torch.eye({variable}.shape[-1], dtype=c.dtype, device=c.device)"
                    own = f"{init.a!r} * {square}.expand_as({variable})"
                elif init.kind == "constant":
                    own = f"torch.full_like({variable}, {init.a!r})"
                found.append((variable, own))
        for counter in counters(m):
            if counter in (TICKS, SINCE) or not m.keep_rule:
                variable = self.names[state(m, "", counter, Type("int", heads=m.heads))]
                found.append((variable, f"torch.zeros_like({variable})"))
        return list(dict.fromkeys(found))

    def memory(self, name: str) -> Memory:
        return next(m for m in self.level.instance.memories if m.name == name)

    def in_order(self) -> list[MemoryPlan]:
        """The memories as they are reset: those that take over another's state before that one is."""

        def depth(m: Memory) -> int:
            found = next((t.source for t in state_tensors(m) if t.source is not None), None)
            return 0 if found is None else 1 + depth(self.memory(found[0]))

        return sorted(self.level.plan.looped, key=lambda p: -depth(p.memory))

    def advance(self) -> None:
        """The end of a piece: chunks that end here begin anew."""
        self.writer.line("t += n")
        stacked = self.level.stacks.anchors()
        for chunk, pairs in self.anchors().items():
            with self.writer.block(f"if t % {chunk} == 0:  # a chunk ends: the next one takes its errors here"):
                within = self.level.stacks.chunk_ends(chunk)
                for anchor, now in pairs:
                    if anchor not in within:
                        self.writer.line(f"{anchor} = {'None' if (anchor, now) in stacked else now}")

    def anchors(self) -> dict[int, list[tuple[str, str]]]:
        """Chunk length -> variables of the chunk's first state, each beside that of the state now."""
        chunks: dict[int, list[tuple[str, str]]] = {}
        for p in self.level.plan.looped:
            m = p.memory
            for t in state_tensors(m) if keeps_anchor(m) and m.reset_where is None else ():
                type_, place = Type(shape=t.shape, heads=m.heads), self.level.abreast.twin_of(m.name, t.path)
                if place is not None and place[1] > 0:
                    continue
                leaves = (self.level.abreast.leaf(state(m, t.path, when, type_)) for when in ("chunk", "now"))
                chunk, now = (self.names[x] for x in leaves)
                chunks.setdefault(m.chunk, []).append((chunk, now))
        return chunks

    @property
    def passed(self) -> list[str]:
        """The state as it passes through the loop."""
        stacks = self.level.stacks
        starts = {name for p, t in stacks.tensors() for name in self.starts(p, t)}
        return [*stacks.of.values(), *(name for name, _ in self.kept if name not in starts)]

    @property
    def variables(self) -> str:
        """The same as a tuple."""
        return packed(self.passed)

    def write(self) -> None:
        """Give the state back."""
        for name, path in self.kept:
            if isinstance(path, str):
                self.writer.line(f'c.n[p + "{path}"] = {name}')
                continue
            word = self.writer.use(OPS, "one_by_one")
            self.writer.line(f'{word}(c.n, p, {quoted(path[0])}, "{path[1]}", {name})')


__all__ = ["StateNames", "make", "ops"]
