"""What is kept and how far a step goes, where that changes: `retain` on the step clock; schedules, `retain` and
`weight` of levels that begin anew in every step. Each against a plain loop, and compiled = interpreted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow
from tests.reference.test_nested_levels import B, Tensors, example, net, same, tasks, weights
from tests.reference.test_slow_levels import HEAD, batches, tensors

Kept = Callable[[int, Tensor], float]


def cosine(t: int, total: float, every: int) -> float:
    return (1 + math.cos(math.pi * min(t / (total + every), 1))) / 2


RETAINS: dict[str, tuple[str, Kept]] = {
    "a schedule": ("1 - cosine(0.2, total = 10)", lambda t, w: 1 - 0.2 * cosine(2 * t, 10, 2)),
    "counts": ("t / (t + 1)", lambda t, w: t / (t + 1)),
    "kinds of weights": ("0.9 if ndim(w) >= 2 else 1", lambda t, w: 0.9 if w.ndim >= 2 else 1.0),
    "its size": ("1 / (1 + norm(w))", lambda t, w: float(1 / (1 + w.norm()))),
}


@pytest.mark.parametrize("name", RETAINS)
def test_retain_is_the_loop(name: str) -> None:
    """w ← r(t, w) w − 0.1 g, g summed over two steps."""
    text, keeps = RETAINS[name]
    level = f"level outer {{ every 2 steps; memory weights(net); objective loss; update gd(0.1); retain {text} }}\n"
    b = nestflow.compile(HEAD + level, dtype="float64", seed=1)
    slow, own = b.reference_steps(), {p: w.requires_grad_() for p, w in tensors(b).items()}
    sums = {p: torch.zeros_like(w) for p, w in own.items()}
    for i, batch in enumerate(batches(8)):
        b.step(batch)
        slow.step(batch)
        h = torch.tanh(F.linear(batch["x"], own["net.linear.weight"], own["net.linear.bias"]))
        loss = F.cross_entropy(F.linear(h, own["net.linear_2.weight"]), batch["label"])
        for p, g in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
            sums[p] = sums[p] + g
        if i % 2:
            with torch.no_grad():
                own = {p: (keeps((i + 1) // 2, w) * w - 0.1 * sums[p]).requires_grad_() for p, w in own.items()}
            sums = {p: torch.zeros_like(w) for p, w in own.items()}
        for p, w in own.items():
            same((tensors(b)[p], slow.tensors[p]), (w.detach(), w.detach()))


def test_retain_beside_a_rule_of_two_kinds() -> None:
    """Each weight is decayed once, by whichever step is its own."""
    text = """optimizer two(lr) {
      if ndim(w) >= 2 { memory m : like(w) { value g; update gd(0.1); retain 0.9 }; step -lr * m }
      else { step -0.5 * lr * g } }
    level outer { every 1 step; memory weights(net); objective loss; update two(0.1); retain 0.9 }"""
    b = nestflow.compile(HEAD + text, dtype="float64", seed=1)
    slow = b.reference_steps()
    for batch in batches(5):
        b.step(batch)
        slow.step(batch)
        for p, w in tensors(b).items():
            same((w,), (slow.tensors[p],))


def inner(w: Tensors, x: Tensor, label: Tensor, rate: Kept, kept: Kept, weight: Callable[[Tensors, Tensor], Tensor]):
    own = {n: x.clone() for n, x in w.items()}  # the weight of the error is constant in them
    for t in range(1, 6):
        loss = weight(w, x) * F.cross_entropy(net(own, x), label)
        found = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        own = {n: kept(t, y) * y - rate(t, y) * g for (n, y), g in zip(own.items(), found, strict=True)}
    return own


ONE: Callable[[Tensors, Tensor], Tensor] = lambda w, x: torch.ones((), dtype=x.dtype)  # noqa: E731
INNER: dict[str, tuple[Kept, Kept, Callable[[Tensors, Tensor], Tensor]]] = {
    "update gd(cosine(0.3))": (lambda t, w: 0.3 * cosine(t, 5, 1), lambda t, w: 1.0, ONE),
    "update gd(linear_decay(0.3, warmup = 2, total = 4))": (
        lambda t, w: 0.3 * t / 2 if t <= 2 else 0.3 * (1 - min((t - 2) / 3, 1)),
        lambda t, w: 1.0,
        ONE,
    ),
    "update gd(0.1); retain 1 - cosine(0.2)": (lambda t, w: 0.1, lambda t, w: 1 - 0.2 * cosine(t, 5, 1), ONE),
    "update gd(0.1); retain 0.9 if ndim(w) >= 2 else 1": (
        lambda t, w: 0.1,
        lambda t, w: 0.9 if w.ndim >= 2 else 1.0,
        ONE,
    ),
    "update gd(0.1); weight mean(square(net(support.x)))": (
        lambda t, w: 0.1,
        lambda t, w: 1.0,
        lambda w, x: net(w, x).square().mean(),
    ),
}


@pytest.mark.parametrize("fields", INNER)
def test_levels_inside_a_step_are_the_loop(fields: str) -> None:
    """MAML, a copy for each task. Slower gradients go through the steps, and through `weight` to the slow weights."""
    rate, kept, weight = INNER[fields]
    b = nestflow.compile(example("maml", **{"  update gd(rate)\n": f"  {fields}\n"}), dtype="float64")
    batch, w = tasks(), weights(b)
    outs = []
    for i in range(B):
        own = inner(w, batch["support.x"][i], batch["support.label"][i], rate, kept, weight)
        outs.append(net(own, batch["query.x"][i]))
    loss = F.cross_entropy(torch.cat(outs), batch["query.label"].flatten())
    want = torch.autograd.grad(loss, list(w.values()))
    (meta,) = (x for x in b.graph.step_levels if x.name == "meta")
    assert meta.objective is not None
    for mine in (b.module.losses(**batch)["meta"], b.reference().loss(meta.objective, batch)):
        same((mine,), (loss,))
        same(torch.autograd.grad(mine, list(b.module.weights.values())), want, 1e-8)


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("retain mean(net(x))", "NF415"),
        ("retain sigmoid(learned(1))", "NF415"),
        ("retain w", "NF322"),
    ],
)
def test_mistakes_are_told(field: str, code: str) -> None:
    with pytest.raises(nestflow.NestflowError, match=code):
        level = f"level outer {{ every 1 step; memory weights(net); objective loss; update gd(0.1); {field} }}"
        nestflow.check(HEAD + level)


def test_a_weight_of_its_own_recall_is_told() -> None:
    text = example("maml", **{"  update gd(rate)\n": "  update gd(rate); weight mean(task(support.x))\n"})
    with pytest.raises(nestflow.NestflowError, match="NF490"):
        nestflow.check(text)
