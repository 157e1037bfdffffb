"""The level graph: frozen data that every later stage reads. No stage after it looks at the syntax tree.

Paths. An instance has a path (`model.block.0.titans`); inside its body, weights, tails and children are named
relative to it, so that two instances of one template with the same sizes have *identical* bodies (nodes are
interned) and can share generated code. Absolute path = instance path + "." + relative path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nestflow.diagnostics.core import Diagnostic, Source, Span
from nestflow.graph.model_memory import (
    CacheSpec,
    Computed,
    Init,
    Link,
    Memory,
    MemoryFunction,
    MemoryTensor,
    TailSpec,
    Texts,
    WeightSpec,
)
from nestflow.ir.node import Node, Type, walk
from nestflow.ir.rule import Rule


@dataclass(frozen=True)
class Instance:
    """A flow or a token-level level, instantiated. result: what it returns, over slot(name), its weights, calls of
    children, and, in a level, recalls. children: relative path -> Instance. weights and tails: its own only, relative
    paths.

    shares: the path of the instance whose weights it uses, of which it then has none itself: a further call of a shared
    one, with a state of its own. kind "read": what a level returns, on another input, its recalls at the state that the
    chunk of its one learning call began with; the call says whose (`of`). seen: the memories of that level."""

    path: str
    kind: Literal["root", "flow", "level", "read"]
    name: str
    slots: tuple[tuple[str, Type], ...]
    result: Node | None
    weights: tuple[WeightSpec, ...]
    tails: tuple[TailSpec, ...]
    children: tuple[tuple[str, Instance], ...]
    memories: tuple[Memory, ...] = ()
    heads: int | None = None
    names: tuple[tuple[str, Node], ...] = ()  # names of its own in the text, for readable generated code
    doc: str | None = None
    span: Span | None = field(default=None, compare=False)
    shares: str | None = None
    seen: tuple[Memory, ...] = ()
    starts: tuple[Computed, ...] = ()  # of its memories

    @property
    def weights_path(self) -> str:
        """Where its weights are."""
        return self.path if self.shares is None else self.shares

    ticks: int | None = None  # it runs along an unrolled token axis of this length, anew in each example (`patches`)

    def child(self, relative: str) -> Instance:
        return dict(self.children)[relative]

    def walk(self) -> Iterator[Instance]:
        """This instance and all below, parents first."""
        yield self
        for _, c in self.children:
            yield from c.walk()

    def streamed(self) -> Iterator[Instance]:
        """This instance and all below that go on from call to call: not what begins anew in each example."""
        if self.ticks is None:
            yield self
            for _, c in self.children:
                yield from c.streamed()

    def begun_anew(self) -> Iterator[Instance]:
        """Those below that run along an unrolled axis, and all below them."""
        for _, c in self.children:
            yield from c.begun_anew() if c.ticks is None else c.walk()


def named_level(n: Node) -> str:
    """The level without slots that an expression outside flows may recall or read here: a call, a record, or the one
    tensor of a `vector` or `scalar`. Also names of flows; "" where it is none of these."""
    if n.op == "weight":
        return n["path"].partition(".")[0]
    return n["child"] if n.op == "call" else n["level"] if n.op == "record" else ""


@dataclass(frozen=True)
class ClockSpec:
    """A clock: it ticks once in `count` ticks of `base`, which is "step" or a clock that the caller ticks (its own
    name)."""

    name: str
    base: str
    count: int
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Inner:
    """A level that begins anew in every step and learns before the levels that recall it. copies: one for the whole
    batch, or one for each task (row). rounds: updates in a step. gradient: how slower gradients go through it: through;
    stop (steps are constants); truncate (through the last `keep` updates); implicit (at the stationary point, by `keep`
    iterations of cg)."""

    copies: Literal["one", "task"] = "one"
    rounds: int = 1
    gradient: Literal["through", "stop", "truncate", "implicit"] = "through"
    keep: int = 0


@dataclass(frozen=True)
class StepLevel:
    """A level without slots, on the step clock or on one of the spec's own. It owns slow weights, or tensors that are
    its own. weights: absolute paths of what it learns. objective: one number over the model's inputs, calls of root
    flows and records (the same node object in two levels = one objective). rule None: `every never` (frozen).

    prefix: the paths begin with it, and what is left is a tensor's name in the level's record. state: its own tensors.
    start: path -> the tensor that it starts from. clock: what its ticks are counted on. reset: the clock or level after
    whose ticks or updates it starts again. moment: it sees only the moment at which it learns, and sums nothing.
    inner: it begins anew in every step. when: a condition; retain: a gate (both None: always, 1). copies: how many
    workers have a copy each, which learns from its part of the batch (0: there is one state); `weights`, `state` and
    `start` then have the tensors of all copies, copy by copy, at PREFIX.NUMBER.NAME."""

    name: str
    every: int
    weights: tuple[str, ...]
    objective: Node | None
    rule: Rule | None
    texts: Texts = field(default=Texts())
    doc: str | None = None
    span: Span | None = field(default=None, compare=False)
    prefix: str = ""
    state: tuple[WeightSpec, ...] = ()
    start: tuple[tuple[str, str], ...] = ()
    clock: ClockSpec = ClockSpec("step", "step", 1)
    reset: str | None = None
    keep_rule: bool = False
    moment: bool = False
    inner: Inner | None = None
    when: Node | None = None
    retain: Node | None = None
    copies: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors, as its record has them."""
        prefix = self.prefix + ("0." if self.copies else "")
        return tuple(p.removeprefix(prefix) for p in self.weights[: len(self.weights) // (self.copies or 1)])

    @property
    def shares(self) -> Any:
        """Levels of which this is the same take their gradients together: one objective, of the whole batch. That of
        a worker is over its own part."""
        return self.name if self.copies or self.objective is None else self.objective

    def parted(self) -> tuple[tuple[str, ...], ...]:
        """The paths of its tensors, copy by copy."""
        size = len(self.names)
        return tuple(self.weights[i * size : (i + 1) * size] for i in range(self.copies or 1))


@dataclass(frozen=True)
class TokenLevel:
    """A level on the token clock that owns weights of the model and learns from the model's own loss while it reads.

    Each copy (`per`: a sequence, or a stream of them) has its own values of `weights` (absolute paths). terms: the loss
    at one tick, a number with the token axis (one tick of look-ahead at most). every: tokens; the shortest of all
    such levels is the segment. retain: what the copy is multiplied with as it learns (None: 1). starts: the slow
    weight that each begins from. reset: "sequence", "never", or the name of the slower level after whose updates it
    goes back to its start; then init may name the level whose state that is, of which `sources` are the weights. when:
    at which ticks there is a term (None: at all)."""

    name: str
    every: int
    weights: tuple[str, ...]
    terms: Node
    rule: Rule
    retain: Node | None = None
    per: Literal["sequence", "stream"] = "sequence"
    reset: str = "sequence"
    keep_rule: bool = False
    starts: tuple[str, ...] = ()
    init: str | None = None
    sources: tuple[str, ...] = ()
    idle: bool = False  # its rate is 0: the model stays the plain one, bit for bit
    when: Node | None = None
    texts: Texts = field(default=Texts())
    doc: str | None = None
    span: Span | None = field(default=None, compare=False)

    @property
    def reads(self) -> tuple[Node, ...]:
        """What is computed of the model at every tick."""
        return (self.terms,) if self.when is None else (self.terms, self.when)


@dataclass(frozen=True)
class InputSpec:
    """A model input. type: clock "T" where it has the token axis; low/high: inclusive bounds of ints, or None."""

    name: str
    type: Type
    low: float | None = None
    high: float | None = None
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Network:
    """A network of the caller's (`extern`). inputs: None where it only lends its weights. type: of its result, where it
    is written. given: its parameters are known; a graph made without the network knows none of them."""

    name: str
    inputs: tuple[str, ...] | None
    type: Type | None
    given: bool
    called: bool
    doc: str | None = None
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ParamValue:
    name: str
    value: Any
    default: Any
    doc: str | None = None
    origin: str = ""  # "spec.nl:3:1" or "--set"


@dataclass(frozen=True)
class StateSlot:
    """One stored tensor per row of a stream. path absolute. shape without batch and heads. role: memory (current
    state), anchor (the state as the open chunk began), rule (a slot of the update rule), pending (Σ G since the last
    update), tail (look-back inputs; shape starts with their number), cache_key, cache_value (shape starts with the
    window, or grows: length None). init: absolute path of the learned weight it starts from, or None with `start`
    saying zeros etc. drawn: the path that a draw is a function of, where `start` is a distribution."""

    path: str
    role: str
    shape: tuple[int, ...]
    heads: int | None
    init: str | None = None
    start: Init = field(default=Init("zeros"))
    grows: bool = False
    dtype: str = "float"
    per: str = "sequence"
    reset: str = "each(sequence)"
    drawn: str = ""


EdgeKind = Literal["context", "generates", "optimises", "initialises"]


@dataclass(frozen=True)
class Edge:
    """Between levels (LevelInfo names). context: an output feeds a context; generates: a recall supplies a key,
    value, rate or gate; optimises: an optimiser's memory writes another memory; initialises: a slower level supplies
    a start."""

    kind: EdgeKind
    source: str
    target: str
    label: str = ""


@dataclass(frozen=True)
class LevelInfo:
    """One row of the level table and one box of the picture. name: unique id, e.g. "model.block.*.titans" where
    repeated instances are one row with count N, plus ".memory name" when the level has several memories; optimiser
    memories are rows too, e.g. "outer.m". clock: "token" | "step". every: 0 is never (frozen), -1 is unbounded (cache:
    attention).
    frequency: updates per token (a fraction of the step clock is per step, below every token frequency)."""

    name: str
    title: str
    clock: str
    every: int
    frequency_text: str
    texts: Texts
    count: int = 1
    heads: int | None = None
    parameters: int = 0
    state: int = 0
    doc: str | None = None
    parent: str | None = None  # group: the level (several memories) or the optimiser's level
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True)
class FlowBox:
    """For pictures: the structure of flows, `repeat` once with its count. name as written; kind flow | level |
    function | network (of the caller)."""

    name: str
    kind: str
    count: int
    children: tuple[FlowBox, ...] = ()
    level: str | None = None  # LevelInfo name where kind is level


@dataclass(frozen=True)
class LevelGraph:
    name: str
    source: Source
    params: tuple[ParamValue, ...]
    inputs: tuple[InputSpec, ...]
    root: Instance
    output: Node | None
    output_type: Type | None
    step_levels: tuple[StepLevel, ...]
    weights: tuple[WeightSpec, ...]  # absolute paths, in order of creation
    state: tuple[StateSlot, ...]
    levels: tuple[LevelInfo, ...]  # fastest first, as the paper orders them
    edges: tuple[Edge, ...]
    flows: tuple[FlowBox, ...]
    notes: tuple[Diagnostic, ...] = ()
    execution: tuple[tuple[str, Any], ...] = ()
    doc: str | None = None
    clocks: tuple[ClockSpec, ...] = ()
    texts: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # {"nl": canonical spec text to save with a bundle}
    networks: tuple[Network, ...] = ()
    token_levels: tuple[TokenLevel, ...] = ()  # weights that learn while the module reads

    @property
    def reading(self) -> tuple[TokenLevel, ...]:
        """The levels that change weights while the module reads."""
        return tuple(x for x in self.token_levels if not x.idle)

    @property
    def needed(self) -> frozenset[str]:
        """The inputs that a call of the module needs: those of the output, and of losses that it learns from as it
        reads."""
        return self.read_by(self.output, *(n for x in self.reading for n in x.reads))

    def read_by(self, *roots: Node | None) -> frozenset[str]:
        """The inputs that these expressions of the root read: a class that only a loss compares with is not among
        those of the output. What a level that begins anew in every step learns from is read where it is recalled."""
        inner = {x.name: x.objective for x in self.step_levels if x.inner is not None and x.objective is not None}
        found: set[str] = set()
        stack = [r for r in roots if r is not None]
        while stack:
            for n in walk(stack.pop()):
                if n.op == "slot":
                    found.add(n["name"])
                name = named_level(n)
                if name in inner:
                    stack.append(inner.pop(name))
        return frozenset(found)

    @property
    def kept(self) -> tuple[WeightSpec, ...]:
        """Tensors of levels that are no slow weights and live on from step to step."""
        return tuple(w for level in self.step_levels if level.inner is None for w in level.state)

    @property
    def shares(self) -> int:
        """Batches have a multiple of so many rows: all workers have as many."""
        return math.lcm(*(level.copies or 1 for level in self.step_levels))

    def instance(self, path: str) -> Instance:
        return {i.path: i for i in self.root.walk()}[path]

    @property
    def networkx(self) -> Any:
        """A networkx.MultiDiGraph of the levels: node data is the LevelInfo, edge data kind and label."""
        import networkx

        library: Any = networkx
        g = library.MultiDiGraph(name=self.name)
        for level in self.levels:
            g.add_node(level.name, level=level)
        for e in self.edges:
            g.add_edge(e.source, e.target, kind=e.kind, label=e.label)
        return g


__all__ = [
    "CacheSpec",
    "ClockSpec",
    "Computed",
    "Edge",
    "EdgeKind",
    "FlowBox",
    "Init",
    "Inner",
    "InputSpec",
    "Instance",
    "LevelGraph",
    "LevelInfo",
    "Link",
    "Memory",
    "MemoryFunction",
    "MemoryTensor",
    "Network",
    "ParamValue",
    "StateSlot",
    "StepLevel",
    "TailSpec",
    "Texts",
    "TokenLevel",
    "WeightSpec",
]
