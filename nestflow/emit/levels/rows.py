"""A linear rule written in closed form: the rows of its states over a piece (see `nestflow.ops.coefficients`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nestflow.emit.expr import Emitter
from nestflow.emit.levels.nodes import Nodes, per_tick
from nestflow.emit.ops import is_python, tensor
from nestflow.emit.writer import Writer, identifier
from nestflow.graph.model import Memory
from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.lowering.linear_rule import AS_CHUNK_BEGAN, Carry, LinearRule
from nestflow.lowering.plan import MemoryPlan

COEFFICIENTS = "nestflow.ops.coefficients"
STARTS = {"": "w", AS_CHUNK_BEGAN: "w_chunk"}  # how they are called in what is written


@dataclass(frozen=True)
class RowsKey:
    """Tensors with equal keys share their rows."""

    rule: LinearRule
    every: int
    heads: int | None
    stop: bool
    turns: int  # of a tick: rows of each


@dataclass
class RowsNames:
    """Variables that hold the rows of each state of a rule ("" is the memory), and those of the tick before. whole: of
    all pieces, where they are made before the loop."""

    of: dict[str, str]
    whole: dict[str, str] = field(default_factory=dict)
    before: str | None = None
    raw: str = ""
    decays: str = ""


def starts_of(rule: LinearRule, every: int) -> tuple[str, ...]:
    """The order of a piece's starts: the memory, the rule's slots, the pending sum."""
    return (*rule.slots, *(("@pending",) if every > 1 else ()))


class Rows:
    """Writes the rows of the rules of one level, once each; whole sequences at once where no rate depends on the
    state."""

    def __init__(self, writer: Writer, nodes: Nodes, fresh: Callable[[str], str]) -> None:
        self.writer, self.nodes, self.fresh = writer, nodes, fresh
        self.names: dict[RowsKey, RowsNames] = {}
        self.lagged: set[RowsKey] = set()  # keys whose rows before each tick are read too
        self.decays: dict[tuple[str, str], str] = {}  # the text of a gate, its ticks -> the variable with its products

    def key(self, plan: MemoryPlan, tensor_path: str) -> RowsKey:
        m = plan.memory
        return RowsKey(self.nodes.rule(plan, tensor_path), m.every, m.heads, m.gradient == "stop", m.turns)

    def write(self, em: Emitter, plan: MemoryPlan, tensor_path: str, ticks: str, t0: str, pieces: bool) -> RowsNames:
        """The statements that make the rows. pieces: of all pieces at once, numbers cut by `pieces(x, sizes, K)`."""
        key, m = self.key(plan, tensor_path), plan.memory
        if key in self.names:
            return self.names[key]
        starts = starts_of(key.rule, m.every)
        one = RowsWriter(self, em, m, starts, ticks, pieces)
        if (
            not pieces
            and len(starts) == 1
            and len(key.rule.carries[0].drive) == 1
            and ops.is_const(key.rule.carries[0].drive[0][1], 1)
        ):
            self.names[key] = one.running(key.rule.carries[0])
            return self.names[key]
        if m.every > 1:
            one.clock("sum(sizes)" if pieces else ticks, t0)
        for carry in key.rule.carries:
            one.carry(carry)
        self.names[key] = RowsNames({c.slot: one.source["new:" + c.slot] for c in key.rule.carries})
        if m.every > 1:
            rest = f"(1 - {one.learns})[..., None] * {one.source['g']}"
            self.names[key].of["@pending"] = one.line("rest", rest, "nothing waits after an update")
        self.names[key].raw = self.names[key].of[""]
        if not pieces:
            read = self.writer.use(COEFFICIENTS, "reading")
            for slot, v in list(self.names[key].of.items()):
                self.names[key].of[slot] = one.line(f"{v}_at", f"{read}({v}, {len(starts)})")
        return self.names[key]

    def split(self, key: RowsKey, loop: Callable[[str, str], str]) -> None:
        """Rows of all pieces become rows of one: `loop(iterable, base)` gives the name of the loop variable."""
        names = self.names[key]
        count = len(starts_of(key.rule, key.every))
        self.writer.use(COEFFICIENTS, "split_rows")
        names.whole = names.of
        names.of = {slot: loop(f"split_rows({v}, sizes, {count})", v) for slot, v in names.of.items()}
        if key in self.lagged:  # delta rules look at the state of the tick before
            self.writer.use(COEFFICIENTS, "lag")
            names.before = loop(f"split_rows(lag({names.raw}, 0), sizes, {count})", "before")

    def at(self, plan: MemoryPlan, tensor_path: str, place: str) -> str:
        """The variable with the memory's rows after or before each tick."""
        key = self.key(plan, tensor_path)
        names = self.names[key]
        if place == "after":
            return names.of[""]
        if names.before is None:
            if names.decays:
                before = self.writer.use(COEFFICIENTS, "running_before")
                names.before = self.fresh("before")
                self.writer.line(f"{names.before} = {before}({names.decays})")
                return names.before
            lag, read = self.writer.use(COEFFICIENTS, "lag"), self.writer.use(COEFFICIENTS, "reading")
            names.before = self.fresh("before")
            count = len(starts_of(key.rule, key.every))
            self.writer.line(f"{names.before} = {read}({lag}({names.raw}, 0), {count}, end=False)")
        return names.before


