"""Attention over kept pairs against masks written out, in one call and in any split."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from nestflow.ops import attention
from nestflow.ops.attention import append, attend

OPTIONS = [
    {},
    {"window": 3},
    {"window": 1},
    {"segment": 4},
    {"window": 3, "sink": 2},
    {"window": 3, "sink": 5},
    {"window": 5, "segment": 8},
    {"window": 5, "segment": 3, "sink": 1},
    {"segment": 4, "sink": 1},
    {"window": 100},
]
CUTS = [[], [1], [2], [5], [9]]  # where sinks have not all come, and where a call begins long after them


def seen(t: int, s: int, window: int | None = None, segment: int | None = None, sink: int = 0) -> bool:
    if s > t:
        return False
    near = (window is None or s > t - window) and (segment is None or s // segment == t // segment)
    return near or s < sink


def naive(q: Tensor, k: Tensor, v: Tensor, scale: float, **options: int) -> Tensor:
    n = q.shape[-2]
    mask = torch.tensor([[seen(t, s, **options) for s in range(n)] for t in range(n)])
    return ((scale * q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)) @ v


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rows", [128, 2, 3])
def test_attention_equals_masks_in_any_split(
    options: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rows: blocks of queries are this long at least; those of calls that are shorter are one."""
    monkeypatch.setattr(attention, "ROWS", rows)
    g, rng = torch.Generator().manual_seed(0), random.Random(str(options))
    q, k, v = (torch.randn(2, 3, 19, 4, generator=g, dtype=torch.float64) for _ in range(3))
    want = naive(q, k, v, 0.5, **options)
    for cuts in (*CUTS, *(sorted(rng.sample(range(1, 19), rng.randint(0, 8))) for _ in range(6))):
        kept = [torch.zeros(2, 3, 0, 4, dtype=torch.float64)] * 2
        ys, t0 = [], 0
        for end in [*cuts, 19]:
            (keys, kept_k), (values, kept_v) = (
                append(x[..., t0:end, :], old, t0, **options) for x, old in zip((k, v), kept)
            )
            ys.append(attend(q[..., t0:end, :], keys, values, t0, scale=0.5, **options))
            kept, t0 = [kept_k, kept_v], end
            later = [s for s in range(t0) if any(seen(t, s, **options) for t in range(t0, t0 + 100))]
            assert kept[0].shape[-2] == len(later)
        torch.testing.assert_close(torch.cat(ys, -2), want)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"segment": 4}], ids=str)
def test_both_directions(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROWS", 2)
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 19, 4, generator=g, dtype=torch.float64) for _ in range(3))
    t, s = torch.arange(19)[:, None], torch.arange(19)
    mask = (t - s).abs() < options.get("window", 19)
    mask = mask & (t // options.get("segment", 19) == s // options.get("segment", 19))
    want = (0.5 * q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, 0, scale=0.5, causal=False, **options), want)


def test_documents_in_a_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that begin anew at ticks of their own, in windows that would be cut in blocks."""
    monkeypatch.setattr(attention, "ROWS", 2)
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, 19, 4, generator=g, dtype=torch.float64) for _ in range(3))
    reset = torch.rand(2, 1, 19, generator=g) < 0.3
    since, _ = attention.since_reset(reset, torch.zeros(2, 1, dtype=torch.int64), 19)
    of = reset.cumsum(-1)
    t, s = torch.arange(19)[:, None], torch.arange(19)
    mask = (s <= t) & (s > t - 3) & (of[..., None] == of[..., None, :])
    want = (0.5 * q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, 0, scale=0.5, window=3, since=since), want)


def test_groups_of_heads_that_are_neighbours_see_the_same_pairs() -> None:
    g = torch.Generator().manual_seed(4)
    q = torch.randn(2, 4, 5, 3, generator=g, dtype=torch.float64)
    k, v = (torch.randn(2, 2, 5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    each = [x[:, [0, 0, 1, 1]] for x in (k, v)]
    torch.testing.assert_close(attend(q, k, v, 0, scale=0.5), attend(q, *each, 0, scale=0.5))


@pytest.mark.parametrize("options", [{"window": 3}, {"window": 3, "sink": 2}, {"segment": 4}], ids=str)
def test_blocks_of_queries_take_time_and_memory_that_grow_with_the_length(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs and prefixes go with them, gradients too; what is formed of scores is counted, and no clock."""
    g = torch.Generator().manual_seed(2)
    q = torch.randn(1, 2, 40, 4, generator=g, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, 80, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    prefix = tuple(torch.randn(2, 3, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scores: list[int] = []
    plain = attention.seen_pairs
    monkeypatch.setattr(attention, "seen_pairs", lambda *a: (scores.append(plain(*a).numel()), plain(*a))[1])
    found = []
    for rows in (4, 40):
        monkeypatch.setattr(attention, "ROWS", rows)
        y = attend(q, k, v, 0, scale=0.5, pairs=2, prefix=prefix, **options)  # type: ignore[arg-type]
        found.append((y, *torch.autograd.grad(y.square().sum(), [q, k, v, *prefix])))
        found[-1] = (*found[-1], sum(scores))
        scores.clear()
    for a, b in zip(*(f[:-1] for f in found), strict=True):
        torch.testing.assert_close(a, b)
    assert found[0][-1] < found[1][-1] / 3
