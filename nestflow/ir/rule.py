"""Update rules as data: what an optimiser does to one tensor at one update.

A rule is a program, a list of statements run top to bottom once per update. Its expressions are IR nodes over
the leaves `g w w0 w_chunk n_ticks updates slot_old slot_new hyper fact` (see `nestflow.ir.ops`) and, on the token
clock, over the context of the level (gates and rates, through `hyper`). The same rule serves the token clock
(`nestflow.lowering`) and the step clock (`nestflow.emit.optim`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nestflow.diagnostics.core import Span
from nestflow.ir.node import Node, make, rebuild


@dataclass(frozen=True)
class RuleSlot:
    """A memory of the rule. like: "w" (a tensor of the shape of w for each weight) or "number" (one number).
    init: the Node it starts from (`w`, a const, ...)."""

    name: str
    like: str
    init: Node


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


@dataclass(frozen=True)
class Step:
    """value is added to the weight: w (as later statements see it) = retain(w) + value for the first step."""

    value: Node
    span: Span | None = None


@dataclass(frozen=True)
class SetWeight:
    """The weight becomes value."""

    value: Node
    span: Span | None = None


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


Statement = SlotUpdate | Step | SetWeight | DgdStep


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


__all__ = ["DgdStep", "Rule", "RuleSlot", "SetWeight", "SlotUpdate", "Statement", "Step", "make"]
