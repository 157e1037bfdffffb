"""The statements of an optimiser: names, memories, steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.core import Diagnostic, NestflowError, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.body import items_of
from nestflow.graph.expressions import evaluate, integer, partial
from nestflow.graph.names import check_name
from nestflow.graph.scope import Env
from nestflow.graph.substitute import substitute
from nestflow.graph.values import Partial, Poison, Quiet
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make, rebuild
from nestflow.ir.rule import RuleSlot, SetWeight, SlotUpdate, Statement, Step
from nestflow.language import tree
from nestflow.vocabulary.fields import word_for

if TYPE_CHECKING:
    from nestflow.graph.rules import RuleBuilder

LIKE = Type(like=True)
NUMBER = Type()


def given_names(g: Node) -> dict[str, Any]:
    """What an update rule sees without being told: the gradient, the weight, the counts."""
    return {
        "g": g,
        "w": ops.leaf("w", LIKE),
        "w0": ops.leaf("w0", LIKE),
        "w_chunk": ops.leaf("w_chunk", LIKE),
        "n_ticks": ops.leaf("n_ticks", Type("int")),
        "t": ops.leaf("updates", Type("int")),
    }


@dataclass
class RuleMemory:
    """A memory of an optimiser: before its statement only `before(m)` may be read."""

    name: str
    like: str
    ready: bool = False
    retain: Node | None = None

    @property
    def type(self) -> Type:
        return LIKE if self.like == "w" else NUMBER

    def state_node(self, expr: tree.Expr) -> Node:
        if not self.ready:
            raise fail(
                "NF235",
                f"`{self.name}` is read above its own statement, where its new state is not known yet",
                expr.span,
                f"`before({self.name})` is its state before this tick",
            )
        return ops.leaf("slot_new", self.type, expr.span, name=self.name)

    def old(self) -> Node:
        return ops.leaf("slot_old", self.type, name=self.name)


class Program:
    """The statements of an optimiser, run from top to bottom."""

    def __init__(
        self,
        rule: RuleBuilder,
        env: Env,
        local: dict[str, Any],
        raw: dict[str, Any],
        into: list[Statement],
        template: tree.Template,
    ) -> None:
        self.rule, self.local, self.raw, self.into, self.template = rule, local, raw, into, template
        self.elab = rule.elab
        self.mine: dict[str, RuleMemory] = {}
        self.mistakes: list[Diagnostic] = []
        self.quiet = False
        self.env = env.with_(specials={"before": self.before, "debias": self.debias})
        self.raw_env = env.extend(raw)
        # names given in text order: before(m) may stand above m's own statement
        for s in template.body:
            if isinstance(s, tree.MemoryPart):
                self.declare(s)

    def declare(self, s: tree.MemoryPart) -> None:
        check_name(self.elab, s.name, s.span)
        if s.name in self.mine or s.name in self.local:
            message = f"`{s.name}` is given twice in this optimiser"
            raise self.elab.failure("NF220", message, s.span, "give one of them another name")
        unique = s.name
        while any(slot.name == unique for slot in self.rule.slots):
            unique += "_"
        self.mine[s.name] = RuleMemory(unique, self.kind(s))
        self.local[s.name] = self.mine[s.name]
        self.rule.slots.append(RuleSlot(unique, self.mine[s.name].like, ops.const(0.0)))

    def kind(self, s: tree.MemoryPart) -> str:
        written = s.kind.function if isinstance(s.kind, tree.Call) else s.kind
        name = written.name if isinstance(written, tree.Name) else ""
        given = s.kind.args if isinstance(s.kind, tree.Call) else ()
        if name == "like":
            if len(given) != 1 or not (isinstance(given[0], tree.Name) and given[0].name in ("w", "g")):
                raise self.elab.not_yet("`like` of anything but w", s.kind.span)
            return "w"
        if name == "scalar":
            return "number"
        if name in ("matrix", "vector", "mlp", "cache"):
            raise self.elab.not_yet(f"`memory {name}` in an optimiser", s.span)
        raise self.elab.failure("NF226", "a memory of an optimiser is `like(w)` or `scalar`", s.kind.span)

    def before(self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
        return self.named(piped, args, site, "before").old()

    def debias(self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
        m = self.named(piped, args, site, "debias")
        new = m.state_node(site)
        retain = m.retain if m.retain is not None else ops.const(1.0)
        known = self.rule.arguments.get(retain["name"], retain) if retain.op == "hyper" else retain
        if ops.is_const(known, 1):
            raise self.elab.failure(
                "NF304",
                f"`debias({m.name})` divides by 1 − the product of its retains, and its retain is 1",
                site.span,
                "give the memory a `retain` below 1, or leave `debias` out",
            )
        return make("debias", (new, retain), m.type, site.span, slot=m.name)

    def named(self, piped: list[Any], args: tuple[tree.Expr, ...], site: tree.Expr, what: str) -> RuleMemory:
        name = args[0].name if len(args) == 1 and not piped and isinstance(args[0], tree.Name) else ""
        if name not in self.mine:
            raise self.elab.failure(
                "NF237",
                f"`{what}` takes the name of a memory of this optimiser",
                site.span,
                "its memories: " + (", ".join(f"`{m}`" for m in self.mine) or "none"),
            )
        return self.mine[name]

    def run(self, body: tuple[tree.Statement, ...]) -> None:
        """All statements; what is wrong with one does not hide what is wrong with the next."""
        self.statements(body)
        if self.mistakes:
            raise NestflowError(self.mistakes)
        if self.quiet:
            raise Quiet

    def statements(self, body: tuple[tree.Statement, ...]) -> None:
        for s in body:
            try:
                with self.elab.at(s):
                    self.statement(s)
                continue
            except NestflowError as e:
                self.mistakes += e.diagnostics
            except Quiet:
                self.quiet = True
            if isinstance(s, tree.MemoryPart) and s.name in self.mine:
                self.mine[s.name].ready = True
            for n in s.names if isinstance(s, tree.Assign) else ():
                self.local[n] = Poison()

    def statement(self, s: tree.Statement) -> None:
        if isinstance(s, tree.Assign):
            for n in s.names:
                check_name(self.elab, n, s.span)
            value = evaluate(s.value, self.env)
            if isinstance(value, RuleMemory):  # `u = m` reads the memory here
                value = value.state_node(s.value)
            if len(s.names) > 1:
                self.elab.unpack(s.names, value, s, self.local)
            else:
                self.local.update(dict.fromkeys(s.names, value))
        elif isinstance(s, tree.MemoryPart):
            self.memory(s)
        elif isinstance(s, tree.Field) and s.name in ("step", "set", "eval"):
            node = self.elab.as_node(evaluate(s.value, self.env), s.value, f"`{s.name}`")
            if not node.type.like:
                message = f"`{s.name}` is a tensor like w, and this is {node.type}"
                raise self.elab.failure("NF323", message, s.value.span, "for example `step -lr * g`")
            if s.name == "eval":
                self.rule.eval = node
            else:
                self.into.append((Step if s.name == "step" else SetWeight)(node, s.span))
        elif isinstance(s, tree.If):
            condition = self.elab.as_node(evaluate(s.condition, self.raw_env), s.condition)
            if condition.op != "const":
                raise self.elab.failure("NF302", "the condition of `if` must be known when compiling", s.condition.span)
            self.statements(s.body if condition.value else s.otherwise)
        elif isinstance(s, tree.For):
            check_name(self.elab, s.variable, s.span)
            items = items_of(s, self.env)
            with self.elab.turns(len(items), "for", s.span):
                for item in items:
                    self.statements(self.elab.keep(substitute(s.body, s.variable, item)))
        elif isinstance(s, tree.Repeat):
            count = integer(s.count, self.raw_env, "the count of repeat")
            with self.elab.turns(count, "repeat", s.count.span):
                for i in range(count):
                    if s.variable:
                        self.local[s.variable] = ops.const(i)
                    self.statements(s.body)
        else:
            name = getattr(s, "name", "this statement")
            raise self.elab.failure(
                "NF217",
                f"`{name}` cannot stand in an optimiser",
                s.span,
                "an optimiser has names, memories, `step`, `set`, `eval`, `if`, `for` and `repeat`",
            )

    def memory(self, s: tree.MemoryPart) -> None:
        if s.name not in self.mine:
            self.declare(s)
        m = self.mine[s.name]
        fields = self.fields(s)
        for need in ("value", "update"):
            if need not in fields:
                raise self.elab.failure("NF234", f"memory `{s.name}` needs `{need}`", s.span)
        value = self.value(fields["value"], m)
        m.retain = retain = None if "retain" not in fields else self.value(fields["retain"], m)
        if "init" in fields:
            start = self.value(fields["init"], m)
            self.rule.slots = [RuleSlot(x.name, x.like, start) if x.name == m.name else x for x in self.rule.slots]
        every = self.every(fields["every"]) if "every" in fields else 1
        pending = None
        read = value
        if every > 1:
            pending = f"{m.name}.pending"
            self.rule.slots.append(RuleSlot(pending, m.like, ops.const(0.0)))
            read = ops.leaf("slot_new", m.type, name=pending)
        step = self.inner_step(fields, m, read)
        old = m.old() if retain is None else ops.binary("mul", retain, m.old())
        new = ops.binary("add", old, step, s.span)
        self.into.append(SlotUpdate(m.name, new, every, pending, value if pending else None, s.span))
        m.ready = True

    def fields(self, s: tree.MemoryPart) -> dict[str, tree.Field]:
        known = ("value", "update", "retain", "objective", "init", "every")
        fields: dict[str, tree.Field] = {}
        for f in s.body:
            if not isinstance(f, tree.Field):
                raise self.elab.failure(
                    "NF217", "this statement cannot stand in a memory", f.span, "it has fields only"
                )
            if f.name in ("key", "query", "weight", "chunk", "reset", "per", "read", "project"):
                raise self.elab.not_yet(f"`{f.name}` in a memory of an optimiser", f.span)
            if f.name not in known:
                message = f"a memory of an optimiser has no field `{f.name}`"
                other = word_for(f.name)
                near = f"nestflow's word is `{other.name}`" if other and other.name in known else None
                help_ = near or did_you_mean(f.name, known) or "its fields are " + ", ".join(known)
                raise self.elab.failure("NF221", message, f.name_span or f.span, help_)
            if f.name in fields:
                raise self.elab.failure("NF222", f"`{f.name}` is given twice", f.span, "keep one of them")
            fields[f.name] = f
        return fields

    def value(self, f: tree.Field, m: RuleMemory) -> Node:
        """A field of a memory: like w, or a number; a `scalar` takes numbers only."""
        node = self.elab.as_node(evaluate(f.value, self.env), f.value, f"`{f.name}`")
        if m.like == "number" and node.type.like:
            message = f"`{m.name}` is a scalar, and this `{f.name}` is a tensor like w"
            raise self.elab.failure("NF301", message, f.value.span, "`norm(g)` is a number; `like(w)` keeps a tensor")
        return node

    def every(self, f: tree.Field) -> int:
        """The period of a memory, in ticks of the optimiser."""
        unit = (f.unit or "").removesuffix("s")
        if unit not in ("", "tick", "update"):
            message = f"a memory of an optimiser counts ticks, and this says `{f.unit}`"
            raise self.elab.failure("NF401", message, f.unit_span or f.span, "`every 8 ticks`")
        n = integer(f.value, self.raw_env, "`every`")
        if not 1 <= n <= 10**9:
            raise self.elab.failure("NF406", f"`every` is at least 1 tick and at most 10^9, and this is {n}", f.span)
        return n

    def inner_step(self, fields: dict[str, tree.Field], m: RuleMemory, value: Node) -> Node:
        """The memory's own step: its gradient is −value under dot (the default), m − value under l2."""
        text = fields["objective"].value if "objective" in fields else None
        objective = text.name if isinstance(text, tree.Name) else "dot" if text is None else ""
        if objective == "dot":
            g = ops.unary("neg", value)
        elif objective == "l2":
            g = ops.binary("sub", m.old(), value)
        else:
            raise self.elab.not_yet("this `objective` in a memory of an optimiser", fields["objective"].span)
        f = fields["update"]
        if isinstance(f.value, tree.Name) and f.value.name == "replace":
            return ops.binary("sub", value, m.old())
        target = partial(f.value, self.env) if isinstance(f.value, (tree.Call, tree.Name)) else None
        if isinstance(target, Partial) and target.kind == "optimizer":
            args = [g, *target.args]
            step = self.rule.call(Partial(target.target, target.name), args, dict(target.kwargs), f.value)
        else:
            step = self.elab.as_node(evaluate(f.value, self.env.extend({"g": g, "w": m.old()})), f.value)
        return tidy(step)


def tidy(node: Node) -> Node:
    """(−a)·(−b) is a·b, and −1·(−b) is b: so that an EMA looks like one."""

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "mul":
            a, b = args
            if b.op == "neg":
                if a.op == "neg":
                    return ops.binary("mul", a.args[0], b.args[0])
                if a.op == "const" and a.value < 0:
                    return ops.binary("mul", ops.const(-a.value), b.args[0])
        return None

    return rebuild(node, change)
