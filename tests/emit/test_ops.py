"""Operations that generated code calls, against torch's own or the formula written another way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops import blocks, lookback
from nestflow.ops.weights import draw


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_short_conv_is_torchs_causal_depthwise_convolution(n: int) -> None:
    x_BTD, w_Dn, bias_D = randn(2, 7, 3), randn(3, n, seed=1), randn(3, seed=2)
    tail = torch.zeros(2, n - 1, 3, dtype=torch.float64)
    got, kept = lookback.short_conv(x_BTD, w_Dn, tail, bias_D)
    padded = F.pad(x_BTD.mT, (n - 1, 0))
    want = F.conv1d(padded, w_Dn.flip(-1)[:, None], bias_D, groups=3).mT  # torch's kernel runs from old to new
    torch.testing.assert_close(got, want)
    assert kept.shape == (2, n - 1, 3)
    first, state = lookback.short_conv(x_BTD[:, :2], w_Dn, tail, bias_D)
    second, state = lookback.short_conv(x_BTD[:, 2:], w_Dn, state, bias_D)
    torch.testing.assert_close(torch.cat([first, second], 1), got)
    assert torch.equal(state, kept)


def test_short_conv_per_head() -> None:
    x_BHTD, w_HDn = randn(2, 3, 5, 4), randn(3, 4, 2, seed=1)
    got, _ = lookback.short_conv(x_BHTD, w_HDn, torch.zeros(2, 3, 1, 4, dtype=torch.float64))
    for h in range(3):
        one, _ = lookback.short_conv(x_BHTD[:, h], w_HDn[h], torch.zeros(2, 1, 4, dtype=torch.float64))
        torch.testing.assert_close(got[:, h], one)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_previous_shifts(shape: tuple[int, ...]) -> None:
    x, tail = randn(2, 5, *shape), torch.zeros(2, 2, *shape, dtype=torch.float64)
    axis = -1 - len(shape)
    y, kept = lookback.previous(x, tail, axis)
    assert torch.equal(y[:, 2:], x[:, :-2]) and torch.equal(y[:, :2], tail) and torch.equal(kept, x[:, -2:])
    one, rest = lookback.previous(x[:, :1], tail, axis)
    assert torch.equal(torch.cat([one, lookback.previous(x[:, 1:], rest, axis)[0]], 1), y)


def test_rope_is_a_rotation_of_complex_pairs_and_relative() -> None:
    x = randn(2, 6, 8)
    z = torch.complex(x[..., :4], x[..., 4:])
    p, i = torch.arange(3, 9, dtype=torch.float64), torch.arange(4, dtype=torch.float64)
    turned = z * torch.exp(1j * p[:, None] * 100.0 ** (-2 * i / 8))
    want = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(lookback.rope(x, 3, base=100.0), want)
    torch.testing.assert_close(lookback.rope(x, 5, reset=3)[:, 1:4], lookback.rope(x[:, 1:4], 0))
    grid = randn(2, 6, 3, 8)
    torch.testing.assert_close(lookback.rope(grid, 1, axis=-3)[:, :, 1], lookback.rope(grid[:, :, 1], 1))
    a, b = randn(1, 1, 8), randn(1, 1, 8, seed=1)
    near = (lookback.rope(a, 2) * lookback.rope(b, 5)).sum()
    far = (lookback.rope(a, 102) * lookback.rope(b, 105)).sum()
    torch.testing.assert_close(near, far)


def test_norms() -> None:
    x, gain, bias = randn(2, 5, 8), randn(8, seed=1), randn(8, seed=2)
    torch.testing.assert_close(blocks.layernorm(x, gain, bias), F.layer_norm(x, (8,), gain, bias))
    torch.testing.assert_close(blocks.rmsnorm(x, gain, eps=1e-3), F.rms_norm(x, (8,), gain, 1e-3))
    torch.testing.assert_close(blocks.l2norm(x, eps=0.0), F.normalize(x, dim=-1))
    zero = torch.zeros(3, requires_grad=True)
    blocks.l2norm(zero).sum().backward()
    assert (
        zero.grad is not None and torch.isfinite(zero.grad).all() and torch.equal(blocks.l2norm(zero), torch.zeros(3))
    )
    half = (1e4 * x).to(torch.bfloat16)  # the square would overflow float16 and lose bits in bfloat16
    torch.testing.assert_close(blocks.rmsnorm(half).double(), F.rms_norm(half.double(), (8,)), rtol=1e-2, atol=1e-2)


def test_newton_schulz_brings_singular_values_near_one() -> None:
    for shape in ((6, 4), (4, 6), (3, 5, 5)):
        s = torch.linalg.svdvals(blocks.newton_schulz(randn(*shape), iters=10))
        assert (s > 0.6).all() and (s < 1.3).all()
    cubic = blocks.newton_schulz(randn(5, 4), iters=40, coefficients=(1.5, -0.5, 0.0))
    torch.testing.assert_close(cubic.mT @ cubic, torch.eye(4, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    v = randn(4)
    assert blocks.newton_schulz(v) is v


def test_cross_entropy_counts_unmasked_terms() -> None:
    p, y = randn(2, 5, 7), torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blocks.cross_entropy(p, y), F.cross_entropy(p.flatten(0, 1), y.flatten()))
    mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    torch.testing.assert_close(blocks.cross_entropy(p, y, mask), F.cross_entropy(p[mask], y[mask]))
    assert blocks.cross_entropy(p, y, torch.zeros_like(mask)) == 0
    assert blocks.cross_entropy(p[:, :0], y[:, :0]) == 0
    torch.testing.assert_close(
        blocks.cross_entropy(p, y, smoothing=0.1), F.cross_entropy(p.flatten(0, 1), y.flatten(), label_smoothing=0.1)
    )
    p[0, 1] = float("-inf")  # what is masked may be anything
    assert torch.isfinite(blocks.cross_entropy(p, y, mask))


def test_the_larger_of_two_has_half_the_gradient_at_a_tie() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    blocks.maximum(x, 2.0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.5, 1.0]
    assert blocks.minimum(2.0, x).tolist() == [1.0, 2.0, 2.0]


def test_draws() -> None:
    x = draw("a.b", (400, 50), "normal", 0.02, 0.0, (), 0)
    assert x.dtype == torch.float32 and abs(float(x.std()) / 0.02 - 1) < 0.03 and abs(float(x.mean())) < 1e-3
    assert torch.equal(x, draw("a.b", (400, 50), "normal", 0.02, 0.0, (), 0))
    assert not torch.equal(x, draw("a.b", (400, 50), "normal", 0.02, 0.0, (), 1))
    assert not torch.equal(x, draw("a.c", (400, 50), "normal", 0.02, 0.0, (), 0))
    u = draw("u", (10_000,), "log_uniform", 1e-3, 1e-1, (), 0)
    assert u.min() >= 1e-3 and u.max() <= 0.1 and abs(float(u.log().mean()) - math.log(1e-2)) < 0.05
    back = draw("u", (10_000,), "log_uniform", 1e-3, 1e-1, ("inverse_softplus",), 0)
    torch.testing.assert_close(F.softplus(back), u, rtol=1e-4, atol=1e-6)
    assert torch.equal(draw("e", (2, 3, 3), "eye", 0.0, 0.0, (), 0)[1], torch.eye(3))
