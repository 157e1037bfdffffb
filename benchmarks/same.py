"""How far two lists of tensors are apart. Nothing is timed before it is known that the numbers are the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def apart(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest difference, each pair's as a share of its largest wanted number. NaN where a number is NaN: compare
    with `not apart(...) < limit`. Raises ValueError for lists or shapes that differ."""
    if [x.shape for x in got] != [x.shape for x in want]:
        raise ValueError("the shapes differ")
    shares = [(a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in zip(got, want) if a.numel()]
    return float(torch.stack(shares).max())  # max() of Python would pass over NaN
