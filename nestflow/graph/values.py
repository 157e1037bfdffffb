"""What an expression of a spec can be while the graph is built: mostly a Node; else one of these."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from nestflow.graph.model import Init, Link
from nestflow.ir.node import Node
from nestflow.language import tree
from nestflow.vocabulary.record import Word


@dataclass(frozen=True)
class Partial:
    """A flow, level, optimiser or word that has not got its first input yet: `mlp(depth = 2)`, `titans`, `gelu`.
    name: the word as written, which its instances are called after. shift: positional args start at the second slot."""

    target: tree.Template | Word
    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    shift: bool = False

    @property
    def is_name(self) -> bool:
        """A bare word: nothing has been given to it."""
        return not self.args and not self.kwargs

    @property
    def kind(self) -> str:
        if isinstance(self.target, Word):
            return "word"
        kinds: dict[type[tree.Template], str] = {tree.Flow: "flow", tree.Level: "level", tree.Optimizer: "optimizer"}
        return kinds[type(self.target)]


@dataclass
class SharedValue:
    """`shared e = f(...)`: one instance for many calls, at a path of its own. calls: how many there are so far, learn
    the last of them; reads: how often it was only read."""

    value: Partial
    path: str
    expr: tree.Expr
    builder: Any = None  # of the body that it stands in
    calls: int = 0
    reads: int = 0
    learn: Node | None = None
    result: Node | None = None  # what its instance returns


@dataclass(frozen=True)
class MemoryValue:
    """A memory of the level being built, called to be recalled. mode: which state its bare name is, where it stands."""

    level: Any
    name: str
    mode: str = "chunk"

    @property
    def keyless(self) -> bool:
        found = self.level.memories.get(self.name)
        return found is not None and found.keyless

    def state_node(self, expr: tree.Expr) -> Node:
        """Its bare name is its state."""
        return self.level.state_of(self.name, None, self.mode, expr)


@dataclass(frozen=True)
class Distribution:
    init: Init

    def mapped(self, op: str) -> Distribution:
        return Distribution(replace(self.init, maps=(*self.init.maps, op)))


@dataclass(frozen=True)
class OnValue:
    """`on_value(e)`: a vector on the value axis."""

    node: Node


@dataclass(frozen=True)
class DecayFirst:
    """`decay_first(gate)`."""

    gate: Any


@dataclass(frozen=True)
class Linked:
    """`kl(gate, scale)`, `lq(gate, q)`: a gate, and the link that the memory is read through."""

    gate: Any
    link: Link


@dataclass
class Poison:
    """What a name is whose own mistake has been told already: uses of it say nothing more."""

    names: set[str] = field(default_factory=set[str])


class Quiet(Exception):
    """Raised on a use of a Poison."""


class Abort(Exception):
    """Raised once a budget is spent: what was gathered so far is told, and nothing more is tried."""


class SelfReference(Exception):
    """The width of a memory's value depends on the memory itself."""


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """A list of values of the language."""
    return isinstance(value, list)


def is_record(value: Any) -> TypeGuard[dict[str, Any]]:
    """A record of values of the language."""
    return isinstance(value, dict)
