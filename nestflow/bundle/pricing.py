"""What a bundle's levels cost, counted in passes of two and of three pieces: for `nestflow explain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestflow.bundle.budget import sized
from nestflow.bundle.bundle import Bundle
from nestflow.bundle.counting import Count, counted
from nestflow.graph.describe import group_name
from nestflow.lowering.plan import Plan

WEIGHTS = 2 * 10**7  # of a spec that is run in order to be explained
TICKS = 200  # of such a run
PIECES = 600  # of all levels, in both runs


@dataclass(frozen=True)
class Price:
    """Of one level, or of the whole with "backward". size: ticks of a piece (0: there is no loop). launches: operations
    that compute, of one more piece, forward (without a loop: of a call). multiply_adds: of one more token, forward, in
    matrix products, convolutions and attention; what acts on single numbers is not counted. held: bytes kept for the
    backward pass, of one more token."""

    name: str
    count: int
    size: int
    launches: float
    multiply_adds: float
    held: float

    def __str__(self) -> str:
        each = f"{self.launches:,.3g} launches"
        each += f" a piece of {self.size} token{'s' * (self.size > 1)}" if self.size else " a call"
        return (
            f"{each} forward; {self.multiply_adds:,.0f} multiply-adds in products and {sized(round(self.held))} held "
            "for the backward pass a token"
        )


@dataclass(frozen=True)
class Prices:
    """levels: one of each kind. forward, backward: launches of a call of `ticks` tokens. training: multiply-adds of one
    more token, forward and backward. multiply_adds, held: of the whole, as in `Price`."""

    levels: tuple[Price, ...]
    ticks: int
    forward: int
    backward: int
    multiply_adds: float
    training: float
    held: float

    def __str__(self) -> str:
        lines = ["counted", *(f"  {p.name}{f' (× {p.count})' if p.count > 1 else ''}: {p}" for p in self.levels)]
        lines.append(
            f"  in all: {self.multiply_adds:,.0f} multiply-adds in products a token forward, {self.training:,.0f} in "
            f"training; {sized(round(self.held))} held a token; {self.forward:,} launches forward and "
            f"{self.backward:,} backward in a call of {self.ticks} tokens"
        )
        return "\n".join(lines)


def prices(bundle: Bundle) -> Prices | None:
    """What is counted of a bundle; None where that would take long (it is large, or its pieces are), or it has no
    tokens, or levels inside the step, whose backward pass cannot be watched."""
    ticks = _ticks(bundle)
    if ticks is None:
        return None
    few, many = (counted(bundle, 1, n * ticks, backward=True) for n in (2, 3))
    none = Count()

    def more(places: Any, what: str) -> float:
        return sum(getattr(many.get(p, none), what) - getattr(few.get(p, none), what) for p in places)

    levels: dict[str, Price] = {}
    for path, level in bundle.plan.levels.items():
        name = group_name(level.instance)
        if name in levels:
            known = levels[name]
            levels[name] = Price(name, known.count + 1, *_rest(known))
            continue
        at = (path,)
        launches = more(at, "launches") * level.size / ticks if level.size else many.get(path, none).launches
        held = more(at, "held") / ticks
        levels[name] = Price(name, 1, level.size, launches, more(at, "multiply_adds") / ticks, held)
    forward = [p for p in many if p != "backward"]
    return Prices(
        tuple(levels.values()),
        3 * ticks,
        sum(many[p].launches for p in forward),
        many.get("backward", none).launches,
        more(forward, "multiply_adds") / ticks,
        more(many, "multiply_adds") / ticks,
        more(forward, "held") / ticks,
    )


def _rest(p: Price) -> tuple[int, float, float, float]:
    return p.size, p.launches, p.multiply_adds, p.held


def _ticks(bundle: Bundle) -> int | None:
    """Tokens that hold whole pieces of every level; None where the passes would be long, or cannot be counted."""
    graph, plan = bundle.graph, bundle.plan
    clocked = any(i.type.clock == "T" for i in graph.inputs if i.name in graph.needed)
    if not clocked or graph.token_levels or any(x.inner is not None for x in graph.step_levels):
        return None
    ticks = max((x.size for x in plan.levels.values()), default=0) or 16
    weights = sum(w.numel() for w in bundle.module.weights.values())
    learns = any(w.requires_grad for w in bundle.module.weights.values())
    return ticks if learns and 3 * ticks <= TICKS and weights <= WEIGHTS and _pieces(plan, ticks) <= PIECES else None


def _pieces(plan: Plan, ticks: int) -> int:
    return sum(5 * ticks // x.size for x in plan.levels.values() if x.size)


__all__ = ["Price", "Prices", "prices"]
