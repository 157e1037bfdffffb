"""Softmax attention as a memory that keeps its context: one query at a time over the pairs it may see."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x: Tensor, *, base: float = 10000.0, reset: int | None = None) -> Tensor:
    """Rotate the pairs (i, i + d/2) of ``x`` [..., T, D] by the angle p·base^(−2i/d), p = t − 1 (modulo ``reset``)."""
    ticks, width = x.shape[-2:]
    half, rows = width // 2, []
    for t in range(ticks):
        position = t if reset is None else t % reset
        turned = [torch.empty(0)] * width
        for i in range(half):
            angle = torch.tensor(position * base ** (-2 * i / width), dtype=torch.float64).to(x.dtype)
            a, b = x[..., t, i], x[..., t, i + half]
            turned[i] = a * angle.cos() - b * angle.sin()
            turned[i + half] = a * angle.sin() + b * angle.cos()
        rows.append(torch.stack(turned, -1))
    return torch.stack(rows, -2)


def attention(
    key: Tensor,
    value: Tensor,
    query: Tensor,
    *,
    window: int | None = None,
    segment: int | None = None,
    sink: int = 0,
    causal: bool = True,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Σ_i softmax_i(scale · q_t·k_i) v_i over the visible i; ``prefix_*`` [H,P,D] pairs are always visible."""
    batch, heads, ticks, width = key.shape
    scale = width**-0.5 if scale is None else scale
    outputs = []
    for t in range(ticks):
        seen = [i for i in range(ticks) if _visible(i, t, window, segment, sink, causal)]
        k, v = key[:, :, seen], value[:, :, seen]
        if prefix_key is not None and prefix_value is not None:
            k = torch.cat([prefix_key.expand(batch, heads, *prefix_key.shape[-2:]), k], 2)
            v = torch.cat([prefix_value.expand(batch, heads, *prefix_value.shape[-2:]), v], 2)
        score = scale * torch.einsum("bhd,bhnd->bhn", query[:, :, t], k)
        outputs.append(torch.einsum("bhn,bhnd->bhd", score.softmax(-1), v))
    return torch.stack(outputs, 2)


def _visible(i: int, t: int, window: int | None, segment: int | None, sink: int, causal: bool) -> bool:
    if causal and i > t:
        return False
    if i < sink:
        return True
    if window is not None and i <= t - window:
        return False
    return segment is None or i // segment == t // segment
