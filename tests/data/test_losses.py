"""Losses of outputs beside torch's: masks, smoothing, terms for themselves, labels without ticks; and accuracy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow
from tests.graph.building import mistake

HEAD = """nestflow 1
input x : float[T, 4]
input kind : int[T]
input seen : {mask}[T]
input label : int
output model(x)
flow model(x) {{ return linear(x, 5) }}
loss = {loss}
level outer {{ every 1 step; memory weights(model); objective loss; update gd(0.1) }}
"""


def nats(p: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    logs = p.log_softmax(-1)
    picked = logs.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return -(1 - smoothing) * picked - smoothing * logs.mean(-1)


P, Y, W, L = "p", "y", "w", "label"
LOSSES = {
    "cross_entropy(model(x), kind, mask = seen)": lambda p, y, w, c: (nats(p, y) * w).sum() / w.sum(),
    "cross_entropy(model(x), kind, seen, smoothing = 0.1)": lambda p, y, w, c: (nats(p, y, 0.1) * w).sum() / w.sum(),
    "cross_entropy(model(x), label)": lambda p, y, w, c: nats(p, c[:, None].expand(y.shape)).mean(),
    "mean(cross_entropy(model(x), kind, reduce = none) * (1 + seen))": lambda p, y, w, c: (nats(p, y) * (1 + w)).mean(),
    "cross_entropy(model(x), kind, seen, reduce = none)": lambda p, y, w, c: (nats(p, y) * w).mean(),
    "cross_entropy(model(x), next(kind), mask = next(seen), reduce = none)": (
        lambda p, y, w, c: (nats(p[:, :-1], y[:, 1:]) * w[:, 1:]).mean()
    ),
    "cross_entropy(model(x), kind) + 0.5 * cross_entropy(model(x), label, smoothing = 1)": (
        lambda p, y, w, c: nats(p, y).mean() + 0.5 * nats(p, c[:, None].expand(y.shape), 1.0).mean()
    ),
}


@pytest.mark.parametrize("mask", ["bool", "float", "int"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_its_equation(loss: str, mask: str) -> None:
    b = nestflow.compile(HEAD.format(loss=loss, mask=mask), dtype="float64")
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, generator=g, dtype=torch.float64)
    y, label = torch.randint(0, 5, (3, 6), generator=g), torch.randint(0, 5, (3,), generator=g)
    keep = torch.rand(3, 6, generator=g) < 0.6
    given = {"x": x, "kind": y, "label": label}
    given["seen"] = keep.double() * 1.5 if mask == "float" else keep.long() if mask == "int" else keep
    if mask == "bool" and "1 + seen" in loss:
        given["seen"] = keep
    (w,) = b.module.weights.values()
    want = LOSSES[loss](x @ w.T, y, given["seen"].double(), label)
    got = b.loss(given)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    objective = b.graph.step_levels[0].objective
    torch.testing.assert_close(b.reference().loss(objective, given), want, rtol=1e-12, atol=1e-12)
    for a, c in zip(torch.autograd.grad(got, [w]), torch.autograd.grad(want, [w])):
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)


def test_a_masked_term_needs_no_class_and_no_finite_score() -> None:
    b = nestflow.compile(
        HEAD.format(loss="cross_entropy(model(x), kind, seen, reduce = none)", mask="bool"), dtype="float64"
    )
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    y, keep = torch.tensor([[1, -100, 2]]), torch.tensor([[True, False, True]])
    (w,) = b.module.weights.values()
    want = F.cross_entropy((x @ w.T)[0], y[0], ignore_index=-100, reduction="sum") / 3
    torch.testing.assert_close(b.loss({"x": x, "kind": y, "seen": keep, "label": torch.tensor([0])}), want)


def test_metrics_are_hits_of_how_many() -> None:
    b = nestflow.compile(HEAD.format(loss="cross_entropy(model(x), next(kind), mask = next(seen))", mask="bool"))
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, 6, 4, generator=g), torch.randint(0, 5, (3, 6), generator=g)
    keep = torch.rand(3, 6, generator=g) < 0.6
    given = {"x": x, "kind": y, "seen": keep, "label": torch.zeros(3).long()}
    found = b.module.metrics(**given)
    right = (b.module(x=x)[:, :-1].argmax(-1) == y[:, 1:]) & keep[:, 1:]
    assert [int(n) for n in found["accuracy of outer"]] == [int(right.sum()), int(keep[:, 1:].sum())]
    torch.testing.assert_close(found["outer"], b.loss(given))


WRONG = {
    "cross_entropy(model(x), x)": ("NF301", "an integer"),
    "cross_entropy(mean(model(x), axis = 0), kind)": ("NF301", "last axis"),
    "cross_entropy(model(x), kind, smoothing = 2)": ("NF325", "is in [0, 1]"),
    "cross_entropy(model(x), kind, mask = x)": ("NF301", "a mask is"),
    "cross_entropy(stack(model(x), model(x)), kind)": ("NF301", "one class for each row"),
    "cross_entropy(model(x), kind, reduce = sum)": ("NF309", "cannot be reduced"),
}


@pytest.mark.parametrize("loss", WRONG)
def test_mistakes_are_told(loss: str) -> None:
    code, said = WRONG[loss]
    d = mistake(lambda: nestflow.check(HEAD.format(loss=loss, mask="bool")))
    assert d.code == code and said in d.message and d.span is not None
