"""Every memory of the zoo trains on text: twenty small steps, no loss that is no number, and less of it at the end."""

from __future__ import annotations

import math

import pytest
import torch

import nestflow
from tests.zoo.layers import LAYERS

TEXT = b"A hybrid of old and new: the window sees what is near, the memory keeps what was far. " * 12
ZOO = sorted({*LAYERS, "samba"})


@pytest.mark.parametrize("name", ZOO)
def test_trains_on_text(name: str) -> None:
    params = LAYERS[name][1] if name in LAYERS else {}
    b = nestflow.compile(name.partition(",")[0], dim=16, n_heads=2, warmup=2, lr=1e-2, **params)
    b.set_total_steps(20)
    data = torch.tensor(list(TEXT))
    source = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(20):
        at = torch.randint(len(data) - 33, (4,), generator=source)
        losses.append(b.step({"tokens": torch.stack([data[i : i + 33] for i in at.tolist()])})["loss"])
    assert all(map(math.isfinite, losses))
    assert all(torch.isfinite(w).all() for w in b.module.parameters())
    assert sum(losses[-4:]) / 4 < losses[0] - 0.5
