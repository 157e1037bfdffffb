"""Stacks beside what `test_stack` has: several errors of a tick, inputs that are the same at all ticks or in all rows,
a matrix without slots, bad inputs, products in another type."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nestflow.ops.coefficients import accumulate, carry, chunk_sizes, decays, piece_length, pieces
from nestflow.ops.stack import (
    Ends,
    advanced,
    ends,
    folded,
    leaving,
    leavings,
    look,
    looks,
    olds,
    recalled,
    stacked,
    unstacked,
)
from tests.ops.test_stack import F64, IN, OUT, B, H, behind_a_bad_number, rand

LEAD = (B, H)


def cut(y: Tensor, sizes: list[int]) -> list[Tensor]:
    return list(y.split(sizes, -2)) if y.shape[-2] > 1 else [y] * len(sizes)


@pytest.mark.parametrize("early", ["nothing", "inputs", "errors"])
@pytest.mark.parametrize("slots", [0, 1])
def test_several_errors_of_a_tick(slots: int, early: str) -> None:
    """S_t = β_t S_{t−1} + Σ_s e_s h_sᵀ, W_t = α_t W_{t−1} + S_t; without the slot W_t = α_t W_{t−1} + Σ_s e_s h_sᵀ."""
    ticks = 7
    alpha, beta = (rand(B, H, ticks, seed=i).detach() for i in range(2))
    x = rand(B, H, ticks, IN, seed=2).detach()
    h = [rand(*shape, IN, seed=3 + i).detach() for i, shape in enumerate([(B, H, ticks), (B, H, 1), (H, ticks)])]
    e = [rand(B, H, ticks, OUT, seed=6 + i).detach() for i in range(3)]
    starts = [rand(B, H, OUT, IN, seed=9 + i).detach() for i in range(1 + slots)]

    sizes = chunk_sizes(ticks, 0, 4)
    size = piece_length(sizes, 4)
    a, b = (decays(pieces(y, sizes, size), size, F64, "cpu") for y in (alpha, beta))
    rows = [accumulate(a, 1.0, 0, 1)]
    if slots:
        s = accumulate(b, 1.0, 1, 2)
        rows = [carry(a, s, 0), s]
    errors = {"errors": e} if early == "errors" else {}
    seen = looks(x, rows[0], sizes, LEAD, *h, **errors)
    old, last = olds(rows[0], sizes, LEAD), ends(rows, sizes, LEAD)
    left = [leavings(y, rows, sizes, LEAD, error=z if errors else None) for y, z in zip(h, e)]
    stack, ys = stacked(*starts), []
    for i in range(len(sizes)):
        e_n, h_n = ([cut(y, sizes)[i] for y in ys_] for ys_ in (e, h))
        its = look(cut(x, sizes)[i], old[i], LEAD, *h_n) if early == "nothing" else seen[i]
        ys.append(recalled(its, stack, LEAD, *(() if errors else e_n)))
        if errors:
            stack = advanced(stack, last[i], LEAD, known=[y[i] for y in left])
        else:
            its_h = [leaving(y, last[i], LEAD) for y in h_n] if early == "nothing" else [y[i] for y in left]
            stack = advanced(stack, last[i], LEAD, *zip(its_h, e_n))

    want, now = [], list(starts)
    for t in range(ticks):
        g = sum(z[:, :, t, :, None] @ y.expand(B, H, ticks, IN)[:, :, t, None, :] for y, z in zip(h, e))
        if slots:
            now[1] = g = beta[..., t, None, None] * now[1] + g
        now[0] = alpha[..., t, None, None] * now[0] + g
        want.append((now[0] @ x[:, :, t, :, None])[..., 0])
    torch.testing.assert_close(torch.cat(ys, 2), torch.stack(want, 2), rtol=1e-12, atol=1e-12)
    for got, state in zip(unstacked(stack, LEAD, 1 + slots, 2), now, strict=True):
        torch.testing.assert_close(got, state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("early", ["nothing", "inputs"])
def test_a_bad_input_reaches_no_earlier_tick(early: str) -> None:
    """0 · inf stands where a tick would meet a later one."""
    assert not behind_a_bad_number("h", torch.inf, early).isfinite().any()


@pytest.mark.parametrize("count", [1, 2])
def test_a_state_keeps_its_digits_where_products_have_fewer(count: int) -> None:
    stack = torch.rand(3, count * IN, OUT) + 1
    at, left = Ends(torch.rand(3, count, count), torch.empty(0)), torch.rand(3, count * IN, OUT)
    for known in ((), (left,)):
        want = advanced(stack, at, (3,), known=known)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = advanced(stack, at, (3,), known=known)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


def test_states_behind_the_loop_are_tensors_of_their_own() -> None:
    """A stream that keeps one of them does not keep the whole stack."""
    stack = stacked(*(rand(B, H, OUT, IN, seed=i).detach() for i in range(2)))
    for x in unstacked(stack, LEAD, 2, 2):
        assert x.is_contiguous() and x.untyped_storage().nbytes() == x.numel() * x.element_size()


def test_what_all_rows_share_has_rows_in_the_loop() -> None:
    shared = rand(1, H, 4, IN, seed=0).detach()
    found = folded(shared, LEAD)
    assert found is not None
    assert torch.equal(found, shared.expand(B, H, 4, IN).reshape(B * H, 4, IN))
    assert folded(None, LEAD) is None
