"""Keys, values, queries and gates given: every memory of the zoo is the loop of its paper, outer gradients too."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import nestflow
from tests.zoo.bare import CASES, Bare, Tensors

TICKS = 11  # chunks of 4: two whole ones and a part
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@cache
def bundle(name: str) -> nestflow.Bundle:
    b = nestflow.compile(next(c.text for c in CASES if c.name == name), dtype=torch.float64)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():  # gains and biases away from their ones and zeros
        for _, w in b.module.named_weights():
            w.add_(0.1 * torch.randn(w.shape, generator=source, dtype=torch.float64))
    return b


def weights(case: Bare) -> Tensors:
    return dict(bundle(case.name).module.named_weights())


def near(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    assert got.shape == want.shape
    error = (got - want).abs().max().item()
    assert error <= tolerance * (1 + want.abs().max().item()), f"{what}: off by {error:.1e}"


@every_case
def test_compiled_is_the_paper(case: Bare) -> None:
    """Output to 1e-9; gradients of every stream and weight to 1e-9 of their size."""
    inputs, slow = case.inputs(2, TICKS, seed=0), weights(case)
    got, want = bundle(case.name).module(**inputs), case.expected(inputs, slow)
    near(got, want, 1e-9, "output")
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = {**inputs, **slow}
    mine, theirs = (
        torch.autograd.grad((y * probe).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        for y in (got, want)
    )
    for name, a, b in zip(leaves, mine, theirs, strict=True):
        assert b.abs().max() > 0 or "bias" in name or case.name == "lact", f"{name} has no effect at all"
        near(a, b, 1e-9, f"gradient of {name}")


@every_case
def test_interpreted_is_the_paper(case: Bare) -> None:
    inputs = case.inputs(2, TICKS, seed=2)
    near(bundle(case.name).reference()(**inputs), case.expected(inputs, weights(case)), 1e-10, "output")


@every_case
@pytest.mark.parametrize("cuts", [(1, 2, 6), (4, 8), (5,), (3, 4, 5)], ids=str)
def test_a_stream_is_the_paper(case: Bare, cuts: tuple[int, ...]) -> None:
    inputs = case.inputs(2, TICKS, seed=4)
    want = case.expected(inputs, weights(case))
    stream, pieces = bundle(case.name).stream(batch=2), []
    with torch.no_grad():
        for low, high in zip((0, *cuts), (*cuts, TICKS), strict=True):
            pieces.append(stream.feed(**{name: x[:, low:high] for name, x in inputs.items()}))
    near(torch.cat(pieces, 1), want, 1e-9, f"stream cut at {cuts}")


@pytest.mark.parametrize("name", ["retnet", "gla", "mamba2", "deltanet", "gated_deltanet", "kda", "comba"])
def test_many_blocks_are_the_paper(name: str) -> None:
    """More ticks than one block of the closed forms."""
    case = next(c for c in CASES if c.name == name)
    inputs = case.inputs(1, 150, seed=5)
    with torch.no_grad():
        near(bundle(name).module(**inputs), case.expected(inputs, weights(case)), 1e-9, "output")
