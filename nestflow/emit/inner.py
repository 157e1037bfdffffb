"""Levels that begin anew in every step: what each minimises, one update of it, and the call that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nestflow.diagnostics.core import fail
from nestflow.emit.evolution import valued
from nestflow.emit.expr import Emitter
from nestflow.emit.rules.parts import schedule_call
from nestflow.emit.writer import Writer, identifier, place
from nestflow.graph.model import LevelGraph, StepLevel, named_level
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make, rebuild, walk
from nestflow.ir.rule import DgdStep, SetWeight, SlotUpdate

LIKE = Type(like=True)
INNER, RECORDS = "nestflow.ops.inner", "nestflow.ops.records"


def inner_levels(graph: LevelGraph) -> dict[str, StepLevel]:
    return {x.name: x for x in graph.step_levels if x.inner is not None and x.rule is not None}


def needed(graph: LevelGraph, *nodes: Node | None) -> list[StepLevel]:
    """The inner levels that expressions recall or read, in the order in which they run; with those that they need."""
    levels = inner_levels(graph)
    wanted: set[str] = set()
    stack = [n for n in nodes if n is not None]
    while stack:
        for n in walk(stack.pop()):
            name = named_level(n)
            if name in levels and name not in wanted and n.get("what") != "before":
                wanted.add(name)
                objective = levels[name].objective
                stack += [objective] if objective is not None else []
    return [x for x in graph.step_levels if x.name in wanted]


def arguments_of(graph: LevelGraph, variables: Mapping[str, str], level: StepLevel) -> list[str]:
    """The inputs that a level's objective reads, and those of the levels that it needs."""
    read = graph.read_by(level.objective)
    return [v for n, v in variables.items() if n in read]


def prelude(graph: LevelGraph, writer: Writer, variables: Mapping[str, str], *nodes: Node | None) -> None:
    """`c = run_task(c, ...)` for each inner level that the expressions need."""
    for level in needed(graph, *(n if n is None else valued(n) for n in nodes)):
        writer.line(f"c = {run_name(level.name)}({', '.join(['c', *arguments_of(graph, variables, level)])})")


def run_name(level: str) -> str:
    return identifier(f"run_{level}")


def emit_inner(
    graph: LevelGraph, writer: Writer, emitter: Callable[..., Emitter], variables: Mapping[str, str], level: StepLevel
) -> None:
    """The three functions of one level. emitter(roots, inside=name): an emitter inside one copy of that level."""
    inner = level.inner
    assert inner is not None and level.objective is not None and level.rule is not None
    inputs = arguments_of(graph, variables, level)
    arguments = ", ".join(["c", *inputs])
    error, learn = identifier(f"error_{level.name}"), identifier(f"learn_{level.name}")
    with writer.block(f"def {error}({arguments}):{place(level.span)}"):
        writer.line(f"# what {level.name} minimises" + (", for one task" if inner.copies == "task" else ""))
        writer.line(f"return {emitter(level.objective, inside=level.name).value(level.objective)}")
    writer.line()
    writer.line()
    with writer.block(f"def {learn}(c, w, g, state, t, hold):"):
        writer.line(f"# one update of {level.name}: {level.rule.text}; t counts them; hold: steps are constants")
        UpdateWriter(writer, level).write()
    writer.line()
    writer.line()
    writer.use(INNER, "run_inner")
    rounds = f"{inner.rounds} updates" if inner.rounds > 1 else "one update"
    with writer.block(f"def {run_name(level.name)}({arguments}):"):
        writer.line(f"# {level.name} in this step: {rounds}" + (", for each task" if inner.copies == "task" else ""))
        writer.line(f"start = {start(level, writer)}")
        options = {"rounds": inner.rounds, "gradient": inner.gradient, "keep": inner.keep}
        default = {"rounds": 1, "gradient": "through", "keep": 0}
        extra = "".join(f", {k}={v!r}" for k, v in options.items() if v != default[k])
        extra += ", copies=True" if inner.copies == "task" else ""
        writer.line(
            f'return run_inner(c, LEVELS["{level.name}"], start, {error}, {learn}, [{", ".join(inputs)}]{extra})'
        )
    writer.line()
    writer.line()


def start(level: StepLevel, writer: Writer) -> str:
    """Where the tensors begin: another level's, name by name or in order; or numbers."""
    table = dict(level.start)
    sources = [table.get(w.path, "") for w in level.state]
    prefix = sources[0].removesuffix(level.names[0]) if sources else ""
    if all(s == prefix + n for s, n in zip(sources, level.names, strict=True)):
        return f'{writer.use(RECORDS, "record")}(c, ("{prefix}", LEVELS["{level.name}"][1]))'
    texts: list[str] = []
    for w, name in zip(level.state, level.names, strict=True):
        value = {"zeros": 0.0, "ones": 1.0}.get(w.init.kind, w.init.a)
        full = f"torch.full({w.full_shape!r}, {value!r}, dtype=c.dtype, device=c.device)"
        texts.append(f'"{name}": ' + (f'c.w["{table[w.path]}"]' if w.path in table else full))
    return "{" + ", ".join(texts) + "}"


