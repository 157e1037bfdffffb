"""Each shipped mechanism as a bare memory, fed from outside, against the published recurrence in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow
from tests.oracles.cases import CASES, Case, Tensors
from tests.oracles.rate_cases import RATE_CASES
from tests.oracles.wide_cases import WIDE

BATCH = 2
LENGTHS = (1, 5, 10)  # one token; not a multiple of the chunk of 4; several chunks


@pytest.fixture(scope="module")
def bundles() -> dict[str, nestflow.Bundle]:
    """One compilation a case, shared by its tests."""
    return {}


def bundle_of(case: Case, bundles: dict[str, nestflow.Bundle]) -> nestflow.Bundle:
    if case.name not in bundles:
        bundles[case.name] = nestflow.compile(case.text)
        bundles[case.name].module.double()
    return bundles[case.name]


def weights_of(bundle: nestflow.Bundle) -> Tensors:
    return dict(bundle.module.named_weights())


def gradients(y: Tensor, probe: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """∂(y·probe)/∂leaf, zeros where there is no path."""
    return list(torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True, materialize_grads=True))


def assert_near(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)} is not {tuple(want.shape)}"
    error = (got - want).abs().max().item()
    assert error <= tolerance * (1 + want.abs().max().item()), f"{what}: off by {error:.2e}"


every_case = pytest.mark.parametrize("case", [*CASES, *RATE_CASES, *WIDE], ids=lambda c: c.name)


@every_case
@pytest.mark.parametrize("ticks", LENGTHS)
def test_compiled_equals_oracle_forward_and_backward(
    case: Case, ticks: int, bundles: dict[str, nestflow.Bundle]
) -> None:
    bundle, inputs = bundle_of(case, bundles), case.inputs(BATCH, ticks)
    weights = weights_of(bundle)
    got, want = bundle.module(**inputs), case.expected(inputs, weights)
    assert_near(got, want, 1e-9, "output")
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    leaves = {**inputs, **weights}
    grads = zip(
        leaves, gradients(got, probe, list(leaves.values())), gradients(want, probe, list(leaves.values())), strict=True
    )
    for name, mine, theirs in grads:
        assert_near(mine, theirs, 1e-8, f"gradient of {name}")


@every_case
@pytest.mark.parametrize("ticks", [5])
def test_interpreter_equals_oracle(case: Case, ticks: int, bundles: dict[str, nestflow.Bundle]) -> None:
    bundle, inputs = bundle_of(case, bundles), case.inputs(BATCH, ticks, seed=1)
    want = case.expected(inputs, weights_of(bundle))
    assert_near(bundle.reference()(**inputs), want, 1e-10, "output of the interpreter")


@every_case
@pytest.mark.parametrize("cuts", [(3, 7), (1, 2, 6), (4, 8), (5,)], ids=str)
def test_a_stream_equals_the_oracle_at_any_split(
    case: Case, cuts: tuple[int, ...], bundles: dict[str, nestflow.Bundle]
) -> None:
    bundle, inputs = bundle_of(case, bundles), case.inputs(BATCH, 10, seed=2)
    want = case.expected(inputs, weights_of(bundle))
    stream, pieces = bundle.stream(batch=BATCH), []
    with torch.no_grad():
        for low, high in zip((0, *cuts), (*cuts, 10)):
            pieces.append(stream.feed(**{name: x[:, low:high] for name, x in inputs.items()}))
    assert_near(torch.cat(pieces, 1), want, 1e-9, f"stream cut at {cuts}")


@every_case
def test_a_row_alone_is_the_row_in_company(case: Case, bundles: dict[str, nestflow.Bundle]) -> None:
    bundle, inputs = bundle_of(case, bundles), case.inputs(3, 6, seed=3)
    together = bundle.module(**inputs)
    for row in range(3):
        alone = bundle.module(**{name: x[row : row + 1] for name, x in inputs.items()})
        assert_near(alone, together[row : row + 1], 1e-12, f"row {row}")


@every_case
def test_no_output_depends_on_a_later_token(case: Case, bundles: dict[str, nestflow.Bundle]) -> None:
    bundle, inputs = bundle_of(case, bundles), case.inputs(BATCH, 9, seed=4)
    grads = torch.autograd.grad(bundle.module(**inputs)[:, 4].sum(), list(inputs.values()), allow_unused=True)
    for name, grad in zip(inputs, grads, strict=True):
        assert grad is None or grad[:, 5:].abs().max() == 0, f"token 5 sees a later {name}"
    changed = {name: torch.cat([x[:, :5], x[:, 5:].flip(1)], 1) for name, x in inputs.items()}
    assert_near(bundle.module(**changed)[:, :5], bundle.module(**inputs)[:, :5], 1e-12, "the first five tokens")


def test_a_long_sequence_stays_exact(bundles: dict[str, nestflow.Bundle]) -> None:
    """More tokens than any block of the kernels (linear attention in closed form; the gated delta rule by its loop)."""
    for name in ("linear attention", "gated delta", "momentum delta"):
        case = next(c for c in CASES if c.name == name)
        bundle, inputs = bundle_of(case, bundles), case.inputs(1, 150, seed=5)
        with torch.no_grad():
            assert_near(bundle.module(**inputs), case.expected(inputs, weights_of(bundle)), 1e-9, name)
