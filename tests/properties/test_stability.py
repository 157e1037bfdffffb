"""Specs in which rounding grows: they are held to every property where that has not happened yet, and no longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nestflow.bundle.module import Module
from nestflow.bundle.state import State
from tests.properties import checks, stability
from tests.properties.checks import Case
from tests.properties.specs import Spec

HEAD = "nestflow 1\ninput x : float[T, 5]\noutput model(x)\n"
LEVEL = """{}level first(x) {{
  every 1 token; memory {}; key x |> l2norm; value x |> linear; query x |> linear
  objective {}; update {}
  return y |> rmsnorm |> linear(12)
}}
flow model(x) {{ return x |> linear(64) |> linear(12) |> first |> linear(3) }}
"""
CHAOTIC = LEVEL.format(HEAD, "matrix; init 0.3", "dot", "(2.9 - 0.05 * tanh(g)) * w * (1 - w)")  # a logistic map
DIVERGES = LEVEL.format(HEAD, "matrix; init learned", "-inner(M(key), M(key))", "gd(1e5)")
STABLE = LEVEL.format(HEAD, "matrix", "l2", "gd(0.5)")
LONG = (checks.splits_are_the_whole, checks.patterns_agree)


def case(text: str) -> Case:
    return Case(Spec(text, ("first",), tokens=False, batch=1, ticks=90, cuts=(1, 30, 50), seed=581))


def test_rounding_takes_over_a_chaotic_spec() -> None:
    """The interpreter alone, all inputs moved by 1e-12, ends up elsewhere: no two programs can agree."""
    chaotic = case(CHAOTIC)
    (a, x), (b, z) = stability.interpreters(chaotic)
    with torch.no_grad():
        apart = (a(**x) - b(**z)).abs().amax((0, 2))
    assert apart[:10].max() < 1e-11 and apart[-30:].max() > 1e-2
    with pytest.raises(AssertionError):
        checks.compiled_is_interpreted(chaotic)
    assert not stability.hold(chaotic, (checks.compiled_is_interpreted,))
    ticks = stability.stable_ticks(chaotic)
    assert 8 < ticks < 60  # enough to ask about


def test_numbers_run_out_of_a_divergent_spec() -> None:
    divergent = case(DIVERGES)
    assert not torch.isfinite(divergent.output).all()
    assert not stability.hold(divergent, LONG)
    assert stability.stable_ticks(divergent) > 10


def test_a_stable_spec_is_held_on_all_ticks() -> None:
    stable = case(STABLE)
    assert stability.stable_ticks(stable) == 90
    assert stability.hold(stable, LONG)


@pytest.mark.parametrize("text", [CHAOTIC, DIVERGES], ids=["chaotic", "divergent"])
@pytest.mark.parametrize("place", ["output", "state"])
def test_a_disagreement_in_an_unstable_spec_is_told(text: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that goes on from a state is made a little wrong."""
    run: Callable[..., tuple[torch.Tensor, State]] = Module.run

    def wrong(self: Module, state: State | None, **inputs: Any) -> tuple[torch.Tensor, State]:
        if state is None:
            return run(self, state, **inputs)
        if place == "state":
            (group,) = state.groups
            moved = {p: s * (1 + 1e-6) if s.is_floating_point() else s for p, s in group.tensors.items()}
            return run(self, State((replace(group, tensors=moved),)), **inputs)
        y, after = run(self, state, **inputs)
        return y * (1 + 1e-6), after

    monkeypatch.setattr(Module, "run", wrong)
    with pytest.raises(AssertionError, match="apart"):
        stability.hold(case(text), LONG)
