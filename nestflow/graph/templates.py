"""Calls of flows and levels: each makes an instance with its own weights and state, at a path of its own."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.core import NestflowError
from nestflow.graph.expressions import evaluate, integer
from nestflow.graph.model import Instance
from nestflow.graph.names import check_name
from nestflow.graph.scope import Builder, Env
from nestflow.graph.substitute import substitute, text_of
from nestflow.graph.values import Partial, Poison, Quiet, SharedValue
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make
from nestflow.language import tree

LEVEL_FIELDS = (
    "every",
    "chunk",
    "heads",
    "read",
    "gradient",
    "memory",
    "key",
    "value",
    "query",
    "weight",
    "when",
    "objective",
    "update",
    "retain",
    "project",
    "init",
    "reset",
    "keep",
    "per",
    "rounds",
    "return",
)
MAX_REPEAT = 10_000


class Templates:
    """What is made of templates. Flows are run statement by statement; levels are in `nestflow.graph.level`."""

    def __init__(self, elab: Any) -> None:
        self.elab = elab

    # calls -----------------------------------------------------------------------------------------

    def call(
        self, value: Partial, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr, base: str
    ) -> Any:
        template = value.target
        assert isinstance(template, tree.Template)
        if value.kind == "optimizer":
            if env.rule is not None:
                return env.rule.call(value, args, kwargs, site)
            raise self.elab.failure("NF208", f"`{value.name}` is an optimiser, and stands in `update`", site.span)
        if env.place == "rule" or any(isinstance(a, Node) and a.type.like for a in (*args, *kwargs.values())):
            raise self.elab.failure(
                "NF209", f"`{value.name}` is a {value.kind}, and an update cannot call it", site.span
            )
        if env.depth > 60:
            raise self.elab.failure("NF433", f"`{value.name}` calls itself without end", site.span)
        self.elab.count_instance(site)
        slots, overrides = self.bind(value, template, args, kwargs, site)
        if env.builder.memory is not None:
            return self.inline(template, slots, env, site, base)
        if env.place == "top":
            return self.root_call(value, template, slots, overrides, env, site)
        rel = env.builder.name((id(site), env.for_key, env.prefix), env.path(base), env.indices)
        return self.instantiate(template, rel, slots, overrides, env, site)

    def bind(
        self, value: Partial, template: tree.Template, args: list[Any], kwargs: dict[str, Any], site: tree.Expr
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Slot values as given (defaults are left for the body's scope), and level fields that a keyword overrides."""
        names = [s.name for s in template.slots or ()]
        if len(args) > len(names):
            raise self.elab.failure(
                "NF213",
                f"`{value.name}` takes at most {len(names)} arguments, and this gives {len(args)}",
                site.span,
                f"its slots are {', '.join(names) or 'none'}",
            )
        given = dict(zip(names, args, strict=False))
        overrides: dict[str, Any] = {}
        for k, v in kwargs.items():
            if k in names:
                if k in given:
                    raise self.elab.failure("NF211", f"`{k}` is given twice", site.span)
                given[k] = v
            elif isinstance(template, tree.Level) and k in LEVEL_FIELDS:
                overrides[k] = v
            else:
                raise self.elab.unknown_slot(value.name, k, names, site)
        for s in template.slots or ():
            if s.name not in given and s.default is None:
                raise self.elab.failure(
                    "NF214", f"`{value.name}` needs `{s.name}`", site.span, f"its slots are {', '.join(names)}"
                )
            self.in_domain(s, given.get(s.name), site)
        return given, overrides

    def in_domain(self, s: tree.Slot, value: Any, site: tree.Expr) -> None:
        """A slot with bounds (`depth = 2 in [1, 16]`) takes a number inside them."""
        domain = s.domain
        if (
            domain is None
            or domain.low is None
            or domain.high is None
            or not isinstance(value, Node)
            or value.op != "const"
        ):
            return
        low, high = (self.elab.as_node(evaluate(e, self.elab.top), e).value for e in (domain.low, domain.high))
        v = value.value
        if not (low < v < high or (v == low and not domain.low_open) or (v == high and not domain.high_open)):
            bounds = f"{'(' if domain.low_open else '['}{low}, {high}{')' if domain.high_open else ']'}"
            raise self.elab.failure("NF325", f"`{s.name}` is in {bounds}, and this is {v}", site.span)

    def root_call(
        self,
        value: Partial,
        template: tree.Template,
        slots: dict[str, Any],
        overrides: dict[str, Any],
        env: Env,
        site: tree.Expr,
    ) -> Node:
        """Outside flows every mention of a flow means its one root instance."""
        rel = value.name
        known = self.elab.root.children.get(rel)
        if known is not None:
            inputs = {k: v for k, v in slots.items() if self.is_input(v)}
            want = dict(known.slots)
            if set(inputs) == set(want) and all(inputs[k].type == want[k] for k in want):
                result = known.result
                assert result is not None
                return make(
                    "call",
                    tuple(inputs[k] for k in want),
                    self.call_type(result.type, list(inputs.values())),
                    site.span,
                    child=rel,
                    names=tuple(want),
                )
            raise self.elab.failure(
                "NF317",
                f"`{rel}` has one root instance, and this call gives it other inputs",
                site.span,
                "give it the same inputs, or write a second flow",
            )
        self.elab.root.name((rel,), rel, ())
        return self.instantiate(template, rel, slots, overrides, env, site)

    @staticmethod
    def is_input(value: Any) -> bool:
        return isinstance(value, Node) and value.op != "const"

    @staticmethod
    def call_type(result: Type, args: list[Any]) -> Type:
        return result

    def instantiate(
        self,
        template: tree.Template,
        rel: str,
        slots: dict[str, Any],
        overrides: dict[str, Any],
        env: Env,
        site: tree.Expr,
    ) -> Node:
        """Build the child and call it."""
        parent = env.builder
        path = f"{parent.path}.{rel}" if parent.path else rel
        inputs = {k: v for k, v in slots.items() if self.is_input(v)}
        try:
            instance = self.build(template, path, slots, overrides, env.depth + 1, site)
        except (NestflowError, Quiet) as e:
            return self.stand_in(e, inputs, site)
        parent.children[rel] = instance
        assert instance.result is not None
        return make("call", tuple(inputs.values()), instance.result.type, site.span, child=rel, names=tuple(inputs))

    def stand_in(self, e: Exception, inputs: dict[str, Any], site: tree.Expr) -> Node:
        """Tell a template's mistake and go on as if it gave back its first input: one run shows what else is wrong."""
        if isinstance(e, NestflowError):
            self.elab.collector.take(e)
        if not inputs:
            raise Quiet
        first = next(iter(inputs.values()))
        type_ = first.type.with_(dtype="float", shape=first.type.shape or (1,))
        return ops.leaf("slot", type_, site.span, name="(broken)")

    def build(
        self,
        template: tree.Template,
        path: str,
        slots: dict[str, Any],
        overrides: dict[str, Any],
        depth: int,
        site: tree.Expr,
    ) -> Instance:
        bound: dict[str, Any] = {}
        for s in template.slots or ():
            if s.name in slots:
                v = slots[s.name]
                bound[s.name] = ops.leaf("slot", v.type, s.span, name=s.name) if self.is_input(v) else v
        if isinstance(template, tree.Level):
            from nestflow.graph.level import LevelBuilder

            return LevelBuilder(self.elab, template, path, bound, overrides, depth, site).build()
        return self.flow(template, path, bound, depth, site)

    def inline(self, template: tree.Template, slots: dict[str, Any], env: Env, site: tree.Expr, base: str) -> Any:
        """Inside a memory's function a flow has no instance of its own: its weights are the memory's."""
        if isinstance(template, tree.Level):
            raise self.elab.failure(
                "NF321", "a level cannot be part of a memory", site.span, "call it on the key instead"
            )
        rel = env.builder.name((id(site), env.for_key, env.prefix), env.path(base), env.indices)
        return self.run(template, dict(slots), env.with_(prefix=rel, depth=env.depth + 1), site)

    # flows -----------------------------------------------------------------------------------------

    def flow(self, template: tree.Template, path: str, bound: dict[str, Any], depth: int, site: tree.Expr) -> Instance:
        builder = Builder(path)
        heads = next((v.type.heads for v in bound.values() if isinstance(v, Node) and v.type.heads), None)
        env = Env(self.elab, builder, self.elab.find_top, "flow", flow_heads=heads, depth=depth)
        names: dict[str, Node] = {}
        value = self.run(template, bound, env, site, names)
        result = self.elab.as_node(value, site, f"what `{template.name}` returns")
        inputs = tuple((k, v.type) for k, v in bound.items() if isinstance(v, Node) and v.op == "slot")
        return Instance(
            path,
            "flow",
            template.name,
            inputs,
            result,
            tuple(builder.weights),
            tuple(builder.tails),
            tuple(builder.children.items()),
            names=tuple(names.items()),
            doc=template.doc,
            span=template.span,
        )

    def run(
        self,
        template: tree.Template,
        bound: dict[str, Any],
        env: Env,
        site: tree.Expr,
        names: dict[str, Node] | None = None,
    ) -> Any:
        """Run a flow's body from top to bottom; the value of its `return`."""
        local: dict[str, Any] = {}
        scope = env.extend(local)
        for s in template.slots or ():
            local[s.name] = bound[s.name] if s.name in bound else evaluate(s.default, scope)
        body = Body(self, scope, local, names)
        body.statements(template.body)
        if body.result is None:
            raise self.elab.failure(
                "NF215", f"`{template.name}` returns nothing", template.span, "end it with `return e`"
            )
        return body.result

    # shared ----------------------------------------------------------------------------------------

    def call_shared(
        self, shared: SharedValue, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr
    ) -> Any:
        from nestflow.graph.expressions import apply

        value = shared.value
        if env.builder is not shared.call:
            raise self.elab.failure("NF216", f"`{shared.path}` is shared inside another body", site.span)
        before = env.builder.children.get(shared.path)
        result = apply(
            value,
            args,
            kwargs,
            env.with_(prefix="", indices=(), for_key=("shared", shared.path)),
            shared.expr,
            shared.path,
        )
        after = env.builder.children.get(shared.path)
        if before is not None and after is not None and before.result is not after.result:
            raise self.elab.failure(
                "NF317", f"the calls of `{shared.path}` give it inputs of different kinds", site.span
            )
        if before is not None and any(i.memories or i.tails for i in before.walk()):
            raise self.elab.not_yet("a shared level that is called twice", site.span)
        return result

    def shared_weight(self, shared: SharedValue, attribute: str, env: Env, site: tree.Expr) -> Node:
        """`emb.weight`: a weight of a shared instance."""
        for w in env.builder.weights:
            if w.path == f"{shared.path}.{attribute}":
                return ops.leaf("weight", Type(shape=w.shape, heads=w.heads), site.span, path=w.path)
        raise self.elab.failure(
            "NF203", f"`{shared.path}` has no weight `{attribute}` yet", site.span, "call it before its weight is used"
        )


