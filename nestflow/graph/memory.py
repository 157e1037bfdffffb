"""One memory of a level: its function and state tensors, its fields, its update rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.core import NestflowError
from nestflow.graph.expressions import apply, evaluate, integer, partial
from nestflow.graph.model import CacheSpec, Init, Memory, MemoryFunction, MemoryTensor, Texts, WeightSpec
from nestflow.graph.scope import Builder, Env
from nestflow.graph.values import DecayFirst, Distribution, MemoryValue, OnValue, Partial, SelfReference
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, depends, make
from nestflow.language import tree
from nestflow.language.expressions import expression

if TYPE_CHECKING:
    from nestflow.graph.level import LevelBuilder

READS = ("after", "before", "chunk_start")
GRADIENTS = ("through", "stop")


def written(expr: tree.Node | None) -> str:
    """An expression as text, on one line; what a `for` replaced is shown replaced."""
    return "" if expr is None else expression(expr)  # type: ignore[arg-type]


class MemoryBuild:
    """prepare() settles the function (what it maps, which tensors); build() the rest."""

    def __init__(
        self, level: LevelBuilder, name: str, kind: tree.Expr, fields: dict[str, tree.Field], node: tree.Node
    ) -> None:
        self.level, self.name, self.kind_expr, self.own, self.node = level, name, kind, fields, node
        self.elab = level.elab
        self.preparing = False
        self.out_width: int | None = None
        self.guesses: list[Node] = []
        self.errors: list[Any] = []
        self.function: MemoryFunction | None = None
        self.values: dict[str, Node | None] = {}
        self.value_type: Type | None = None
        self.kind = ""
        self.cache: CacheSpec | None = None

    # fields ----------------------------------------------------------------------------------------

    def field(self, name: str) -> tree.Field | None:
        return self.own.get(name) or self.level.fields.get(name)

    def env(self, field: str, **changes: Any) -> Env:
        prefix = f"{self.name}.{field}" if field in self.own and self.level.parts else field
        env = self.level.env.with_(prefix=prefix, **changes)
        return env.extend({"M": MemoryValue(self.level, self.name)})

    def context(self, field: str) -> Node | None:
        """key, value, query: a node, made once."""
        if field not in self.values:
            f = self.field(field)
            if f is None:
                return None
            value = evaluate(f.value, self.env(field))
            if isinstance(value, list):
                raise self.elab.not_yet(f"a list as `{field}`", f.span)
            node = self.elab.as_node(value, f.value, f"`{field}`")
            self.values[field] = node
        return self.values[field]

    # the function ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        if self.function is not None or self.cache is not None:
            return
        self.preparing = True
        try:
            value = partial(self.kind_expr, self.level.env.with_(prefix=self.name))
            if not isinstance(value, Partial) or value.kind not in ("word", "flow"):
                raise self.elab.failure(
                    "NF226",
                    "`memory` takes a kind of memory or a flow",
                    self.kind_expr.span,
                    "`matrix`, `mlp(depth = 2)`, `cache`, or a flow of yours",
                )
            out = dict(value.kwargs).get("out")
            self.out_width = out.value if isinstance(out, Node) and out.op == "const" else None
            self.kind = value.name if value.kind == "word" and value.name != "mlp" else "function"
            if (
                self.kind == "function"
                and value.kind == "word"
                and getattr(value.target, "kind", "") not in ("memory", "function")
            ):
                raise self.elab.failure("NF226", f"`{value.name}` is no memory", self.kind_expr.span)
            self.make_function(value)
        finally:
            self.preparing = False

    def make_function(self, value: Partial) -> None:
        options = dict(value.kwargs)
        if value.kind == "word" and value.name == "cache":
            self.cache = self.make_cache(options)
        elif value.kind == "word" and value.name == "matrix":
            self.function = self.matrix(value)
        elif value.kind == "word" and value.name in ("vector", "scalar", "like", "weights", "rest"):
            where = "on the step clock, at the top" if value.name in ("weights", "rest") else "in optimisers for now"
            raise self.elab.failure(
                "NF490",
                f"`memory {value.name}` in a level that is called on tokens: it is built {where}",
                self.kind_expr.span,
            )
        else:
            self.kind = "function"
            self.function = self.of_flow(value)

    def key_node(self) -> Node:
        key = self.context("key")
        if key is None:
            raise self.elab.failure(
                "NF227", f"memory `{self.name}` needs a `key`", self.node.span, "what is the pair stored under?"
            )
        if key.type.short:
            raise self.elab.failure("NF403", "a key cannot look ahead", key.span)
        return key

    def value_width(self) -> tuple[int, ...]:
        """The value's shape; the key's where there is no value, or where it depends on the memory itself."""
        level = self.level
        kept, memo, busy = level.builder.snapshot(), dict(level.memo), list(level.busy)
        level.widths += 1
        try:
            v = self.context("value")
            return self.key_node().type.shape if v is None else v.type.shape
        except SelfReference:
            level.builder.restore(kept)
            level.memo, level.busy = memo, busy
            self.values.pop("value", None)
            return self.key_node().type.shape
        finally:
            level.widths -= 1

    def matrix(self, value: Partial) -> MemoryFunction:
        key = self.key_node()
        if len(key.type.shape) != 1:
            raise self.elab.failure("NF319", f"a matrix takes a vector as key, and this is {key.type}", key.span)
        if value.args:
            sizes = [a.value for a in value.args if isinstance(a, Node) and a.op == "const"]
            out, width = sizes if len(sizes) == 2 else (sizes[0], sizes[0])
            if width != key.type.shape[0]:
                raise self.elab.failure(
                    "NF319",
                    f"a matrix of {out} × {width} meets a key of width {key.type.shape[0]}",
                    self.kind_expr.span,
                )
        else:
            shape = self.value_width()
            out = shape[0] if len(shape) == 1 else 1
        heads = self.heads(key)
        theta = ops.leaf(
            "theta", Type(shape=(out, key.type.shape[0]), heads=heads), self.kind_expr.span, tensor="weight"
        )
        slot = ops.leaf("slot", key.type, None, name="key")
        tensor = self.tensor("weight", (out, key.type.shape[0]), Init("normal", key.type.shape[0] ** -0.5), heads)
        return MemoryFunction(key.type, ops.linear(slot, theta), (tensor,))

    def of_flow(self, value: Partial) -> MemoryFunction:
        key = self.key_node()
        slots = [s.name for s in value.target.slots or ()]  # type: ignore[union-attr]
        kwargs = dict(value.kwargs)
        if "out" in slots and "out" not in kwargs and len(value.args) < slots.index("out"):
            shape = self.value_width()
            kwargs["out"] = ops.const(shape[-1] if shape else 1)
        builder = Builder("", memory=[])
        slot = ops.leaf("slot", key.type, None, name="key")
        env = Env(
            self.elab, builder, self.elab.find_top, "flow", flow_heads=key.type.heads, depth=self.level.env.depth + 1
        )
        if isinstance(value.target, tree.Template):
            bound, _ = self.elab.templates.bind(value, value.target, [slot, *value.args], kwargs, self.kind_expr)
            result = self.elab.templates.run(value.target, bound, env, self.kind_expr)
        else:
            result = apply(
                Partial(value.target, value.name), [slot, *value.args], kwargs, env, self.kind_expr, value.name
            )
        node = self.elab.as_node(result, self.kind_expr, "a memory's function")
        assert builder.memory is not None
        if not builder.memory:
            raise self.elab.failure("NF228", f"`{value.name}` has no weights to be a memory", self.kind_expr.span)
        heads = self.heads(key)
        tensors = tuple(self.tensor(t.path, t.shape, t.init, heads) for t in builder.memory)
        return MemoryFunction(key.type, node, tensors)

    def heads(self, key: Node) -> int | None:
        if self.level.env.heads and not key.type.heads:
            raise self.elab.failure(
                "NF319",
                "under `heads` a key is per head, and this one is whole",
                key.span,
                "`split_heads(...)` gives each head its share, `linear` its own projection",
            )
        return key.type.heads

    def tensor(self, path: str, shape: tuple[int, ...], init: Init, heads: int | None) -> MemoryTensor:
        """A state tensor and its start: `init`, or the default of the kind."""
        f = self.field("init")
        start: str | Init = "zeros" if self.kind == "matrix" else "learned"
        if f is not None:
            start = self.start(f, init)
        if start == "zeros":
            return MemoryTensor(path, shape, None, Init("zeros"))
        if isinstance(start, Init):
            init = start
        elif self.kind == "matrix":
            init = Init("zeros")
        learned = f"{self.name}.{path}"
        self.level.builder.weights.append(WeightSpec(learned, shape, heads, init, "init", True, self.node.span))
        return MemoryTensor(path, shape, learned, init)

    def start(self, f: tree.Field, default: Init) -> str | Init:
        if isinstance(f.value, tree.Name) and f.value.name in ("zeros", "learned"):
            if f.value.name == "zeros" and self.kind != "matrix" and self.depth() >= 2:
                raise self.elab.failure(
                    "NF404",
                    "a memory of two or more layers that starts at zeros would never learn",
                    f.span,
                    "`init learned` is its default",
                )
            return f.value.name
        if (
            isinstance(f.value, tree.Call)
            and isinstance(f.value.function, tree.Name)
            and f.value.function.name == "learned"
        ):
            inner = evaluate(f.value.args[0], self.level.env) if f.value.args else None
            if isinstance(inner, Distribution):
                return inner.init
        raise self.elab.not_yet("this `init`", f.span)

    def depth(self) -> int:
        text = written(self.kind_expr)
        return 1 if text.startswith("matrix") else 2

    def make_cache(self, options: dict[str, Any]) -> CacheSpec:
        def number(name: str, default: Any) -> Any:
            v = options.get(name)
            if v is None:
                return default
            if isinstance(v, Node) and v.op == "const":
                return v.value
            raise self.elab.failure("NF302", f"`{name}` of a cache must be known when compiling", self.kind_expr.span)

        known = ("window", "segment", "sink", "prefix", "causal", "scale")
        for o in options:
            if o not in known:
                raise self.elab.unknown_slot("cache", o, list(known), self.kind_expr)
        key = self.key_node()
        if number("prefix", 0):
            raise self.elab.not_yet("`prefix` of a cache", self.kind_expr.span)

        def ticks(name: str, least: int) -> int | None:
            n = number(name, None)
            if n is not None and (isinstance(n, bool) or n != int(n) or n < least):
                raise self.elab.failure(
                    "NF303", f"the {name} of a cache is a whole number of ticks, and this is {n}", self.kind_expr.span
                )
            return None if n is None else int(n)

        if number("causal", True) is not True:
            raise self.elab.not_yet("`causal = false` of a cache", self.kind_expr.span)
        return CacheSpec(
            ticks("window", 1),
            ticks("segment", 1),
            ticks("sink", 0) or 0,
            0,
            True,
            float(number("scale", key.type.shape[-1] ** -0.5)),
        )

    # recalls ---------------------------------------------------------------------------------------

    def guess(self, x: Node, mode: str, site: tree.Node) -> Node:
        """A recall of this memory in its own key or value, whose width it would have to know: it is the key's, or x's.

        `build` tells where that does not fit in the end."""
        key = self.values.get("key")
        shape = (self.out_width,) if self.out_width is not None else (key or x).type.shape
        node = make(
            "recall",
            (x,),
            x.type.with_(shape=shape, dtype="float", batch=True, clock=x.type.clock or "T"),
            site.span,
            memory=self.name,
            mode=mode,
        )
        self.guesses.append(node)
        return node

    def recall(self, given: list[Any], mode: str, site: tree.Node) -> Node:
        if self.preparing and len(given) == 1:
            return self.guess(self.elab.as_node(given[0], site, "a recall"), mode, site)  # type: ignore[arg-type]
        self.prepare()
        if len(given) != 1:
            raise self.elab.failure(
                "NF229", f"a recall takes one key, and this gives {len(given)}", site.span, f"`{self.name}(q)`"
            )
        x = self.elab.as_node(given[0], site, "a recall")  # type: ignore[arg-type]
        if self.cache is not None and mode != "return":
            raise self.elab.not_yet(f"a recall of the cache `{self.name}` outside `return`", site.span)
        if self.cache is not None:
            value = self.context("value")
            assert value is not None
            out = value.type.shape
            want = self.key_node().type
        else:
            assert self.function is not None
            out, want = self.function.result.type.shape, self.function.key
        if x.type.shape != want.shape or x.type.heads != want.heads:
            raise self.elab.failure(
                "NF319",
                f"memory `{self.name}` is recalled at a {want}, and this is {x.type}",
                site.span,
                "under heads: `split_heads`, or `linear` with the key's width",
            )
        return make(
            "recall",
            (x,),
            want.with_(shape=out, dtype="float", batch=True, clock=want.clock or "T"),
            site.span,
            memory=self.name,
            mode=mode,
        )

    def y(self, site: tree.Node) -> Node:
        query = self.context("query")
        if query is None:
            raise self.elab.failure(
                "NF230",
                f"level `{self.level.template.name}` needs a `query`",
                site.span,
                "what is the memory asked? Or write a `return` that recalls it",
            )
        return self.recall([query], "return", site)

    # the rest --------------------------------------------------------------------------------------

    def build(self) -> Memory:
        self.prepare()
        key, value, query = self.context("key"), self.context("value"), self.context("query")
        self.check_guesses()
        every, chunk = self.clock()
        heads = self.level.env.heads
        texts = self.texts()
        if self.cache is not None:
            return Memory(
                self.name,
                "cache",
                heads,
                None,
                key,
                value,
                query,
                None,
                None,
                None,
                None,
                every=every,
                chunk=chunk,
                cache=self.cache,
                texts=texts,
                span=self.node.span,
            )
        parts = [self.attempt(f) for f in (lambda: self.objective(value), self.rule, self.retention)]
        if self.errors:
            raise NestflowError(self.errors)
        objective, rule, (retain, on, first) = parts
        return Memory(
            self.name,
            self.kind,
            heads,
            self.function,
            key,
            value,
            query,
            None,
            objective,
            rule,
            retain,
            on,
            first,
            every,
            chunk,
            self.choice("read", READS, "after"),
            self.choice("gradient", GRADIENTS, "through"),
            None,
            texts,
            self.node.span,
        )

    def attempt(self, part: Any) -> Any:
        """One field; its mistake is kept, so that the other fields are looked at too."""
        try:
            return part()
        except NestflowError as e:
            self.errors += e.diagnostics
            return None

    def check_guesses(self) -> None:
        for g in self.guesses:
            f = self.function
            if f is not None and (g.type.shape != f.result.type.shape or g.args[0].type.shape != f.key.shape):
                raise self.elab.failure(
                    "NF319",
                    f"memory `{self.name}` maps {list(f.key.shape)} to {list(f.result.type.shape)}, and this recall "
                    f"in its own key or value maps {list(g.args[0].type.shape)} to {list(g.type.shape)}",
                    g.span,
                    "give the memory its `out`",
                )

    def clock(self) -> tuple[int, int]:
        every = self.count("every", 1)
        chunk = self.count("chunk", every)
        if chunk % every:
            raise self.elab.failure("NF405", f"`chunk {chunk}` is no multiple of `every {every}`", self.node.span)
        return every, chunk

    def count(self, name: str, default: int) -> int:
        v = self.level.override(name)
        f = self.field(name)
        if v is None:
            if f is None:
                return default
            v = integer(f.value, self.level.env, f"`{name}`")
        if not 1 <= v <= 10_000_000:
            raise self.elab.failure(
                "NF406", f"`{name}` is at least 1 token, and this is {v}", f.span if f else self.node.span
            )
        return int(v)

    def choice(self, name: str, known: tuple[str, ...], default: str) -> Any:
        f = self.field(name)
        v = self.level.override(name) or (None if f is None else f.value)
        if v is None:
            return default
        text = v if isinstance(v, str) else v.name if isinstance(v, tree.Name) else getattr(v, "name", None)
        if text not in known:
            raise self.elab.failure(
                "NF231", f"`{name}` is one of " + ", ".join(f"`{k}`" for k in known), f.span if f else self.node.span
            )
        return text

    def objective(self, value: Node | None) -> Node:
        f = self.field("objective")
        if f is None:
            raise self.elab.failure(
                "NF232",
                f"memory `{self.name}` has a `key`, so it needs an `objective`",
                self.node.span,
                "`objective dot` (Hebbian), `objective l2` (delta rule), or an expression in M(key) and value",
            )
        env = self.env("objective", recall_mode="objective")
        if value is not None:
            env = env.extend({"key": self.key_node(), "value": value})
        result = evaluate(f.value, env)
        if isinstance(result, Partial) and result.kind == "word" and getattr(result.target, "kind", "") == "objective":
            result = self.named_objective(result, value, f)
        node = self.elab.as_node(result, f.value, "`objective`")
        if not node.type.is_number:
            node = ops.reduce("sum", node)
        if not depends(node, lambda n: n.op == "recall" and n["memory"] == self.name and n["mode"] == "objective"):
            raise self.elab.failure(
                "NF407",
                f"the objective of `{self.name}` does not recall it: it would never learn",
                f.span,
                "use `M(key)` in it",
            )
        return node

    def named_objective(self, partial_: Partial, value: Node | None, f: tree.Field) -> Node:
        from nestflow.graph.scope import Site

        if value is None:
            raise self.elab.failure(
                "NF233",
                f"`{partial_.name}` compares the recall with a `value`, and there is none",
                f.span,
                "write `value …`",
            )
        prediction = self.recall([self.key_node()], "objective", f)
        if prediction.type.shape != value.type.shape and not (prediction.type.is_number and value.type.is_number):
            raise self.elab.failure(
                "NF319",
                f"memory `{self.name}` recalls a {prediction.type}, and its value is {value.type}",
                f.span,
                "give the memory the value's width, or the value the memory's",
            )
        site = Site(self.env("objective"), partial_.name, f.value, partial_.name)
        names = [s.name for s in partial_.target.slots if s.name not in ("p", "v") or partial_.name == "lp"]  # type: ignore[union-attr]
        extra = dict(zip(names, partial_.args, strict=False)) | dict(partial_.kwargs)
        if partial_.name == "lp":
            extra = {"power": extra.get("p")}
        assert partial_.target.build is not None  # type: ignore[union-attr]
        return partial_.target.build(site, prediction, value, **extra)  # type: ignore[union-attr]

    def rule(self) -> Any:
        from nestflow.graph.rules import update_rule

        f = self.field("update")
        if f is None:
            raise self.elab.failure(
                "NF234",
                f"memory `{self.name}` needs an `update`",
                self.node.span,
                "`update gd(0.1)`, `update adam(lr = 0.01)`, …",
            )
        return update_rule(self.elab, f, self.env("update"))

    def updates(self) -> Node:
        """`t` of `retain`: the updates so far, this one included (1 at the ticks before the first, where nothing learns)."""
        position, (every, _) = ops.leaf("position", Type("int", (), True, "T")), self.clock()
        if every == 1:
            return position
        return ops.binary("max", ops.binary("floordiv", position, ops.const(every)), ops.const(1))

    def retention(self) -> tuple[Node | None, Any, bool]:
        f = self.field("retain")
        if f is None:
            return None, "number", False
        value = evaluate(f.value, self.env("retain").extend({"t": self.updates()}))
        first = isinstance(value, DecayFirst)
        if isinstance(value, DecayFirst):
            value = value.gate
        if isinstance(value, OnValue):
            return value.node, "value", first
        node = self.elab.as_node(value, f.value, "`retain`")
        if node.type.is_number:
            return node, "number", first
        if self.kind != "matrix" or self.function is None:
            raise self.elab.failure(
                "NF322",
                f"the gate of `{self.name}` is {node.type}; a memory that is no matrix takes one number per head",
                f.span,
                "`sigmoid(linear(x, 1) + 6)`",
            )
        out, width = self.function.tensors[0].shape
        if node.type.shape == (width,):
            return node, "key", first
        if node.type.shape == (out, width):
            return node, "full", first
        raise self.elab.failure(
            "NF322", f"a gate of {list(node.type.shape)} fits no axis of a matrix {out} × {width}", f.span
        )

    def texts(self) -> Texts:
        def text(name: str) -> str:
            f = self.field(name)
            return written(f.value) if f is not None else ""

        return Texts(
            written(self.kind_expr),
            text("key"),
            text("value"),
            text("query"),
            text("objective"),
            text("update"),
            text("retain"),
        )
