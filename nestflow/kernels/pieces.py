"""Triton kernels for a memory that is one matrix, after what no state enters was made in torch (`nestflow.ops.whole`).

    states:  E_n = error_n + look_n W_nᵀ      W_{n+1} = W_n ⊙ kept_n + E_nᵀ left_n      one piece after the other
    outputs: y_n = read_n W_nᵀ + scores_n E_n                                          all pieces side by side

A row of `states` of W is a recurrence of its own (its errors are one column of E), so a program takes some rows of one
matrix through all pieces and keeps them in registers. Sums are float32. Every function here takes contiguous float32:

    error, E, y [R, N, C, out]   look, left, read [R, N, C, in]   scores [R, N, C, C]   kept [R, N, in or 1]
    states [R, N, out, in] (W_n, as piece n begins)               R matrices, N pieces, C ticks: a power of two from 16
"""

# pyright: reportIndexIssue=false, reportMissingImports=false
# (what Triton's decorator makes of a function is indexed with a grid of programs)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def read_block(at, rows, columns, n_rows, n_columns):
    """A block of a row-major matrix; zeros beyond its edge."""
    places = at + rows[:, None] * n_columns + columns[None, :]
    return tl.load(places, mask=(rows[:, None] < n_rows) & (columns[None, :] < n_columns), other=0.0)


@triton.jit
def write_block(at, rows, columns, n_rows, n_columns, block):
    """The block to its place in a row-major matrix; what lies beyond the edge is dropped."""
    places = at + rows[:, None] * n_columns + columns[None, :]
    tl.store(places, block, mask=(rows[:, None] < n_rows) & (columns[None, :] < n_columns))


