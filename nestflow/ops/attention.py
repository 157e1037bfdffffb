"""Softmax attention over kept pairs, in one piece or as a stream.

Positions count from the stream's start. `window` W: a query at position t sees the keys t − W + 1 … t (without
`causal` those up to t + W − 1 too). `segment` S: those of its own segment of S positions. `sink` s: the first s
positions always. `pairs` n: each position has n pairs, one behind the other. `prefix`: learned pairs that every query
sees. `since`: the positions since each query's row began anew, its own included; it sees none from before, and counts
segments and sinks from there. The kept pairs are the shortest past that later queries can see, sinks first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops.causal import careful, filled, sound

ROWS = 128  # queries of a block at least


def append(
    x: Tensor,
    kept: Tensor,
    before: int,
    window: int | None = None,
    segment: int | None = None,
    sink: int = 0,
    pairs: int = 1,
    resets: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keys or values of this call behind the kept ones, and what to keep for the next call.

    x [..., T, pairs · d]; kept [..., n, d]; before: ticks the stream has seen. resets: rows begin anew at ticks of
    their own, so that the window alone says what no row will see again.
    """
    if resets:
        window, segment, sink = None if sink else window, None, 0
    end = before + x.shape[-2]
    if pairs > 1:
        x = x.unflatten(-1, (pairs, -1)).flatten(-3, -2)
    both = torch.cat([kept.to(x.dtype), x], -2)
    positions = key_positions(both.shape[-2] // pairs, end, sink)
    first = first_seen(end, window, segment)
    if first == 0:
        return both, both
    sinks = min(sink, len(positions))
    late = pairs * sum(1 for p in positions[sinks:] if p >= first)
    parts = [both.narrow(-2, 0, pairs * sinks)] if sinks else []
    return both, torch.cat([*parts, both.narrow(-2, both.shape[-2] - late, late)], -2)


def since_reset(reset: Tensor, before: Tensor, ticks: int) -> tuple[Tensor, Tensor]:
    """Ticks since the last reset, at each tick (this one included) and after the last one. reset [..., T], or what
    stretches to it; before [...]: those before this call."""
    at = torch.arange(1, ticks + 1, device=before.device)
    last = torch.where(reset, at, 0).expand(*before.shape, ticks).cummax(-1).values
    since = torch.where(last > 0, at - last + 1, before.unsqueeze(-1) + at)
    return since, since[..., -1]


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
    pairs: int = 1,
    causal: bool = True,
    prefix: tuple[Tensor, Tensor] | None = None,
    since: Tensor | None = None,
) -> Tensor:
    """Σ softmax(scale · q·k) v over the pairs that each query sees. q [..., T, d]; k, v [..., n, d]; the last T
    positions are those of the queries' own ticks; prefix: learned keys and values [(heads,) n, d]; since [..., T]."""
    if before and not causal:
        raise ValueError("attention to later tokens takes a sequence in one call")
    at_once = functools.partial(
        attend_at_once,
        scale=scale,
        window=window,
        segment=segment,
        sink=sink,
        pairs=pairs,
        causal=causal,
        prefix=prefix,
        since=since,
    )
    reach = min((n for n in (window, segment) if n is not None), default=None)
    rows = max(reach or 0, ROWS)
    near = reach is not None and causal and since is None and sink <= rows and (before == 0 or before >= sink)
    if not near or q.shape[-2] <= 2 * rows:
        return at_once(q, k, v, before)
    return attend_by_blocks(at_once, q, k, v, before, rows, pairs, sink)


def attend_by_blocks(
    at_once: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, before: int, rows: int, pairs: int, sink: int
) -> Tensor:
    """`at_once` for blocks of queries that see no further back than the block before theirs, and the sinks: in a long
    call time and memory grow with its length, and not with its square."""
    blocks = q.split(rows, -2)
    sizes = [k.shape[-2] - pairs * q.shape[-2], *(pairs * x.shape[-2] for x in blocks)]  # what was kept comes first
    parts = [x.split(sizes, -2) for x in (k, v)]
    sinks = [x.narrow(-2, 0, pairs * sink) for x in (k, v)]
    found = []
    for i, block in enumerate(blocks):
        first = before + (i - 1) * rows  # the first position of the block before
        far = [[x] if sink and i and first > 0 else [] for x in sinks]
        near = (torch.cat([*x, *y[i : i + 2]], -2) for x, y in zip(far, parts))
        found.append(at_once(block, *near, before + i * rows))
    return torch.cat(found, -2)


