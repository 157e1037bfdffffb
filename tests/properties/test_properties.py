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
from hypothesis import HealthCheck, given, settings

from tests.properties import checks
from tests.properties.checks import Case
from tests.properties.specs import Spec, seeded, specs

SLOW = int(os.environ.get("NESTFLOW_PROPERTY_SEED", "1000"))
LONG = 150


def hold(spec: Spec) -> None:
    """Every property, on one compiled case."""
    case = Case(spec)
    for check in checks.PROPERTIES:
        check(case)


def hold_long(spec: Spec) -> None:
    """More ticks than a block of a closed form has, cut in the middle of chunks. Objectives of a power above two go:
    over so many ticks they diverge."""
    text = re.sub(r"\blp\(.*?\)", "huber(0.5)", spec.text)
    case = Case(replace(spec, text=text, ticks=LONG, cuts=(1, LONG // 3, LONG // 2 + 1), batch=1))
    checks.splits_are_the_whole(case)
    checks.patterns_agree(case)


def sweep(seeds: Sequence[int], long: bool = False) -> None:
    """The properties for the specs of these seeds; a failure says which spec."""
    for seed in seeds:
        spec = seeded(seed)
        try:
            (hold_long if long else hold)(spec)
        except Exception as e:
            e.add_note(f"seed {seed}: {spec!r}")
            raise


@pytest.mark.parametrize("block", range(5))
def test_seeds(block: int) -> None:
    sweep(range(10 * block, 10 * block + 10))


def test_many_blocks() -> None:
    sweep(range(8), long=True)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(specs())
def test_smallest(spec: Spec) -> None:
    hold(spec)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_sweep(block: int) -> None:
    sweep(range(SLOW + 50 * block, SLOW + 50 * block + 50))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_long_sweep(block: int) -> None:
    sweep(range(SLOW + 10 * block, SLOW + 10 * block + 10), long=True)