class Body:
    """The statements of a flow, run with the names they make."""

    def __init__(self, templates: Templates, env: Env, local: dict[str, Any], names: dict[str, Node] | None) -> None:
        self.templates, self.env, self.local, self.names = templates, env, local, names
        self.elab = templates.elab
        self.result: Any = None
        self.turns = 1  # how often the statement in hand is run, by the repeats around it

    def statements(self, body: tuple[tree.Statement, ...]) -> None:
        for s in body:
            try:
                self.statement(s)
            except NestflowError as e:
                self.elab.collector.take(e)
                self.poison(s)
            except Quiet:
                self.poison(s)

    def poison(self, s: tree.Statement) -> None:
        for n in getattr(s, "names", ()) or ((s.name,) if isinstance(s, tree.Shared) else ()):
            self.local[n] = Poison()
        if isinstance(s, tree.Return):
            self.result = Poison()

    def statement(self, s: tree.Statement) -> None:
        if isinstance(s, tree.Assign):
            for n in s.names:
                check_name(self.elab, n, s.span)
            value = evaluate(s.value, self.env)
            if len(s.names) > 1:
                self.elab.unpack(s.names, value, s, self.local)
            else:
                self.local[s.names[0]] = value
            if self.names is not None:
                for n in s.names:
                    if isinstance(self.local[n], Node) and self.local[n].op not in ("const", "slot"):
                        self.names[n] = self.local[n]
        elif isinstance(s, tree.Shared):
            check_name(self.elab, s.name, s.span)
            self.local[s.name] = self.share(s)
        elif isinstance(s, tree.Return):
            self.result = evaluate(s.value, self.env)
        elif isinstance(s, tree.If):
            condition = self.elab.as_node(evaluate(s.condition, self.env), s.condition)
            if condition.op != "const":
                raise self.elab.failure(
                    "NF302",
                    "the condition of `if` must be known when compiling",
                    s.condition.span,
                    "use `a if c else b` for a choice at each tick",
                )
            self.statements(s.body if condition.value else s.otherwise)
        elif isinstance(s, tree.For):
            self.loop(s)
        elif isinstance(s, tree.Repeat):
            self.repeat(s)
        elif isinstance(s, tree.Emit):
            raise self.elab.not_yet("`emit`", s.span)
        else:
            raise self.elab.failure(
                "NF217",
                "this statement cannot stand in a flow",
                s.span,
                "a flow has names, `shared`, `repeat`, `for`, `if` and `return`",
            )

    def loop(self, s: tree.For) -> None:
        check_name(self.elab, s.variable, s.span)
        for i, item in enumerate(items_of(s, self.env)):
            outer = self.env
            self.env = outer.with_(for_key=(*outer.for_key, (id(s), i)))
            self.statements(self.elab.keep(substitute(s.body, s.variable, item)))
            self.env = outer

    def repeat(self, s: tree.Repeat) -> None:
        if s.variable is not None:
            check_name(self.elab, s.variable, s.span)
        count = integer(s.count, self.env, "the count of repeat")
        if not 0 <= count <= MAX_REPEAT:
            raise self.elab.failure("NF434", f"`repeat` {count:,} times is outside 0 … {MAX_REPEAT:,}", s.count.span)
        self.turns *= max(count, 1)
        if self.turns > MAX_REPEAT:
            raise self.elab.failure(
                "NF434",
                f"these repeats inside each other make {self.turns:,} turns; {MAX_REPEAT:,} are the most",
                s.count.span,
            )
        outer = self.env
        for i in range(count):
            body = s.body
            if s.variable is not None:
                body = fill_marker(self.elab, body, s.variable, i)
                self.local[s.variable] = ops.const(i)
            self.env = outer.with_(indices=(*outer.indices, i))
            before = len(self.elab.collector.errors)
            self.statements(body)
            if len(self.elab.collector.errors) > before:
                break
        self.env = outer
        self.turns //= max(count, 1)
        if s.variable is not None:
            self.local.pop(s.variable, None)

    def share(self, s: tree.Shared) -> Any:
        value = partial(s.value, self.env)
        if not isinstance(value, Partial):
            raise self.elab.failure(
                "NF218",
                "`shared` names one instance of a function, flow or level",
                s.span,
                "`shared emb = embed(vocab, dim)`",
            )
        return SharedValue(value, s.name, s.value, self.env.builder)


