"""The entry points of a module whose weights learn while it reads: its ticks, its terms, its levels' rules.

def ticks(c, inputs...)               the outputs, and each call that a loss names
def terms(c, inputs..., values...)    by level, the loss at each tick, undivided
forward, losses                       the same as elsewhere, through `nestflow.bundle.reading`
"""

from __future__ import annotations

from dataclasses import replace

from nestflow.emit.expr import Emitter, Letters
from nestflow.emit.layout import tick_axis
from nestflow.emit.optim import RuleFile, compress
from nestflow.emit.rules.parts import key, place
from nestflow.emit.rules.step import write_rule
from nestflow.emit.writer import Writer, identifier
from nestflow.graph.model import LevelGraph, TokenLevel
from nestflow.graph.published import published
from nestflow.graph.reading.state import shortest
from nestflow.graph.state import TICKS
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, walk
from nestflow.ir.rule import Rule, SetWeight

RUNTIME = "nestflow.bundle.reading"
READ = ("call", "emitted")  # what an expression outside flows reads of the model
Slots = list[tuple[Node, str, Type]]


class ReadingCode:
    """The functions of a model that learns while it reads. `opened` begins an entry point: the model is read, and an
    emitter knows its values."""

    def __init__(self, graph: LevelGraph, writer: Writer, letters: Letters, slots: Slots) -> None:
        self.graph, self.writer, self.letters, self.slots = graph, writer, letters, slots
        self.plain = ", ".join(["c", *(v for _, v, _ in slots)])
        self.tables: dict[tuple[Node, ...], str] = {}  # what is read of the model -> the name of its table

    def values(self, *roots: Node | None) -> tuple[Node, ...]:
        """What has to be known of the ticks: what the levels' terms read of the model, then what the roots want."""
        own = [n for n in walk(*(n for x in self.graph.reading for n in x.reads)) if n.op in READ]
        for root in roots:
            if root is not None and root is self.graph.output:
                own += root.args if root.op == "outputs" else [root]
            elif root is not None:
                own += [n for n in walk(root) if n.op in READ]
        return tuple({id(n): n for n in own}.values())

    def write(self, *entries: tuple[Node | None, ...]) -> None:
        """The ticks, terms, rules and tables that the entry points (each with its roots) will need."""
        own = self.values()
        names = {what: self.writer.function_name(what) for what in ("terms", "gates")}
        self.terms(names["terms"], own)
        self.gates(names["gates"])
        rules = _rules(self.graph, self.writer)
        first = ""
        for values in dict.fromkeys(self.values(*roots) for roots in entries):
            ticks = self.writer.function_name("ticks")
            self.ticks(ticks, values)
            table = self.tables[values] = self.writer.function_name("READING")
            if not first:
                first = table
                _table(self.graph, self.writer, table, rules, values, (ticks, names["terms"], names["gates"]), len(own))
            else:
                told = _told(self.graph, values)
                more = f", {told!r}" if told else ""
                self.writer.line(f"{table} = {first}.giving({ticks}, {_places(values)!r}{more})")
                _gap(self.writer)

    def emitter(self, known: dict[Node, str], *roots: Node | None) -> Emitter:
        from nestflow.emit.model import sizes

        read = self.graph.read_by(*roots)
        ticks, batch = sizes([(v, t) for n, v, t in self.slots if n["name"] in read])
        known = {n: v for n, v, _ in self.slots} | known
        graph, letters = self.graph, self.letters
        return Emitter(
            self.writer, known, instance=graph.root, letters=letters, ticks=ticks, batch=batch, prefix="", reuse=False
        )

    def ticks(self, name: str, values: tuple[Node, ...]) -> None:
        with self.writer.block(f"def {name}({self.plain}):"):
            self.writer.line("# what a segment computes at each tick")
            self.share()
            em = self.emitter({}, *values)
            em.plan(*values)
            self.writer.line(f"return [{', '.join(em.value(v) for v in values)}]")
        _gap(self.writer)

    def terms(self, name: str, values: tuple[Node, ...]) -> None:
        named, levels = self.named(values), self.graph.reading
        with self.writer.block(f"def {name}({', '.join([self.plain, *named.values()])}):"):
            self.writer.line("# the loss at each tick, undivided; where there is a term")
            self.share()
            roots = [n for x in levels for n in x.reads]
            em = self.emitter(named, *roots)
            em.plan(*roots)
            told = [(x.name, x.terms) for x in levels]
            told += [(x.name + TICKS, x.when) for x in levels if x.when is not None]
            self.writer.line("return {" + ", ".join(f'"{n}": {_at_each_row(em, e)}' for n, e in told) + "}")
        _gap(self.writer)

    def share(self) -> None:
        """Further calls of a shared instance use the copies of its weights."""
        from nestflow.emit.model import shared_weights

        shared_weights(self.graph, self.writer)

    def gates(self, name: str) -> None:
        gated = {x.name: x.retain for x in self.graph.reading if x.retain is not None}
        with self.writer.block(f"def {name}(c):"):
            self.writer.line("# what is kept of the weights when they learn")
            em = self.emitter({})
            em.plan(*gated.values())
            self.writer.line("return {" + ", ".join(f'"{n}": {em.value(g)}' for n, g in gated.items()) + "}")
        _gap(self.writer)

    def opened(self, *roots: Node | None) -> Emitter:
        """In an entry point: read the whole call, and know the values."""
        wanted = self.values(*roots)
        values = wanted if wanted in self.tables else next(v for v in self.tables if set(wanted) <= set(v))
        named = self.named(values)
        self.writer.line(
            f"{', '.join(named.values())}, = {self.writer.use(RUNTIME, 'read')}({self.tables[values]}, {self.plain})"
        )
        return self.emitter(named, *roots)

    def named(self, values: tuple[Node, ...]) -> dict[Node, str]:
        """A variable for each value that is read."""
        taken = {v for _, v, _ in self.slots}
        named: dict[Node, str] = {}
        for n in values:
            word = {"call": "child", "emitted": "name"}.get(n.op)
            base = identifier("output" if word is None else n[word]).replace(".", "_")
            name, k = base + self.letters.suffix(n.type), 1
            while name in taken:
                k += 1
                name = f"{base}{k}{self.letters.suffix(n.type)}"
            taken.add(name)
            named[n] = name
        return named

    def finish(self) -> None:
        """The entry point by which sequences end within a stream."""
        end = self.writer.use(RUNTIME, "end_sequence")
        with self.writer.block(f"def finish({self.plain}):"):
            self.writer.line("# the sequences of these rows end here, their streams go on")
            self.writer.line(f"{end}({next(iter(self.tables.values()))}, {self.plain})")
        _gap(self.writer)


