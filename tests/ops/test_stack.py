"""Stacks against a loop over ticks: momentum and retention with a gate for each row, head and tick, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nestflow.ops.causal import CARE
from nestflow.ops.coefficients import accumulate, carry, chunk_sizes, decays, errors, lag, piece_length, pieces
from nestflow.ops.stack import (
    advanced,
    begun,
    ends,
    errors_at,
    leaving,
    leaving_one,
    leavings,
    look,
    looks,
    looks_of_one,
    olds,
    recalled,
    slot,
    solutions,
    stacked,
    unstacked,
)

F64 = torch.float64
B, H, IN, OUT = 2, 3, 4, 5


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).requires_grad_()


def by_ticks(case: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_t x_t, W_{t−1} x_t, the last W and S; S_t = β_t S_{t−1} + η_t e hᵀ, W_t = α_t W_{t−1} + S_t."""
    w, s = case["w"], case["s"]
    after, before = [], []
    for t in range(case["x"].shape[2]):
        beta, eta, alpha = (case[n].expand(B, H, case["x"].shape[2])[..., t, None, None] for n in ("b", "r", "a"))
        x, h, e = (case[n][:, :, t, :, None] for n in "xhe")
        before.append((w @ x)[..., 0])
        s = beta * s + eta * (e @ h.mT)
        w = alpha * w + s
        after.append((w @ x)[..., 0])
    return torch.stack(after, 2), torch.stack(before, 2), w, s


def case_of(ticks: int, same: bool = False) -> dict[str, Tensor]:
    """same: the rates are the same at all ticks and in all rows."""
    shape = (H, 1) if same else (B, H, ticks)
    case = {n: rand(*shape, seed=i) for i, n in enumerate("bra")}
    case |= {
        "x": rand(B, H, ticks, IN, seed=4),
        "h": rand(B, H, ticks, IN, seed=5),
        "e": rand(B, H, ticks, OUT, seed=6),
    }
    return case | {"w": rand(B, H, OUT, IN, seed=7), "s": rand(B, H, OUT, IN, seed=8)}


