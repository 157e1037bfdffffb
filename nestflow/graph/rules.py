"""`update`: an expression for the step, made into a Rule. Optimisers are templates whose memories become rule slots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nestflow.diagnostics.core import NestflowError
from nestflow.graph.body import items_of
from nestflow.graph.expressions import apply, evaluate, integer, partial
from nestflow.graph.names import check_name
from nestflow.graph.scope import Env
from nestflow.graph.substitute import substitute
from nestflow.graph.values import Partial
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make, rebuild
from nestflow.ir.rule import DgdStep, Rule, RuleSlot, SetWeight, SlotUpdate, Statement, Step
from nestflow.language import tree

LIKE = Type(like=True)
NUMBER = Type()


def update_rule(elab: Any, f: tree.Field, env: Env) -> Rule:
    """The rule of an `update` field, its arguments evaluated where the field stands."""
    from nestflow.graph.memory import written

    builder = RuleBuilder(elab, env)
    return builder.build(f.value, written(f.value), f)


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
            from nestflow.diagnostics.core import fail

            raise fail(
                "NF235",
                f"`{self.name}` is read above its own statement, where its new state is not known yet",
                expr.span,
                f"`before({self.name})` is its state before this tick",
            )
        return ops.leaf("slot_new", self.type, expr.span, name=self.name)

    def old(self) -> Node:
        return ops.leaf("slot_old", self.type, name=self.name)


@dataclass
class RuleBuilder:
    elab: Any
    env: Env
    slots: list[RuleSlot] = field(default_factory=list)
    program: list[Statement] = field(default_factory=list)
    arguments: dict[str, Node] = field(default_factory=dict)
    gradient: Node = field(default_factory=lambda: ops.leaf("g", LIKE))
    eval: Node | None = None
    memories: dict[str, RuleMemory] = field(default_factory=dict)

    def build(self, expr: tree.Expr, text: str, site: tree.Node) -> Rule:
        env = self.rule_env(self.env)
        head, last = self.split(expr)
        target = self.target(last, env)
        if target is not None and target.kind == "optimizer":
            before = None if head is None else self.elab.as_node(evaluate(head, env), head)
            if before is not None and self.program:  # an optimiser stands before: its step is known after its memories
                self.program.append(Step(self.staged(target, before, last, env), expr.span))
            else:
                self.gradient = self.gradient if before is None else before
                self.optimizer_tail(target, last, env)
        elif target is not None and target.name == "dgd":
            self.dgd(head, target, last, env)
        elif target is not None and target.name in ("replace", "prox", "hypergradient"):
            raise self.elab.not_yet(f"`{target.name}`", site.span)
        else:
            value = evaluate(expr, env)
            if isinstance(value, (list, dict)):
                raise self.elab.not_yet("a list or record as `update`", site.span)
            node = self.elab.as_node(value, expr, "`update`")
            if not node.type.like:
                raise self.elab.failure(
                    "NF323",
                    "`update` is the step that is added to the memory, and this is a number",
                    expr.span,
                    "`update gd(0.1)`, or an expression in `g`: `-0.1 * g`",
                )
            self.program.append(Step(node, expr.span))
        return Rule(
            text,
            tuple(self.slots),
            tuple(self.program),
            tuple(self.arguments.items()),
            self.gradient,
            self.eval,
            site.span,
        )

    def rule_env(self, env: Env) -> Env:
        env = env.extend(
            {
                "g": ops.leaf("g", LIKE),
                "w": ops.leaf("w", LIKE),
                "w0": ops.leaf("w0", LIKE),
                "w_chunk": ops.leaf("w_chunk", LIKE),
                "n_ticks": ops.leaf("n_ticks", Type("int")),
                "t": ops.leaf("updates", Type("int")),
            }
        )
        return env.with_(rule=self)

    @staticmethod
    def split(expr: tree.Expr) -> tuple[tree.Expr | None, tree.Expr]:
        """What stands before the last stage of a pipe, and the last stage."""
        if isinstance(expr, tree.Pipe):
            head = expr.stages[0] if len(expr.stages) == 2 else tree.Pipe(expr.stages[:-1], span=expr.span)
            return head, expr.stages[-1]
        return None, expr

    def target(self, stage: tree.Expr, env: Env) -> Partial | None:
        name = stage.function if isinstance(stage, tree.Call) else stage
        if not isinstance(name, tree.Name):
            return None
        value = env.lookup(name.name)
        return value if isinstance(value, Partial) else None

    def staged(self, target: Partial, g: Node, stage: tree.Expr, env: Env) -> Node:
        """The step of an optimiser whose gradient is the step of another one."""
        args = [evaluate(a, env) for a in stage.args] if isinstance(stage, tree.Call) else []
        kwargs = {k: evaluate(v, env) for k, v in stage.kwargs} if isinstance(stage, tree.Call) else {}
        return self.call(target, [g, *target.args, *args], {**dict(target.kwargs), **kwargs}, stage)

    # the optimiser at the end of the pipe ------------------------------------------------------------

    def optimizer_tail(self, target: Partial, stage: tree.Expr, env: Env) -> None:
        args = tuple(evaluate(a, env) for a in stage.args) if isinstance(stage, tree.Call) else ()
        kwargs = {k: evaluate(v, env) for k, v in stage.kwargs} if isinstance(stage, tree.Call) else {}
        template = target.target
        assert isinstance(template, tree.Template)
        raw, _ = self.elab.templates.bind(
            target, template, [*target.args, *args], {**dict(target.kwargs), **kwargs}, stage
        )
        self.run(template, raw, ops.leaf("g", LIKE), hypers=True, into=self.program)

    def call(self, value: Partial, args: list[Any], kwargs: dict[str, Any], site: tree.Expr) -> Node:
        """An optimiser inside an expression: its statements join the program, its steps added up are the value."""
        template = value.target
        assert isinstance(template, tree.Template)
        g: Node = ops.leaf("g", LIKE)
        names = [s.name for s in template.slots or ()]
        given = list(args)
        if given and isinstance(given[0], Node) and given[0].type.like and not (names and names[0] in ("base",)):
            g = given.pop(0)
        raw, _ = self.elab.templates.bind(value, template, given, kwargs, site)
        local: list[Statement] = []
        self.run(template, raw, g, hypers=False, into=local)
        total: Node | None = None
        for s in local:
            if isinstance(s, SlotUpdate):
                self.program.append(s)
            elif isinstance(s, Step):
                step = s.value if total is None else self.after(s.value, total)
                total = step if total is None else ops.binary("add", total, step)
            elif isinstance(s, SetWeight):
                value_ = s.value if total is None else self.after(s.value, total)
                total = ops.binary("sub", value_, ops.leaf("w", LIKE))
        if total is None:
            raise self.elab.failure("NF236", f"`{value.name}` makes no step", site.span)
        return total

    @staticmethod
    def after(node: Node, steps: Node) -> Node:
        """`w` after a step is the new weight."""
        w = ops.leaf("w", LIKE)
        return rebuild(node, lambda n, _: ops.binary("add", w, steps) if n is w else None)

    # bodies ------------------------------------------------------------------------------------------

    def run(self, template: tree.Template, given: dict[str, Any], g: Node, hypers: bool, into: list[Statement]) -> None:
        raw: dict[str, Any] = {}
        local: dict[str, Any] = {
            "g": g,
            "w": ops.leaf("w", LIKE),
            "w0": ops.leaf("w0", LIKE),
            "w_chunk": ops.leaf("w_chunk", LIKE),
            "n_ticks": ops.leaf("n_ticks", Type("int")),
            "t": ops.leaf("updates", Type("int")),
        }
        env = Env(self.elab, self.env.builder, self.elab.find_top, "rule", rule=self).extend(local)
        for s in template.slots or ():
            value = given[s.name] if s.name in given else evaluate(s.default, env)
            raw[s.name] = value
            local[s.name] = self.slot_value(s, value, hypers)
        Program(self, env, local, raw, into, template).statements(template.body)

    def slot_value(self, s: tree.Slot, value: Any, hypers: bool) -> Any:
        """A real number becomes a hyper of the rule (so that a parameter group can hold it); else it is bound as it is."""
        if not isinstance(value, Node) or value.type.like:
            return value
        if value.op == "const" and s.name != "lr" and (isinstance(value.value, (bool, int))):
            return value
        if not value.type.is_number:
            raise self.elab.not_yet(f"`{s.name}` as a vector", value.span)
        if not hypers:
            return value
        self.arguments[s.name] = value
        return ops.leaf("hyper", value.type.with_(shape=()), s.span, name=s.name)

    def dgd(self, head: tree.Expr | None, target: Partial, stage: tree.Expr, env: Env) -> None:
        from nestflow.graph.expressions import bind

        args = [evaluate(a, env) for a in stage.args] if isinstance(stage, tree.Call) else []
        kwargs = {k: evaluate(v, env) for k, v in stage.kwargs} if isinstance(stage, tree.Call) else {}
        lr, normalize, exact, only = bind(target.target, args, kwargs, self.elab, stage)  # type: ignore[arg-type]
        lr = self.elab.as_node(lr, stage)
        if not lr.type.is_number:
            raise self.elab.failure(
                "NF322", f"the rate of `dgd` is a number per head, and this is {lr.type}", stage.span
            )
        scale = None
        if head is not None:
            self.gradient = self.elab.as_node(evaluate(head, env), head)
            scale = self.scale_of(self.gradient, stage)
        self.arguments["lr"] = lr
        hyper = ops.leaf("hyper", lr.type.with_(shape=()), stage.span, name="lr")

        def flag(v: Any) -> bool:
            return v if isinstance(v, bool) else bool(v.value)

        self.program.append(
            DgdStep(hyper, flag(exact), flag(normalize), only if isinstance(only, str) else "**", scale, stage.span)
        )

    def scale_of(self, gradient: Node, stage: tree.Expr) -> Node | None:
        """The number that stages before `dgd` multiplied g by; any other stage is an error."""
        g = ops.leaf("g", LIKE)
        if gradient is g:
            return None
        if gradient.op in ("mul", "div") and gradient.args[0] is g and not gradient.args[1].type.like:
            one = gradient.args[1]
            return one if gradient.op == "mul" else ops.binary("div", ops.const(1.0), one)
        raise self.elab.failure(
            "NF408",
            "before `dgd` only stages that multiply g by a number may stand",
            stage.span,
            "`g / n_ticks |> dgd(...)`, `g |> clip_norm(1) |> dgd(...)`",
        )


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
        self.env = env.with_(specials={"before": self.before, "debias": self.debias})
        self.raw_env = env.extend(raw)
        # names given in text order: before(m) may stand above m's own statement
        for s in template.body:
            if isinstance(s, tree.MemoryPart):
                self.declare(s)

    def declare(self, s: tree.MemoryPart) -> None:
        check_name(self.elab, s.name, s.span)
        if s.name in self.mine:
            raise self.elab.failure("NF220", f"two memories are called `{s.name}`", s.span)
        unique = s.name
        while any(slot.name == unique for slot in self.rule.slots):
            unique += "_"
        self.mine[s.name] = RuleMemory(unique, self.kind(s))
        self.local[s.name] = self.mine[s.name]
        self.rule.slots.append(RuleSlot(unique, self.mine[s.name].like, ops.const(0.0)))

    def kind(self, s: tree.MemoryPart) -> str:
        written = s.kind.function if isinstance(s.kind, tree.Call) else s.kind
        name = written.name if isinstance(written, tree.Name) else ""
        if name == "like":
            return "w"
        if name == "scalar":
            return "number"
        if name in ("matrix", "vector", "mlp"):
            raise self.elab.not_yet(f"`memory {name}` in an optimiser", s.span)
        raise self.elab.failure("NF226", "a memory of an optimiser is `like(w)` or `scalar`", s.kind.span)

    def before(self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
        return self.named(args, site, "before").old()

    def debias(self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
        m = self.named(args, site, "debias")
        new = m.state_node(site)
        retain = m.retain if m.retain is not None else ops.const(1.0)
        return make("debias", (new, retain), m.type, site.span, slot=m.name)

    def named(self, args: tuple[tree.Expr, ...], site: tree.Expr, what: str) -> RuleMemory:
        name = args[0].name if len(args) == 1 and isinstance(args[0], tree.Name) else ""
        if name not in self.mine:
            raise self.elab.failure(
                "NF237",
                f"`{what}` takes the name of a memory of this optimiser",
                site.span,
                "its memories: " + (", ".join(f"`{m}`" for m in self.mine) or "none"),
            )
        return self.mine[name]

    def statements(self, body: tuple[tree.Statement, ...]) -> None:
        for s in body:
            try:
                self.statement(s)
            except ops.ShapeError as e:
                raise self.elab.failure("NF301", str(e), s.span) from e

    def statement(self, s: tree.Statement) -> None:
        if isinstance(s, tree.Assign):
            for n in s.names:
                check_name(self.elab, n, s.span)
            value = evaluate(s.value, self.env)
            if len(s.names) > 1:
                self.elab.unpack(s.names, value, s, self.local)
            else:
                self.local[s.names[0]] = value
        elif isinstance(s, tree.MemoryPart):
            self.memory(s)
        elif isinstance(s, tree.Field) and s.name in ("step", "set", "eval"):
            node = self.elab.as_node(evaluate(s.value, self.env), s.value, f"`{s.name}`")
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
            for item in items_of(s, self.env):
                self.statements(self.elab.keep(substitute(s.body, s.variable, item)))
        elif isinstance(s, tree.Repeat):
            for i in range(integer(s.count, self.raw_env, "the count of repeat")):
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
        fields = {f.name: f for f in s.body if isinstance(f, tree.Field)}
        known = ("value", "update", "retain", "objective", "init", "every")
        for f in s.body:
            if not isinstance(f, tree.Field) or f.name not in known:
                name = getattr(f, "name", "this")
                if name in ("key", "query", "weight", "chunk", "reset", "per", "read", "project"):
                    raise self.elab.not_yet(f"`{name}` in a memory of an optimiser", f.span)
                raise self.elab.failure(
                    "NF221",
                    f"a memory of an optimiser has no field `{name}`",
                    f.span,
                    "its fields are " + ", ".join(known),
                )
        for need in ("value", "update"):
            if need not in fields:
                raise self.elab.failure("NF234", f"memory `{s.name}` needs `{need}`", s.span)
        value = self.elab.as_node(evaluate(fields["value"].value, self.env), fields["value"].value)
        retain = (
            None
            if "retain" not in fields
            else self.elab.as_node(evaluate(fields["retain"].value, self.env), fields["retain"].value)
        )
        m.retain = retain
        if "init" in fields:
            start = self.elab.as_node(evaluate(fields["init"].value, self.env), fields["init"].value)
            self.rule.slots = [RuleSlot(x.name, x.like, start) if x.name == m.name else x for x in self.rule.slots]
        every = integer(fields["every"].value, self.raw_env, "`every`") if "every" in fields else 1
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


__all__ = ["NestflowError", "RuleBuilder", "apply", "update_rule"]
