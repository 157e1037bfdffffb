"""What the code of a level asks of its graph, and how it names a place in the spec."""

from __future__ import annotations

from collections.abc import Iterable

from nestflow.emit.writer import Writer, short_name
from nestflow.graph.levels.gradients import needs
from nestflow.graph.model import Instance, Memory, MemoryTensor
from nestflow.ir.node import Node, walk
from nestflow.lowering.plan import MemoryPlan


def where(node: object) -> str:
    """`  # titans.nl:16` behind a line of code."""
    span = getattr(node, "span", None)
    return f"  # {short_name(span.source.name)}:{span.line}" if span is not None else ""


def packed(names: list[str]) -> str:
    """A tuple's text."""
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def keeps_state(instance: Instance) -> bool:
    return any(i.tails or i.memories for i in instance.streamed())


def is_look(d: Node, x: Node, weights: tuple[str, ...] = ("state", "lane", "lanes")) -> Node | None:
    """The tensor W where d is W x (a row of it, perhaps): what an error has computed of it."""
    if d.op == "linear" and d.args[0] is x:
        return d.args[1] if d.args[1].op in weights else None
    if d.op != "part" or d.args[0].op != "linear":
        return None
    read, w = d.args[0].args
    ours = read.args[d["at"]] if read.op == "below" else read
    same = ours is x if read.op == "below" else (x.op == "part" and x.args[0] is read and x["at"] == d["at"])
    return w if same and w.op in weights else None


def looks_at_start(e: Node, h: Node) -> list[Node]:
    """What the errors of a delta rule have computed of W h, at the chunk's first state."""
    if not any(n.op == "solved" for n in walk(e)):
        return []
    return [n for n in walk(e) if is_look(n, h) is not None]


def numbers_of(m: Memory) -> list[tuple[str, Node]]:
    """The memory's gates and rates that are numbers of the tick, by name."""
    found = [("retain", m.retain)] if m.retain is not None else []
    found += [] if m.rule is None else [(n, m.rule.expand(a)) for n, a in m.rule.arguments]
    return [(n, a) for n, a in found if a.type.is_number and a.op != "const"]


def written(m: Memory) -> str:
    """How the memory learns, as in the text."""
    return f"update {m.texts.update}" + (f"; retain {m.texts.retain}" if m.texts.retain else "")


def start_of(writer: Writer, m: Memory, t: MemoryTensor, like: str, path: str = "p", t0: str = "t") -> str:
    """What a tensor starts with, as text, of the shape of the variable `like`. t0: ticks before it starts."""
    if t.learned:
        return f'c.w[{path} + "{t.learned}"].expand_as({like})'
    if t.drawn:
        draw = (t.init.kind, t.init.a, t.init.b, t.init.maps)
        start = writer.use("nestflow.ops.chance", "drawn_start")
        return f'{start}(c, {path} + "{t.drawn}", {like}.shape, {bool(m.heads)}, {t0}, {draw!r})'
    if t.init.kind == "eye":
        return f"torch.eye({like}.shape[-1], dtype=c.dtype, device=c.device).expand_as({like})"
    number = {"ones": 1.0, "constant": t.init.a}.get(t.init.kind, 0.0)
    return f"torch.full_like({like}, {number!r})" if number else f"torch.zeros_like({like})"


def reads_new(y: Node) -> bool:
    """Whether a recall waits for the piece's new state."""
    return any(n.op == "state" and n["when"] == "new" for n in walk(y))


def taken_first(plans: Iterable[MemoryPlan]) -> list[MemoryPlan]:
    """Memories in an order in which each comes after those whose gradient its own depends on; else that of the text."""
    table = {p.memory.name: p for p in plans}
    done: dict[str, MemoryPlan] = {}

    def visit(p: MemoryPlan) -> None:
        for n in needs(p.memory):
            visit(table[n["memory"]])
        done.setdefault(p.memory.name, p)

    for p in table.values():
        visit(p)
    return list(done.values())