def fill_marker(elab: Any, body: Any, variable: str, i: int) -> Any:
    """`{i}` of a repeat inside names and strings. Elsewhere the variable is a constant in scope, so that call sites stay the same
    from turn to turn."""
    if "{" + variable + "}" not in repr(body):
        return body
    return elab.keep(substitute(body, variable, tree.Number(i)))


def partial(expr: tree.Expr, env: Env) -> Any:
    """An expression without its first input: `mlp(depth = 2)`, `embed(vocab, dim)`, `titans`."""
    if isinstance(expr, tree.Call):
        from nestflow.graph.expressions import call

        value = evaluate(expr.function, env)
        if isinstance(value, Partial):
            args = tuple(evaluate(a, env) for a in expr.args)
            kwargs = tuple((k, evaluate(v, env)) for k, v in expr.kwargs)
            return Partial(value.target, value.name, (*value.args, *args), (*value.kwargs, *kwargs), shift=True)
        return call(expr.function, [], expr.args, expr.kwargs, env, expr)
    return evaluate(expr, env)


def items_of(s: tree.For, env: Env) -> list[tree.Expr]:
    """The items of a `for`, as expressions to put in place of the variable."""
    if isinstance(s.items, tree.ListExpr):
        return list(s.items.items)
    value = evaluate(s.items, env)
    if not isinstance(value, list) or not all(isinstance(v, Node) and v.op == "const" for v in value):
        raise env.elab.failure("NF318", "`for` goes over a list", s.items.span, "`for m in [keys, values] { … }`")
    return [tree.Number(v.value, span=s.items.span) for v in value]


__all__ = ["Templates", "text_of"]
