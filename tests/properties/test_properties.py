"""Random small specs: what language.md promises of every spec, checked on each (the properties are in `checks`).

Specs are drawn from seeds, which spreads them well, and by hypothesis, which finds the smallest spec that fails. The
quick profile draws the same specs in every run; `-m slow` sweeps over many more, and NESTFLOW_PROPERTY_SEED moves the
sweep to other ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, reject, settings

from nestflow.diagnostics.core import NestflowError
from tests.properties import checks, stability
from tests.properties.checks import Case
from tests.properties.specs import Spec, seeded, specs

SLOW = int(os.environ.get("NESTFLOW_PROPERTY_SEED", "1000"))
LONG = 150


class Untested(Exception):
    """A spec that nothing can be asked about: a combination that is not built (NF490), or unstable from the start."""


def case_of(spec: Spec) -> Case:
    """Raises Untested where the language says of this spec that it is not built."""
    try:
        return Case(spec)
    except NestflowError as e:
        if {d.code for d in e.diagnostics} == {"NF490"}:
            raise Untested(str(e)) from e
        raise


def hold(spec: Spec) -> bool:
    """Every property, on one compiled case. Gives whether the spec was stable on all its ticks."""
    return stability.hold(case_of(spec), checks.PROPERTIES)


def hold_long(spec: Spec) -> bool:
    """More ticks than a block of a closed form has, cut in the middle of chunks. Objectives of a power above two go:
    over so many ticks they diverge."""
    text = re.sub(r"\blp\(.*?\)", "huber(0.5)", spec.text)
    case = case_of(replace(spec, text=text, ticks=LONG, cuts=(1, LONG // 3, LONG // 2 + 1), batch=1))
    return stability.hold(case, (checks.splits_are_the_whole, checks.patterns_agree))


def sweep(seeds: Sequence[int], long: bool = False) -> None:
    """The properties for the specs of these seeds; a failure says which spec. Few may go untested, or be cut short
    where rounding takes over: else the sweep says little."""
    untested, short = [], []
    for seed in seeds:
        spec = seeded(seed)
        try:
            stable = (hold_long if long else hold)(spec)
        except (Untested, stability.Unstable):
            untested.append(seed)
        except Exception as e:
            e.add_note(f"seed {seed}: {spec!r}")
            raise
        else:
            short += [] if stable else [seed]
    assert len(untested) <= max(1, len(seeds) // 10), f"untested: {untested}"
    assert len(short) <= max(1, len(seeds) // (4 if long else 10)), f"unstable: {short}"


@pytest.mark.parametrize("block", range(2))
def test_seeds(block: int) -> None:
    sweep(range(4 * block, 4 * block + 4))


def test_many_blocks() -> None:
    sweep(range(1), long=True)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(specs())
def test_smallest(spec: Spec) -> None:
    try:
        hold(spec)
    except (Untested, stability.Unstable):
        reject()


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_sweep(block: int) -> None:
    sweep(range(SLOW + 15 * block, SLOW + 15 * block + 15))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_long_sweep(block: int) -> None:
    sweep(range(SLOW + 5 * block, SLOW + 5 * block + 5), long=True)
