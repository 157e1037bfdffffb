"""`update`: an expression for the step, made into a Rule. Optimisers are templates whose memories become rule slots."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeGuard

from nestflow.diagnostics.core import Span
from nestflow.graph.arguments import bind
from nestflow.graph.expressions import default_of, evaluate
from nestflow.graph.globs import check_glob, matches
from nestflow.graph.python import PyFunction
from nestflow.graph.python import call as call_python
from nestflow.graph.rules.body import LIKE, Program, RuleMemory, given_names
from nestflow.graph.scope import Env, Site
from nestflow.graph.values import Partial, is_list, is_record
from nestflow.ir import ops
from nestflow.ir.forms import NUMBER, Form, Forms, settled
from nestflow.ir.node import Node, rebuild, walk
from nestflow.ir.rule import DgdStep, Let, Rule, RuleSlot, SetWeight, SlotUpdate, Statement, Step
from nestflow.language import tree
from nestflow.vocabulary.record import Word

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild

MAX_NESTED = 16


def update_rule(elab: Any, f: tree.Field, env: Env, memory: MemoryBuild | None = None) -> Rule:
    """The rule of an `update` field, its arguments evaluated where the field stands. memory: of a token-level level."""
    from nestflow.graph.levels.memory import written

    builder = RuleBuilder(elab, env, memory)
    return builder.build(f.value, written(f.value), f)


@dataclass
class RuleBuilder:
    elab: Any
    env: Env
    memory: MemoryBuild | None = None
    slots: list[RuleSlot] = field(default_factory=list[RuleSlot])
    program: list[Statement] = field(default_factory=list[Statement])
    arguments: dict[str, Node] = field(default_factory=dict[str, Node])
    gradient: Node = field(default_factory=lambda: ops.leaf("g", LIKE))
    eval: Node | None = None
    memories: dict[str, RuleMemory] = field(default_factory=lambda: dict[str, RuleMemory]())
    depth: int = 0
    named: dict[str, Form] = field(default_factory=dict[str, Form])  # values kept from before a step
    where: Node | None = None  # inside `if ndim(w) >= 2`: for which weights

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
        elif is_word(target, "replace", "prox"):
            self.whole(head, target, last, env)
        else:
            self.program.append(Step(self.step(expr, env, site), expr.span))
        self.check_axes()
        rule = Rule(
            text,
            tuple(self.slots),
            tuple(self.program),
            tuple(self.arguments.items()),
            self.gradient,
            self.eval,
            site.span,
        )
        return rule if self.memory is not None and not rule.shaped else with_views(rule, self.named)

    # shapes ------------------------------------------------------------------------------------------

    def form(self, node: Node, expr: tree.Node) -> Form:
        """The shape of an expression, said in facts of w; the operation that does not fit is told where it stands."""
        forms = Forms({s.name: s.form for s in self.slots}, self.named)
        for n in walk(node):
            try:
                forms.of(n)
            except ops.ShapeError as e:
                raise self.elab.failure("NF301", str(e), n.span or expr.span, e.help) from e
        return forms.of(node)

    def same_form(self, node: Node, want: Form, site: tree.Node, what: str) -> None:
        """A value that becomes a state or a step has its shape, or stretches to it."""
        have = self.form(node, site)
        if have in (NUMBER, want) or (have.sizes is None and want.sizes is None and want.single <= have.single):
            return
        message = f"{what} has the axes {self.axes(have)}, and {self.axes(want)} are wanted"
        raise self.elab.failure("NF301", message, node.span or site.span, "transpose it, or give the memory its shape")

    @staticmethod
    def axes(form: Form) -> str:
        if form.sizes is None:
            return "of w" + "".join(f", {i} of size 1" for i in sorted(form.single))
        return "[" + ", ".join(show_size(n) for n in form.sizes) + "]"

    def constant(self, node: Node) -> Node:
        """The node with arguments that are known when compiling put in."""
        return rebuild(node, lambda n, _: self.arguments.get(n["name"]) if n.op == "hyper" else None)

    def check_axes(self) -> None:
        """What multiplies or joins a tensor of the memory: a number, or for a matrix a vector on its key axis,
        `on_value(…)` on its value axis, or a matrix elementwise."""
        m = self.memory
        if m is None:
            return
        values = [self.gradient, *(s.value for s in self.program if not isinstance(s, DgdStep))]
        values += [s.pending_value for s in self.program if isinstance(s, SlotUpdate) and s.pending_value is not None]
        for n in walk(*values):
            for x in n.args if n.type.like and n.op in ops.BINARY | {"where"} else ():
                if not x.type.like and not x.type.is_number:
                    # what is wrong was written where the optimiser is called, and not in its own text
                    given = [self.arguments[h["name"]] for h in walk(x) if h.op == "hyper"]
                    wide = next((a for a in given if not a.type.is_number and a.span), x)
                    check_axis(m, x, wide.span)

    def step(self, expr: tree.Expr, env: Env, site: tree.Node) -> Node:
        """An expression for the step, in `g` and `w`."""
        value: Any = evaluate(expr, env)
        if isinstance(value, PyFunction):  # without its first input it takes g, as an optimiser does
            value = call_python(value, [ops.leaf("g", LIKE)], {}, env, expr)
        if is_list(value) and value and self.memory is not None:
            value = self.memory.shared(value, expr, "`update`")
        if is_list(value) or is_record(value):
            raise self.elab.not_yet("a list or record as `update`", site.span)
        help_ = "`update gd(0.1)`, or an expression in `g`: `-0.1 * g`"
        if isinstance(value, Partial):
            kind = getattr(value.target, "kind", value.kind)
            what = "`update` takes an optimiser, or an expression for the step"
            raise self.elab.failure("NF323", f"{what}, and `{value.name}` is no optimiser ({kind})", expr.span, help_)
        node = self.elab.as_node(value, expr, "`update`")
        if not node.type.like:
            message = "`update` is the step that is added to the memory, and this is a number"
            raise self.elab.failure("NF323", message, expr.span, help_)
        return node

    def rule_env(self, env: Env) -> Env:
        env = env.extend(given_names(ops.leaf("g", LIKE)))
        # `total` and `before` of updates are words of their own
        kept = {k: v for k, v in env.specials.items() if k == "ticks"}
        return env.with_(rule=self, specials={**kept, "curvature": self.curvature, "gram": self.gram})

    def gram(
        self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: tuple[tuple[str, tree.Expr], ...], site: tree.Expr
    ) -> Node:
        """`gram(w_in)`: Σ x xᵀ over the inputs of w, over the pairs that g sums."""
        first = args[0].name if args and isinstance(args[0], tree.Name) else ""
        given = dict(kwargs)
        if piped or first != "w_in" or len(args) + len(given) > 2 or (given and "normalize" not in given):
            message = "`gram` in an update is Σ x xᵀ over the inputs of the weight"
            raise self.elab.failure("NF238", message, site.span, "`gram(w_in)`, `gram(w_in, normalize = true)`")
        flag = given.get("normalize", args[1] if len(args) > 1 else None)
        unit = flag is not None and Site(self.env, "gram", site, "gram").flag(evaluate(flag, self.env), "`normalize`")
        return ops.leaf("gram", LIKE, site.span, normalize=unit)

    def curvature(self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
        """`curvature(hutchinson)`: z ⊙ Hz of the level's objective at this batch."""
        named = args[0].name if len(args) == 1 and isinstance(args[0], tree.Name) else ""
        if named != "hutchinson" or piped:
            message = "`curvature` says how it is estimated"
            raise self.elab.failure("NF238", message, site.span, "`curvature(hutchinson)`")
        if self.memory is not None:
            raise self.elab.not_yet("`curvature` of a memory on the token clock", site.span)
        return ops.leaf("curvature", LIKE, site.span)

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
        template: Any = target.target
        given = list(args)
        if self.takes_gradient(template, given):  # `adam(g / n_ticks, 1e-3)`
            if self.gradient is not ops.leaf("g", LIKE):
                message = "a gradient stands before the pipe and in the brackets"
                raise self.elab.failure("NF211", message, stage.span, "keep one of them")
            self.gradient = given.pop(0)
        merged = {**dict(target.kwargs), **kwargs}
        raw, _ = self.elab.templates.bind(target, template, [*target.args, *given], merged, stage)
        self.run(template, raw, ops.leaf("g", LIKE), hypers=True, into=self.program)
        if not any(isinstance(s, (Step, SetWeight)) for s in self.program):
            raise self.elab.failure("NF236", f"`{target.name}` makes no step", stage.span, "end it with `step -lr * g`")

    def call(
        self, value: Partial, args: list[Any], kwargs: dict[str, Any], site: tree.Expr, w: Node | None = None
    ) -> Node:
        """An optimiser inside an expression: its statements join the program, its steps added up are the value.
        w: the memory that it serves, where that is one of an optimiser."""
        template: Any = value.target
        g: Node = ops.leaf("g", LIKE)
        given = list(args)
        if w is not None or self.takes_gradient(template, given):
            g = given.pop(0)
        raw, _ = self.elab.templates.bind(value, template, given, kwargs, site)
        local: list[Statement] = []
        subject = ops.leaf("w", LIKE) if w is None else w
        self.run(template, raw, g, hypers=False, into=local, w=w)
        total: Node | None = None
        for s in local:
            if isinstance(s, (SlotUpdate, Let)):
                self.program.append(s)
                continue
            if isinstance(s, DgdStep):
                raise self.elab.not_yet("`dgd` inside an expression", site.span)
            step = s.value if total is None else self.after(s.value, total, subject)
            if isinstance(s, SetWeight):
                step = ops.binary("sub", step, subject)
            elif total is not None and s.where is self.where:
                step = ops.binary("add", total, step)
            if s.where is not None and s.where is not self.where:  # only for some weights
                rest = ops.binary("mul", ops.const(0.0), subject) if total is None else total
                taken = step if total is None or isinstance(s, SetWeight) else ops.binary("add", total, step)
                step = ops.where(s.where, taken, rest)
            total = step
        if total is None:
            raise self.elab.failure("NF236", f"`{value.name}` makes no step", site.span)
        return total

    @staticmethod
    def takes_gradient(template: tree.Template, given: list[Any]) -> bool:
        """Whether the first argument is what the optimiser reads as g; a slot `base` takes a step as its own."""
        first = template.slots[0].name if template.slots else ""
        return bool(given) and isinstance(given[0], Node) and given[0].type.like and first != "base"

    @staticmethod
    def after(node: Node, steps: Node, w: Node) -> Node:
        """`w` after a step is the new weight."""
        return rebuild(node, lambda n, _: ops.binary("add", w, steps) if n is w else None)

    # bodies ------------------------------------------------------------------------------------------

    def run(
        self,
        template: tree.Template,
        given: dict[str, Any],
        g: Node,
        hypers: bool,
        into: list[Statement],
        w: Node | None = None,
    ) -> None:
        raw: dict[str, Any] = {}
        local = given_names(g, w)
        env = Env(self.elab, self.env.builder, self.elab.find_inside, "rule", rule=self).extend(local)
        for s in template.slots or ():
            value = given[s.name] if s.name in given else default_of(s, env)
            raw[s.name] = value
            local[s.name] = self.slot_value(s, value, hypers)
        self.depth += 1
        if self.depth > MAX_NESTED:
            raise self.elab.fatal("NF433", f"`{template.name}` calls itself without end", template.span)
        Program(self, env, local, raw, into, template).run(template.body)
        self.depth -= 1

    def slot_value(self, s: tree.Slot, value: Any, hypers: bool) -> Any:
        """A real number becomes a hyper of the rule (so that a parameter group can hold it); else it is bound as it
        is."""
        if (is_record(value) or is_list(value)) and self.memory is not None:
            value = self.memory.shared(value, self.memory.field("update") or s, f"`{s.name}`")
        if not isinstance(value, Node) or value.type.like:
            return value
        if value.op == "const" and s.name != "lr" and (isinstance(value.value, (bool, int))):
            return value
        if not value.type.is_number and self.memory is None:
            raise self.elab.not_yet(f"`{s.name}` as a vector", value.span)
        if not hypers:
            return value
        self.arguments[s.name] = value
        type_ = value.type.with_(shape=()) if value.type.is_number else value.type
        return ops.leaf("hyper", type_, s.span, name=s.name)

    def whole(self, head: tree.Expr | None, target: Partial, stage: tree.Expr, env: Env) -> None:
        """`replace` and `prox` know their step from the memory's own fields."""
        from nestflow.graph.rules.exact_steps import prox, replaced

        if head is not None:
            message = f"`{target.name}` takes its step from key and value: no stage may stand before it"
            raise self.elab.failure("NF408", message, stage.span, f"`update {target.name}` alone")
        if self.memory is None:
            raise self.elab.not_yet(f"`{target.name}` on the step clock", stage.span)
        if target.name == "replace":
            self.program.append(SetWeight(replaced(self.memory, stage), stage.span))
            return
        (lr,) = self.given(target, stage, env)
        self.arguments["lr"] = rate = prox(self.memory, self.memory.shared(lr, stage, "`lr`"), stage)
        hyper = ops.leaf("hyper", rate.type, stage.span, name="lr")
        self.program.append(Step(ops.unary("neg", ops.binary("mul", hyper, ops.leaf("g", LIKE))), stage.span))

    def given(self, target: Partial, stage: tree.Expr, env: Env) -> list[Any]:
        """The arguments of one of the language's own updates, in the order of its slots."""
        if not isinstance(target.target, Word):
            raise LookupError(f"`{target.name}` is no word")
        args = [evaluate(a, env) for a in stage.args] if isinstance(stage, tree.Call) else []
        kwargs = {k: evaluate(v, env) for k, v in stage.kwargs} if isinstance(stage, tree.Call) else {}
        return bind(target.target, args, kwargs, self.elab, stage)

    def dgd(self, head: tree.Expr | None, target: Partial, stage: tree.Expr, env: Env) -> None:
        lr, normalize, exact, only = self.given(target, stage, env)
        lr = self.elab.as_node(lr, stage) if self.memory is None else self.memory.shared(lr, stage, "`lr`")
        channels = lr.type.like or not lr.type.is_number
        if channels:
            if self.memory is None:
                raise self.elab.not_yet("the rate of `dgd` as a vector on the step clock", stage.span)
            if not lr.type.like:
                check_axis(self.memory, lr, stage.span)
        scale = None
        if head is not None:
            self.gradient = self.elab.as_node(evaluate(head, env), head)
            scale = self.scale_of(self.gradient, stage)
        rate = lr  # a record with a value for each channel stands where it is used, as in every other rule
        if not lr.type.like:
            self.arguments["lr"] = lr
            type_ = lr.type if channels else lr.type.with_(shape=())
            rate = ops.leaf("hyper", type_, stage.span, name="lr")
        site = Site(env, "dgd", stage, "dgd")
        if not isinstance(only, str):
            raise self.elab.failure("NF238", "`only` of `dgd` is a glob, a string", stage.span, '`only = "**.mlp.**"`')
        self.check_only(only, stage)
        flags = site.flag(exact, "`exact`"), site.flag(normalize, "`normalize`")
        self.program.append(DgdStep(rate, *flags, only, scale, stage.span))

    def check_only(self, only: str, stage: tree.Expr) -> None:
        """`only` names some tensor of the memory: one that names none would make `dgd` a plain `gd`. Raises NF238."""
        check_glob(only, stage.span)
        m = self.memory
        tensors = m.function.tensors if m is not None and m.function is not None else ()
        if tensors and not any(matches(only, t.path) for t in tensors):
            help_ = "its tensors are " + ", ".join(f"`{t.path}`" for t in tensors)
            raise self.elab.failure("NF238", f'`only = "{only}"` matches no tensor', stage.span, help_)

    def scale_of(self, gradient: Node, stage: tree.Expr) -> Node | None:
        """The number that stages before `dgd` multiplied g by; any other stage is an error."""
        g = ops.leaf("g", LIKE)
        if gradient is g:
            return None
        if gradient.op in ("mul", "div"):
            one, other = gradient.args
            if gradient.op == "mul" and other.type.like:
                one, other = other, one
            if one.type.like and not other.type.like:
                before = self.scale_of(one, stage)
                factor = other if gradient.op == "mul" else ops.binary("div", ops.const(1.0), other)
                return factor if before is None else ops.binary("mul", before, factor)
        raise self.elab.failure(
            "NF408",
            "before `dgd` only stages that multiply g by a number may stand",
            stage.span,
            "`(g / n_ticks) |> dgd(...)`, `g |> clip_norm(1) |> dgd(...)`",
        )


