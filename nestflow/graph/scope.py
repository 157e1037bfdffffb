"""Where an expression stands: the instance that gets its weights, the names it sees, its heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nestflow.graph.model import Init, Instance, MemoryTensor, TailSpec, WeightSpec
from nestflow.graph.values import SharedValue, is_list, is_record
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.elaborate import Elaborator

Lookup = Callable[[str], Any]


@dataclass
class Builder:
    """An instance under construction: its own weights, tails and children, and the names given so far.

    memory: when a memory's function is built, weights become its state tensors (kept here), and flows are inlined.
    slow: those that stay weights instead, of the level (its builder, their path there)."""

    path: str
    weights: list[WeightSpec] = field(default_factory=list[WeightSpec])
    tails: list[TailSpec] = field(default_factory=list[TailSpec])
    children: dict[str, Instance] = field(default_factory=dict[str, Instance])
    used: dict[str, int] = field(default_factory=dict[str, int])
    sites: dict[Any, str] = field(default_factory=dict[Any, str])
    shared: list[SharedValue] = field(default_factory=list[SharedValue])
    memory: list[MemoryTensor] | None = None
    one: bool = False  # a single function: its weights stand at the instance's own path
    slow: Callable[[str], tuple[Builder, str] | None] | None = None

    def name(self, key: Any, base: str, indices: tuple[int, ...]) -> str:
        """The relative path of the call `key`: its base name (made unique in text order), then the repeat indices."""
        if key not in self.sites:
            n = self.used.get(base, 0) + 1
            self.used[base] = n
            self.sites[key] = base if n == 1 else f"{base}_{n}"
        return ".".join([self.sites[key], *map(str, indices)])

    def snapshot(self) -> tuple[Any, ...]:
        return (list(self.weights), list(self.tails), dict(self.children), dict(self.used), dict(self.sites))

    def restore(self, kept: tuple[Any, ...]) -> None:
        self.weights, self.tails, self.children, self.used, self.sites = (
            list(kept[0]),
            list(kept[1]),
            dict(kept[2]),
            dict(kept[3]),
            dict(kept[4]),
        )


@dataclass(frozen=True)
class Names:
    """A lookup: the names of a place, then those around it."""

    names: Mapping[str, Any]
    outer: Lookup

    def __call__(self, name: str) -> Any:
        return self.names[name] if name in self.names else self.outer(name)

    def visible(self) -> set[str]:
        """For suggestions: what may be meant by a misspelt name."""
        around: Callable[[], set[str]] | None = getattr(self.outer, "visible", None)
        return {*self.names, *(around() if around is not None else ())}


@dataclass(frozen=True)
class Env:
    """place: flow, level, rule or top (what is not resolved at compile time differs a little between them)."""

    elab: Elaborator
    builder: Builder
    lookup: Lookup
    place: str
    prefix: str = ""
    heads: int | None = None
    shares: int | None = None  # what `linear` without a width divides by, where it is not heads (in `grouped`)
    flow_heads: int | None = None
    indices: tuple[int, ...] = ()
    for_key: tuple[Any, ...] = ()
    recall_mode: str = "chunk"
    specials: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])
    depth: int = 0
    rule: Any = None
    shared: SharedValue | None = None  # what is being called or read, where `shared` names it
    reading: bool = False

    def with_(self, **changes: Any) -> Env:
        return replace(self, **changes)

    def extend(self, names: Mapping[str, Any]) -> Env:
        """The same place with more names, which come first."""
        outer = self.lookup

        return replace(self, lookup=Names(names, outer))

    def path(self, base: str) -> str:
        return f"{self.prefix}.{base}" if self.prefix else base


@dataclass
class Site:
    """One call of a vocabulary word: what the word's `build` may ask for."""

    env: Env
    word: str
    expr: tree.Expr
    base: str
    _rel: str | None = None

    @property
    def span(self) -> Any:
        return self.expr.span

    def fail(self, code: str, message: str, help: str | None = None) -> None:
        raise self.env.elab.failure(code, message, self.expr.span, help)

    # values ----------------------------------------------------------------------------------------

    def node(self, value: Any, what: str) -> Node:
        return self.env.elab.as_node(value, self.expr, f"`{what}`")

    def vector(self, value: Any, what: str) -> Node:
        x = self.node(value, what)
        return x if x.type.shape or x.type.like else ops.reshape(x, (1,))

    def real(self, value: Any, what: str) -> Node:
        """A value with at least one feature axis, of a floating type: integers and truths become numbers."""
        x = self.vector(value, what)
        return x if x.type.dtype == "float" else ops.binary("mul", ops.const(1.0), x, self.span)

    def number(self, value: Any, what: str) -> float:
        if isinstance(value, (int, float)):
            return value
        if isinstance(value, Node) and value.op == "const":
            return value.value
        raise self.env.elab.failure(
            "NF302", f"{what} must be a number known when compiling", self.expr.span, "use a number or a param"
        )

    def size(self, value: Any, what: str) -> int:
        n = self.number(value, what)
        if isinstance(n, bool) or n != int(n):
            self.fail("NF303", f"{what} must be a whole number, and this is {n}")
        if not 0 < n <= 2**31:
            self.fail("NF304", f"{what} must be between 1 and 2^31, and this is {int(n)}")
        return int(n)

    def flag(self, value: Any, what: str) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, Node) and value.op == "const" and isinstance(value.value, bool):
            return value.value
        raise self.env.elab.failure("NF305", f"{what} must be true or false", self.expr.span)

    def items(self, value: Any, what: str) -> list[Any]:
        if not is_list(value):
            self.fail("NF306", f"{what} must be a list")
        return value

    def pairs(self, a: Any, b: Any, what: str) -> list[tuple[Node, Node]]:
        """Two values, or two records tensor by tensor."""
        if not is_record(a) or not is_record(b):
            return [(self.node(a, what), self.node(b, what))]
        if set(a) != set(b):
            self.fail("NF312", f"the records of {what} have other entries: {sorted(set(a) ^ set(b))[0]}")
        return [(self.node(x, what), self.node(b[k], what)) for k, x in a.items()]

    def word_text(self, value: Any) -> str | None:
        """A bare word or string given as an option (`approx = tanh`)."""
        if value is None or isinstance(value, str):
            return value
        return getattr(value, "name", None)

    def axis(self, value: Any) -> int | None:
        return None if value is None else int(self.number(value, "axis"))

    def reduce(self, op: str, x: Node, axis: int | None) -> Node:
        """sum, mean and max reduce everything outside flows and token-level fields, feature axes inside."""
        if x.type.like and axis is not None:  # of a tensor like w an axis is counted from the end, and kept
            if axis >= 0:
                self.fail("NF308", f"{self.word} in an update counts axes from the end", "`axis = -1` is the last one")
            return make(op, (x,), x.type, self.span, axes=(axis,), keep=True)
        if axis is None and self.env.place == "top" and x.type.batch:
            if op == "mean":
                return ops.mean_all(x, self.span)
            self.fail("NF311", f"{self.word} over the batch depends on its size", "use `mean`, or name an axis")
        return ops.reduce(op, x, axis, span=self.span)

    # heads -----------------------------------------------------------------------------------------

    def level_heads(self) -> int | None:
        return self.env.heads or self.env.flow_heads

    def weight_heads(self, x: Node) -> int | None:
        """The heads a linear of x has: x's own; else the level's, unless x comes out of a merge_heads."""
        if x.type.heads:
            return x.type.heads
        if not self.env.heads:
            return None
        from nestflow.ir.node import depends

        return None if depends(x, lambda n: n.op == "merge_heads") else self.env.heads

    # weights ---------------------------------------------------------------------------------------

    def rel(self) -> str:
        if self.env.builder.one:
            return ""
        if self._rel is None:
            key = (id(self.expr), self.env.for_key, self.env.prefix, self.word)
            self._rel = self.env.builder.name(key, self.env.path(self.base), self.env.indices)
        return self._rel

    def weight(
        self,
        local: str,
        shape: tuple[int, ...],
        init: Init,
        heads: int | None = None,
        multiplies: bool = False,
        bare: bool = False,
    ) -> Node:
        """A weight of this instance: a slow weight, or inside a memory's function a state tensor of it."""
        rel = self.rel()
        path = rel if bare else f"{rel}.{local}" if rel else local
        type_ = Type(shape=shape, heads=heads)
        b = self.env.builder
        self.env.elab.count_weights(shape, heads, self.expr)
        apart = b.slow(path) if b.slow is not None else None
        if apart is not None:
            b, path = apart
        elif b.memory is not None:
            if all(t.path != path for t in b.memory):
                b.memory.append(MemoryTensor(path, shape, None, init))
            return ops.leaf("theta", type_, self.span, tensor=path)
        if all(w.path != path for w in b.weights):
            b.weights.append(WeightSpec(path, shape, heads, init, "weight", multiplies, self.span))
        return ops.leaf("weight", type_, self.span, path=path)

    def tail(self, local: str, type_: Type, length: int) -> str:
        if self.env.builder.memory is not None:
            self.fail(
                "NF320", f"`{self.word}` looks back, and a memory's function may not", "apply it to the key instead"
            )
        rel, calls = self.rel(), self.env.shared.calls if self.env.shared is not None else 1
        if calls > 1:  # each call of a shared block looks back at its own inputs
            rel = f"{rel}@{calls}"
        path = f"{rel}.{local}" if rel else local
        if length and all(t.path != path for t in self.env.builder.tails):
            self.env.builder.tails.append(TailSpec(path, type_, length))
        return path

    # chance ----------------------------------------------------------------------------------------

    def drawn(self) -> str:
        """Where a draw stands. A draw belongs to a tick of the stream: flows and the context of levels have it."""
        if self.env.builder.memory is not None:
            self.fail("NF320", f"`{self.word}` draws at random, and a memory's function may not", "apply it to the key")
        if self.env.rule is not None or self.env.place not in ("flow", "level"):
            help_ = "give it a name in the level, and use the name here"
            self.fail("NF205", f"`{self.word}` stands in flows, and in names and fields of levels", help_)
        return self.rel()

    def each_tick(self, shape: tuple[int, ...]) -> Type:
        """A value of this shape at every tick of the stream (once, where no input has the token axis) and head."""
        clocks = [x.type.clock for x in self.env.elab.inputs.values() if x.type.clock]
        return Type(shape=shape, batch=True, clock=clocks[0] if clocks else None, heads=self.level_heads())

    # starts ----------------------------------------------------------------------------------------

    def init(self, value: Any, fan_in: int | None = None, std: float | None = None) -> Init:
        """An `init` argument, or the default: normal(fan_in^-0.5), normal(std)."""
        if value is None:
            return Init("normal", float(fan_in) ** -0.5) if fan_in else Init("normal", std or 0.0)
        return self.env.elab.as_init(value, self.expr)

    def inverse_factorials(self) -> Init:
        """1/i! along the last axis."""
        return Init("series")

    def distribution(self, kind: str, args: tuple[float, ...]) -> Any:
        from nestflow.graph.values import Distribution

        a, b = (*args, 0.0, 0.0)[:2]
        return Distribution(Init(kind, a, b))

    def is_distribution(self, value: Any) -> bool:
        from nestflow.graph.values import Distribution

        return isinstance(value, Distribution)

    def map_distribution(self, value: Any, op: str) -> Any:
        return value.mapped(op)

    def fill(self, kind: str, shape: tuple[Any, ...]) -> Node:
        sizes = tuple(self.size(n, f"an axis of {kind}") for n in shape)
        return ops.leaf("fill", Type(shape=sizes), self.span, kind=kind)
