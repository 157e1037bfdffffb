"""Update rules as data: what an optimiser does to one tensor at one update.

A rule is a program, a list of statements run top to bottom once per update. Its expressions are IR nodes over
the leaves `g w w0 w_chunk n_ticks updates slot_old slot_new hyper fact` (see `nestflow.ir.ops`) and, on the token
clock, over the context of the level (gates and rates, through `hyper`). The same rule serves the token clock
(`nestflow.lowering`) and the step clock (`nestflow.emit.optim`). A statement with `where`, a condition on facts of the
weight (`if ndim(w) >= 2`), is run for the weights of which it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nestflow.diagnostics.core import Span
from nestflow.ir.forms import NUMBER, Form, W, holds, shape_of
from nestflow.ir.node import Node, make, rebuild, walk


@dataclass(frozen=True)
class RuleSlot:
    """A memory of the rule. like: "w" (a tensor of the shape of w for each weight), "number" (one number), or "tensor"
    (of another shape: `form` says which). init: the Node it starts from (`w`, a const, ...). where: a condition on
    facts of w, without which a weight has no such memory. shared: one for all weights of the level (`per level`)."""

    name: str
    like: str
    init: Node
    own: Form | None = None
    where: Node | None = None
    shared: bool = False

    @property
    def form(self) -> Form:
        return self.own or (NUMBER if self.like == "number" else W)

    def shape(self, w: tuple[int, ...]) -> tuple[int, ...] | None:
        """Its axes where w has this shape (without heads); None where it is not there."""
        return shape_of(self.form, w) if holds(self.where, w) else None


@dataclass(frozen=True)
class SlotUpdate:
    """new state = value, an expression over slot_old(slot), slot_new of slots above, g, w. every: rule ticks (period);
    between its ticks the gradient-like part is summed: `value` reads g as the sum over the period when every > 1
    through slot `pending`, a RuleSlot that holds the sum of `pending_value` since the last update."""

    slot: str
    value: Node
    every: int = 1
    pending: str | None = None
    pending_value: Node | None = None
    span: Span | None = None
    where: Node | None = None


@dataclass(frozen=True)
class Step:
    """value is added to the weight: w (as later statements see it) = retain(w) + value for the first step."""

    value: Node
    span: Span | None = None
    where: Node | None = None


@dataclass(frozen=True)
class SetWeight:
    """The weight becomes value."""

    value: Node
    span: Span | None = None
    where: Node | None = None


@dataclass(frozen=True)
class DgdStep:
    """−η(A K + g), K = Σ |weight| k kᵀ over the inputs k of the weight; η = lr/(1 + lr tr K) if exact, else lr.
    scale: the number that stages before dgd multiplied g by (const 1 where none). Tensors without an input: gd(lr)."""

    lr: Node
    exact: bool = True
    normalize: bool = False
    only: str = "**"
    scale: Node | None = None
    span: Span | None = None
    where: Node | None = None


@dataclass(frozen=True)
class Let:
    """The value as it is here has a name, the leaf `named(name)`: a step below changes what it was made of."""

    name: str
    value: Node
    span: Span | None = None
    where: Node | None = None


Statement = SlotUpdate | Step | SetWeight | DgdStep | Let


@dataclass(frozen=True)
class Rule:
    """text: as written. arguments: hyper name -> Node (a const, a schedule, or an expression of the level's context).
    gradient: the gradient as the program's `g` sees it, in terms of the raw leaf `g`
    (clip_norm: g * min(1, c/(norm_all(g)+1e-6))).
    eval: what the module uses when not training (step clock only).
    project: what the weight becomes in the end, over `w` as retain and the steps have made it (None: it stays)."""

    text: str
    slots: tuple[RuleSlot, ...]
    program: tuple[Statement, ...]
    arguments: tuple[tuple[str, Node], ...]
    gradient: Node
    eval: Node | None = None
    span: Span | None = None
    project: Node | None = None

    @property
    def shaped(self) -> bool:
        """Whether a memory has a shape of its own, or is there for some weights only."""
        return any(s.own is not None or s.where is not None for s in self.slots)

    @property
    def inputs(self) -> tuple[bool, str] | None:
        """What it reads of the inputs of its weights (`dgd`, `gram(w_in)`): whether they are normalised, and of which
        tensors. None: nothing."""
        for s in self.program:
            if isinstance(s, DgdStep):
                return s.normalize, s.only
        found = next((n for n in walk(*self.nodes()) if n.op == "gram"), None)
        return None if found is None else (found["normalize"], "**")

    def argument(self, name: str) -> Node:
        return dict(self.arguments)[name]

    def nodes(self) -> Iterator[Node]:
        """Every expression of the rule, arguments included."""
        yield self.gradient
        for s in self.program:
            if isinstance(s, DgdStep):
                yield s.lr
                if s.scale is not None:
                    yield s.scale
            else:
                yield s.value
                if isinstance(s, SlotUpdate) and s.pending_value is not None:
                    yield s.pending_value
        for _, n in self.arguments:
            yield n
        if self.eval is not None:
            yield self.eval
        if self.project is not None:
            yield self.project

    def expand(self, node: Node) -> Node:
        """The node with every hyper replaced by its argument (a token-level rule reads its rates from the context)."""
        table = dict(self.arguments)

        def change(n: Node, args: tuple[Node, ...]) -> Node | None:
            return self.expand(table[n["name"]]) if n.op == "hyper" else None

        return rebuild(node, change)


__all__ = ["DgdStep", "Let", "Rule", "RuleSlot", "SetWeight", "SlotUpdate", "Statement", "Step", "make"]
