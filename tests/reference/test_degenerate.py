"""Matrices of deficient rank and equal eigenvalues: eigenvectors, roots and SOAP are functions of them, the same in the
interpreter and in compiled code, and their gradients are finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.ops import matrices
from nestflow.reference.matrices import Eigenvectors, Root

VECTORS = pytest.mark.parametrize("of", [matrices.eigenvectors, Eigenvectors.apply], ids=["ops", "reference"])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(n: int, rank: int, seed: int = 0) -> Tensor:
    g = randn(n, rank, seed=seed)
    return g @ g.mT


MATRICES = {
    "rank 1": low_rank(5, 1),
    "rank 2": low_rank(6, 2),
    "zero": torch.zeros(4, 4, dtype=torch.float64),
    "identity": torch.eye(4, dtype=torch.float64),
    "two pairs": torch.diag(torch.tensor([2.0, 1.0, 2.0, 1.0], dtype=torch.float64)),
    "full": low_rank(5, 9),
    "batch": torch.stack([low_rank(4, 1), low_rank(4, 4, 1), torch.eye(4, dtype=torch.float64)]),
}


@pytest.mark.parametrize("a", MATRICES.values(), ids=MATRICES)
@VECTORS
def test_one_basis_whatever_the_rounding(of: Callable[[Tensor], Tensor], a: Tensor) -> None:
    v = of(a)
    torch.testing.assert_close(v.mT @ v, torch.eye(a.shape[-1], dtype=a.dtype).expand_as(a))
    values = torch.linalg.eigvalsh(a)
    torch.testing.assert_close(a @ v, v * values.unsqueeze(-2), rtol=1e-9, atol=1e-9)
    noise = a.abs().max() * randn(*a.shape, seed=5)
    torch.testing.assert_close(of(a + 1e-15 * (noise + noise.mT)), v, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(matrices.eigenvectors(a), Eigenvectors.apply(a), rtol=1e-9, atol=1e-11)
    assert (torch.arange(1, a.shape[-1] + 1, dtype=a.dtype).sqrt() @ v > 0).all()


def test_the_basis_of_a_plane_by_hand() -> None:
    """Of diag(0, 0, 1): √1 and √2 on the diagonal of the plane leave its axes."""
    a = torch.diag(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    assert torch.equal(matrices.eigenvectors(a), torch.eye(3, dtype=torch.float64))


@VECTORS
def test_gradients_of_eigenvectors(of: Callable[[Tensor], Tensor]) -> None:
    a = low_rank(4, 7).requires_grad_()
    weight = randn(4, 4, seed=1)
    assert torch.autograd.gradcheck(lambda a: of((a + a.mT) / 2), a)
    assert torch.autograd.gradgradcheck(lambda a: of((a + a.mT) / 2), a, randn(4, 4, seed=2).requires_grad_())
    for a in MATRICES.values():
        a = a.clone().requires_grad_()
        (g,) = torch.autograd.grad((of(a) * weight[: a.shape[-1], :1]).sum() if a.shape[-1] == 4 else of(a)[0].sum(), a)
        assert g.isfinite().all()


def test_both_sides_have_the_same_gradients() -> None:
    for a in MATRICES.values():
        weight = randn(*a.shape, seed=3)
        both = []
        for of in (matrices.eigenvectors, Eigenvectors.apply):
            x = a.clone().requires_grad_()
            both.append(torch.autograd.grad((of(x) * weight).sum(), x)[0])
        torch.testing.assert_close(*both, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("p", [2.0, -4.0])
def test_a_singular_matrix_has_a_root(p: float) -> None:
    a = low_rank(6, 2)
    noise = randn(6, 6, seed=5)
    both = []
    for of in (matrices.matrix_root, Root.apply):
        x = (a + 1e-16 * (noise + noise.mT)).requires_grad_()
        y = of(x, p)
        torch.testing.assert_close(y, of(a, p), rtol=1e-6, atol=1e-6)
        (g,) = torch.autograd.grad((y * randn(6, 6, seed=1)).sum(), x)
        assert g.isfinite().all()
        both.append(y.detach())
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_soap_from_a_gradient_of_low_rank(rows: int) -> None:
    """A batch of 1 gives a gradient of rank 1: 6 × 5 weights, of which most have no direction yet."""
    bundle = nestflow.compile(
        "nestflow 1\ninput x : float[6]\ninput z : float[5]\noutput model(x)\nflow model(x) { return linear(x, 5) }\n"
        "level outer { every 1 step; memory weights(model); objective mean(square(model(x) - z))\n"
        "  update soap(0.01, period = 2) }",
        dtype="float64",
    )
    slow = bundle.reference_steps()
    for t in range(7):
        batch = {"x": randn(rows, 6, seed=t), "z": randn(rows, 5, seed=t + 100)}
        bundle.step(batch)
        slow.step(batch)
        for path, w in bundle.module.weights.items():
            assert w.isfinite().all()
            torch.testing.assert_close(w.detach(), slow.tensors[path].detach(), rtol=1e-9, atol=1e-9)


def test_curvature_in_the_interpreter_is_told() -> None:
    bundle = nestflow.compile(
        "nestflow 1\ninput x : float[6]\noutput model(x)\nflow model(x) { return linear(x, 5) }\n"
        "level outer { every 1 step; memory weights(model); objective mean(square(model(x))); update sophia(0.01) }"
    )
    with pytest.raises(nestflow.NestflowError, match="does not estimate `curvature`"):
        bundle.reference_steps().step({"x": torch.randn(2, 6)})
