"""A memory that is one matrix, all ticks of a call at once: the form that kernels for a GPU compute.

    e_t = r_t (s_t W_{t−1} p_t + b_t)     errors of a delta rule; without a look p they are r_t b_t
    W_t = W_{t−1} ⊙ a_t + e_t h_tᵀ        a_t a number of the tick, or one for each channel of the key
    y_t = W_t x_t

In pieces of C ticks everything that W does not enter is made of all pieces at once, in torch: products of gates, scores
and one triangular solve. What is left passes from piece to piece, and is one operation with a gradient of its own:

    E_n = error_n + look_n W_nᵀ     W_{n+1} = W_n ⊙ kept_n + E_nᵀ left_n     y_n = read_n W_nᵀ + scores_n E_n

It is a custom op of torch: `torch.compile` and `torch.export` see one node, however many pieces there are. It has no
second derivatives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops.blocks import at_least_float32
from nestflow.ops.coefficients import decay_matrix
from nestflow.ops.recurrence import Channels, channels

LEAST, MOST = 16, 64  # ticks of a piece: a kernel wants a power of two


class Memory(NamedTuple):
    """What the equations above name, aligned: R matrices (rows and heads), T ticks; all of one type, R and T in full.

    start [R, out, in]; x, h, look p [R, T, in]; error b [R, T, out]; rate r, scale s [R, T]; gate a [R, T] or
    [R, T, in]. Numbers that are the same everywhere may be floats.
    """

    start: Tensor
    x: Tensor
    h: Tensor
    error: Tensor
    gate: Tensor | float
    rate: Tensor | float
    look: Tensor | None
    scale: Tensor | float


class Pieces(NamedTuple):
    """What no state enters, of every piece (see above; shapes in `nestflow.kernels.pieces`)."""

    error: Tensor
    look: Tensor | None
    left: Tensor
    kept: Tensor
    read: Tensor
    scores: Tensor


def in_pieces(m: Memory, size: int, by: str) -> tuple[Tensor, Tensor]:
    """(W after the last tick [R, out, in], y [R, T, out]). size: ticks of a piece, about; by: "torch" or "triton"."""
    ticks, dtype = m.x.shape[1], m.x.dtype
    p = prepared(m, piece_size(ticks, size, m.x.shape[-1]))
    start = at_least_float32(m.start).contiguous()
    y, end, _, _ = memory_pieces(p.error, p.look, p.left, p.kept, start, p.read, p.scores, by)
    return end.to(dtype), y.flatten(1, 2)[:, :ticks].to(dtype)


def piece_size(ticks: int, size: int, n_in: int) -> int:
    """The power of two that pieces have. Wide keys leave a kernel room for short pieces only."""
    most = MOST if n_in <= 64 else MOST // 2
    return max(LEAST, min(most, *(1 << (n - 1).bit_length() for n in (size, ticks))))


def prepared(m: Memory, size: int) -> Pieces:
    """Everything that is known before the first piece. At least float32, contiguous."""
    x, h, b = (_cut(y, size) for y in (m.x, m.h, m.error))
    look = None if m.look is None else _cut(m.look, size)
    rate, scale = (_number(y, size, m.error) for y in (m.rate, m.scale))
    if isinstance(m.gate, Tensor) and m.gate.dim() == 3:
        at, before = _by_channels(x, h, look, _cut(m.gate, size, 1.0))
    else:
        at, before = _by_numbers(x, h, look, _number(m.gate, size, m.error, 1.0))
    error = rate[..., None] * b
    if before is not None:
        factor = (rate * scale)[..., None]
        # (I − factor ⊙ scores) E = factor ⊙ old W₀ᵀ + error, solved for both parts of the right side
        right = torch.cat([error, factor * before.old], -1)
        solved = torch.linalg.solve_triangular(-factor * before.scores, right, upper=False, unitriangular=True)
        error, look = solved.split([error.shape[-1], before.old.shape[-1]], -1)
        look = look.contiguous()
    parts = (at.new, at.kept.squeeze(-2), at.old, at.scores)
    return Pieces(error.contiguous(), look, *(y.contiguous() for y in parts))


def _by_channels(x: Tensor, h: Tensor, look: Tensor | None, gate: Tensor) -> tuple[Channels, Channels | None]:
    """What x reads after a tick, and a look before it. gate [R, N, C, in]"""
    ticks = x.shape[-2]
    before = None if look is None else channels(look, h, gate, ticks, before=True)
    return channels(x, h, gate, ticks), before


def _by_numbers(x: Tensor, h: Tensor, look: Tensor | None, gate: Tensor) -> tuple[Channels, Channels | None]:
    """The same with gates that are numbers [R, N, C]; what is left of the start is one too, kept [R, N, 1, 1]."""
    products = decay_matrix(gate)
    old = products[..., :1] * gate[..., :1, None]  # what is left of W at each tick
    new = products[..., -1, :, None] * h
    at = Channels((x @ h.mT) * products, old * x, new, old[..., -1:, :])
    if look is None:
        return at, None
    seen = F.pad(old[..., :-1, :], (0, 0, 1, 0), value=1.0)
    scores = (look @ h.mT) * F.pad(products[..., :-1, :], (0, 0, 1, 0))
    return at, Channels(scores, seen * look, new, at.kept)


def _cut(x: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """[R, T, d] -> [R, N, size, d], the last piece filled up with ticks that change nothing."""
    short = -x.shape[1] % size
    x = at_least_float32(x)
    return (F.pad(x, (0, 0, 0, short), value=fill) if short else x).unflatten(1, (-1, size))


def _number(x: Tensor | float, size: int, like: Tensor, fill: float = 0.0) -> Tensor:
    """Numbers [R, T], or one -> [R, N, size]. like [R, T, width]"""
    x = x if isinstance(x, Tensor) else like.new_full(like.shape[:2], x)
    return _cut(x[..., None], size, fill).squeeze(-1)


# ---- the operation


@torch.library.custom_op(
    "nestflow::memory_pieces",
    mutates_args=(),
    schema="(Tensor error, Tensor? look, Tensor left, Tensor kept, Tensor start, Tensor read, Tensor scores, str by)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def memory_pieces(
    error: Tensor, look: Tensor | None, left: Tensor, kept: Tensor, start: Tensor, read: Tensor, scores: Tensor, by: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, W at the end, E, W before each piece). E is empty where nothing looks: it is `error` then."""
    errors, states, end = _room(by).states(error, look, left, kept, start)
    y = _room(by).outputs(read, states, scores, errors)
    return y, end, error.new_empty(0) if look is None else errors, states


