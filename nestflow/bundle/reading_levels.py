"""The levels of a module that learn while it reads, as generated code says them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from nestflow.bundle.step_level import Level
from nestflow.ops.runtime import Context

TICKS = "@ticks"  # of rows that wait: their ticks with a term since the last update
UPDATES = "@updates"  # and their updates
Inputs = list[Tensor | None]  # by the spec's inputs; None where the call was given none


@dataclass(frozen=True)
class Kept:
    """One level: its rule (a generated class), and how its copies begin.

    starts: the slow weight of each. slots: state name and name in the rule's code of each memory of the rule; a
    weight has those that the rule's code gives it. reset: a slower level's name, or "". sources: of its weights, where
    it is begun from that level's state. gated: the model's `gates` has a factor for it."""

    rule: type[Level]
    loss: str  # the first level that has the same one
    weights: tuple[str, ...]
    starts: tuple[str, ...]
    slots: tuple[tuple[str, str], ...] = ()
    reset: str = ""
    keep_rule: bool = False
    sources: tuple[str, ...] = ()
    gated: bool = False
    sets: bool = False  # its rule says what the weight becomes, whatever retain would leave of it
    waits: bool = False  # `when`: some ticks have no term, and rows count for themselves
    project: type[Level] | None = None  # what the weight becomes in the end, as what a rule evaluates

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def every(self) -> int:
        return self.rule.every

    def path(self, weight: str) -> str:
        """Where the state has this level's copies of a weight."""
        return f"{self.name}.{weight}"


@dataclass(frozen=True)
class Reading:
    """The levels of a module that learn while it reads, and its generated functions.

    ticks(c, inputs...): the values of the model at each tick. terms(c, inputs..., values...): by level, one number a
    tick. gates(c): by level. ahead: ticks that the loss looks ahead. inputs: (name, whether it has ticks). values: the
    token axis of each. kept: state that goes on beyond a sequence. told: what `emit` publishes on the way: its name,
    and whether it has ticks."""

    size: int
    ahead: int
    inputs: tuple[tuple[str, bool], ...]
    values: tuple[int | None, ...]
    levels: tuple[Kept, ...]
    kept: tuple[str, ...]
    own: int  # values that `terms` takes, the first of all
    ticks: Callable[..., Sequence[Tensor]]
    terms: Callable[..., dict[str, Tensor]]
    gates: Callable[[Context], dict[str, Any]]
    told: tuple[tuple[str, bool], ...] = ()
    batched: list[bool] = field(default_factory=lambda: [True], compare=False)  # whether rows can run all at once

    def giving(
        self,
        ticks: Callable[..., Sequence[Tensor]],
        values: tuple[int | None, ...],
        told: tuple[tuple[str, bool], ...] = (),
    ) -> Reading:
        """The same levels, and more values of the model."""
        return replace(self, ticks=ticks, values=values, told=told)

    @property
    def places(self) -> tuple[int | None, ...]:
        """The token axis of each value, then of each that is published."""
        return (*self.values, *(1 if on else None for _, on in self.told))

    def position(self, level: Kept, age: int) -> int:
        """Ticks since the level's last reset, when `age` ticks of the stream have been read."""
        slow = next((x for x in self.levels if x.name == level.reset), None)
        return age if slow is None else (self.position(slow, age) - 1) % slow.every + 1


__all__ = ["TICKS", "UPDATES", "Inputs", "Kept", "Reading"]
