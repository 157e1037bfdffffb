"""Calls of flows and levels: each makes an instance with its own weights and state, at a path of its own."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.core import NestflowError
from nestflow.graph.arguments import check_bounds
from nestflow.graph.body import Body
from nestflow.graph.declarations import bounds
from nestflow.graph.elaborate import MAX_DEPTH
from nestflow.graph.expressions import default_of, integer
from nestflow.graph.levels.level import LEVEL_FIELDS, LevelBuilder
from nestflow.graph.levels.sharing import moved, place_shared, settle_reads
from nestflow.graph.model import Instance
from nestflow.graph.published import published
from nestflow.graph.scope import Builder, Env
from nestflow.graph.state import drawn_starts
from nestflow.graph.unrolled import along, called, count, length, within
from nestflow.graph.values import Partial, Quiet, SharedValue, is_list
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.language import tree


class Templates:
    """What is made of templates. Flows are run statement by statement; levels are in `nestflow.graph.levels.level`."""

    def __init__(self, elab: Any) -> None:
        self.elab = elab
        self.made: dict[Any, tuple[Instance, int]] = {}
        self.called: set[int] = set()
        self.root_keys: dict[str, Any] = {}

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
        if env.depth > MAX_DEPTH:
            raise self.elab.fatal(
                "NF433",
                f"`{value.name}` calls itself without end, or calls are nested more than {MAX_DEPTH} deep",
                site.span,
            )
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
        self.called.add(id(template))
        names = [s.name for s in template.slots or ()]
        if len(args) > len(names):
            raise self.elab.failure(
                "NF213",
                f"`{value.name}` takes at most {len(names)} argument{'s'[: len(names) != 1]}, and this gives "
                f"{len(args)}",
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
                fields = ["chunk", "every", "heads", "read"] if isinstance(template, tree.Level) else []
                raise self.elab.unknown_slot(value.name, k, [*names, *fields], site)
        for s in template.slots or ():
            if s.name not in given and s.default is None:
                raise self.elab.failure(
                    "NF214", f"`{value.name}` needs `{s.name}`", site.span, f"its slots are {', '.join(names)}"
                )
            self.fits(value.name, s, given.get(s.name), site)
        return given, overrides

    def fits(self, function: str, s: tree.Slot, value: Any, site: tree.Expr) -> None:
        """A slot with bounds (`depth = 2 in [1, 16]`) takes a number inside them, one with a type a value of it."""
        domain = s.domain or (s.type.domain if s.type else None)
        if domain is not None:
            check_bounds(self.elab, function, s.name, bounds(self.elab, domain), value, site)
        if s.type is None or not isinstance(value, Node):
            return
        axes = [d for d in s.type.dims if not (isinstance(d, tree.Name) and d.name == "T")]
        shape = tuple(integer(d, self.elab.top, "an axis") for d in axes)
        kind = value.type.dtype if value.type.dtype in ("int", "bool") else "float"
        if value.op != "const" and (shape != value.type.shape or (s.type.name != kind and s.type.name != "float")):
            want = f"{s.type.name}[{', '.join(map(str, shape))}]"
            message = f"`{s.name}` of `{function}` is {want}, and this is {value.type}"
            raise self.elab.failure("NF301", message, site.span)

    def root_call(
        self,
        value: Partial,
        template: tree.Template,
        slots: dict[str, Any],
        overrides: dict[str, Any],
        env: Env,
        site: tree.Expr,
        rel: str | None = None,
    ) -> Node:
        """Outside flows every mention of a flow means its one root instance. rel: the name of a level whose memory the
        flow is, which has a copy of it."""
        rel = rel or value.name
        known = self.elab.root.children.get(rel)
        if known is not None:
            inputs = {k: v for k, v in slots.items() if self.is_input(v)}
            want = dict(known.slots)
            same = self.root_keys.get(rel) == signature(template, slots, overrides)
            if same and known.result is not None:
                return self.called_at_root(called(known, rel, tuple(want), tuple(inputs[k] for k in want), site))
            raise self.elab.failure(
                "NF317",
                f"`{rel}` has one root instance, and this call gives it other inputs",
                site.span,
                "give it the same inputs, or write a second flow",
            )
        self.root_keys[rel] = signature(template, slots, overrides)
        self.elab.root.name((rel,), rel, ())
        return self.called_at_root(self.instantiate(template, rel, slots, overrides, env, site))

    def called_at_root(self, node: Node) -> Node:
        if node.op == "call" and node not in self.elab.root_calls:
            self.elab.root_calls.append(node)
        return node

    @staticmethod
    def is_input(value: Any) -> bool:
        return isinstance(value, Node) and value.op != "const"

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
        ticks = length(inputs) if isinstance(template, tree.Level) else None
        if ticks is not None:  # a level ticks along the patches
            slots = {k: within(v, k) if k in inputs else v for k, v in slots.items()}
        try:
            instance = along(self.build(template, path, slots, overrides, env.depth + 1, site), ticks)
        except (NestflowError, Quiet) as e:
            return self.stand_in(e, inputs, site)
        more: dict[str, Any] = {}
        if env.reading and ticks is not None:
            raise self.elab.not_yet("`read` of what runs along patches", site.span)
        if env.shared is not None:
            rel, instance, more = place_shared(self.elab, env, rel, instance, site)
        parent.children[rel] = instance
        if ticks is not None and any(m.per != "sequence" for i in instance.walk() for m in i.memories):
            raise self.elab.not_yet("`per` along patches, which begin anew in each example,", site.span)
        if ticks is not None and any(drawn_starts(i) for i in instance.walk()):
            raise self.elab.not_yet("a start that is drawn along patches", site.span)
        if ticks is not None and published(instance):
            raise self.elab.not_yet("`emit` in what runs along patches", site.span)
        return called(instance, rel, tuple(inputs), tuple(inputs.values()), site, **more)

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
        key = signature(template, slots, overrides)
        if key is not None and key in self.made:
            # instances of one template with slots of the same kinds differ in their paths only
            instance, weights = self.made[key]
            self.elab.count_instance(site, sum(1 for _ in instance.walk()) - 1)
            self.elab.count(weights, site)
            return moved(instance, path)
        before, told = self.elab.weight_count, len(self.elab.collector.errors)
        outer, self.elab.turns_now = self.elab.turns_now, 1
        try:
            instance = self.make(template, path, slots, overrides, depth, site)
        finally:
            self.elab.turns_now = outer
        if key is not None and len(self.elab.collector.errors) == told:
            self.made[key] = instance, self.elab.weight_count - before
        return instance

    def make(
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
        env = Env(self.elab, builder, self.elab.find_inside, "flow", flow_heads=heads, depth=depth)
        names: dict[str, Node] = {}
        value = self.run(template, bound, env, site, names)
        result = self.elab.as_node(value, site, f"what `{template.name}` returns")
        result = settle_reads(self.elab, builder, result)
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
        # the position, where there is a token axis to count along
        ticks = any(isinstance(v, Node) and v.type.clock and v.type.clock != "N" for v in bound.values())
        patches = next((v.type.shape[0] for v in bound.values() if isinstance(v, Node) and v.type.unrolled), None)
        given: dict[str, Any] = {"training": ops.leaf("training", Type("bool"))}
        if patches is not None:
            given["t"] = count(patches)
        elif ticks:
            given["t"] = ops.leaf("position", Type("int", (), True, "T"))
        local: dict[str, Any] = {}
        scope = env.extend(given).extend(local)
        for s in template.slots or ():
            local[s.name] = bound[s.name] if s.name in bound else default_of(s, scope)
        body = Body(self, scope, local, names)
        body.statements(template.body)
        if body.result is None:
            raise self.elab.failure(
                "NF215", f"`{template.name}` returns nothing", template.span, "end it with `return e`"
            )
        if not body.published:
            return body.result
        result = self.elab.as_node(body.result, site, f"what `{template.name}` returns")
        return ops.emit(result, body.published)

    # shared ----------------------------------------------------------------------------------------

    def call_shared(
        self, shared: SharedValue, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr
    ) -> Any:
        """One more call: the same weights; a state of its own, where it keeps one."""
        shared.calls += 1
        result = self.shared(shared, args, kwargs, env, site, reading=False)
        shared.learn = result if isinstance(result, Node) else None
        return result

    def read_shared(
        self, shared: SharedValue, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr
    ) -> Any:
        """`m.read(x)`: what the level returns for x, its recalls at the state that the chunk of its call began with."""
        if not isinstance(shared.value.target, tree.Level):
            message = f"`{shared.path}` is no level: it has no memory to read"
            raise self.elab.failure("NF421", message, site.span, "`shared m = titans`; then `m.read(x)` beside `m(x)`")
        if not args and not kwargs:
            message = f"`{shared.path}.read` is asked with nothing"
            raise self.elab.failure(
                "NF214", message, site.span, f"give it what the level takes: `{shared.path}.read(x)`"
            )
        shared.reads += 1
        return self.shared(shared, args, kwargs, env, site, reading=True)

    def shared(
        self, shared: SharedValue, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr, reading: bool
    ) -> Any:
        from nestflow.graph.apply import apply

        if env.builder is not shared.builder:
            raise self.elab.failure("NF216", f"`{shared.path}` is shared inside another body", site.span)
        within = env.with_(prefix="", indices=(), for_key=("shared", shared.path), shared=shared, reading=reading)
        return apply(shared.value, args, kwargs, within, shared.expr, shared.path)

    def shared_weight(self, shared: SharedValue, attribute: str, env: Env, site: tree.Expr) -> Node:
        """`emb.weight`: a weight of a shared instance."""
        for w in env.builder.weights:
            if w.path == f"{shared.path}.{attribute}":
                return ops.leaf("weight", Type(shape=w.shape, heads=w.heads), site.span, path=w.path)
        raise self.elab.failure(
            "NF203", f"`{shared.path}` has no weight `{attribute}` yet", site.span, "call it before its weight is used"
        )


def signature(template: tree.Template, slots: dict[str, Any], overrides: dict[str, Any]) -> Any:
    """What an instance's body depends on: equal signatures, equal bodies. None: it is not known to be equal."""
    parts: list[Any] = [id(template)]
    for name, value in (*slots.items(), ("", None), *overrides.items()):
        kind = _kind(value)
        if kind is None:
            return None
        parts.append((name, kind))
    return tuple(parts)


def _kind(value: Any) -> Any:
    if isinstance(value, Node):
        return ("const", repr(value.value)) if value.op == "const" else ("input", value.type)
    if value is None or isinstance(value, str):
        return ("text", value)
    if isinstance(value, Partial):
        inner = [_kind(v) for v in (*value.args, *(v for _, v in value.kwargs))]
        names = tuple(k for k, _ in value.kwargs)
        return None if None in inner else ("partial", id(value.target), value.name, value.shift, names, *inner)
    if is_list(value):
        items = [_kind(v) for v in value]
        return None if None in items else ("list", *items)
    return None