def with_views(rule: Rule, named: dict[str, Form]) -> Rule:
    """The rule with the steps between w's axes and rows × cols written out."""
    forms = Forms({s.name: s.form for s in rule.slots}, named)

    def put(n: Node) -> Node:
        return settled(n, forms)

    def new(s: Statement) -> Statement:
        if isinstance(s, DgdStep):
            return s
        if isinstance(s, SlotUpdate) and s.pending_value is not None:
            return replace(s, value=put(s.value), pending_value=put(s.pending_value))
        return replace(s, value=put(s.value))

    return replace(
        rule,
        program=tuple(new(s) for s in rule.program),
        gradient=put(rule.gradient),
        arguments=tuple((k, put(v)) for k, v in rule.arguments),
        eval=None if rule.eval is None else put(rule.eval),
        slots=tuple(replace(s, init=put(s.init)) for s in rule.slots),
    )


def show_size(n: Node) -> str:
    """A size as it is written: rows(w)."""
    return f"{n['name']}(w)" if n.op == "fact" else str(n.value) if n.op == "const" else "…"


def is_word(target: Partial | None, *names: str) -> TypeGuard[Partial]:
    """Whether the last stage is one of these words of the vocabulary."""
    return target is not None and isinstance(target.target, Word) and target.name in names


def check_axis(m: MemoryBuild, x: Node, at: Span | None) -> None:
    """A rate that is no number fits an axis of the matrix that it changes; without a key it is as the state."""
    shape = m.function.tensors[0].shape if m.function is not None else ()
    if m.kind in ("vector", "like") and x.type.shape == shape and (x.type.heads or not m.level.env.heads):
        return
    if m.kind != "matrix" or m.function is None:
        message = f"a rate of `{m.name}` is {x.type}; a memory that is no matrix takes numbers"
        raise m.elab.failure("NF322", message, at, "one number per head, or a record with one for each tensor")
    if m.level.env.heads and x.type.heads is None and x.type.batch:
        message = f"under `heads` a rate is per head, and this one is whole: {x.type}"
        raise m.elab.failure("NF319", message, at, "`split_heads`, or a `linear` of its own")
    out, width = m.function.tensors[0].shape
    if x.type.shape not in ((width,), (out, 1), (1, width), (out, width)):
        message = f"a rate of {list(x.type.shape)} fits no axis of a matrix {out} × {width}"
        help_ = f"a number, {width} features (the key's), or `on_value` with {out}"
        raise m.elab.failure("NF322", message, at, help_)


__all__ = ["RuleBuilder", "update_rule"]
