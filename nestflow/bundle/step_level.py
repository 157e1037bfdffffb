"""One level of a generated optimizer, and the forms in which weights are given to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

NEEDS_INPUTS = (
    "dgd needs the inputs of each weight besides its gradient, and bare parameters do not tell them.",
    "write it as the update of a level in a spec and compile that: `b = nestflow.compile(...)`, then `b.step(batch)`",
)


NEEDS_OBJECTIVE = (
    "curvature(hutchinson) needs the objective besides the gradients, and this step brought none.",
    "write it as the update of a level in a spec and compile that: `b = nestflow.compile(...)`, then `b.step(batch)`",
)


class Fact(NamedTuple):
    """What a rule may ask of a weight. heads: 1 where the tensor has a leading head axis (the others do not see it)."""

    path: str
    ndim: int
    rows: int
    cols: int
    heads: int = 0


def fact_of(path: str, w: Tensor, heads: int = 0) -> Fact:
    """The facts of one weight."""
    shape = tuple(w.shape)[heads:]
    return Fact(path, len(shape), shape[0] if shape else 1, math.prod(shape[1:]), heads)


def copy_of(level: type[Level], weight: str) -> int:
    """Which copy of the level a weight belongs to."""
    return int(weight.removeprefix(f"{level.name}.").partition(".")[0]) if level.copies else 0


def expand(*patterns: str) -> tuple[str, ...]:
    """`expand("block.{0..2}.weight")` is the three names."""
    names: list[str] = []
    for p in patterns:
        if "{" not in p:
            names.append(p)
            continue
        before, _, rest = p.partition("{")
        numbers, _, after = rest.partition("}")
        first, _, last = numbers.partition("..")
        names += [f"{before}{i}{after}" for i in range(int(first), int(last) + 1)]
    return tuple(names)


class Level:
    """One level: how often it learns, its weights (None: all that the optimizer is given), and its rule as functions.

    The rule's functions are generated. `update` changes w and the memories in `state` in place; where it needs a number
    over all weights of the level it is a generator; it yields (function of all tensors, its own), and gets the number.
    """

    name: ClassVar[str] = "optimizer"
    every: ClassVar[int] = 1
    weights: ClassVar[tuple[str, ...] | None] = None
    per_head: ClassVar[frozenset[str]] = frozenset()
    inputs: ClassVar[frozenset[str]] = frozenset()  # weights whose rule reads the sum of x xᵀ over their inputs
    reads_inputs: ClassVar[bool] = False
    normalize: ClassVar[bool] = False  # the inputs of that sum have unit length
    copies: ClassVar[int] = 0  # one for each worker: NAME.0.weight, NAME.1.weight, ..., each learning by itself
    collective: ClassVar[bool] = False
    reads_curvature: ClassVar[bool] = False
    shared: ClassVar[tuple[str, ...]] = ()  # memories that are one for all weights of the level
    evaluates: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False  # `update` may be run on lists of weights at once
    schedule_facts: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def hypers(fact: Fact) -> dict[str, Any]:
        """The rule's arguments for one weight."""
        return {}

    @staticmethod
    def schedule(tick: int, total: float, every: int, fact: Fact) -> dict[str, float]:
        """The arguments that follow a schedule, at one tick."""
        return {}

    @staticmethod
    def slots(w: Tensor, fact: Fact) -> dict[str, Tensor]:
        """The rule's memories for one weight, as they start."""
        return {}

    @staticmethod
    def curvature_due(t: int) -> bool:
        """Whether the update t of a weight reads its curvature."""
        return True

    update: ClassVar[Callable[..., Any]]
    evaluate: ClassVar[Callable[..., Tensor]]


def mistake(code: str, message: str, help: str | None = None) -> Exception:
    """A NestflowError; a RuntimeError in a standalone file, which carries this code and must not look for nestflow."""
    if not __name__.startswith("nestflow."):
        return RuntimeError(f"{code}: {message}" + (f"\nhelp: {help}" if help else ""))
    from nestflow.diagnostics.core import fail

    return fail(code, message, help=help)


Weights = Mapping[str, Tensor] | Iterable[Any]


def as_groups(weights: Weights, first: int = 0) -> list[tuple[list[tuple[str, Tensor]], dict[str, Any]]]:
    """Each group's [(name, parameter)] and own settings, from what torch.optim takes; numbers where no names are."""
    if isinstance(weights, Mapping):
        return [(list(weights.items()), {})]
    if isinstance(weights, Tensor):
        raise mistake(
            "NF544", "an optimizer takes several parameters, and this is one tensor.", "put it in a list: `[w]`"
        )
    if not isinstance(weights, Iterable) and not hasattr(weights, "__len__"):
        raise mistake(
            "NF544", f"parameters are wanted, and this is a {type(weights).__name__}.", "pass `module.parameters()`"
        )
    items = list(weights)
    if not items:
        raise mistake(
            "NF544",
            "the optimizer was given no parameters.",
            "pass `module.parameters()`; a generator can be used up once only",
        )
    groups = items if all(isinstance(i, Mapping) for i in items) else [{"params": items}]
    result = []
    for group in groups:
        params = group["params"]
        params = (
            [params] if isinstance(params, Tensor) else list(params.items() if isinstance(params, Mapping) else params)
        )
        named = [(str(p[0]), p[1]) if isinstance(p, tuple) else (str(first + i), p) for i, p in enumerate(params)]
        wrong = next((p for _, p in named if not isinstance(p, Tensor)), None)
        if wrong is not None:
            raise mistake(
                "NF544", f"a parameter is wanted, and this is a {type(wrong).__name__}.", "pass `module.parameters()`"
            )
        first += len(named)
        result.append((named, {k: v for k, v in group.items() if k != "params"}))
    return result


def as_named(weights: Weights, order: Iterable[str]) -> dict[str, Tensor]:
    """The weights by name; plain parameters take the names of the levels' weights in order."""
    if isinstance(weights, Mapping):
        return dict(weights)
    items = list(weights)
    if items and isinstance(items[0], Tensor):
        names = list(order)
        if len(names) != len(items):
            raise mistake(
                "NF544",
                f"the levels of this optimizer own {len(names)} weights, and {len(items)} parameters were given.",
                "pass them by name: `dict(module.named_weights())`",
            )
        return dict(zip(names, items))
    return dict(items)
