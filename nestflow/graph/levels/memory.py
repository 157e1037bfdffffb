"""One memory of a level: its fields, its function, its recalls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.core import Diagnostic, NestflowError
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.channels import channels
from nestflow.graph.expressions import evaluate
from nestflow.graph.levels import kinds, learning
from nestflow.graph.levels.caches import learned_pairs, pairs, period_as_segment
from nestflow.graph.levels.resets import Reset, check_one_copy, check_per, own_counts, reset_of, ticks
from nestflow.graph.levels.rounds import check_rounds, in_rounds, turns_of
from nestflow.graph.levels.starts import check_taken
from nestflow.graph.levels.windows import is_windowed
from nestflow.graph.model import CacheSpec, Memory, MemoryFunction, Texts
from nestflow.graph.scope import Env
from nestflow.graph.values import MemoryValue, OnValue, is_list, is_record
from nestflow.ir.choices import names_tensor, per_channel, per_round, per_tensor
from nestflow.ir.node import Node, Type, make
from nestflow.language import tree
from nestflow.language.expressions import expression

if TYPE_CHECKING:
    from nestflow.graph.levels.level import LevelBuilder

MEMORY_FIELDS = (
    "key",
    "value",
    "query",
    "objective",
    "update",
    "retain",
    "every",
    "chunk",
    "read",
    "init",
    "gradient",
    "weight",
    "when",
    "project",
    "rounds",
    "reset",
    "keep",
    "per",
)
LISTED = ("key", "value")
NOT_OF_A_CACHE = ("objective", "update", "retain", "init", "gradient")


def written(expr: tree.Expr | None) -> str:
    """An expression as text, on one line; what a `for` replaced is shown replaced."""
    return "" if expr is None else expression(expr)


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
        self.errors: list[Diagnostic] = []
        self.function: MemoryFunction | None = None
        self.values: dict[str, Node] = {}
        self.kind = ""
        self.taken = 0  # tensors that have found where they start from
        self.ages: list[Node] = []  # weights of the pairs of a windowed objective
        self.cache: CacheSpec | None = None

    # fields ----------------------------------------------------------------------------------------

    def field(self, name: str) -> tree.Field | None:
        return self.own.get(name) or self.level.fields.get(name)

    def env(self, field: str, **changes: Any) -> Env:
        prefix = f"{self.name}.{field}" if field in self.own and self.level.parts else field
        env = self.level.env.with_(prefix=prefix, **changes)
        if field not in ("reset", "every", "chunk") and self.field("reset") is not None and self.cache is None:
            env = env.extend({"t": ticks(self.reset)})
        return env.extend({"M": MemoryValue(self.level, self.name)})

    def context(self, field: str) -> Node | None:
        """key, value, query: a node, made once."""
        if field not in self.values:
            f = self.field(field)
            if f is None:
                return None
            value: Any = evaluate(f.value, self.env(field))
            if is_list(value) and value and field in LISTED:  # one for each round
                with self.elab.at(f.value):
                    value = per_round([self.elab.as_node(v, f.value, f"`{field}`") for v in value])
            if is_list(value) and not value:
                message = f"`{field}` is an empty list, and a tick brings at least one"
                help_ = f"`{field} x`, or one for each pair or round: `{field} [a, b]`"
                raise self.elab.failure("NF312", message, f.span, help_)
            if is_list(value) or is_record(value):
                kind = "list" if is_list(value) else "record"
                raise self.elab.not_yet(f"a {kind} as `{field}`", f.span)
            self.values[field] = self.now(self.elab.as_node(value, f.value, f"`{field}`"), field, f)
        return self.values[field]

    def now(self, node: Node, field: str, f: tree.Field) -> Node:
        """No field sees a later token: the model would not be causal, and could not stream."""
        if node.type.short:
            raise self.elab.failure("NF403", f"a {field} cannot look ahead", f.span, "`next` belongs to a loss")
        return node

    def key_node(self) -> Node:
        key = self.context("key")
        if key is None:
            raise self.elab.failure(
                "NF227", f"memory `{self.name}` needs a `key`", self.node.span, "what is the pair stored under?"
            )
        return key

    @cached_property
    def reset(self) -> Reset:
        """When it goes back to its start."""
        return reset_of(self, *learning.clock(self))

    @property
    def keyless(self) -> bool:
        """A vector, a number, a tensor like another: what it recalls is its state."""
        given = self.level.overrides.get("memory")
        kind = self.kind_expr.function if isinstance(self.kind_expr, tree.Call) else self.kind_expr
        return (getattr(kind, "name", "") if given is None else getattr(given, "name", "")) in kinds.KEYLESS

    def heads(self, x: Node, field: str = "key") -> int | None:
        """The heads of a key or value, which are the level's."""
        heads = self.level.env.heads
        if heads and not x.type.heads:
            whole = f"under `heads` a {field} is per head, and this one is whole: {x.type}"
            help_ = "`split_heads(...)` gives each head its share, `linear` its own projection"
            f = self.field(field)
            raise self.elab.failure("NF319", whole, f.value.span if f is not None else self.node.span, help_)
        return x.type.heads

    def context_names(self) -> dict[str, Any]:
        """`key` and `value` as the other fields see them, where the memory has them."""
        hidden = self.level.env.lookup  # a name of the level's own that is called so comes first
        found = {n: self.context(n) for n in ("key", "value") if hidden(n) is None}
        return {n: x for n, x in found.items() if x is not None}

    def shared(self, value: Any, site: tree.Node, what: str) -> Node:
        """A gate, rate or weight: one value, a record with one for each tensor, or a list with one for each round."""
        if is_list(value) and value:
            with self.elab.at(site):
                return per_round([self.elab.as_node(v, site, what) for v in value])
        if not is_record(value):
            return self.elab.as_node(value, site, what)
        paths = [t.path for t in self.function.tensors] if self.function is not None else []
        for path in paths:
            if not any(names_tensor(k, path) for k in value):
                help_ = f"memory `{self.name}` has " + ", ".join(f"`{p}`" for p in paths)
                raise self.elab.failure("NF322", f"{what} names no value for the tensor `{path}`", site.span, help_)
        for k in value:
            if not any(names_tensor(k, p) for p in paths):
                help_ = f"memory `{self.name}` has " + ", ".join(f"`{p}`" for p in paths)
                raise self.elab.failure("NF322", f"{what} names `{k}`, and no tensor is called so", site.span, help_)
        nodes = {k: v if isinstance(v, OnValue) else self.elab.as_node(v, site, what) for k, v in value.items()}
        if all(isinstance(v, Node) and v.type.is_number for v in nodes.values()) or self.function is None:
            return per_tensor({k: self.elab.as_node(v, site, what) for k, v in nodes.items()})
        return per_channel(
            {
                t.path: channels(self, t, next(v for k, v in nodes.items() if names_tensor(k, t.path)), site, what)
                for t in self.function.tensors
            }
        )

    # the function ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        if self.function is not None or self.cache is not None:
            return
        self.preparing = True
        try:
            kinds.make_function(self)
        finally:
            self.preparing = False

    # recalls ---------------------------------------------------------------------------------------

    def guess(self, x: Node, mode: str, site: tree.Node) -> Node:
        """A recall of this memory in its own key or value, whose width it would have to know: it is the key's, or x's.

        `build` tells where that does not fit in the end."""
        key = self.values.get("key")
        shape = (self.out_width,) if self.out_width is not None else (key or x).type.shape
        type_ = x.type.with_(shape=shape, dtype="float", batch=True, clock=x.type.clock or "T")
        node = make("recall", (x,), type_, site.span, memory=self.name, mode=mode)
        self.guesses.append(node)
        return node

    def recall(self, given: list[Any], mode: str, site: tree.Node) -> Node:
        """This memory at a key; `mode` says which state it sees."""
        if self.keyless:
            return self.state_now(given, mode, site)
        if len(given) != 1:
            message = f"a recall takes one key, and this gives {len(given)}"
            raise self.elab.failure("NF229", message, site.span, f"`{self.name}(q)`")
        x = self.elab.as_node(given[0], site, "a recall")
        if self.preparing:
            return self.guess(x, mode, site)
        self.prepare()
        if self.cache is not None and mode != "return":
            raise self.elab.not_yet(f"a recall of the cache `{self.name}` outside `return`", site.span)
        want, out = self.mapping(site)
        if x.type.shape != want.shape or x.type.heads != want.heads or x.type.short:
            message = f"memory `{self.name}` is recalled at a {want}, and this is {x.type}"
            help_ = "under heads: `split_heads`, or `linear` with the key's width" if want.heads else None
            key = self.field("key")
            related = learning.other_end(key.span if key else None, f"the key, {want}")
            raise self.elab.failure("NF319", message, site.span, help_, related)
        type_ = want.with_(shape=out, dtype="float", batch=True, clock=want.clock or "T")
        return make("recall", (x,), type_, site.span, memory=self.name, mode=mode)

    def state_now(self, given: list[Any], mode: str, site: tree.Node) -> Node:
        """A memory without a key: its state."""
        if given:
            help_ = f"`{self.name}()`, or its bare name"
            raise self.elab.failure("NF229", f"memory `{self.name}` has no key to be recalled at", site.span, help_)
        if self.preparing:
            message = f"the value of `{self.name}` depends on `{self.name}` itself, and its width is not known"
            raise self.elab.failure("NF206", message, site.span, "`memory vector(n)`")
        self.prepare()
        assert self.function is not None
        type_ = self.function.result.type.with_(batch=True, clock="T")
        return make("recall", (), type_, site.span, memory=self.name, mode=mode)

    def state_of(self, tensor: str | None, mode: str, site: tree.Node) -> Node:
        """The state itself, or `m.g` (mode "gradient"): of a memory with several tensors the one at a path, at every
        tick. Raises NF203, NF206, NF315."""
        gradient = mode == "gradient"
        if self.keyless and not gradient:
            return self.state_now([], mode, site)
        if self.preparing:
            message = f"what `{self.name}` stores depends on its own {'gradient' if gradient else 'state'}"
            help_ = f"recall it: `{self.name}(...)`"
            raise self.elab.failure("NF206", f"{message}, and its shape is not known", site.span, help_)
        self.prepare()
        if self.function is None:
            lacks = "takes no gradient" if gradient else "has no tensor that is its state"
            help_ = f"recall it: `{self.name}(q)`"
            raise self.elab.failure("NF315", f"`{self.name}` keeps pairs, and {lacks}", site.span, help_)
        paths = [t.path for t in self.function.tensors]
        if tensor is None and len(paths) > 1:
            one, inside = ("the gradient of one", "g.") if gradient else ("one", "")
            message = f"memory `{self.name}` stores {len(paths)} tensors, and {one} is needed here"
            listed = ", ".join(f"`{self.name}.{inside}{p}`" for p in paths)
            raise self.elab.failure("NF315", message, site.span, f"one of {listed}")
        found = next((t for t in self.function.tensors if tensor is None or names_tensor(tensor, t.path)), None)
        if found is None:
            help_ = did_you_mean(tensor or "", paths) or "its tensors are " + ", ".join(f"`{p}`" for p in paths)
            raise self.elab.failure("NF203", f"memory `{self.name}` stores no `{tensor}`", site.span, help_)
        type_ = Type(shape=found.shape, batch=True, clock="T", heads=self.level.env.heads)
        return make("recall", (), type_, site.span, memory=self.name, mode=mode, tensor=found.path)

    def mapping(self, site: tree.Node) -> tuple[Type, tuple[int, ...]]:
        """What the memory is asked with, and the shape of its answer."""
        if self.function is not None:
            return self.function.key, self.function.result.type.shape
        value = self.context("value")
        if value is None:
            raise self.elab.failure("NF233", f"memory `{self.name}` needs a `value`", self.node.span, "`value …`")
        return self.key_node().type, value.type.shape

    def y(self, site: tree.Node) -> Node:
        if self.keyless:
            return self.recall([], "return", site)
        query = self.context("query")
        if query is None:
            raise self.elab.failure(
                "NF230",
                f"level `{self.level.template.name}` needs a `query`",
                site.span,
                "what is the memory asked? Or write a `return` that recalls it",
            )
        return self.recall([query], "return", self.field("query") or site)

    # the rest --------------------------------------------------------------------------------------

    def build(self) -> Memory:
        self.prepare()
        key, value, query = self.context("key"), self.context("value"), self.context("query")
        if value is not None and value.type.batch and not value.type.is_number:
            self.heads(value, "value")
        self.check_guesses()
        every, chunk = learning.clock(self)
        if self.cache is not None:
            check_per(self, self.reset, [])
            return self.build_cache(key, value, query, every, chunk)
        if self.keyless:
            self.check_keyless()
        if learning.is_frozen(self):
            return self.build_frozen(key, value, query)
        objective = self.attempt(lambda: learning.objective(self, value))
        rule = self.attempt(lambda: learning.rule(self))
        weight = self.attempt(lambda: learning.weight(self))
        parts = [n for n in (key, value, objective, weight, *(rule.nodes() if rule else ())) if n is not None]
        turns = self.attempt(lambda: turns_of(self, parts)) or 1
        retain = self.attempt(lambda: learning.retention(self, every, turns))
        when = self.attempt(lambda: learning.condition(self))
        read = self.attempt(lambda: learning.choice(self, "read", learning.READS, "after"))
        gradient = self.attempt(lambda: learning.choice(self, "gradient", learning.GRADIENTS, "through"))
        if self.errors:
            raise NestflowError(self.errors)
        node, on, first, link = retain
        learning.check_decay_first(self, first, every, chunk)
        own, weight = weight, learning.masked(weight, when)
        if is_windowed(objective) and own is not None:
            weight = learning.masked(None, when)  # every pair of a window brings its own
        memory = Memory(
            self.name,
            self.kind,
            self.level.env.heads,
            self.function,
            key,
            value,
            query,
            weight,
            objective,
            rule,
            node,
            on,
            first,
            every,
            chunk,
            read,
            gradient,
            None,
            self.texts(),
            self.node.span,
            when=when,
            link=link,
            ages=tuple(self.ages),
        )
        reset = self.reset
        seen = [n for n in (*parts, query, node, when) if n is not None]
        memory = replace(memory, when=own_counts(self, reset, rule, when, node, seen))
        check_per(self, reset, seen)
        check_one_copy(self, reset, rule, node, when)
        memory = replace(memory, reset=reset.period, reset_where=reset.where, keep_rule=reset.keep, per=reset.per)
        check_rounds(self, memory, turns)
        check_taken(self, memory)
        return memory if turns == 1 else in_rounds(memory, turns)

    def check_keyless(self) -> None:
        for name in ("key", "query"):
            f = self.own.get(name) if self.level.parts else self.field(name)
            if f is not None:
                message = f"memory `{self.name}` recalls its state: it has no `{name}`"
                raise self.elab.failure("NF239", message, f.span, "`matrix` and networks are asked with a key")

    def build_frozen(self, key: Node | None, value: Node | None, query: Node | None) -> Memory:
        """`every never`: it stays as it started."""
        heads, node = self.level.env.heads, self.node
        texts = self.texts()
        return Memory(
            self.name, self.kind, heads, self.function, key, value, query, None, None, None, None,
            texts=Texts(texts.memory, texts.key, texts.value, texts.query), span=node.span,
        )  # fmt: skip

    def build_cache(self, key: Node | None, value: Node | None, query: Node | None, every: int, chunk: int) -> Memory:
        self.mapping(self.node)
        for name in NOT_OF_A_CACHE:
            f = self.own.get(name) if self.level.parts else self.field(name)
            if f is not None:
                message = f"a `cache` keeps its context as it is: it has no `{name}`"
                raise self.elab.failure("NF239", message, f.span, "it needs `key`, `value` and `query` alone")
        assert self.cache is not None and key is not None and value is not None  # `mapping` asked for both
        key, value, count = pairs(self, key, value)
        spec = replace(period_as_segment(self, self.cache, self.reset), pairs=count)
        assert key is not None and value is not None
        learned_pairs(self, spec, key, value)
        return Memory(
            self.name,
            "cache",
            self.level.env.heads,
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
            cache=spec,
            texts=self.texts(),
            span=self.node.span,
            reset_where=self.reset.where,
            per=self.reset.per,
        )

    def attempt(self, part: Callable[[], Any]) -> Any:
        """One field; its mistake is kept, so that the other fields are looked at too."""
        try:
            return part()
        except NestflowError as e:
            self.errors += e.diagnostics
            return None

    def check_guesses(self) -> None:
        f = self.function
        if f is None:
            return
        out, width = f.result.type.shape, f.key.shape
        for g in self.guesses:
            if g.type.shape != out or g.args[0].type.shape != width:
                mine = f"memory `{self.name}` maps {list(width)} to {list(out)}"
                here = f"this recall in its own key or value maps {list(g.args[0].type.shape)} to {list(g.type.shape)}"
                raise self.elab.failure("NF319", f"{mine}, and {here}", g.span, "give the memory its `out`")

    def texts(self) -> Texts:
        def text(name: str) -> str:
            given = self.level.overrides.get(name)
            f = self.field(name)
            if given is not None:
                return str(given.value) if isinstance(given, Node) else str(getattr(given, "name", given))
            return written(f.value) if f is not None else ""

        kind = text("memory") if "memory" in self.level.overrides else written(self.kind_expr)
        return Texts(kind, text("key"), text("value"), text("query"), text("objective"), text("update"), text("retain"))