def attend_at_once(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    before: int,
    scale: float,
    window: int | None,
    segment: int | None,
    sink: int,
    pairs: int,
    causal: bool,
    prefix: tuple[Tensor, Tensor] | None,
    since: Tensor | None,
) -> Tensor:
    """All queries in one call, with a mask where they do not see the same."""
    ticks, count = q.shape[-2], k.shape[-2] // pairs
    learned = 0 if prefix is None else prefix[0].shape[-2]
    if prefix is not None:
        k, v = (torch.cat([w.expand(*x.shape[:-2], -1, -1), x], -2) for w, x in zip(prefix, (k, v)))
    k, v = shared(k, q), shared(v, q)
    seen = functools.partial(seen_pairs, q, before, count, window, segment, sink, pairs, causal, learned, since)
    plain = window is None and segment is None and before == 0 and since is None
    mask = None if plain and (not causal or (count and not learned and pairs == 1)) else seen()
    attention = functools.partial(
        F.scaled_dot_product_attention, attn_mask=mask, is_causal=causal and mask is None, scale=scale
    )
    if not careful():
        y = attention(q, k, v)
        if ticks < 2 or not causal or sound(y):
            return y
    return attend_with_care(attention, q, k, v, seen(), scale)


def attend_with_care(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, rows: int = 256
) -> Tensor:
    """`attention` where numbers are not finite: a pair reaches the queries that see it, and no other. seen: as below.

    rows: of how many queries the scores are formed at a time; those of all may not fit."""
    bad = ~v.isfinite()
    finite = filled(v, bad, 0.0)
    parts = []
    for some, sees in zip(q.split(rows, -2), seen.split(rows, -2)):
        scores = (scale * some @ k.mT).masked_fill(~sees, -torch.inf)
        y = scores.softmax(-1) @ finite
        parts.append(torch.where(sees.to(v.dtype) @ bad.to(v.dtype) > 0, torch.nan, y))
    y = torch.cat(parts, -2)
    # what no such number reaches is computed as ever, so that it is the same to the bit
    reached = ~k.isfinite().all(-1, keepdim=True) | bad.any(-1, keepdim=True)
    usual = attention(*(filled(x, ~x.isfinite(), 0.0) for x in (q, k, v)))
    clear = (seen.to(v.dtype) @ reached.to(v.dtype) == 0) & q.isfinite().all(-1, keepdim=True) & usual.isfinite()
    return torch.where(clear, usual, y)


def seen_pairs(
    q: Tensor,
    before: int,
    count: int,
    window: int | None,
    segment: int | None,
    sink: int,
    pairs: int,
    causal: bool,
    learned: int,
    since: Tensor | None,
) -> Tensor:
    """Which of the learned pairs and of `count` kept times `pairs` each query sees: [(..., H or 1,) T, learned + count
    · pairs]."""
    ticks = q.shape[-2]
    at = torch.arange(before, before + ticks, device=q.device)[:, None]
    kept_sinks = 0 if since is not None else sink
    past = torch.tensor(key_positions(count, before + ticks, kept_sinks), device=q.device)[None, :]
    seen = past <= at if causal else torch.ones(ticks, count, dtype=torch.bool, device=q.device)
    if since is not None:
        first = at - since.unsqueeze(-1) + 1
        seen = seen & (past >= first if causal else first == first.mT)
        at, past = at - first, past - first
    near = torch.ones_like(seen)
    if window is not None:
        near = near & ((at - past).abs() < window)
    if segment is not None:
        near = near & (past // segment == at // segment)
    if sink:
        near = near | (past < sink)
    return F.pad((seen & near).repeat_interleave(pairs, -1), (learned, 0), value=True)
