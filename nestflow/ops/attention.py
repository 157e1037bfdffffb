"""Softmax attention over kept pairs, in one piece or as a stream.

Positions count from the stream's start. `window` W: a query at position t sees the keys t − W + 1 … t. `segment` S:
those of its own segment of S positions. `sink` s: the first s positions always. The kept pairs are the shortest past
that later queries can see, sinks first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def append(
    x: Tensor, kept: Tensor, before: int, window: int | None = None, segment: int | None = None, sink: int = 0
) -> tuple[Tensor, Tensor]:
    """Keys or values of this call behind the kept ones, and what to keep for the next call.

    x [..., T, d]; kept [..., n, d]; before: ticks the stream has seen.
    """
    both = torch.cat([kept.to(x.dtype), x], -2)
    positions = key_positions(both.shape[-2], before + x.shape[-2], sink)
    first = first_seen(before + x.shape[-2], window, segment)
    if first == 0:
        return both, both
    sinks = min(sink, both.shape[-2])
    late = sum(1 for p in positions[sinks:] if p >= first)
    parts = [both.narrow(-2, 0, sinks)] if sinks else []
    return both, torch.cat([*parts, both.narrow(-2, both.shape[-2] - late, late)], -2)


def first_seen(ticks: int, window: int | None, segment: int | None) -> int:
    """The first position that the query at position `ticks` (the next one) can see, sinks aside."""
    first = 0 if window is None else max(0, ticks - window + 1)
    return first if segment is None else max(first, ticks // segment * segment)


def key_positions(count: int, end: int, sink: int) -> list[int]:
    """Positions of `count` pairs that end before position `end`: all of them, or the sinks and then the latest."""
    if count >= end:
        return list(range(count))
    sinks = min(sink, count)
    return [*range(sinks), *range(end - (count - sinks), end)]


def shared(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values of groups [..., G, n, d], seen by the heads of each: [..., H, n, d] for queries [..., H, T, d]."""
    if x.ndim < 4 or q.ndim < 4 or x.shape[-3] == q.shape[-3]:
        return x
    return x.repeat_interleave(q.shape[-3] // x.shape[-3], -3)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    before: int,
    scale: float,
    window: int | None = None,
    segment: int | None = None,
    sink: int = 0,
    causal: bool = True,
) -> Tensor:
    """Σ softmax(scale · q·k) v over the pairs that each query sees. q [..., T, d]; k, v [..., n, d]; the last T pairs
    are those of the queries' own ticks."""
    k, v = shared(k, q), shared(v, q)
    ticks, count = q.shape[-2], k.shape[-2]
    if window is None and segment is None and before == 0 and (causal or not count):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    at = torch.arange(before, before + ticks, device=q.device)[:, None]
    past = torch.tensor(key_positions(count, before + ticks, sink), device=q.device)[None, :]
    seen = past <= at if causal else torch.ones(ticks, count, dtype=torch.bool, device=q.device)
    near = torch.ones_like(seen)
    if window is not None:
        near = near & (past > at - window)
    if segment is not None:
        near = near & (past // segment == at // segment)
    if sink:
        near = near | (past < sink)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen & near, scale=scale)
