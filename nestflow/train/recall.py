"""Associative recall: pairs of key and value are shown once, then keys are asked for their values.

A row of 32 tokens for 4 pairs (after "Zoology", Arora et al. 2023, multi-query associative recall):

    k1 v1 k2 v2 k3 v3 k4 v4 . . k3 . . . k1 . . k4 . . . . k2 . ...

At each asked key the model must say its value at once. Chance is 1/32; guessing among the values shown is 1/4.
A model without a memory of its context cannot do better than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.diagnostics.core import fail
from nestflow.train.protocol import Trainable, device_of, token_input


@dataclass(frozen=True)
class RecallTask:
    """Sizes of the task. Tokens: keys 0 … keys−1, then values, then one blank (`vocab` in all)."""

    pairs: int = 4
    length: int = 32
    keys: int = 32
    values: int = 32

    def __post_init__(self) -> None:
        if self.pairs > self.keys or self.length < 3 * self.pairs:
            raise fail("NF524", f"recall of {self.pairs} pairs needs at least as many keys and {3 * self.pairs} tokens")

    @property
    def vocab(self) -> int:
        return self.keys + self.values + 1

    def batch(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(tokens_BT, target_BT), int64. target is the value at asked keys and −100 elsewhere.

        Keys of a row differ from each other; values are drawn freely.
        """
        P, T = self.pairs, self.length
        keys_BP = torch.rand(rows, self.keys, generator=generator).argsort(1)[:, :P]
        values_BP = torch.randint(self.keys, self.keys + self.values, (rows, P), generator=generator)
        tokens_BT = torch.full((rows, T), self.vocab - 1)
        tokens_BT[:, 0 : 2 * P : 2] = keys_BP
        tokens_BT[:, 1 : 2 * P : 2] = values_BP
        places_BP = 2 * P + torch.rand(rows, T - 2 * P, generator=generator).argsort(1)[:, :P]
        target_BT = torch.full((rows, T), -100)
        tokens_BT.scatter_(1, places_BP, keys_BP)
        target_BT.scatter_(1, places_BP, values_BP)
        return tokens_BT, target_BT


@dataclass(frozen=True)
class RecallResult:
    """accuracy on rows never trained on; curve: (step, loss in nats, accuracy of that batch)."""

    accuracy: float
    curve: tuple[tuple[int, float, float], ...]


def train_recall(
    bundle: Trainable,
    task: RecallTask = RecallTask(),
    steps: int = 250,
    rows: int = 64,
    seed: int = 0,
    on_step: Callable[[int, float, float], None] | None = None,
) -> RecallResult:
    """Train a bundle on the task, scored at the asked keys only, and measure recall on fresh rows.

    The loss is not the spec's own, so the step is taken by hand: loss, backward, optimizer.step().
    """
    name = token_input(bundle)
    device = device_of(bundle.module)
    g = torch.Generator().manual_seed(seed)
    set_total = getattr(bundle, "set_total_steps", None)
    if set_total is not None:
        set_total(steps)
    curve: list[tuple[int, float, float]] = []
    bundle.module.train()
    for step in range(1, steps + 1):
        x_BT, y_BT = (t.to(device) for t in task.batch(rows, g))
        logits_BTV = bundle.module(**{name: x_BT})
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), y_BT.flatten(), ignore_index=-100)
        if not torch.isfinite(loss):
            raise fail(
                "NF526", f"the loss became {float(loss)} at step {step}", help="lower the inner rate or the chunk"
            )
        bundle.optimizer.zero_grad()
        loss.backward()
        bundle.optimizer.step()
        curve.append((step, float(loss.detach()), _accuracy(logits_BTV.detach(), y_BT)))
        if on_step is not None:
            on_step(*curve[-1])
    return RecallResult(recall_accuracy(bundle, task, seed=seed + 1), tuple(curve))


def recall_accuracy(bundle: Trainable, task: RecallTask = RecallTask(), rows: int = 512, seed: int = 1) -> float:
    """Share of asked keys answered with their value, on `rows` fresh rows."""
    name = token_input(bundle)
    device = device_of(bundle.module)
    x_BT, y_BT = (t.to(device) for t in task.batch(rows, torch.Generator().manual_seed(seed)))
    was_training = bundle.module.training
    bundle.module.eval()
    with torch.no_grad():
        parts = [bundle.module(**{name: x}) for x in x_BT.split(64)]
    bundle.module.train(was_training)
    return _accuracy(torch.cat(parts), y_BT)


def _accuracy(logits_BTV: Tensor, target_BT: Tensor) -> float:
    asked_BT = target_BT != -100
    return float((logits_BTV.argmax(-1) == target_BT)[asked_BT].double().mean())