@triton.jit
def states_kernel(
    error, look, left, kept, start, errors, states, end,
    pieces, n_in, n_out,
    C: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, LOOKS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """W through all pieces: its value before each, its last, and with LOOKS the errors that look at it."""
    row = tl.program_id(0).to(tl.int64)
    o, i, t = tl.program_id(1) * OUT + tl.arange(0, OUT), tl.arange(0, IN), tl.arange(0, C)
    w = read_block(start + row * n_out * n_in, o, i, n_out, n_in)
    for n in range(pieces):
        piece = row * pieces + n
        write_block(states + piece * n_out * n_in, o, i, n_out, n_in, w)
        e = read_block(error + piece * C * n_out, t, o, C, n_out)
        if LOOKS:
            p = read_block(look + piece * C * n_in, t, i, C, n_in)
            e += tl.dot(p, tl.trans(w), input_precision=PRECISION)
            write_block(errors + piece * C * n_out, t, o, C, n_out, e)
        h = read_block(left + piece * C * n_in, t, i, C, n_in)
        if CHANNELS:
            w = w * tl.load(kept + piece * n_in + i, mask=i < n_in, other=0.0)[None, :]
        else:
            w = w * tl.load(kept + piece)
        w += tl.dot(tl.trans(e), h, input_precision=PRECISION)
    write_block(end + row * n_out * n_in, o, i, n_out, n_in, w)


@triton.jit
def states_back_kernel(
    d_end, d_states, d_errors, look, left, kept, d_error, after, d_start,
    pieces, n_in, n_out,
    C: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, LOOKS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient G of W through all pieces, the last first. after: G behind each piece; d_error: of its errors, what
    came from the outputs and what came from the states."""
    row = tl.program_id(0).to(tl.int64)
    o, i, t = tl.program_id(1) * OUT + tl.arange(0, OUT), tl.arange(0, IN), tl.arange(0, C)
    g = read_block(d_end + row * n_out * n_in, o, i, n_out, n_in)
    for back in range(pieces):
        piece = row * pieces + (pieces - 1 - back)
        write_block(after + piece * n_out * n_in, o, i, n_out, n_in, g)
        h = read_block(left + piece * C * n_in, t, i, C, n_in)
        de = read_block(d_errors + piece * C * n_out, t, o, C, n_out)
        de += tl.dot(h, tl.trans(g), input_precision=PRECISION)
        write_block(d_error + piece * C * n_out, t, o, C, n_out, de)
        if CHANNELS:
            g = g * tl.load(kept + piece * n_in + i, mask=i < n_in, other=0.0)[None, :]
        else:
            g = g * tl.load(kept + piece)
        g += read_block(d_states + piece * n_out * n_in, o, i, n_out, n_in)
        if LOOKS:
            p = read_block(look + piece * C * n_in, t, i, C, n_in)
            g += tl.dot(tl.trans(de), p, input_precision=PRECISION)
    write_block(d_start + row * n_out * n_in, o, i, n_out, n_in, g)


@triton.jit
def outputs_kernel(
    read, states, scores, errors, y, n_in, n_out,
    C: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the ticks of a piece read."""
    piece = tl.program_id(0).to(tl.int64)
    o, i, t = tl.program_id(1) * OUT + tl.arange(0, OUT), tl.arange(0, IN), tl.arange(0, C)
    x = read_block(read + piece * C * n_in, t, i, C, n_in)
    w = read_block(states + piece * n_out * n_in, o, i, n_out, n_in)
    found = tl.dot(x, tl.trans(w), input_precision=PRECISION)
    a = read_block(scores + piece * C * C, t, t, C, C)
    e = read_block(errors + piece * C * n_out, t, o, C, n_out)
    found += tl.dot(a, e, input_precision=PRECISION)
    write_block(y + piece * C * n_out, t, o, C, n_out, found)


@triton.jit
def outputs_back_kernel(
    dy, read, states, scores, errors, d_read, d_states, d_scores, d_errors, n_in, n_out,
    C: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of all that `outputs` reads: one program for a piece, so that its sums over `out` are its own."""
    piece = tl.program_id(0).to(tl.int64)
    i, t = tl.arange(0, IN), tl.arange(0, C)
    x = read_block(read + piece * C * n_in, t, i, C, n_in)
    a = read_block(scores + piece * C * C, t, t, C, C)
    dx, da = tl.zeros([C, IN], dtype=tl.float32), tl.zeros([C, C], dtype=tl.float32)
    for first in range(0, n_out, OUT):
        o = first + tl.arange(0, OUT)
        d = read_block(dy + piece * C * n_out, t, o, C, n_out)
        w = read_block(states + piece * n_out * n_in, o, i, n_out, n_in)
        e = read_block(errors + piece * C * n_out, t, o, C, n_out)
        dx += tl.dot(d, w, input_precision=PRECISION)
        da += tl.dot(d, tl.trans(e), input_precision=PRECISION)
        dw = tl.dot(tl.trans(d), x, input_precision=PRECISION)
        write_block(d_states + piece * n_out * n_in, o, i, n_out, n_in, dw)
        write_block(d_errors + piece * C * n_out, t, o, C, n_out, tl.dot(tl.trans(a), d, input_precision=PRECISION))
    write_block(d_read + piece * C * n_in, t, i, C, n_in, dx)
    write_block(d_scores + piece * C * C, t, t, C, C, da)


# ---- launches


def blocks(n_in: int, n_out: int) -> dict[str, int]:
    """Sizes of a program's block of W: all of `in`, and so much of `out` that it has at most 4096 numbers."""
    wide = max(16, triton.next_power_of_2(n_in))
    return {"IN": wide, "OUT": max(16, min(64, 4096 // wide, triton.next_power_of_2(n_out)))}


def precision() -> str:
    """How products of float32 are formed: as torch is told to form its own, else in three parts, to keep digits."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def states(
    error: Tensor, look: Tensor | None, left: Tensor, kept: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(E, W before each piece, W at the end). start, the end: [R, out, in]."""
    rows, pieces, ticks, n_in = left.shape
    n_out = error.shape[-1]
    errors = error if look is None else torch.empty_like(error)
    found, end = error.new_empty(rows, pieces, n_out, n_in), torch.empty_like(start)
    size = blocks(n_in, n_out)
    states_kernel[(rows, triton.cdiv(n_out, size["OUT"]))](
        error, left if look is None else look, left, kept, start, errors, found, end, pieces, n_in, n_out,
        C=ticks, LOOKS=look is not None, CHANNELS=kept.shape[-1] > 1, PRECISION=precision(), num_stages=1, **size,
    )  # fmt: skip
    return errors, found, end


def states_back(
    d_end: Tensor, d_states: Tensor, d_errors: Tensor, look: Tensor | None, left: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of `error`, G behind each piece, gradient of `start`)."""
    rows, pieces, ticks, n_in = left.shape
    n_out = d_errors.shape[-1]
    d_error, after, d_start = torch.empty_like(d_errors), torch.empty_like(d_states), torch.empty_like(d_end)
    size = blocks(n_in, n_out)
    states_back_kernel[(rows, triton.cdiv(n_out, size["OUT"]))](
        d_end, d_states, d_errors, left if look is None else look, left, kept, d_error, after, d_start,
        pieces, n_in, n_out,
        C=ticks, LOOKS=look is not None, CHANNELS=kept.shape[-1] > 1, PRECISION=precision(), num_stages=1, **size,
    )  # fmt: skip
    return d_error, after, d_start


def outputs(read: Tensor, states: Tensor, scores: Tensor, errors: Tensor) -> Tensor:
    """y."""
    rows, pieces, ticks, n_in = read.shape
    n_out = errors.shape[-1]
    y, size = torch.empty_like(errors), blocks(n_in, n_out)
    outputs_kernel[(rows * pieces, triton.cdiv(n_out, size["OUT"]))](
        read, states, scores, errors, y, n_in, n_out, C=ticks, PRECISION=precision(), num_stages=1, **size
    )
    return y


def outputs_back(
    dy: Tensor, read: Tensor, states: Tensor, scores: Tensor, errors: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of read, states, scores and errors."""
    rows, pieces, ticks, n_in = read.shape
    n_out = errors.shape[-1]
    d_read, d_states, d_scores, d_errors = (torch.empty_like(x) for x in (read, states, scores, errors))
    outputs_back_kernel[(rows * pieces,)](
        dy, read, states, scores, errors, d_read, d_states, d_scores, d_errors, n_in, n_out,
        C=ticks, PRECISION=precision(), num_stages=1, **blocks(n_in, n_out),
    )  # fmt: skip
    return d_read, d_states, d_scores, d_errors