@dataclass
class RowsWriter:
    """One rule: one `accumulate` or `carry` for each of its states. source: where rows of g and of slots are."""

    rows: Rows
    em: Emitter
    memory: Memory
    starts: tuple[str, ...]
    ticks: str
    pieces: bool
    source: dict[str, str] = field(default_factory=dict)
    learns: str | None = None

    def line(self, name: str, text: str, comment: str = "") -> str:
        name = self.rows.fresh(name)
        self.rows.writer.line(f"{name} = {text}" + (f"  # {comment}" if comment else ""))
        return name

    def word(self, name: str) -> str:
        return self.rows.writer.use(COEFFICIENTS, name)

    def cut(self, text: str) -> str:
        return f"{self.word('pieces')}({text}, sizes, K)" if self.pieces else text

    def clock(self, ticks: str, t0: str) -> None:
        """`every N`: errors are summed between updates; `learns` is 1 at ticks that learn."""
        tick = self.line("tick", f"torch.arange({t0} + 1, {t0} + {ticks} + 1, device=c.device)")
        self.learns = self.line("learns", self.cut(f"({tick} % {self.memory.every} == 0).to(c.dtype)"))
        opens = self.line("opens", self.cut(f"({tick} % {self.memory.every} == 1).to(c.dtype)"))
        text = f"{self.word('accumulate')}({self.decay(f'1 - {opens}')}, 1, {len(self.starts) - 1}, {len(self.starts)})"
        self.source["g"] = self.line("waiting", text)

    def decay(self, text: str) -> str:
        """The products of a gate, in a variable."""
        key = text, self.ticks
        if key not in self.rows.decays:
            call = f"{self.word('decays')}({text}, {self.ticks}, c.dtype, c.device)"
            self.rows.decays[key] = self.line("kept", call)
        return self.rows.decays[key]

    def running(self, carry: Carry) -> RowsNames:
        """The plainest rule: a decaying sum of errors that carry their rates themselves."""
        kept = self.decay(self.number(carry.decay, stop=False))
        name = self.line("w_at", f"{self.word('running')}({kept})", self.meaning("w", carry))
        return RowsNames({"": name}, decays=kept)

    def carry(self, carry: Carry) -> None:
        base = STARTS.get(carry.slot) or identifier(carry.slot)
        decay = self.number(carry.decay, stop=self.memory.gradient == "stop" and carry.slot != "")
        at = self.starts.index(carry.slot)
        if self.learns is not None:
            drive = f"{self.learns}[..., None] * ({self.drive(carry)})"
            text = f"{self.word('carry')}({self.decay(f'1 + {self.learns} * ({decay} - 1)')}, {drive}, {at})"
        elif len(carry.drive) == 1 and carry.drive[0][0] == "g":
            rate = self.number(carry.drive[0][1], stop=self.memory.gradient == "stop")
            text = f"{self.word('accumulate')}({self.decay(decay)}, {rate}, {at}, {len(self.starts)})"
        else:
            drive = self.drive(carry)
            text = f"{self.word('carry')}({self.decay(decay)}, {drive}, {at})"
        self.source["new:" + carry.slot] = self.line(base, text, self.meaning(base, carry))

    def meaning(self, name: str, carry: Carry) -> str:
        """`s_t = beta s_(t−1) − lr g_t`, for a comment."""
        parts = [] if ops.is_const(carry.decay, 0) else [(carry.decay, f"{name}_(t−1)")]
        for where, c in carry.drive:
            slot = STARTS.get(where.partition(":")[2]) or where.partition(":")[2]
            parts.append((c, "g_t" if where == "g" else f"{slot}_t" if where.startswith("new") else f"{slot}_(t−1)"))
        text = ""
        for c, what in parts:
            sign, factor = self.factor(c)
            text += (f" {sign} " if text else "−" if sign == "−" else "") + (f"{factor} {what}" if factor else what)
        return f"{name}_t = {text or '0'}"

    def factor(self, c: Node) -> tuple[str, str]:
        """A coefficient in words: its sign, and its number or name ("" is 1)."""
        if c.op == "neg":
            return "−", self.factor(c.args[0])[1]
        if ops.is_const(c):
            return "−" if c.value < 0 else "+", "" if abs(c.value) == 1 else f"{abs(c.value)}"
        return "+", self.em.names.get(c, "rate" if c.args else c.op)

    def drive(self, carry: Carry) -> str:
        terms: list[str] = []
        for where, c in carry.drive:
            rows = self.of(where)
            if ops.is_const(c, 1):
                terms.append(f"+ {rows}")
            elif ops.is_const(c, -1):
                terms.append(f"- {rows}")
            elif ops.is_const(c):
                terms.append(f"{'-' if c.value < 0 else '+'} {abs(c.value)!r} * {rows}")
            else:
                minus = c.op == "neg" and c not in self.em.done  # it may come from outside the loop as it is
                text = self.number(c.args[0] if minus else c, stop=self.memory.gradient == "stop", index="[..., None]")
                terms.append(f"{'-' if minus else '+'} {text} * {rows}")
        if not terms:
            return f"0 * {self.of('g')}"
        text = " ".join(terms)
        return text[2:] if text.startswith("+ ") else "-" + text[2:]

    def of(self, where: str) -> str:
        """The rows of a source; those of a slot's old value are its new ones, a tick later."""
        if where not in self.source and where == "g":
            text = f"{self.word('errors')}({self.ticks}, {len(self.starts)}, c.dtype, c.device)"
            self.source["g"] = self.line("g", text)
        elif where not in self.source:
            slot = where.removeprefix("old:")
            text = f"{self.word('lag')}({self.source['new:' + slot]}, {self.starts.index(slot)})"
            self.source[where] = self.line("old_" + identifier(slot), text)
        return self.source[where]

    def number(self, n: Node, stop: bool, index: str = "") -> str:
        """A coefficient as text: a Python number, or numbers per tick [..., n]."""
        if is_python(n):
            return self.em.atom(n)
        self.em.expression(n)
        e = tensor(self.em, n, per_tick(self.memory).with_(dtype="float"))
        text = e.text + (".detach()" if stop and e.precedence == 100 else "")
        if stop and e.precedence != 100:
            text = f"({e.text}).detach()"
        if self.pieces:
            text = self.cut(text)
        elif index and e.precedence != 100 and not stop:
            text = f"({text})"
        return text + index