def by_stacks(case: dict[str, Tensor], before: int, early: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same in pieces of 4. early: what is known before the loop: nothing, inputs, or errors too."""
    ticks = case["x"].shape[2]
    sizes = chunk_sizes(ticks, before, 4)
    size = piece_length(sizes, 4)
    s = accumulate(decays(pieces(case["b"], sizes, size), size, F64, "cpu"), pieces(case["r"], sizes, size), 1, 2)
    w = carry(decays(pieces(case["a"], sizes, size), size, F64, "cpu"), s, 0)
    lead, x, h, e = (B, H), case["x"], case["h"], case["e"]
    stack = stacked(case["w"], case["s"])
    cut = [y.split(sizes, 2) for y in (x, h, e)]
    errors = {"errors": (e,)} if early == "errors" else {}
    error = {"error": e} if early == "errors" else {}
    seen = [looks(x, rows, sizes, lead, h, **errors) for rows in (w, lag(w, 0))]
    rows = [olds(y, sizes, lead) for y in (w, lag(w, 0))]
    last, left = ends((w, s), sizes, lead), leavings(h, (w, s), sizes, lead, **error)
    ys: tuple[list[Tensor], list[Tensor]] = ([], [])
    for i, (x_n, h_n, e_n) in enumerate(zip(*cut)):
        for place in (0, 1):
            its = look(x_n, rows[place][i], lead, h_n) if early == "nothing" else seen[place][i]
            ys[place].append(recalled(its, stack, lead, *(() if early == "errors" else (e_n,))))
        if early == "errors":
            stack = advanced(stack, last[i], lead, known=(left[i],))
        else:
            its_h = leaving(h_n, last[i], lead) if early == "nothing" else left[i]
            stack = advanced(stack, last[i], lead, (its_h, e_n))
    torch.testing.assert_close(
        slot(stack, lead, 1, 2, 2), unstacked(stack, lead, 2, 2)[1], rtol=0, atol=0, equal_nan=True
    )
    return (torch.cat(ys[0], 2), torch.cat(ys[1], 2), *unstacked(stack, lead, 2, 2))


@pytest.mark.parametrize("early", ["nothing", "inputs", "errors"])
@pytest.mark.parametrize(("ticks", "before"), [(8, 0), (11, 0), (9, 3), (1, 2), (2, 1)])
@pytest.mark.parametrize("same", [False, True])
def test_stacks_equal_the_loop(early: str, ticks: int, before: int, same: bool) -> None:
    case = case_of(ticks, same)
    ours, theirs = by_stacks(case, before, early), by_ticks(case)
    weights = [rand(*y.shape, seed=20 + i).detach() for i, y in enumerate(theirs)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    found = [
        torch.autograd.grad(sum((y * g).sum() for y, g in zip(ys, weights)), list(case.values()), retain_graph=True)
        for ys in (ours, theirs)
    ]
    for name, a, b in zip(case, *found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def behind_a_bad_number(name: str, value: float, early: str) -> Tensor:
    """What is recalled from tick 6 on, where one of the inputs has that number there: ticks before do not see it."""
    case = {n: y.detach() for n, y in case_of(8).items()}
    good, bad = by_stacks(case, 0, early), {**case, name: case[name].clone()}
    bad[name][:, :, 6] = value
    token = CARE.set(True)
    try:
        found = by_stacks(bad, 0, early)
    finally:
        CARE.reset(token)
    assert torch.equal(found[0][:, :, :6], good[0][:, :, :6])
    return found[0][:, :, 6:]


@pytest.mark.parametrize("early", ["nothing", "inputs", "errors"])
def test_a_bad_number_reaches_no_earlier_tick(early: str) -> None:
    assert behind_a_bad_number("e", torch.nan, early).isnan().all()


KEYS = {
    "drawn": lambda n, d: torch.randn(H, n, d, generator=torch.Generator().manual_seed(30), dtype=F64),
    "nearly equal": lambda n, d: torch.ones(H, n, d, dtype=F64) + 1e-4 * KEYS["drawn"](n, d),
    "zero at times": lambda n, d: KEYS["drawn"](n, d) * (torch.arange(n) % 3 != 0)[:, None],
}


def delta_by_ticks(k: Tensor, v: Tensor, q: Tensor, a: Tensor, rate: Tensor, w: Tensor) -> Tensor:
    """W_t = a_t W_{t−1} − β_t (a_t W_{t−1} k_t − v_t) k_tᵀ, read by q_t."""
    ys = []
    for t in range(k.shape[1]):
        w = a[:, t, None, None] * w
        u = (w @ k[:, t, :, None])[..., 0] - v[:, t]
        w = w - rate[:, t, None, None] * u[..., :, None] * k[:, t, None, :]
        ys.append((w @ q[:, t, :, None])[..., 0])
    return torch.stack(ys, 1)


def delta_by_stacks(
    k: Tensor, v: Tensor, q: Tensor, a: Tensor, rate: Tensor, w: Tensor, size: int, before: int
) -> Tensor:
    sizes = chunk_sizes(k.shape[1], before, size)
    length = piece_length(sizes, size)
    kept = decays(pieces(a, sizes, length), length, k.dtype, "cpu")
    rows, lead = accumulate(kept, pieces(-rate, sizes, length), 0, 1), (H,)
    solved = solutions(k, k, a, lag(rows, 0), sizes, lead, -v)
    seen, last, left = looks(q, rows, sizes, lead, k), ends((rows,), sizes, lead), leavings(k, (rows,), sizes, lead)
    stack, ys = stacked(w), []
    for i in range(len(sizes)):
        u = errors_at(solved[i], stack, lead)
        ys.append(recalled(seen[i], stack, lead, u))
        stack = advanced(stack, last[i], lead, (left[i], u))
    return torch.cat(ys, 1)


def delta_case(kind: str, ticks: int) -> tuple[Tensor, ...]:
    k = torch.nn.functional.normalize(KEYS[kind](ticks, IN), dim=-1)
    v, q = (torch.randn(H, ticks, n, generator=torch.Generator().manual_seed(n), dtype=F64) for n in (OUT, IN))
    gate = torch.rand(H, ticks, generator=torch.Generator().manual_seed(31), dtype=F64)
    gate[:, 1::7], gate[:, 2::5] = 0, 1
    rate = torch.rand(H, ticks, generator=torch.Generator().manual_seed(32), dtype=F64)
    rate[:, ::3] = 1
    return k, v, q, gate, rate, torch.randn(H, OUT, IN, generator=torch.Generator().manual_seed(33), dtype=F64)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize(("ticks", "before"), [(12, 0), (13, 2), (1, 1)])
def test_delta_errors_are_known_but_for_the_state(kind: str, ticks: int, before: int) -> None:
    case = [x.requires_grad_() for x in delta_case(kind, ticks)]
    ours, theirs = delta_by_stacks(*case, 4, before), delta_by_ticks(*case)  # type: ignore[call-arg]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    found = [torch.autograd.grad((y * y.detach().sin()).sum(), case, retain_graph=True) for y in (ours, theirs)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("gated", [True, False])
def test_delta_in_float32_over_8192_ticks(kind: str, gated: bool) -> None:
    """Nearly equal keys without decay are what text has, and what a Neumann series loses all digits at."""
    k, v, q, gate, rate, w = delta_case(kind, 8192)
    gate = gate if gated else torch.ones_like(gate)
    exact = delta_by_ticks(k, v, q, gate, rate, w)
    with torch.no_grad():
        found = delta_by_stacks(*(x.float() for x in (k, v, q, gate, rate, w)), 32, 0)  # type: ignore[call-arg]
    assert (found - exact).abs().max() < 3e-4 * exact.abs().max()


@pytest.mark.parametrize(("ticks", "before"), [(8, 0), (7, 3)])
def test_a_vector_is_a_matrix_whose_input_is_one(ticks: int, before: int) -> None:
    """s_t = s_{t−1} + g_t, w_t = w_chunk − η_t s_t, where s and w_chunk begin anew with every chunk of 4 ticks."""
    g, eta = rand(H, ticks, OUT, seed=40), rand(H, ticks, seed=41)
    w, first, s = (rand(H, OUT, seed=42 + i) for i in range(3))
    sizes = chunk_sizes(ticks, before, 4)
    size = piece_length(sizes, 4)
    begins = (torch.arange(before, before + ticks) % 4 != 0).to(F64)
    drive = errors(size, 3, F64, "cpu")
    anchor = carry(decays(1.0, size, F64, "cpu"), 0 * drive, 1)
    sums = accumulate(decays(pieces(begins, sizes, size), size, F64, "cpu"), 1.0, 2, 3)
    rows = carry(decays(0.0, size, F64, "cpu"), anchor - pieces(eta, sizes, size)[..., None] * sums, 0)
    seen, last = looks_of_one(rows, sizes, (H,)), ends((rows, anchor, sums), sizes, (H,))
    stack, ys, tick = stacked(*(x[..., None] for x in (w, first, s))), [], before
    for i, n in enumerate(sizes):
        part = g.split(sizes, 1)[i]
        ys.append(recalled(seen[i], stack, (H,), part))
        stack = advanced(stack, last[i], (H,), (leaving_one(last[i]), part))
        tick += n
        stack = begun(stack, 1, 3) if tick % 4 == 0 else stack
    want, now = [], (w, first, s)
    for t in range(ticks):
        total = begins[t] * now[2] + g[:, t]
        new = now[1] - eta[:, t, None] * total
        want.append(new)
        now = (new, new if (before + t + 1) % 4 == 0 else now[1], total)
    torch.testing.assert_close(torch.cat(ys, 1), torch.stack(want, 1), rtol=1e-12, atol=1e-12)
    for j, (a, b) in enumerate(zip(unstacked(stack, (H,), 3, 1), now, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert torch.equal(slot(stack, (H,), j, 3, 1), a)