def _places(values: tuple[Node, ...]) -> tuple[int | None, ...]:
    """The token axis of each value."""
    return tuple(tick_axis(v.type) if v.type.clock else None for v in values)


def _told(graph: LevelGraph, values: tuple[Node, ...]) -> tuple[tuple[str, bool], ...]:
    """What the calls below the values publish, and whether it has ticks."""
    found: dict[str, bool] = {}
    for n in walk(*values):
        if n.op == "call":
            for name, types in published(graph.root.child(n["child"])).items():
                found[name] = found.get(name, False) or any(bool(t.clock) for t in types)
    return tuple(found.items())


def _at_each_row(em: Emitter, node: Node) -> str:
    return em.value(node) if node.type.batch else f"{em.atom(node)}.expand({em.batch}, -1)"


def _gap(writer: Writer) -> None:
    writer.line()
    writer.line()


def _rules(graph: LevelGraph, writer: Writer) -> dict[str, str]:
    """A class for each level's update rule; level -> its name."""
    weights = {w.path: w for w in graph.weights}
    file = RuleFile(taken=writer._taken, unit="token")
    classes: dict[str, str] = {}
    for x in graph.reading:
        heads = compress(tuple(p for p in x.weights if weights[p].heads))
        for name, rule in _parts(x):
            file.level(rule, name, x.every, compress(x.weights), heads, [], write_rule(rule), place(x.span), x.doc)
            classes[name] = writer.function_name(file.classes[-1])
    writer.use("nestflow.bundle.step_level", "Level")
    text = "\n\n\n".join(file.blocks)
    if "expand(" in text:
        writer.use("nestflow.bundle.step_level", "expand")
    for h in file.helpers:
        writer.use("nestflow.ops.rules", h)
    if file.math:
        writer.modules.add("math")
    writer.line(text)
    _gap(writer)
    return classes


def _parts(x: TokenLevel) -> list[tuple[str, Rule]]:
    """The rule of a level; and what `project` makes of the weight, as what a rule evaluates: slower gradients go
    through it, while the steps are constants."""
    rule, g = replace(x.rule, project=None), ops.leaf("g", Type(like=True))
    if x.rule.project is None:
        return [(x.name, rule)]
    made = Rule("project", (), (), x.rule.arguments, g, x.rule.project, x.rule.span)
    return [(x.name, rule), (f"{x.name}_project", made)]


def _table(
    graph: LevelGraph,
    writer: Writer,
    reading: str,
    rules: dict[str, str],
    values: tuple[Node, ...],
    functions: tuple[str, str, str],
    own: int,
) -> None:
    levels = graph.reading
    kept = tuple(s.path for s in graph.state if s.per != "sequence")
    make, one = writer.use(RUNTIME, "Reading"), writer.use(RUNTIME, "Kept")
    with writer.block(f"{reading} = {make}("):
        writer.line(f"size={shortest(levels)},")
        writer.line(f"ahead={max(x.terms.type.short for x in levels)},")
        writer.line(f"inputs={tuple((i.name, bool(i.type.clock)) for i in graph.inputs)!r},")
        writer.line(f"values={_places(values)!r},")
        if told := _told(graph, values):
            writer.line(f"told={told!r},")
        writer.line(f"own={own},")
        with writer.block("levels=("):
            for x in levels:
                with writer.block(f"{one}("):
                    writer.line(f"{rules[x.name]},")
                    first = next(y.name for y in levels if y.terms is x.terms)
                    writer.line(f"loss={first!r},")
                    if x.rule.project is not None:
                        writer.line(f"project={rules[x.name + '_project']},")
                    for line in _kept(x):
                        writer.line(line + ",")
                writer.line("),")
        writer.line("),")
        writer.line(f"kept={kept!r},")
        writer.line("ticks={}, terms={}, gates={},".format(*functions))
    writer.line(")")
    _gap(writer)


def _kept(x: TokenLevel) -> list[str]:
    lines = [f"weights={x.weights!r}", f"starts={x.starts!r}"]
    if x.rule.slots:
        lines.append(f"slots={tuple((s.name, key(s.name)) for s in x.rule.slots)!r}")
    if x.reset not in ("sequence", "never"):
        lines.append(f"reset={x.reset!r}")
    if x.keep_rule:
        lines.append("keep_rule=True")
    if x.init:
        lines.append(f"sources={x.sources!r}")
    if x.retain is not None:
        lines.append("gated=True")
    if x.when is not None:
        lines.append("waits=True")
    if any(isinstance(s, SetWeight) for s in x.rule.program):
        lines.append("sets=True")
    return lines


__all__ = ["ReadingCode"]
