"""How the leaves and operations of a level's loop are written (see `nestflow.emit.levels.nodes`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nestflow.emit.expr import ATOM, Emitter, Expr
from nestflow.emit.layout import ABREAST, axes, tick_axis
from nestflow.emit.levels.abreast import Run, apart, run_of
from nestflow.emit.levels.facts import is_look, packed
from nestflow.emit.levels.nodes import state
from nestflow.emit.levels.pairs import is_only
from nestflow.emit.ops import tensor
from nestflow.emit.pointwise import of_a_head
from nestflow.graph.state import keeps_anchor, state_tensors
from nestflow.ir.node import Node
from nestflow.ir.node import Type as NodeType

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode

RECURRENCE = "nestflow.ops.recurrence"
_BACKWARD = {
    "gelu_backward": "torch.ops.aten.gelu_backward({}, {})",
    "gelu_tanh_backward": 'torch.ops.aten.gelu_backward({}, {}, approximate="tanh")',
}


def channels_text(em: Emitter, n: Node, word: str, ticks: str) -> str:
    """x, h and the gate of every key channel, made ready to read: of one piece, or of all (`ticks`: their sizes)."""
    em.writer.use(RECURRENCE, word)
    parts = [tensor(em, a, n.type.with_(shape=a.type.shape, dtype="float"), 1).text for a in n.args]
    return f"{word}({', '.join([*parts, ticks, *(['before=True'] if n['before'] else [])])})"


def abreast_text(em: Emitter, n: Node) -> str:
    """Values of several memories, one beside the other."""
    return f"torch.stack([{', '.join(em.value(a) for a in n.args)}])"


class Special:
    """`text(node)` is asked by the loop's Emitter for every node."""

    def __init__(self, level: LevelCode) -> None:
        self.level, self.em = level, level.inner
        self.cuts: dict[Node, dict[tuple[int, int], str]] = {}
        self.parts: dict[Node, list[str]] = {}  # rows that lie below one another -> those of each
        self.systems: dict[str, str] = {}  # memories that share their keys share the matrix of their system
        self.table: dict[str, Callable[[Node], str]] = {
            "state": self.state,
            "linear_at": self.linear_at,
            "tensor_at": self.tensor_at,
            "matrix_at": self.matrix_at,
            "solved": self.solved,
            "channels": self.channels,
            "woven": self.woven,
            "unwoven": self.unwoven,
            "each_tick": self.each_tick,
            "last": self.last,
            "final": self.final,
            "last_learns": self.last_learns,
            "lane": self.lane,
            "lanes": self.lane,
            "joined": self.joined,
            "abreast": self.abreast,
            "pair": self.pair,
            "below": self.below,
            "part": self.part,
            **dict.fromkeys(_BACKWARD, self.backward),
        }

    def text(self, n: Node) -> str | None:
        write = self.table.get(n.op)
        if write is None and self.em.writer.one_token and is_only(n):
            return f"{self.em.expression(n.args[0]).atom}[..., 0]"
        if write is None:
            return None
        for a in n.args:
            self.em.expression(a)
        text = write(n)
        if (
            n.op == "state"
            or text.isidentifier()
            or (n.op == "last" and self.em.writer.one_token)
            or (self.em.uses[n] <= 1 and n not in self.em.names and len(text) < 60)
        ):
            return text
        base = {"linear_at": "h", "solved": "u", "channels": "w_at"}.get(n.op)
        return self.em.assign(n, Expr(text, ATOM), base)

    def state(self, n: Node) -> str:
        return self.level.state.names[n]

    def starts(self, n: Node) -> tuple[str, str]:
        """The rows a reading needs, and the tuple of its starts."""
        p = self.level.nodes.plans[n["memory"]]
        spec = next(t for t in state_tensors(p.memory) if t.path == n["tensor"])
        rows = self.level.rows.at(p, n["tensor"], n.get("place", "before"))
        if n.get("lanes") is None:
            names = self.level.state.starts(p, spec)
        else:
            names = [self.em.value(x) for x in self.level.abreast.starts(n)]
        return rows, f"({', '.join(names)}{',' if len(names) == 1 else ''})"

    def operand(self, a: Node, like: Node, features: int | None = None) -> str:
        return tensor(self.em, a, like.type, features).text

    def linear_at(self, n: Node) -> str:
        if n.get("place") and self.level.stacks.takes(n):
            return self.level.stacks.recall(n)
        self.em.writer.use("nestflow.ops.chunk", "linear_at")
        if n.args[0].op == "channels":
            start = self.start(n["memory"], n["tensor"]) if n.get("place") else "None"
            return self.by_channels("channels_at", start, list(zip(n.args[::2], n.args[1::2])))
        rows, starts = self.starts(n)
        starts = starts if n.get("place") else "()"
        x, *factors = n.args
        pairs = [f"({self.em.done[h].text}, {self.em.done[e].text})" for h, e in zip(factors[::2], factors[1::2])]
        return f"linear_at({', '.join([self.operand(x, n, 1), rows, starts, *pairs])})"

    def by_channels(self, word: str, start: str, factors: list[tuple[Node, Node]]) -> str:
        """A memory whose key channels have gates of their own: what is read of it, or what it is after the piece."""
        self.em.writer.use(RECURRENCE, word)
        pairs = [f"({self.em.value(at)}, {self.em.value(e)})" for at, e in factors]
        return f"{word}({', '.join([start, *pairs])})"

    def start(self, memory: str, tensor_path: str) -> str:
        """The variable that holds a tensor as the piece begins."""
        p = self.level.nodes.plans[memory]
        (name,) = self.level.state.starts(p, next(t for t in state_tensors(p.memory) if t.path == tensor_path))
        return name

    def channels(self, n: Node) -> str:
        """In a piece: x, h or the gate come from what a memory recalls in it."""
        return channels_text(self.em, n, "channels", "n" if n["turns"] == 1 else f"{n['turns']} * n")

    def tensor_at(self, n: Node) -> str:
        if (n["memory"], n["tensor"]) in self.level.stacks.of:
            return self.level.stacks.recall_vector(n)
        self.em.writer.use("nestflow.ops.chunk", "tensor_at")
        rows, starts = self.starts(n)
        return f"tensor_at({rows}, {starts}, {self.operand(n.args[0], n)}, {len(n.type.shape)})"

    def matrix_at(self, n: Node) -> str:
        if len(n.args) % 2:  # a gate for each key channel comes first
            self.em.writer.use("nestflow.ops.chunk", "matrix_by_channels")
            gate, *factors = n.args
            pairs = [f"({self.em.done[h].text}, {self.em.done[e].text})" for h, e in zip(factors[::2], factors[1::2])]
            more = ["before=True"] if n["place"] == "before" else []
            vectors = n.type.with_(shape=gate.type.shape, dtype="float")
            parts = [tensor(self.em, gate, vectors).text, self.start(n["memory"], n["tensor"]), *pairs, *more]
            return f"matrix_by_channels({', '.join(parts)})"
        self.em.writer.use("nestflow.ops.chunk", "matrix_at")
        rows, starts = self.starts(n)
        pairs = [f"({self.em.done[h].text}, {self.em.done[e].text})" for h, e in zip(n.args[::2], n.args[1::2])]
        return f"matrix_at({', '.join([rows, starts, *pairs])})"

    def solved(self, n: Node) -> str:
        if n.args[0].op == "channels":
            return self.solved_by_channels(n)
        if self.level.stacks.takes(n):
            return self.level.stacks.solve(n)
        self.em.writer.use("nestflow.ops.delta", "solve_errors")
        self.em.writer.use("nestflow.ops.delta", "delta_system")
        rows, starts = self.starts(n)
        x, h, a, b, *eta = n.args
        number = NodeType(batch=True, clock="T", heads=n.type.heads)
        for arg in (x, h, a, *eta):  # they are written twice below
            if arg.op != "const":
                self.em.variable(arg)
        scale, look = tensor(self.em, a, number).text, self.em.done[x].text
        rate = f", rate={tensor(self.em, eta[0], number).text}" if eta else ""
        text = f"delta_system({look}, {self.em.done[h].text}, {scale}, {rows}{rate})"
        if text not in self.systems:
            self.systems[text] = self.level.variable("system")
            self.em.writer.line(f"{self.systems[text]} = {text}")
        values = ", ".join([self.systems[text], look, scale, self.operand(b, n), rows, starts])
        return f"solve_errors({values}{self.first_look(n)}{rate})"

    def solved_by_channels(self, n: Node) -> str:
        self.em.writer.use("nestflow.ops.delta", "errors_by_channels")
        at, a, b, *eta = n.args
        number = NodeType(batch=True, clock="T", heads=n.type.heads)
        parts = [self.em.value(at), self.start(n["memory"], n["tensor"]), tensor(self.em, a, number).text]
        rate = [f"rate={tensor(self.em, eta[0], number).text}"] if eta else []
        return f"errors_by_channels({', '.join([*parts, self.operand(b, n), *rate])})"

    def first_look(self, n: Node) -> str:
        """x W where the errors have computed it already: the piece begins its chunk, so both see one state."""
        p, x = self.level.nodes.plans[n["memory"]], n.args[0]
        if not keeps_anchor(p.memory):
            return ""
        spec = next(t for t in state_tensors(p.memory) if t.path == n["tensor"])
        type_ = NodeType(shape=spec.shape, heads=p.memory.heads)
        now, chunk = (state(p.memory, spec.path, when, type_) for when in ("now", "chunk"))
        if n.get("lanes") is not None:
            now, chunk = (self.level.abreast.of(n, x) for x in (now, chunk))
        seen = next((d for d in self.em.done if is_look(d, x) is chunk), None)
        if seen is None or not self.em.done[seen].text.isidentifier():
            return ""
        now, chunk = (x if x.op == "state" else x.args[0] for x in (now, chunk))
        return f", {self.em.done[seen].text} if {self.state(now)} is {self.state(chunk)} else None"

    def woven(self, n: Node) -> str:
        word = self.em.writer.use("nestflow.ops.rounds", "woven")
        values = ", ".join(self.operand(a, n) for a in n.args)
        return f"{word}(({values}), n, {len(n.type.shape)}, c.dtype, c.device)"

    def unwoven(self, n: Node) -> str:
        word = self.em.writer.use("nestflow.ops.rounds", "unwoven")
        return f"{word}({self.em.done[n.args[0]].text}, {n['rounds']}, {n['which']}, {len(n.type.shape)})"

    def each_tick(self, n: Node) -> str:
        x, axis = self.em.done[n.args[0]].atom, tick_axis(n.type)
        text = f"{x}.unsqueeze({axis})"
        if n.get("one") or self.level.plan.size == 1:
            return text
        sizes = ["-1"] * len(axes(n.type)) + ["-1"] * len(n.type.shape)
        sizes[axis] = "n"
        return f"{text}.expand({', '.join(sizes)})"

    def last(self, n: Node) -> str:
        (x,) = n.args
        return f"{self.em.done[x].atom}[..., -1{', :' * len(x.type.shape)}]"

    def final(self, n: Node) -> str:
        e = self.em.done[n.args[0]]
        if self.level.plan.size == 1 or not n.type.clock:
            return e.atom
        return f"{e.atom}[..., -1:{', :' * len(n.type.shape)}]"

    def pair(self, n: Node) -> str:
        a, h = (self.em.done[x].atom for x in n.args)
        return f"({a}.mT * {h})"

    def last_learns(self, n: Node) -> str:
        old, new = (self.em.done[a] for a in n.args)
        axis = tick_axis(n.type)
        return f"torch.cat([{old.atom}.narrow({axis}, 0, n - 1), {new.text}], {axis})"

    def lane(self, n: Node) -> str:
        """Entries of a value with the axis A. Where several are read, one `split` gives them: each on its own would go
        back as a value of its full size."""
        (x,), (first, last) = n.args, run_of(n)
        if x not in self.cuts:
            self.cuts[x] = self.cut(x)
        for (a, b), name in self.cuts[x].items():
            if (a, b) == (first, last):
                return name if n.op == "lanes" else f"{name}.squeeze(0)"
            if a <= first and last <= b:
                return f"{name}[{first - a}]" if n.op == "lane" else f"{name}[{first - a}:{last - a}]"
        return f"{self.em.done[x].atom}[{first}]" if n.op == "lane" else f"{self.em.done[x].atom}[{first}:{last}]"

    def cut(self, x: Node) -> dict[Run, str]:
        """Variables for entries of x that are read apart."""
        runs = apart(self.level.abreast.runs[x])
        if len(runs) < 2:
            return {}
        names: dict[Run, str] = {}
        for run in runs:
            names[run] = self.em.fresh(self.called(x, run), x.type, ABREAST)
            self.em.holder[names[run]] = None
        targets: list[tuple[str, int]] = []
        at = 0
        for (first, last), name in names.items():
            targets += [("_", first - at)] if at < first else []
            targets.append((name, last - first))
            at = last
        count = self.level.abreast.counts[x]
        targets += [("_", count - at)] if at < count else []
        sizes = packed([str(size) for _, size in targets])
        self.em.writer.line(f"{', '.join(name for name, _ in targets)} = {self.em.done[x].atom}.split({sizes})")
        return names

    def called(self, x: Node, run: Run) -> str:
        """What some entries are called."""
        if x.op != "state":
            return "h"
        own, _ = self.level.abreast.twin_of(x["memory"], x["tensor"]) or (None, 0)
        names = own.names[slice(*run)] if own is not None else ()
        return "_".join([*names, x["tensor"].removesuffix(".weight"), *(["0"] if x["when"] == "chunk" else [])])

    def joined(self, n: Node) -> str:
        return f"torch.cat([{', '.join(self.em.done[a].text for a in n.args)}])"

    def below(self, n: Node) -> str:
        return f"torch.cat([{', '.join(self.em.done[a].text for a in n.args)}], -2)"

    def part(self, n: Node) -> str:
        (x,) = n.args
        if x not in self.parts:
            lead = ABREAST if x in self.em.abreast else ""
            self.parts[x] = []
            for _ in range(n["of"]):
                self.parts[x].append(self.em.fresh("h", x.type, lead))
                self.em.holder[self.parts[x][-1]] = None
            self.em.writer.line(f"{', '.join(self.parts[x])} = {self.em.done[x].atom}.split({self.em.ticks}, -2)")
        return self.parts[x][n["at"]]

    def abreast(self, n: Node) -> str:
        return abreast_text(self.em, n)

    def backward(self, n: Node) -> str:
        if n.op == "gelu_backward" and of_a_head(self.em, n):
            word = self.em.writer.use("nestflow.ops.blocks", n.op)
            return f"{word}({', '.join(self.em.done[a].text for a in n.args)})"
        return _BACKWARD[n.op].format(*(self.em.done[a].text for a in n.args))
