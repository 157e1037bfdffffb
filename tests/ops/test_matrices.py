"""Square matrices against torch's own, gradients and second gradients by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops import matrices
from nestflow.reference.matrices import Iterated, Root, eigen


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(*lead: int, n: int = 4, seed: int = 0) -> Tensor:
    a = randn(*lead, n, n, seed=seed)
    return a @ a.mT + 0.5 * torch.eye(n, dtype=torch.float64)


def symmetric(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda a: f((a + a.mT) / 2)


@pytest.mark.parametrize("method", ["exact", "cg"])
def test_solve(method: str) -> None:
    a, b = positive(2, 3), randn(3, 4, 2, seed=1)  # leading axes broadcast
    x = matrices.solve(a, b, method, 12)
    torch.testing.assert_close(a @ x, b.expand_as(x), rtol=1e-9, atol=1e-9)
    one = matrices.solve(a[1, 2], b[2], method, 12)
    torch.testing.assert_close(one, x[1, 2])


@pytest.mark.parametrize("method", ["exact", "cg"])
def test_the_gradient_of_solve(method: str) -> None:
    given = (positive().requires_grad_(), randn(4, 2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: matrices.solve((a + a.mT) / 2, b, method, 12), given)


def test_conjugate_gradients_start_at_the_diagonal_and_stay_where_they_arrive() -> None:
    a, b = positive(), randn(4, 1, seed=1)
    start = b / a.diagonal().unsqueeze(-1)
    r = b - a @ start
    torch.testing.assert_close(matrices.conjugate_gradients(a, b, 1), start + (r * r).sum() / (r * (a @ r)).sum() * r)
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.equal(matrices.conjugate_gradients(eye, b, 50), b)  # nothing is left to do: 0/0 is nothing
    assert torch.isfinite(matrices.conjugate_gradients(a, b, 400)).all()


@pytest.mark.parametrize("of", ["ops", "reference"])
def test_the_gradient_of_cg_is_that_of_the_inverse(of: str) -> None:
    a, b = positive(2).requires_grad_(), randn(2, 4, 1, seed=1).requires_grad_()
    solve = matrices.solve if of == "ops" else lambda a, b, _, n: Iterated.apply(a[:, None], b[:, None], n)[:, 0]
    probe = randn(2, 4, 1, seed=2)

    def through(by: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        first = torch.autograd.grad((by((a + a.mT) / 2, b) * probe).sum().tanh(), (a, b), create_graph=True)
        second = torch.autograd.grad(sum((g * g.detach().sin()).sum() for g in first), (a, b))
        return [*first, *second]

    for got, want in zip(through(lambda a, b: solve(a, b, "cg", 30)), through(torch.linalg.solve), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("p", [1.0, 2.0, -4.0, -1.0])
@pytest.mark.parametrize("of", [matrices.matrix_root, Root.apply], ids=["ops", "reference"])
def test_root(p: float, of: Callable[[Tensor, float], Tensor]) -> None:
    a = positive(2)
    y = of(a, p)
    power = torch.linalg.matrix_power(y, int(abs(p)))
    torch.testing.assert_close(power, a if p > 0 else torch.linalg.inv(a))
    assert torch.autograd.gradcheck(symmetric(lambda a: of(a, p)), a.requires_grad_())
    same = 3 * torch.eye(3, dtype=torch.float64)  # equal eigenvalues have a derivative
    assert torch.autograd.gradcheck(symmetric(lambda a: of(a, p)), same.requires_grad_())


@pytest.mark.parametrize("of", [matrices.eigh, eigen], ids=["ops", "reference"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_matrix_that_is_not_finite_leaves_its_neighbours_alone(
    of: Callable[[Tensor], tuple[Tensor, Tensor]], bad: float
) -> None:
    a = positive(3)
    a[1, 2, 2] = bad
    values, vectors = of(a.requires_grad_())
    for i in (0, 2):
        want = torch.linalg.eigh(a[i])
        torch.testing.assert_close(values[i], want[0])
        torch.testing.assert_close(vectors[i], want[1])
    assert values[1].isnan().all() and vectors[1].isnan().all()
    (g,) = torch.autograd.grad(vectors[0].sum() + values[2].sum(), a)
    assert g.isfinite().all() and g[1].eq(0).all()


def test_qr_has_a_positive_diagonal() -> None:
    a = randn(3, 5, 4)
    q = matrices.qr(a)
    torch.testing.assert_close(q.mT @ q, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    r = q.mT @ a
    assert (r.diagonal(dim1=-2, dim2=-1) > 0).all()
    torch.testing.assert_close(r.tril(-1), torch.zeros_like(r), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(matrices.qr, a.requires_grad_())


def test_qr_of_zeros_is_the_identity_and_has_no_gradient() -> None:
    a = torch.cat([torch.zeros(1, 4, 3, dtype=torch.float64), randn(1, 4, 3)]).requires_grad_()
    q = matrices.qr(a)
    assert torch.equal(q[0], torch.eye(4, 3, dtype=torch.float64))
    (g,) = torch.autograd.grad(q.pow(3).sum(), a)
    assert g[0].eq(0).all() and g[1].ne(0).any()
    torch.testing.assert_close(matrices.qr_backward(3 * q.detach().square(), a.detach()), g)


def test_a_class_is_a_row() -> None:
    i = torch.tensor([[0, 2], [1, 1]])
    assert torch.equal(matrices.one_hot(i, 3), F.one_hot(i, 3).bool())
    for wrong in (3, -1):
        with pytest.raises(IndexError):
            matrices.one_hot(torch.tensor([wrong]), 3)


def test_a_singular_matrix_spoils_its_own_row_only() -> None:
    a = torch.stack([torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)])
    x = matrices.solve(a, torch.ones(2, 2, 1, dtype=torch.float64))
    assert not torch.isfinite(x[0]).any() and torch.equal(x[1], torch.ones(2, 1, dtype=torch.float64))
