"""Gates on the key axis (a vector per tick, GLA and KDA): what `At` is to gates that are numbers.

Each key channel d decays by itself: the weight of tick t is Σ_s e_s (h_s ⊙ Π_{s<j≤t} a_j)ᵀ + W ⊙ Π_{j≤t} a_j. Scores
are Σ_d x_td h_sd D[t, s, d], formed exactly in blocks of few ticks: no logarithm, no division, gates of any sign and 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from nestflow.ops.causal import lower
from nestflow.ops.coefficients import At, decay_matrix


class Channels(NamedTuple):
    """old [..., n, d]: what is left of the start, per key channel; new [..., n, n, d]: of each error. The same at the
    last tick: end_old [..., 1, d], end_new [..., n, d]."""

    old: Tensor
    new: Tensor
    end_old: Tensor
    end_new: Tensor


def channels(gate: Tensor, ticks: int) -> Channels:
    """The rows of W_t = W_{t−1} ⊙ a_t + e_t h_tᵀ. gate a [..., n, d], or [..., 1, d]: the same at all ticks."""
    gate = gate.expand(*gate.shape[:-2], ticks, gate.shape[-1])
    new = decay_matrix(gate.mT).movedim(-3, -1)
    old = gate.cumprod(-2)
    last = gate.shape[-2] - 1
    return Channels(old, new, old.narrow(-2, last, 1), new.narrow(-3, last, 1).squeeze(-3))


def channels_before(at: Channels) -> Channels:
    """The rows of W_{t−1}."""
    n = at.old.shape[-2]
    old = F.pad(at.old.narrow(-2, 0, n - 1), (0, 0, 1, 0), value=1.0)
    return at._replace(old=old, new=F.pad(at.new.narrow(-3, 0, n - 1), (0, 0, 0, 0, 1, 0)))


def scores(x: Tensor, h: Tensor, at: At | Channels) -> Tensor:
    """How much of each error x reads at each tick: (x hᵀ) ⊙ L. x, h [..., n, in] -> [..., n, n]"""
    if isinstance(at, At):
        return lower((x @ h.mT) * at.new)
    return lower((x[..., :, None, :] * h[..., None, :, :] * at.new).sum(-1))


def look(x: Tensor, start: Tensor, at: At | Channels, j: int = 0) -> Tensor:
    """What x reads of start number j at each tick. x [..., n, in], start [..., out, in] -> [..., n, out]"""
    return at.old[j] * (x @ start.mT) if isinstance(at, At) else (x * at.old) @ start.mT
