"""Gates on the key axis (a vector per tick, GLA and KDA): each key channel d decays by itself.

    W_t = W_{t−1} ⊙ a_t + e_t h_tᵀ      W_t x_t = (x_t ⊙ Π_{j≤t} a_j) W_0ᵀ + Σ_{s≤t} (Σ_d x_td h_sd Π_{s<j≤t} a_jd) e_s

A product of gates per pair of ticks and channel would be n² d numbers. Instead blocks of ticks are joined two by two:
a pair of ticks in different halves of a block meets at the border between them,

    Π_{s<j≤t} a_j = Π_{s<j≤border} a_j · Π_{border<j≤t} a_j

so that half of the scores is one matrix product of x, with its gates since the border, and h, with its gates until the
border. Then x takes on the gates of the whole first half, and h those of the second, and blocks twice as long are
joined. Only products of gates that a pair has between it are ever formed: no logarithm, no division, nothing that
overflows where the recurrence does not; exact for gates of any sign, 0 and 1 included, and so are the gradients.

Blocks begin with one tick because that was fastest on a CPU (64 ticks of 32 channels, forward and backward): masked
products inside blocks of 4 or 8 take 3 to 8 times as long, strips of scores for each such block up to 4 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops.causal import earlier


class Channels(NamedTuple):
    """Vectors x and h of a piece with the gates in them. scores [..., n, n]: how much of each error x reads at each
    tick, zero above the diagonal; old [..., n, d]: x ⊙ what is left of the start; new [..., n, d]: h ⊙ what is left
    of it at the last tick; kept [..., 1, d]: what is left of the start there."""

    scores: Tensor
    old: Tensor
    new: Tensor
    kept: Tensor


Factor = tuple[Channels, Tensor]


def channels(x: Tensor, h: Tensor, gate: Tensor, ticks: int, before: bool = False) -> Channels:
    """What x reads of W, and what h leaves in it. x, h, gate: [..., n, d], or without a tick axis: the same at all.

    before: x reads W_{t−1} and not W_t.
    """
    x, h, gate = (y.expand(*y.shape[:-2], ticks, y.shape[-1]) for y in (x, h, gate))
    length = 1 << (ticks - 1).bit_length()  # halves, and halves of them: pieces are filled up, with gates that are 1
    if length > ticks:
        fill = (0, 0, 0, length - ticks)
        x, h, gate = F.pad(x, fill), F.pad(h, fill), F.pad(gate, fill, value=1.0)
    found = _joined(x, h, gate, before)
    return found if length == ticks else _cut(found, ticks)


def channels_in_pieces(
    x: Tensor, h: Tensor, gate: Tensor, sizes: Sequence[int], size: int, before: bool = False
) -> list[Channels]:
    """The same for all pieces of a call at once: [..., T, d] -> one of `channels` for each piece."""
    if len(sizes) == 1:
        return [channels(x, h, gate, sizes[0], before)]
    x, h, gate = (y.expand(*y.shape[:-2], sum(sizes), y.shape[-1]) for y in (x, h, gate))
    x, h, gate = (_pieces(y, sizes, size, fill) for y, fill in ((x, 0.0), (h, 0.0), (gate, 1.0)))
    found = channels(x, h, gate, size, before)
    parts = zip(*(y.unbind(-3) for y in found), strict=True)
    return [Channels(*p) if n == size else _cut(Channels(*p), n) for p, n in zip(parts, sizes, strict=True)]


def _pieces(x: Tensor, sizes: Sequence[int], size: int, fill: float) -> Tensor:
    """[..., T, d] -> [..., pieces, size, d]; the first and the last piece are filled up."""
    head, tail = size - sizes[0], size - sizes[-1]
    if head:
        first, x = x.split([sizes[0], x.shape[-2] - sizes[0]], -2)
        x = torch.cat([F.pad(first, (0, 0, 0, head), value=fill), x], -2)
    return (F.pad(x, (0, 0, 0, tail), value=fill) if tail else x).unflatten(-2, (-1, size))


def _joined(x: Tensor, h: Tensor, gate: Tensor, before: bool) -> Channels:
    """x, h, gate [..., n, d], n a power of two: blocks of one tick, of two, of four ..."""
    lead = torch.broadcast_shapes(x.shape[:-2], h.shape[:-2], gate.shape[:-2])
    n = x.shape[-2]
    h = h.expand(*lead, *h.shape[-2:]).unsqueeze(-2)
    own = x.new_zeros(*lead, n, 1, 1) if before else (x.unsqueeze(-2) * h).sum(-1, keepdim=True)
    x = (x if before else x * gate).expand(*lead, *x.shape[-2:]).unsqueeze(-2)
    kept, scores = gate.unsqueeze(-2), own
    for level in range((n - 1).bit_length()):
        (x0, x1), (h0, h1), (a0, a1), (s0, s1) = (_halves(y) for y in (x, h, kept, scores))
        across = x1 @ h0.mT if level else (x1 * h0).sum(-1, keepdim=True)
        scores = torch.cat([F.pad(s0, (0, 1 << level)), torch.cat([across, s1], -1)], -2)
        x, h = torch.cat([x0, x1 * a0], -2), torch.cat([h0 * a1, h1], -2)
        kept = a0 * a1
    return Channels(*(y.squeeze(-3) for y in (scores, x, h, kept)))


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    """[..., blocks, w, d] -> the first and the second of each two blocks."""
    return x.unflatten(-3, (-1, 2)).unbind(-3)


def _cut(at: Channels, ticks: int) -> Channels:
    scores = at.scores[..., :ticks, :ticks].contiguous()  # of other strides than a copy's, its products round otherwise
    return Channels(scores, at.old[..., :ticks, :], at.new[..., :ticks, :], at.kept)


def channels_at(start: Tensor | None, *factors: Factor) -> Tensor:
    """What x reads at every tick. start [..., out, d] (None: it does not enter); factors: (at, e [..., n, out]) for
    each outer product e hᵀ."""
    terms = [] if start is None else [factors[0][0].old @ start.mT]
    terms += [earlier(at.scores, e) for at, e in factors]
    y = terms[0]
    for term in terms[1:]:
        y = y + term
    return y


def channels_after(start: Tensor, *factors: Factor) -> Tensor:
    """W at the piece's last tick. [..., out, d]"""
    w = start * factors[0][0].kept
    for at, e in factors:
        w = w + e.mT @ at.new
    return w