class UpdateWriter:
    """One update of a rule as functional code on records: w and the rule's memories in, the new ones out."""

    def __init__(self, writer: Writer, level: StepLevel) -> None:
        assert level.rule is not None
        self.writer, self.level, self.rule = writer, level, level.rule
        self.names: dict[str, str] = {}  # slot -> variable of its new state

    def emitter(self) -> Emitter:
        """A fresh one after each statement: w is another then."""
        bound: dict[Node, str] = {}
        retain = () if self.level.retain is None else (self.level.retain,)
        for n in walk(*(self.plain(x) for x in (*self.rule.nodes(), *retain))):
            if n.op in ("w", "g"):
                bound[n] = n.op
            elif n.op == "w0":
                bound[n] = 'state["w0"]'
            elif n.op == "updates_of":
                every = n.get("every")
                bound[n] = n["text"] if every is None else "t" if every == 1 else f"max(t // {every}, 1)"
            elif n.op == "slot_old":
                bound[n] = f'state["{n["name"]}"]'
            elif n.op == "slot_new" and n["name"] in self.names:
                bound[n] = self.names[n["name"]]
            elif n.op == "fact":
                bound[n] = f'w.fact("{n["name"]}")'
        return Emitter(self.writer, bound, special=None)

    def text(self, node: Node) -> str:
        node = self.plain(node)
        em = self.emitter()
        return em.value(node)

    def plain(self, node: Node) -> Node:
        """Arguments in place of hypers; debias written out."""

        def change(n: Node, args: tuple[Node, ...]) -> Node | None:
            if n.op == "updates":  # a number of Python here
                return make("updates_of", (), n.type, every=1)
            if n.op == "n_ticks":
                return ops.const(1)
            if n.op == "schedule":  # its ticks are the rounds, and so is its length
                self.writer.use("nestflow.ops.rules", n["kind"])
                rounds = 1 if self.level.inner is None else self.level.inner.rounds
                return make("updates_of", (), n.type, text=schedule_call(n, "t", str(rounds), "1"))
            if n.op != "debias":
                return None
            every = next((s.every for s in self.rule.program if isinstance(s, SlotUpdate) and s.slot == n["slot"]), 1)
            t = make("updates_of", (), Type("int"), every=every)
            power = make("pow", (args[1], t), Type())
            return ops.binary("div", args[0], ops.binary("sub", ops.const(1.0), power))

        return rebuild(self.rule.expand(node), change)

    def write(self) -> None:
        line, rule = self.writer.line, self.rule
        self.begin()
        if rule.gradient.op != "g":
            line(f"g = {self.text(rule.gradient)}")
        first = True
        for s in rule.program:
            if isinstance(s, SlotUpdate):
                self.slot(s)
                continue
            assert not isinstance(s, DgdStep)  # told when the graph was built
            self.writer.use(INNER, "moved")
            base = "w"
            if first and self.level.retain is not None and not ops.is_const(self.level.retain, 1):
                base = f"{self.kept(self.level.retain)} * w"
            value = self.text(s.value)
            if isinstance(s, SetWeight):
                line(f"w = moved({base}, {value} - {base}, hold) if hold else {value}")
            else:
                line(f"w = moved({base}, {value}, hold)")
            first = False
        if rule.project is not None:
            line(f"w = {self.text(rule.project)}")
        kept = {**{s.name: self.names.get(s.name, f'state["{s.name}"]') for s in rule.slots}}
        if self.reads_start():
            kept["w0"] = 'state["w0"]'
        line("return w, {" + ", ".join(f'"{k}": {v}' for k, v in kept.items()) + "}")

    def kept(self, retain: Node) -> str:
        """The number of `retain`; in a variable where it is no constant, for it is written twice."""
        text = self.text(retain)
        if retain.op == "const":
            return text
        self.writer.line(f"kept = {text}")
        return "kept"

    def reads_start(self) -> bool:
        return any(n.op == "w0" for n in walk(*self.rule.nodes()))

    def begin(self) -> None:
        """The memories of the rule as they start."""
        items: dict[str, str] = {}
        for s in self.rule.slots:
            init = self.plain(s.init)
            if init.op in ("w", "w0"):
                items[s.name] = "w"
            elif init.op == "const":
                items[s.name] = f"w.filled({float(init.value)!r})" if s.like == "w" else f"w.number({init.value!r})"
            else:
                raise fail("NF547", f"the start of `{s.name}` in level `{self.level.name}`", self.level.span)
        if self.reads_start():
            items["w0"] = "w"
        if items:
            self.writer.line("state = state or {" + ", ".join(f'"{k}": {v}' for k, v in items.items()) + "}")

    def slot(self, s: SlotUpdate) -> None:
        """The new state of a memory; with a period, at its ticks alone."""
        line, name = self.writer.line, identifier(s.slot)
        if s.pending is not None and s.pending_value is not None:
            held = identifier(f"{s.slot}_sum")
            line(f'{held} = state["{s.pending}"] + {self.text(s.pending_value)}')
            self.names[s.pending] = held
        new = self.text(s.value)
        if s.every > 1:
            new = f'{new} if t % {s.every} == 0 else state["{s.slot}"]'
        line(f"{name} = {new}")
        self.names[s.slot] = name
        if s.pending is not None:
            held = self.names[s.pending]
            line(f"{held} = {held} * 0 if t % {s.every} == 0 else {held}")


__all__ = ["emit_inner", "inner_levels", "needed", "prelude", "run_name"]