@memory_pieces.register_fake
def _(error: Tensor, look: Any, left: Tensor, kept: Any, start: Tensor, read: Any, scores: Any, by: str) -> Any:
    states = error.new_empty(*left.shape[:2], *start.shape[1:])
    return torch.empty_like(error), torch.empty_like(start), error.new_empty(0) if look is None else error * 1, states


@torch.library.custom_op(
    "nestflow::memory_pieces_back",
    mutates_args=(),
    schema="(Tensor dy, Tensor d_end, Tensor? look, Tensor left, Tensor kept, Tensor read, Tensor scores,"
    " Tensor errors, Tensor states, str by) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def memory_pieces_back(
    dy: Tensor,
    d_end: Tensor,
    look: Tensor | None,
    left: Tensor,
    kept: Tensor,
    read: Tensor,
    scores: Tensor,
    errors: Tensor,
    states: Tensor,
    by: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of error, look (empty without one), left, kept, start, read, scores."""
    d_read, d_states, d_scores, d_errors = _room(by).outputs_back(dy, read, states, scores, errors)
    d_error, after, d_start = _room(by).states_back(d_end, d_states, d_errors, look, left, kept)
    d_kept = (after * states).sum(-2)
    if kept.shape[-1] == 1:
        d_kept = d_kept.sum(-1, keepdim=True)
    d_look = dy.new_empty(0) if look is None else d_error @ states
    return d_error, d_look, errors @ after, d_kept, d_start, d_read, d_scores


@memory_pieces_back.register_fake
def _(dy: Tensor, d_end: Tensor, look: Any, left: Any, kept: Any, read: Any, scores: Any, *others: Any) -> Any:
    d_look = dy.new_empty(0) if look is None else torch.empty_like(look)
    return (torch.empty_like(dy), d_look, *(torch.empty_like(x) for x in (left, kept, d_end, read, scores)))


def _saved(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    error, look, left, kept, _, read, scores, ctx.by = inputs
    _, _, errors, states = output
    ctx.looks = look is not None
    ctx.save_for_backward(look, left, kept, read, scores, errors if ctx.looks else error, states)


def _back(ctx: Any, dy: Tensor, d_end: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    look, *saved = ctx.saved_tensors
    found = memory_pieces_back(dy.contiguous(), d_end.contiguous(), look, *saved, ctx.by)
    d_error, d_look, *others = found
    return (d_error, d_look if ctx.looks else None, *others, None)


memory_pieces.register_autograd(_back, setup_context=_saved)


def _room(by: str) -> Any:
    """Where the four functions are that go through the pieces."""
    if by == "torch":
        return InTorch
    from nestflow.kernels import pieces

    return pieces


class InTorch:
    """The four functions of `nestflow.kernels.pieces` without a kernel."""

    @staticmethod
    def states(
        error: Tensor, look: Tensor | None, left: Tensor, kept: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        w, before, errors = start, [], []
        for n in range(left.shape[1]):
            before.append(w)
            e = error[:, n] if look is None else torch.baddbmm(error[:, n], look[:, n], w.mT)
            errors.append(e)
            w = torch.baddbmm(w * kept[:, n, None], e.mT, left[:, n])
        return error if look is None else torch.stack(errors, 1), torch.stack(before, 1), w

    @staticmethod
    def states_back(
        d_end: Tensor, d_states: Tensor, d_errors: Tensor, look: Tensor | None, left: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        g, after, d_error = d_end, [], []
        for n in reversed(range(left.shape[1])):
            after.append(g)
            de = torch.baddbmm(d_errors[:, n], left[:, n], g.mT)
            d_error.append(de)
            g = torch.addcmul(d_states[:, n], g, kept[:, n, None])
            g = g if look is None else torch.baddbmm(g, de.mT, look[:, n])
        return torch.stack(d_error[::-1], 1), torch.stack(after[::-1], 1), g

    @staticmethod
    def outputs(read: Tensor, states: Tensor, scores: Tensor, errors: Tensor) -> Tensor:
        return read @ states.mT + scores @ errors

    @staticmethod
    def outputs_back(
        dy: Tensor, read: Tensor, states: Tensor, scores: Tensor, errors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return dy @ states, dy.mT @ read, dy @ errors.mT, scores.mT @ dy
