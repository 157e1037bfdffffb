"""How far rounding goes in a random spec, measured in the interpreter alone.

Some random specs are chaotic, or diverge: what differs by 1e-16 at one tick differs by 1 a hundred ticks later, and two
correct programs disagree. The interpreter says which: it runs as it is, and with all weights and inputs moved by
relative 1e-12. As long as that move has grown less than `LIMIT` times, rounding of 1e-16 stays far below the tolerances
of `checks`, and every property must hold; from the first tick on where it has grown more, or where a number is not
finite any more, nothing can be asked. So an unstable spec is held to all properties on the ticks before, not to wider
tolerances on all: a real disagreement is there as large as in a stable spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from nestflow.reference import Reference
from tests.properties.checks import Case, Tensors, error, gradients

MOVE, LIMIT = 1e-12, 1e4
LEAST = 2
"""Fewer stable ticks than this tell nothing."""

Check = Callable[[Case], None]


class Unstable(Exception):
    """The spec has no ticks at which anything could be asked."""


def moved(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not x.is_floating_point():
        return x
    by = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return (x.detach() * (1 + MOVE * by)).requires_grad_(x.requires_grad)


def interpreters(case: Case) -> tuple[tuple[Reference, Tensors], tuple[Reference, Tensors]]:
    """The interpreter with its inputs, and again with all weights and inputs moved."""
    generator = torch.Generator().manual_seed(11)
    weights = {n: moved(w, generator) for n, w in case.module.weights.items()}
    inputs = {n: moved(x, generator) for n, x in case.inputs.items()}
    plain = case.reference()
    other = case.reference()
    other.weights = {**other.weights, **weights}
    return (plain, case.inputs), (other, inputs)


def forward_ticks(case: Case) -> int:
    """The ticks before the first at which output or state has moved too far, or is not finite."""
    (a, x), (b, z) = interpreters(case)
    before_a = before_b = None
    with torch.no_grad():
        for t in range(case.spec.ticks):
            y, before_a = a.run(before_a, {n: v[:, t : t + 1] for n, v in x.items()})
            u, before_b = b.run(before_b, {n: v[:, t : t + 1] for n, v in z.items()})
            pairs = [(y, u), *((before_a[p], before_b[p]) for p in before_a)]
            if not max(error(q, p) for p, q in pairs) <= LIMIT * MOVE:
                return t
    return case.spec.ticks


def gradients_stand(case: Case) -> bool:
    """Whether the gradients of the interpreter have moved little."""
    found = []
    for reference, inputs in interpreters(case):
        leaves = {n: x for n, x in {**inputs, **reference.weights}.items() if x.is_floating_point()}
        found.append(gradients(reference(**inputs), leaves))
    return all(error(found[1][n], g) <= LIMIT * MOVE for n, g in found[0].items())


def stable_ticks(case: Case) -> int:
    """How many first ticks of a case can be asked about."""
    ticks = forward_ticks(case)
    while ticks >= LEAST and not gradients_stand(case.first(ticks)):
        ticks //= 2
    return ticks


def hold(case: Case, checks: Iterable[Check]) -> bool:
    """All checks; where one fails, all of them on the stable ticks. Gives whether the spec was stable on all.

    Raises what a check raised, Unstable where too few ticks are left to ask about."""
    checks = list(checks)
    try:
        for check in checks:
            check(case)
        return True
    except AssertionError:
        ticks = stable_ticks(case)
        if ticks == case.spec.ticks:
            raise
    if ticks < LEAST:
        raise Unstable(f"{ticks} stable ticks")
    for check in checks:
        check(case.first(ticks))
    return False
