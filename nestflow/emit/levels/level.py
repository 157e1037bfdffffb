"""A token-level level as a Python function: context for all ticks, one loop over pieces, what it returns.

    def titans(c, p, x_BTD):
        ...                       keys, values, queries, rates and gates of all tokens
        def piece(t, n, state, k_BHCD, ...):
            ...                   errors of the piece, the rule in closed form (or tensor by tensor), recalls, new state
        state, (y_BHTD,) = in_turn(c, piece, ...)
        ...                       what the level makes of its recalls

c: nestflow.ops.runtime.Context; p: the instance's path with a dot behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nestflow.diagnostics.core import fail
from nestflow.emit.expr import Emitter, Letters
from nestflow.emit.layout import ABREAST, tick_axis
from nestflow.emit.levels.abreast import Abreast
from nestflow.emit.levels.advance import advance
from nestflow.emit.levels.cache import CacheCode
from nestflow.emit.levels.facts import (
    keeps_state,
    looks_at_start,
    numbers_of,
    packed,
    reads_new,
    taken_first,
    where,
    written,
)
from nestflow.emit.levels.fold import Fold
from nestflow.emit.levels.nodes import Nodes, frontier, looped_nodes
from nestflow.emit.levels.pairs import bare, is_only
from nestflow.emit.levels.roots import closed_rows, early_rules, hoisted, roots_of
from nestflow.emit.levels.rounds import RoundsCode
from nestflow.emit.levels.rows import Rows
from nestflow.emit.levels.rule import RuleCode
from nestflow.emit.levels.special import Special, abreast_text, channels_text
from nestflow.emit.levels.stacks import Stacks
from nestflow.emit.levels.state import StateNames
from nestflow.emit.levels.turn import forgotten, one_piece, period_of, run_pieces, trimmed
from nestflow.emit.levels.whole import beside_kernel
from nestflow.emit.writer import Writer, identifier, plain
from nestflow.graph.contents import context_of
from nestflow.graph.model import Instance
from nestflow.ir.construct import number
from nestflow.ir.node import Node, walk
from nestflow.lowering.plan import LevelPlan, MemoryPlan

CAUSAL = "nestflow.ops.causal"
LOOKBACK = ("short_conv", "previous", "window")


def emit_level(instance: Instance, entry: LevelPlan, writer: Writer, letters: Letters | None = None) -> str:
    """Write the level's function; its name. entry: the level's plan (`lower(graph).levels[instance.path]`)."""
    return LevelCode(instance, entry, writer, letters or Letters()).write()


class LevelCode:
    """Writes one level."""

    def __init__(self, instance: Instance, plan: LevelPlan, writer: Writer, letters: Letters) -> None:
        self.instance, self.plan, self.writer, self.letters = instance, plan, writer, letters
        self.nodes = Nodes(plan)
        self.splits: list[tuple[str, str]] = []  # loop variable, iterable
        self.given: list[tuple[Node, str]] = []  # the same, each with its variable in a piece
        self.whole: set[Node] = set()  # what is evaluated before the loop, of every tick
        self.recalled: list[str] = []  # variables of a piece that hold what `front` recalls in it
        # ticks before the call, as the level's memories count them
        self.t0 = "c.age0" if any(m.per != "sequence" for m in instance.memories) else "c.t0"

    def write(self) -> str:
        from nestflow.emit.model import sizes, slot_node

        assert self.instance.result is not None
        name = self.writer.function_name(self.instance.name.split(".")[-1])
        slots = [(slot_node(n, t), identifier(n + self.letters.suffix(t)), t) for n, t in self.instance.slots]
        self.ticks, self.batch = sizes((v, t) for _, v, t in slots)
        self.outer = Emitter(
            self.writer,
            {n: v for n, v, _ in slots},
            instance=self.instance,
            letters=self.letters,
            names=self.readable(),
            ticks=self.ticks,
            batch=self.batch,
            t0=self.t0,
        )
        self.outer.sequence = "c.t0"
        self.cache = CacheCode(self)
        self.outer.special = self.outside
        header = f"def {name}({', '.join(['c', 'p', *(v for _, v, _ in slots)])}):"
        if self.masked():
            self.writer.line(f"@{self.writer.use(CAUSAL, 'again_with_care')}")
        with self.writer.block(header + where(self.instance)):
            if self.instance.doc:
                for line in plain(self.instance.doc.strip()).split("\n"):
                    self.writer.line("# " + line.strip())
            self.body()
        self.writer.line()
        self.writer.line()
        return name

    def outside(self, n: Node) -> str | None:
        """How a node is written before and behind the loop, where the level has a way of its own."""
        return abreast_text(self.outer, n) if n.op == "abreast" else self.cache.special(n)

    def readable(self) -> list[tuple[str, Node]]:
        """Names of the text, and the fields of the memories."""
        found = list(self.instance.names)
        shared: Counter[Node] = Counter()
        for m in self.instance.memories:
            shared.update({number(a) for _, a in numbers_of(m)})
        for m in self.instance.memories:
            prefix = f"{m.name}_" if len(self.instance.memories) > 1 else ""
            for field in ("key", "value", "query"):
                node = getattr(m, field)
                if node is not None and node.op not in ("slot", "const"):
                    found.append((prefix + field, node))
            for name, a in numbers_of(m):
                found.append((name if shared[number(a)] > 1 else prefix + name, number(a)))
        return [(n, x) for n, x in found if x.args]

    def body(self) -> None:
        result = self.instance.result
        assert result is not None
        cached = frozenset(p.memory.name for p in self.plan.caches)
        pairs = [n for p in self.plan.caches for n in (p.memory.key, p.memory.value) if n is not None]
        self.front = frontier([result, *pairs], cached)
        if self.plan.looped:
            self.loop(result)
        self.cache.finish()
        self.look_on()
        self.writer.line(f"return {self.outer.value(result)}")

    def look_on(self) -> None:
        """Blocks that look back take their input at every tick, whether their field is used or not."""
        roots = [n for _, n in self.instance.names]
        for m in self.instance.memories:
            roots += context_of(m)
        seen = set(self.outer.done) | (set(self.inner.done) if self.plan.looped else set())
        for n in walk(*roots):
            if self.looks_back(n) and n not in seen and not any(x.op == "recall" for x in walk(n)):
                self.outer.variable(n)

    def looks_back(self, n: Node) -> bool:
        return n.op in LOOKBACK or (n.op == "call" and keeps_state(self.instance.child(n["child"])))

    # the loop --------------------------------------------------------------------------------------

    def loop(self, result: Node) -> None:
        plan, writer, em = self.plan, self.writer, self.outer
        for p in plan.looped:
            for r in (p, *p.apart):
                self.nodes.learn(r)
        self.reads = self.nodes.context(self.front)
        self.abreast = Abreast(self)
        em.abreast = self.abreast.wide
        loop = looped_nodes(roots_of(self))
        early = early_rules(self, loop)
        rates = [n for p, t in early for n in self.nodes.rule(p, t).coefficients()]
        roots = roots_of(self, early)
        self.abreast.look(roots)
        self.at_need = writer.one_token and not plan.caches  # one function, one order: nothing has to come first
        outside = [] if self.at_need else hoisted(roots, loop)
        em.plan(*outside, *rates, result)
        for n in outside:
            for a in n.args if n.op == "channels" else (n,):
                em.expression(a)
        self.state = StateNames(self)
        self.stacks = Stacks(self, early, loop)
        self.state.read()
        self.inner = Emitter(
            writer,
            letters=self.letters,
            instance=self.instance,
            names=self.loop_names(None if self.at_need else loop),
            ticks="n",
            batch=self.batch,
            t0="t",
            tick_letter="T" if writer.one_token else "C",
        )
        if self.t0 != "c.t0":  # look-back counts the sequence's ticks
            self.inner.sequence = f"(t - {self.t0} + c.t0)"
        with beside_kernel(self, outside):
            self.pieces(loop, roots, outside)
        self.state.write()

    def pieces(self, loop: set[Node], roots: list[Node], outside: list[Node]) -> None:
        """The loop itself. loop: what the state enters; roots: all that it evaluates; outside: what it is given."""
        writer = self.writer
        if not writer.one_token:
            chunk_sizes = writer.use("nestflow.ops.coefficients", "chunk_sizes")
            writer.line(f"sizes = {chunk_sizes}({self.ticks}, {self.t0}, {self.plan.size})")
        self.inner.abreast = self.abreast.wide
        self.inner.holder.update(self.outer.holder)
        for n in walk(*roots):
            if n in loop and n.op in LOOKBACK:  # a look-back at what a memory recalls
                self.state.tail(n["tail"])
            elif n in loop and n.op == "call" and keeps_state(self.instance.child(n["child"])):
                said = f"`{n['child']}` keeps a state and reads what a memory of its level recalls"
                raise fail(
                    "NF523",
                    said,
                    n.span,
                    "this version calls it only on what no memory recalls: in `return`, or before the memory",
                )
        self.special = Special(self)
        self.inner.special = self.special.text
        self.rows = Rows(writer, self.nodes, lambda base: self.variable(base))
        self.split_context(outside)
        self.late = closed_rows(self, loop)
        if writer.one_token:
            one_piece(self, roots)
            return
        self.stacks.begin()
        function, state = self.variable("piece"), self.state.variables
        head = len(writer.lines)
        with writer.block(function):
            if self.state.kept:
                writer.line(f"{state} = state")
            self.inner.plan(*roots)
            self.state.begin_piece()
            begin = len(writer.lines)
            self.piece()
            writer.line(f"return {state}, {packed(self.recalled)}")
        self.splits = trimmed(writer.lines, head, begin, self.splits)
        arguments = ", ".join(["t", "n", "state", *(v for v, _ in self.splits)])
        writer.lines[head] = writer.lines[head].replace(function, f"def {function}({arguments}):")
        period = period_of(writer.lines[head:])
        self.fold = Fold(self)
        self.fold.try_(head)
        writer.line()
        run_pieces(self, function, period)
        self.stacks.end()

    def loop_names(self, loop: set[Node] | None) -> list[tuple[str, Node]]:
        named = [(n, x) for n, x in self.readable()]
        put = [self.nodes.put(y) for y in self.nodes.context([x for _, x in named])]
        if loop is None:
            return [(n, y.args[0] if is_only(y) else y) for (n, _), y in zip(named, put)]
        return [(n, y) for (n, _), y in zip(named, put) if y in loop]

    def variable(self, base: str) -> str:
        """A new name for something that is no node."""
        name, n = identifier(base), 1
        while name in self.inner.holder or name in self.outer.holder or name in self.writer._taken:
            n += 1
            name = f"{identifier(base)}_{n}"
        self.inner.holder[name] = None
        return name

    def split_context(self, outside: list[Node]) -> None:
        """Loop variables for what was evaluated before the loop."""
        for n in outside:
            if not n.type.clock:
                if "c." in self.outer.done[n].text:  # a variable: a piece takes tensors from outside by name alone
                    self.outer.variable(n, "w")
                self.inner.done[n] = self.outer.done[n]
                continue
            if n.op == "channels":
                self.channels(n)
                continue
            source = self.outer.variable(n)
            if self.writer.one_token:
                self.inner.bind(n, source)
                continue
            self.whole.add(n)
            lead = ABREAST if n in self.abreast.wide else ""
            name = self.inner.fresh(source.removesuffix(self.letters.suffix(n.type, lead=lead)), n.type, lead)
            self.inner.bind(n, name)
            self.given.append((n, name))
            self.splits.append((name, f"{source}.split(sizes, {tick_axis(n.type)})"))

    def channels(self, n: Node) -> None:
        """Readings by gates of key channels that no state enters: of all pieces before the loop."""
        text = channels_text(self.outer, n, "channels_in_pieces", f"sizes, {self.plan.size}")
        source = self.variable("w_before" if n["before"] else "w_at")
        self.writer.line(f"{source} = {text}")
        name = self.variable(f"{source}_C")
        self.inner.bind(n, name)
        self.splits.append((name, source))

    def split_rows(self, iterable: str, base: str) -> str:
        name = self.variable(f"{base}_C")
        self.splits.append((name, iterable))
        return name

    def masked(self) -> bool:
        """Whether ticks of a piece are computed together, those before one masked from it."""
        return self.plan.by is not None or (self.plan.size > 1 and any(p.closed for p in self.plan.looped))

    # one piece -------------------------------------------------------------------------------------

    def piece(self) -> None:
        for p in self.state.in_order():
            self.state.reset(p)
        for p in taken_first(self.plan.looped):
            if p.memory.rule is not None:
                self.errors(p)
        said: set[str] = set()
        for p, tensor in self.late:
            if self.rows.key(p, tensor) not in self.rows.names:
                if written(p.memory) not in said:
                    self.comment(f"the rule in closed form, rows [starts | errors]: {written(p.memory)}", p.memory.rule)
                    said.add(written(p.memory))
                ticks = "n" if len(p.woven) == 1 else f"{len(p.woven)} * n"
                self.rows.write(self.inner, p, tensor, ticks, "t", pieces=False)
        for p in self.plan.looped:
            if p.closed:
                self.solved(p)
        late = [reads_new(y) for y in self.reads]
        found: dict[int, str] = {}
        for i, (y, wait) in enumerate(zip(self.reads, late)):
            if wait:
                self.before_learning(y)
            else:
                found[i] = self.held(y)
        given_up = self.learn(any(late))
        found.update({i: self.held(y) for i, y in enumerate(self.reads) if i not in found})
        self.recalled = [found[i] for i in range(len(self.reads))]
        for line in given_up:
            self.writer.line(line)
        self.state.advance()

    def held(self, y: Node, base: str = "y") -> str:
        """A variable with a recall, which stays as it is when the state moves on."""
        name = self.inner.value(y)
        if name.isidentifier() and name not in (kept for kept, _ in self.state.kept):
            return name
        own = self.inner.fresh(base, y.type)
        self.writer.line(f"{own} = {name}")
        self.inner.holder[own] = y
        return own

    def before_learning(self, y: Node) -> None:
        """What a recall of the new state uses of the old one, into variables while it is still there. An old state
        that such a recall reads itself (`a(b(x))` before the tick at which both learn) gets a name that stays."""
        kept = {name for name, _ in self.state.kept}
        for n in walk(y):
            if reads_new(n):
                for a in n.args:
                    if not reads_new(a) and any(x.op == "state" for x in walk(a)) and self.inner.variable(a) in kept:
                        self.inner.bind(a, self.held(a, "old"))

    def errors(self, p: MemoryPlan) -> None:
        """Inputs and errors of the piece; where a delta rule looks at its own state, what it looks with."""
        m = p.memory
        if m.decay_first and not p.closed:
            self.state.decay(p)
        names = ", ".join(f"`{name}`" for name in self.abreast.beside(m.name))
        what = "errors" if len(self.plan.looped) == 1 else f"errors of {names}"
        at = " at the chunk's first state" if p.pattern == "chunk" else ""
        if self.nodes.errors[m.name] or self.nodes.dense[m.name] or not self.plan.groups:
            self.comment(f"{what}{at}: objective {m.texts.objective}", m)
        for tensor, pairs in self.nodes.errors[m.name].items():
            for _, e in pairs:
                self.inner.names.setdefault(e, f"e_{identifier(tensor.removesuffix('.weight'))}")
        for pairs in self.nodes.errors[m.name].values():
            for h, e in pairs:
                if m.retain_on != "key" or not p.closed:
                    self.inner.variable(h)
                for look in looks_at_start(e, h):  # a delta rule uses it again
                    self.inner.variable(look)
                if not any(n.op == "solved" for n in walk(e)):
                    self.inner.variable(bare(e) if self.writer.one_token else e, "e")
        for g in self.nodes.dense[m.name].values():
            self.inner.variable(g, "g")

    def solved(self, p: MemoryPlan) -> None:
        for pairs in self.nodes.errors[p.memory.name].values():
            for _, e in pairs:
                self.inner.variable(e, "u")

    def learn(self, wait: bool) -> list[str]:
        """The new states: closed forms together, then the rules that go tensor by tensor.

        wait: a recall of a new state is still to come; it may go on to a closed form, which starts from the old.
        """
        codes = []
        given_up: list[str] = []
        for group in self.groups():
            m = group[0].memory
            self.comment(f"the errors of `{', '.join(p.memory.name for p in group)}`, summed over the ticks", m.rule)
            codes.append(RuleCode(self.writer, self.nodes, self.inner, group, self.state.names))
            codes[-1].gradients()
            codes[-1].count()
            codes[-1].prefetch()
        later = [r for p in self.plan.looped for r in p.apart]
        rounds = RoundsCode(self, later)
        rounds.prepare()
        for p in self.plan.looped:
            if p.closed:
                given_up += advance(self, p, wait=wait)
        for code in codes:
            self.update(code)
        rounds.write()
        return given_up

    def groups(self, plans: Sequence[MemoryPlan] | None = None) -> list[list[MemoryPlan]]:
        """Memories that learn by one rule at the same ticks: norms may go over all of them."""
        groups: dict[object, list[MemoryPlan]] = {}
        for p in self.plan.looped if plans is None else plans:
            if not p.closed and p.memory.rule is not None:
                m = p.memory
                own = m.reset_where if m.every > 1 else None
                groups.setdefault((m.rule, m.every, m.when, own), []).append(p)
        return list(groups.values())

    def comment(self, text: str, node: object = None) -> None:
        """A comment line that says where in the text it comes from."""
        self.writer.line(f"# {text}{where(node)}")

    def update(self, code: RuleCode) -> None:
        m = code.first
        self.comment("learn: " + written(m), m.rule)
        if m.every == 1 or m.reset_where is not None:
            code.update()
            return
        with forgotten(self.inner):
            with self.writer.block(f"if (t + n) % {m.every} == 0:"):
                code.update()
            with self.writer.block("else:"):
                code.wait()


__all__ = ["LevelCode", "emit_level"]
