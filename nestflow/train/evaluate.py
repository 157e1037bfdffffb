"""How good is it: bits per byte on held-out text, and loss against position in windows longer than those trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.train.data import validation_windows
from nestflow.train.protocol import Trainable, device_of, token_input


def token_bits(bundle: Trainable, windows_nT1: Tensor, batch: int = 8) -> Tensor:
    """Bits of each next token: float [n, T] for windows with the token after each, int64 [n, T + 1].

    The module reads T tokens; position t is scored on token t + 1. No gradient, and in evaluation mode.
    """
    name = token_input(bundle)
    module = bundle.module
    device = device_of(module)
    was_training = module.training
    module.eval()
    out: list[Tensor] = []
    try:
        with torch.no_grad():
            for chunk in windows_nT1.split(batch):
                x_BT1 = chunk.to(device)
                logits_BTV = module(**{name: x_BT1[:, :-1]}).float()
                nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), x_BT1[:, 1:], reduction="none")
                out.append((nats_BT / math.log(2)).cpu())
    finally:
        module.train(was_training)
    return torch.cat(out)


def validation_bpb(bundle: Trainable, val_M: Tensor, length: int, windows: int = 64, batch: int = 8) -> float:
    """Mean bits per byte over evenly spread held-out windows of `length` tokens. Raises NF522 (text too short)."""
    return float(token_bits(bundle, validation_windows(val_M, length, windows), batch).double().mean())


@dataclass(frozen=True)
class PositionLoss:
    """Bits per byte of the tokens at positions [start, stop) of a window, over `windows` windows."""

    start: int
    stop: int
    bpb: float


def loss_by_position(
    bundle: Trainable, val_M: Tensor, length: int, windows: int = 16, buckets: int = 16, batch: int = 4
) -> list[PositionLoss]:
    """Loss against position in windows of `length` tokens, in `buckets` equal pieces.

    All pieces are scored on the same windows, yet on other bytes of them: read small differences with care.
    Raises NF522 if the held-out text has no such window.
    """
    bits_nT = token_bits(bundle, validation_windows(val_M, length, windows), batch).double()
    edges = [round(i * length / buckets) for i in range(buckets + 1)]
    return [PositionLoss(a, b, float(bits_nT[:, a:b].mean())) for a, b in pairwise(edges) if b > a]
