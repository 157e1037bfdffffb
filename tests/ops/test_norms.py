"""Norms by a gradient in closed form, against plain autograd of the formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nestflow.ops.blocks import l2norm, rmsnorm

NORMS = {
    "l2norm": (l2norm, lambda x: x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()),
    "rmsnorm": (rmsnorm, lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()),
}


def rows() -> Tensor:
    """Among others a row of zeros, one so small that `eps` counts, a large one; seen through a transpose."""
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mT.contiguous().mT
    x[1] = 0
    x[2] *= 1e-3
    x[3] *= 1e6
    return x


@pytest.mark.parametrize("name", NORMS)
def test_values_and_first_and_second_derivatives_are_those_of_the_formula(name: str) -> None:
    def found(norm: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = rows().requires_grad_()
        y = norm(x)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first.square() * torch.arange(3.0)).sum(), x)
        return [y, first, second, norm(x.detach())]

    for a, b in zip(found(NORMS[name][0]), found(NORMS[name][1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_transforms_see_the_same(name: str) -> None:
    norm, formula = NORMS[name]
    x = rows()
    for f in (
        lambda g: torch.func.vmap(torch.func.grad(lambda z: g(z).pow(3).sum())),
        lambda g: torch.func.jacrev(torch.func.jacrev(g)),
    ):
        torch.testing.assert_close(f(norm)(x[1:3]), f(formula)(x[1:3]), rtol=1e-10, atol=1e-12)


def test_narrow_types_are_normed_in_float32() -> None:
    x = rows()[:3].to(torch.bfloat16).requires_grad_()
    y = l2norm(x)
    y.float().pow(3).sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    z = x.detach().float().requires_grad_()
    l2norm(z).to(torch.bfloat16).float().pow(3).sum().backward()
    torch.testing.assert_close(y, l2norm(z).to(torch.bfloat16))
    torch.testing.assert_close(x.grad, z.grad.to(torch.bfloat16))  # pyright: ignore[reportOptionalMemberAccess]
