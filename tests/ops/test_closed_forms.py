"""The kernels of closed forms against loops over ticks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nestflow.ops.causal import CARE
from nestflow.ops.chunk import advance, linear_at, tensor_at
from nestflow.ops.coefficients import (
    accumulate,
    carry,
    chunk_sizes,
    decay_matrix,
    decays,
    errors,
    lag,
    piece_length,
    pieces,
    reading,
    split_rows,
)
from nestflow.ops.delta import delta_system, errors_by_channels, solution, solve_errors
from nestflow.ops.recurrence import channels, channels_after, channels_at

CPU, F64 = torch.device("cpu"), torch.float64


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gates(*shape: int) -> Tensor:
    """Positive, zero, one and negative."""
    a = rand(*shape, seed=1)
    a[..., 1::4], a[..., 2::5] = 0, 1
    return a


@pytest.mark.parametrize(
    ("ticks", "before", "size"), [(1, 0, 4), (3, 2, 4), (9, 3, 4), (8, 0, 4), (2, 7, 16), (40, 5, 8)]
)
def test_chunk_sizes(ticks: int, before: int, size: int) -> None:
    sizes = chunk_sizes(ticks, before, size)
    assert sum(sizes) == ticks and all(1 <= n <= size for n in sizes)
    ends = [before + sum(sizes[: i + 1]) for i in range(len(sizes))]
    assert all(e % size == 0 for e in ends[:-1])


def test_decay_matrix_is_the_product_of_gates() -> None:
    a = gates(2, 7)
    d = decay_matrix(a)
    for t in range(7):
        for s in range(7):
            want = a[:, s + 1 : t + 1].prod(-1) if s <= t else torch.zeros(2, dtype=F64)
            torch.testing.assert_close(d[:, t, s], want)


def test_derivatives_of_the_products_of_gates() -> None:
    """With zeros, one and several in a row of gates: first and second, and those that transforms take."""
    a = gates(3, 7).detach()
    a[0, 3] = a[1, 2] = a[1, 4] = 0.0
    a[2, 5] = -1.0
    a.requires_grad_()
    assert torch.autograd.gradcheck(decay_matrix, a)
    assert torch.autograd.gradgradcheck(decay_matrix, a)
    (want,) = torch.autograd.grad(decay_matrix(a).sin().sum(), a)
    found = torch.func.vmap(torch.func.grad(lambda x: decay_matrix(x).sin().sum()))(a)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_rows_of_momentum(n: int) -> None:
    """s_t = b s + r g, w_t = a w + s, from (w, s) and every g: columns of the identity."""
    a, b, r = gates(3, n), rand(3, n, seed=2), rand(3, n, seed=3)
    s_rows = accumulate(decays(b, n, F64, CPU), r, 1, 2)
    w_rows = carry(decays(a, n, F64, CPU), s_rows, 0)
    same = carry(decays(b, n, F64, CPU), r[..., None] * errors(n, 2, F64, CPU), 1)
    torch.testing.assert_close(s_rows, same)
    eye = torch.eye(n + 2, dtype=F64).expand(3, n + 2, n + 2)
    w, s = eye[:, 0], eye[:, 1]
    for t in range(n):
        torch.testing.assert_close(lag(w_rows, 0)[:, t], w)
        s = b[:, t, None] * s + r[:, t, None] * eye[:, 2 + t]
        w = a[:, t, None] * w + s
        torch.testing.assert_close(s_rows[:, t], s)
        torch.testing.assert_close(w_rows[:, t], w)


def test_gradients_are_finite_at_zero_gates() -> None:
    a = gates(2, 8).requires_grad_()
    accumulate(decays(a, 8, F64, CPU), 1.0, 0, 1).square().sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()
    with torch.no_grad():
        eps, at = 1e-6, a.detach().clone()
        moved = []
        for sign in (1, -1):
            b = at.clone()
            b[0, 1] += sign * eps
            moved.append(accumulate(decays(b, 8, F64, CPU), 1.0, 0, 1).square().sum())
        assert abs((moved[0] - moved[1]).item() / (2 * eps) - a.grad[0, 1].item()) < 1e-6


def test_a_number_is_the_same_at_all_ticks() -> None:
    torch.testing.assert_close(
        decays(0.9, 5, F64, CPU).matrix, decays(torch.full((5,), 0.9, dtype=F64), 5, F64, CPU).matrix
    )
    torch.testing.assert_close(
        decays(rand(2, 1), 5, F64, CPU).start, decays(rand(2, 1).expand(2, 5), 5, F64, CPU).start
    )


@pytest.mark.parametrize(("ticks", "before"), [(3, 0), (11, 0), (10, 3), (4, 2), (2, 5), (8, 4)])
def test_rows_of_pieces_equal_rows_made_alone(ticks: int, before: int) -> None:
    size, a, r = 4, rand(2, ticks, seed=4), rand(2, ticks, seed=5)
    sizes = chunk_sizes(ticks, before, size)
    k = piece_length(sizes, size)
    rows = accumulate(decays(pieces(a, sizes, k), k, F64, CPU), pieces(r, sizes, k), 0, 1)
    for at, x, y in zip(split_rows(rows, sizes, 1), a.split(sizes, -1), r.split(sizes, -1), strict=True):
        alone = reading(accumulate(decays(x, x.shape[-1], F64, CPU), y, 0, 1), 1)
        for got, want in zip(
            (at.old[0], at.new, at.end_old[0], at.end_new), (alone.old[0], alone.new, alone.end_old[0], alone.end_new)
        ):
            torch.testing.assert_close(got, want)


def test_readings_of_a_matrix_equal_the_matrix_formed() -> None:
    n, d, m = 6, 3, 4
    rows = rand(2, n, 2 + n).tril(2)
    starts = (rand(2, m, d, seed=1), rand(2, m, d, seed=2))
    h, e, x = rand(2, n, d, seed=3), rand(2, n, m, seed=4), rand(2, n, d, seed=5)
    at = reading(rows, 2)
    y, full = linear_at(x, at, starts, (h, e)), e[..., :, None] * h[..., None, :]
    each = tensor_at(at, starts, full, 2)
    for t in range(n):
        w = rows[:, t, 0, None, None] * starts[0] + rows[:, t, 1, None, None] * starts[1]
        w = w + torch.einsum("bs,bsmd->bmd", rows[:, t, 2:], full)
        torch.testing.assert_close(each[:, t], w)
        torch.testing.assert_close(y[:, t], (w @ x[:, t, :, None])[..., 0])
    torch.testing.assert_close(advance(at, starts, (h, e)), each[:, -1])
    torch.testing.assert_close(advance(at, starts, gradient=full), each[:, -1])
    numbers = tensor_at(at, (starts[0][:, 0, 0], starts[1][:, 0, 0]), full[..., 0, 0], 0)
    torch.testing.assert_close(numbers, each[..., 0, 0])
    torch.testing.assert_close(
        advance(at, (starts[0][:, 0, 0], starts[1][:, 0, 0]), gradient=full[..., 0, 0], rank=0), numbers[:, -1]
    )


KEYS = {
    "random": lambda n, d: torch.nn.functional.normalize(rand(2, n, d, seed=6), dim=-1),
    "equal": lambda n, d: torch.nn.functional.normalize(rand(2, 1, d, seed=6), dim=-1).expand(2, n, d).contiguous(),
    "correlated": lambda n, d: torch.nn.functional.normalize(
        rand(2, 1, d, seed=6) + 0.05 * rand(2, n, d, seed=7), dim=-1
    ),
    "zero": lambda n, d: torch.zeros(2, n, d, dtype=F64),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("rate", [0.5, 1.8])
def test_delta_errors_equal_the_loop(kind: str, rate: float) -> None:
    n, d, m = 32, 4, 3
    k, v, a = KEYS[kind](n, d), rand(2, n, m, seed=8), rand(2, n, seed=9).sigmoid()
    rows = accumulate(decays(a, n, F64, CPU), -rate, 0, 1)
    before, w = reading(lag(rows, 0), 1, end=False), 0.3 * rand(2, m, d, seed=10)
    start, want = w, []
    for t in range(n):
        u = (w @ k[:, t, :, None])[..., 0] - v[:, t]
        want.append(u)
        w = a[:, t, None, None] * w - rate * u[..., :, None] * k[:, t, None, :]
    for dtype, limit in ((F64, 1e-11), (torch.float32, 2e-4)):
        cast = [t.to(dtype) for t in (k, v, start, rows)]
        at = reading(lag(cast[3], 0), 1, end=False)
        u = solve_errors(delta_system(cast[0], cast[0], 1.0, at), cast[0], 1.0, -cast[1], at, (cast[2],))
        assert (u - torch.stack(want, 1)).abs().max() < limit * max(1.0, torch.stack(want).abs().max().item())
    u = solve_errors(delta_system(k, k, 1.0, before), k, 1.0, -v, before, (start,))
    torch.testing.assert_close(advance(reading(rows, 1), (start,), (k, u)), w)


def test_zero_keys_give_zero_gradients_not_nan() -> None:
    k = torch.zeros(1, 8, 4, dtype=F64, requires_grad=True)
    rows = accumulate(decays(0.9, 8, F64, CPU), -0.5, 0, 1)
    at = reading(lag(rows, 0), 1, end=False)
    solve_errors(delta_system(k, k, 1.0, at), k, 1.0, rand(1, 8, 3), at, (rand(1, 3, 4),)).sum().backward()
    assert k.grad is not None and k.grad.isfinite().all()


def test_gates_of_key_channels_equal_the_loop() -> None:
    """W_t = W_{t−1} ⊙ a_t + e hᵀ, gates of any sign and 0: recalls after and before, the state, finite gradients."""
    n, d, m = 9, 4, 3
    a = gates(2, n, d).requires_grad_()
    h, e, x, start = rand(2, n, d, seed=2), rand(2, n, m, seed=3), rand(2, n, d, seed=4), rand(2, m, d, seed=5)
    at = channels(x, h, a, n)
    after, before = channels_at(start, (at, e)), channels_at(start, (channels(x, h, a, n, before=True), e))
    w = start
    for t in range(n):
        torch.testing.assert_close(before[:, t], (w @ x[:, t, :, None])[..., 0])
        w = w * a[:, t, None, :] + e[:, t, :, None] * h[:, t, None, :]
        torch.testing.assert_close(after[:, t], (w @ x[:, t, :, None])[..., 0])
    torch.testing.assert_close(channels_after(start, (at, e)), w)
    after.sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()


@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize("scale", ["number", "gates"])
def test_delta_errors_beside_momentum_equal_the_loop(scale: str, rated: bool) -> None:
    """u = −η (s W_{t−1} x + b), or s W_{t−1} x + b; S_t = β_t S_{t−1} + r_t u hᵀ, W_t = α_t W_{t−1} + S_t."""
    n, d, m = 7, 4, 3
    alpha, beta, eta = (rand(2, n, seed=i).sigmoid() for i in (20, 21, 22))
    r = -0.3 * rand(2, n, seed=23).sigmoid()
    x, h, b = rand(2, n, d, seed=24), rand(2, n, d, seed=25), rand(2, n, m, seed=26)
    w, s = rand(2, m, d, seed=27), rand(2, m, d, seed=28)
    by = 0.5 if scale == "number" else rand(2, n, seed=29)
    rate = eta if rated else None
    s_rows = accumulate(decays(beta, n, F64, CPU), r, 1, 2)
    before = reading(lag(carry(decays(alpha, n, F64, CPU), s_rows, 0), 0), 2, end=False)
    got = solve_errors(delta_system(x, h, by, before, rate), x, by, b, before, (w, s), rate=rate)
    for t in range(n):
        u = (by if scale == "number" else by[:, t, None]) * (w @ x[:, t, :, None])[..., 0] + b[:, t]
        u = -eta[:, t, None] * u if rated else u
        torch.testing.assert_close(got[:, t], u, rtol=1e-10, atol=1e-10)
        s = beta[:, t, None, None] * s + r[:, t, None, None] * u[..., :, None] * h[:, t, None, :]
        w = alpha[:, t, None, None] * w + s


@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize("scale", ["number", "gates"])
def test_delta_errors_by_channels_equal_the_loop(scale: str, rated: bool) -> None:
    """W_t = W_{t−1} ⊙ a_t + u hᵀ, u as above."""
    n, d, m = 7, 4, 3
    a, x, h, b = gates(2, n, d), rand(2, n, d, seed=2), 0.4 * rand(2, n, d, seed=3), rand(2, n, m, seed=4)
    w, eta = rand(2, m, d, seed=5), rand(2, n, seed=6).sigmoid()
    by = 0.5 if scale == "number" else rand(2, n, seed=7)
    got = errors_by_channels(channels(x, h, a, n, before=True), w, by, b, eta if rated else None)
    for t in range(n):
        u = (by if scale == "number" else by[:, t, None]) * (w @ x[:, t, :, None])[..., 0] + b[:, t]
        u = -eta[:, t, None] * u if rated else u
        torch.testing.assert_close(got[:, t], u, rtol=1e-10, atol=1e-10)
        w = w * a[:, t, None, :] + u[..., :, None] * h[:, t, None, :]


def test_systems_of_narrow_numbers_are_solved_in_wider_ones() -> None:
    system, right = (0.3 * rand(2, 8, 8, seed=1)).tril(-1), rand(2, 8, 3, seed=2)
    system, right = system.bfloat16(), right.bfloat16()
    want = torch.linalg.solve_triangular(system.float(), right.float(), upper=False, unitriangular=True)
    got = solution(system, right)
    assert got.dtype == torch.bfloat16 and torch.equal(got, want.bfloat16())


def test_a_bad_row_of_a_system_spoils_no_earlier_error() -> None:
    system, right = (0.3 * rand(2, 8, 8, seed=1)).tril(-1), rand(2, 8, 3, seed=2)
    good = solution(system, right)
    bad = system.clone()
    bad[1, 5, 2] = torch.inf
    token = CARE.set(True)
    try:
        got = solution(bad, right)
    finally:
        CARE.reset(token)
    torch.testing.assert_close(got[0], good[0])
    torch.testing.assert_close(got[1, :5], good[1, :5])
    assert got[1, 5:].isnan().all()
