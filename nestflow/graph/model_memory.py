"""What a level's memories are made of: frozen data of the level graph (`nestflow.graph.model` has the rest of it)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nestflow.diagnostics.core import Span
from nestflow.ir.node import Node, Type
from nestflow.ir.rule import Rule


@dataclass(frozen=True)
class Init:
    """How a tensor starts. kind: zeros ones eye series (1/i!) constant(a) normal(std a) uniform(a, b) log_uniform(a,
    b).
    maps: functions applied to the draw, innermost first (log, inverse_softplus, neg)."""

    kind: str
    a: float = 0.0
    b: float = 0.0
    maps: tuple[str, ...] = ()

    @property
    def is_drawn(self) -> bool:
        return self.kind in ("normal", "uniform", "log_uniform")


@dataclass(frozen=True)
class WeightSpec:
    """A slow weight. path relative to its instance (absolute in LevelGraph.weights). shape without the head axis;
    heads: a leading head axis of that size in the tensor, or None. role: "weight", "init" for a memory's learned
    start, or "network": a parameter of a network that the caller gives.
    multiplies: the weight multiplies an input (linear, head): w_in exists."""

    path: str
    shape: tuple[int, ...]
    heads: int | None
    init: Init
    role: Literal["weight", "init", "network"] = "weight"
    multiplies: bool = False
    span: Span | None = field(default=None, compare=False)
    also: tuple[str, ...] = ()  # other paths of a parameter that parts of a network share

    @property
    def full_shape(self) -> tuple[int, ...]:
        return ((self.heads,) if self.heads else ()) + self.shape

    @property
    def size(self) -> int:
        n = 1
        for d in self.full_shape:
            n *= d
        return n


@dataclass(frozen=True)
class TailSpec:
    """Look-back inputs that an instance keeps: the last `length` values of `type` (short_conv, previous)."""

    path: str
    type: Type
    length: int
    grows: bool = False  # it keeps all of them, from the sequence's start (a network of the caller)


@dataclass(frozen=True)
class MemoryTensor:
    """A state tensor of a memory. path relative to the memory (matrix: "weight"). shape without heads.
    learned: how it starts: path relative to the level of a WeightSpec or of a `Computed`; else `init` says it (zeros,
    ..., a distribution: drawn anew wherever it starts). source: memory and tensor of the level whose state it takes
    over where it starts anew."""

    path: str
    shape: tuple[int, ...]
    learned: str | None
    init: Init
    source: tuple[str, str] | None = None
    drawn: str = ""  # relative to the level: the tensor whose draw `init` is, where it is a distribution


@dataclass(frozen=True)
class Computed:
    """A start that is computed from slow weights and constants. path: relative to its instance, as if it were a weight.
    node: over weights of the instance; broadcasts to shape (per head under heads)."""

    path: str
    node: Node
    shape: tuple[int, ...]
    heads: int | None


@dataclass(frozen=True)
class MemoryFunction:
    """M(key; θ): `result` is an expression over slot("key") and theta(tensor path). matrix is linear(key, theta
    weight)."""

    key: Type
    result: Node
    tensors: tuple[MemoryTensor, ...]


@dataclass(frozen=True)
class CacheSpec:
    """What a query sees: the pairs of the last `window` ticks, of its own `segment`, of the first `sink` ticks, and
    `prefix` learned pairs (weights MEMORY.prefix.key and .value). causal false: pairs of later ticks too, a window then
    reaches as far ahead as back. pairs: how many a tick brings; key and value hold them one behind the other."""

    window: int | None = None
    segment: int | None = None
    sink: int = 0
    prefix: int = 0
    causal: bool = True
    scale: float = 1.0
    pairs: int = 1


@dataclass(frozen=True)
class Link:
    """What a memory is read through: θ = link(A). kl: number · softmax(A) over the last axis of each tensor; lq:
    A / ‖A‖^(number − 2), the norm of that order over the whole tensor (of a head)."""

    kind: Literal["kl", "lq"]
    number: float


@dataclass(frozen=True)
class Texts:
    """How the fields were written (for the level table, the pictures, comments in generated code)."""

    memory: str = ""
    key: str = ""
    value: str = ""
    query: str = ""
    objective: str = ""
    update: str = ""
    retain: str = ""


@dataclass(frozen=True)
class Memory:
    """One memory of a level. name is "memory" where it has none. Nodes are over the level's slots, its weights and
    recalls of memories of the same level.

    kind: matrix, function (mlp, any flow), vector, scalar, like, cache.
    objective: a number per tick over recall(mode="objective") of this memory and context nodes.
    weight: what multiplies the gradient of the tick (None: 1).
    retain: None is 1. retain_on: how it acts: "number"; "key" (vector on the key axis); "value" (on_value);
    "full" (elementwise).
    every N: learns at ticks that are multiples of N; chunk C (multiple of N): errors are taken at the chunk's first
    state.
    read: state that a recall in `return` sees. gradient: through | stop."""

    name: str
    kind: str
    heads: int | None
    function: MemoryFunction | None
    key: Node | None
    value: Node | None
    query: Node | None
    weight: Node | None
    objective: Node | None
    rule: Rule | None
    retain: Node | None
    retain_on: Literal["number", "key", "value", "full"] = "number"
    decay_first: bool = False
    every: int = 1
    chunk: int = 1
    read: Literal["after", "before", "chunk_start"] = "after"
    gradient: Literal["through", "stop"] = "through"
    cache: CacheSpec | None = None
    texts: Texts = Texts()
    span: Span | None = field(default=None, compare=False)
    when: Node | None = None  # a bool: the tick brings a pair (`weight` is 0 where it does not)
    reset: int | None = None  # it goes back to its start at the first of every so many ticks (None: at sequences alone)
    reset_where: Node | None = None  # a bool: at ticks where it holds
    keep_rule: bool = False  # a reset spares the rule's state and its count of updates
    link: Link | None = None  # what is kept is A; recalls and errors see θ = link(A)
    turn: int = 0  # which of the tick's updates this is, of `turns`; rounds: the same memory as the later ones see it
    turns: int = 1
    rounds: tuple[Memory, ...] = ()
    ages: tuple[Node, ...] = ()  # of a windowed objective: what the pair of each age weighs
    # stream: it goes on when a new sequence begins in its row; model: one copy, which all rows write
    per: Literal["sequence", "stream", "model"] = "sequence"
