"""Functions of one token against those of many, which they stand in for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nestflow.ops import blocks, lookback, token

NEAR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 0.0}  # the narrow type is computed by the other code


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("lead", [(2, 1), (2, 3, 1)])
def test_norms_of_a_token(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, gain = (torch.randn(*n, 5, generator=g).to(dtype) for n in (lead, ()))
    x[0] *= 1e-3  # where eps counts
    near = {"rtol": NEAR[dtype], "atol": NEAR[dtype]}
    for given in (x, 0 * x):
        torch.testing.assert_close(token.rmsnorm(given), blocks.rmsnorm(given), **near)
        torch.testing.assert_close(token.rmsnorm(given, gain), blocks.rmsnorm(given, gain), **near)
        torch.testing.assert_close(token.l2norm(given), blocks.l2norm(given), **near)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heads", [(), (3,)])
@pytest.mark.parametrize("kept", [torch.float64, torch.float32])
def test_a_convolution_of_a_token(heads: tuple[int, ...], bias: bool, kept: torch.dtype) -> None:
    """kept: the type of the tail, which a stream may have from elsewhere."""
    g = torch.Generator().manual_seed(0)
    x, tail = (torch.randn(2, *heads, n, 5, generator=g, dtype=torch.float64) for n in (1, 3))
    w, b = (torch.randn(*heads, 5, *n, generator=g, dtype=torch.float64) for n in ((4,), ()))
    x, w, b, tail = x.float(), w.float(), b.float(), tail.to(kept)
    got = token.short_conv(x, w, tail, b if bias else None)
    want = lookback.short_conv(x, w, tail, b if bias else None)
    for a, c in zip(got, want, strict=True):
        assert a.dtype == c.dtype == torch.float32
        torch.testing.assert_close(a, c, rtol=1e-6, atol=1e-6)


def test_gelu_of_a_token() -> None:
    g = torch.Generator().manual_seed(0)
    x, by = (torch.randn(2, 3, 1, 5, generator=g, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    y = F.gelu(x)
    torch.testing.assert_close(token.gelu(x), y, rtol=0, atol=1e-15)
    (want,) = torch.autograd.grad(y, x, by)
    torch.testing.assert_close(token.gelu_backward(by, x.detach()), want, rtol=0, atol=1e-15)


def test_a_number_has_the_type_it_is_asked_in() -> None:
    for dtype in (torch.float32, torch.float64, torch.float32):
        assert token.constant(0.1, torch.zeros(1, dtype=dtype)).dtype == dtype
