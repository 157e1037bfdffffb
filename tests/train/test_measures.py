"""Evaluation, sampling, associative recall and the picture of a run."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nestflow.diagnostics import NestflowError
from nestflow.train import (
    History,
    PositionLoss,
    RecallTask,
    StepRecord,
    corpus,
    generate,
    loss_by_position,
    plot_loss,
    recall_accuracy,
    train_recall,
    validation_bpb,
)
from nestflow.train.sampling import sample
from tests.train.fake import FakeBundle

TEXT = b"the quick brown fox jumps over the lazy dog; " * 60


def test_validation_is_the_mean_of_next_byte_bits_without_dropout():
    b = FakeBundle()
    val_M = corpus(TEXT, 0.5).val_M
    found = validation_bpb(b, val_M, 30, windows=7, batch=2)
    b.module.eval()
    bits = []
    room = len(val_M) - 31
    for i in range(7):
        start = round(i * room / 6)
        x = val_M[start : start + 31].long()[None]
        nats = F.cross_entropy(b.module(tokens=x[:, :-1])[0], x[0, 1:], reduction="mean")
        bits.append(float(nats.detach()) / math.log(2))
    assert found == pytest.approx(sum(bits) / 7, abs=1e-5)


def test_evaluation_leaves_the_mode_alone():
    b = FakeBundle()
    val_M = corpus(TEXT, 0.5).val_M
    b.module.train()
    validation_bpb(b, val_M, 30, 2)
    assert b.module.training
    b.module.eval()
    validation_bpb(b, val_M, 30, 2)
    assert not b.module.training


def test_loss_by_position_covers_the_window_and_averages_to_the_whole():
    b = FakeBundle()
    val_M = corpus(TEXT, 0.5).val_M
    pieces = loss_by_position(b, val_M, 100, windows=4, buckets=8)
    assert pieces[0].start == 0 and pieces[-1].stop == 100
    assert all(a.stop == c.start for a, c in pairwise(pieces))
    mean = sum(p.bpb * (p.stop - p.start) for p in pieces) / 100
    assert mean == pytest.approx(validation_bpb(b, val_M, 100, 4), abs=1e-5)


def test_too_short_for_such_a_window():
    with pytest.raises(NestflowError) as e:
        loss_by_position(FakeBundle(), corpus(TEXT, 0.1).val_M, 1000)
    assert e.value.diagnostics[0].code == "NF522"


def test_generate_repeats_with_its_seed_and_follows_the_stream():
    b = FakeBundle()
    assert generate(b, "the ", 20, seed=1) == generate(b, "the ", 20, seed=1)
    assert generate(b, "the ", 20, seed=1) != generate(b, "the ", 20, seed=2)
    greedy = generate(b, b"the ", 12, temperature=0)
    text = b"the "
    b.module.eval()
    for _ in range(12):
        logits = b.module(tokens=torch.tensor([list(text)]))
        text += bytes([int(logits[0, -1].argmax())])
    assert text == b"the " + greedy


def test_sampling_follows_the_distribution():
    rng = torch.Generator().manual_seed(0)
    logits_V = torch.full((300,), -30.0)
    logits_V[[65, 66, 67]] = torch.tensor([2.0, 1.0, 0.0])
    logits_V[299] = 50.0
    drawn = [sample(logits_V, 0.5, rng) for _ in range(4000)]
    p = torch.tensor([4.0, 2.0, 0.0]).softmax(0)
    assert set(drawn) <= {65, 66, 67}
    assert drawn.count(65) / 4000 == pytest.approx(float(p[0]), abs=0.03)
    assert {sample(logits_V, 5.0, rng, top_k=2) for _ in range(200)} == {65, 66}
    assert sample(logits_V, 0, rng) == 65


@pytest.mark.parametrize(
    "bad", [{"prompt": ""}, {"tokens": 0}, {"temperature": -1}, {"temperature": math.nan}, {"top_k": 0}]
)
def test_settings_that_make_no_sense(bad: dict):
    with pytest.raises(NestflowError) as e:
        generate(FakeBundle(), **bad)
    assert e.value.diagnostics[0].code == "NF528"


def test_recall_rows_are_what_they_say():
    task = RecallTask()
    x_BT, y_BT = task.batch(50, torch.Generator().manual_seed(0))
    assert x_BT.shape == (50, 32) and task.vocab == 65
    for x, y in zip(x_BT.tolist(), y_BT.tolist()):
        pairs = dict(zip(x[0:8:2], x[1:8:2]))
        assert len(pairs) == 4 and all(k < 32 for k in pairs) and all(32 <= v < 64 for v in pairs.values())
        asked = [(x[t], y[t]) for t in range(32) if y[t] != -100]
        assert dict(asked) == pairs and len(asked) == 4
        assert all(x[t] == 64 for t in range(8, 32) if y[t] == -100)


def test_recall_accuracy_of_a_perfect_and_of_a_guessing_model():
    class Oracle(torch.nn.Module):
        def forward(self, tokens):
            out = torch.zeros(*tokens.shape, 65)
            for b, row in enumerate(tokens.tolist()):
                pairs = dict(zip(row[0:8:2], row[1:8:2]))
                for t in range(8, 32):
                    if row[t] in pairs:
                        out[b, t, pairs[row[t]]] = 1
            return out

    class Guess(Oracle):
        def forward(self, tokens):
            out = torch.zeros(*tokens.shape, 65)
            return out.scatter(2, tokens[:, 1:2, None].expand(-1, 32, 1), 1.0)

    b = FakeBundle()
    b.module = Oracle()
    assert recall_accuracy(b, rows=64) == 1.0
    b.module = Guess()
    assert recall_accuracy(b, rows=512) == pytest.approx(0.25, abs=0.06)


def test_recall_training_lowers_the_loss_to_a_guess():
    b = FakeBundle(vocab=65, high=64)
    b.optimizer = torch.optim.AdamW(b.module.parameters(), lr=1e-2)
    result = train_recall(b, RecallTask(), steps=40, rows=16)
    assert len(result.curve) == 40 and result.curve[-1][1] < result.curve[0][1] - 0.5
    assert 0 <= result.accuracy <= 1


def test_recall_sizes_are_checked():
    with pytest.raises(NestflowError):
        RecallTask(pairs=40, length=32)


def test_plot(tmp_path: Path):
    h = History([StepRecord(i, 5.0 / i, 0.1, 100) for i in range(1, 20)], [(10, 3.0), (19, 2.5)])
    at = plot_loss(
        tmp_path / "sub" / "loss.png", h, {"bigram": 3.58}, [PositionLoss(0, 8, 3.0), PositionLoss(8, 16, 2.9)], 8
    )
    data = at.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width > 1000 and height > 400
