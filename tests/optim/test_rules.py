"""Shipped rules against loops written out from the published equations, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from tests.oracles.optim import newton_schulz

from .driving import draw, drive, feed, level_optimizer, parameters

State = dict[str, Any]


def momentum(w: Tensor, g: Tensor, s: State, t: int) -> Tensor:
    s["S"] = 0.9 * s.get("S", 0) - 0.05 * g
    return w + s["S"]


def lion(w: Tensor, g: Tensor, s: State, t: int) -> Tensor:
    m = s.get("m", torch.zeros_like(w))
    step = torch.sign(0.9 * m + 0.1 * g) + 0.1 * w
    s["m"] = 0.99 * m + 0.01 * g
    return w - 0.01 * step


def muon(w: Tensor, g: Tensor, s: State, t: int) -> Tensor:
    s["m"] = 0.95 * s.get("m", torch.zeros_like(w)) + 0.05 * g
    n = 0.05 * g + 0.95 * s["m"]
    rows, cols = (*w.shape, 1, 1)[:2] if w.ndim < 2 else w.shape
    return w * (1 - 0.02 * 0.1) - 0.02 * math.sqrt(max(1.0, rows / cols)) * newton_schulz(n)


def m3(w: Tensor, g: Tensor, s: State, t: int) -> Tensor:
    """Algorithm 1: the slow memory learns from the last 4 gradients at the start of the next 4 steps."""
    s.setdefault("kept", [])
    if t > 1 and (t - 1) % 4 == 0:
        s["slow"] = s.get("slow", torch.zeros_like(w)) + 0.8 * sum(s["kept"])
        s["kept"] = []
    s["kept"].append(g)
    s["fast"] = s.get("fast", torch.zeros_like(w)) + 0.9 * g
    s["power"] = s.get("power", torch.zeros_like(w)) + 0.5 * g * g
    slow = newton_schulz(s.get("slow", torch.zeros_like(w)))
    return w - 0.01 * (newton_schulz(s["fast"]) + 0.7 * slow) / (s["power"].sqrt() + 1e-8)


def schedule_free(w: Tensor, g: Tensor, s: State, t: int) -> Tensor:
    z, x = s.get("z", w), s.get("x", w)
    s["z"] = z - 0.05 * g
    s["x"] = (1 - 1 / t) * x + s["z"] / t
    return 0.1 * s["z"] + 0.9 * s["x"]


RULES: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "momentum": ({"lr": 0.05, "beta": 0.9}, momentum),
    "lion": ({"lr": 0.01, "weight_decay": 0.1}, lion),
    "muon": ({"lr": 0.02, "weight_decay": 0.1}, muon),
    "m3": ({"lr": 0.01, "beta1": 0.9, "beta2": 0.5, "beta3": 0.8, "alpha": 0.7, "period": 4}, m3),
    "schedule_free": ({"lr": 0.05}, schedule_free),
}


def loop(rule: Callable[..., Tensor], steps: int) -> tuple[list[Tensor], list[State]]:
    weights = draw(0)
    states: list[State] = [{} for _ in weights]
    for t in range(steps):
        weights = [rule(w, g, s, t + 1) for w, g, s in zip(weights, draw(1000 + t), states, strict=True)]
    return weights, states


@pytest.mark.parametrize("name", RULES)
def test_thirty_steps_follow_the_equations(name: str) -> None:
    settings, rule = RULES[name]
    params = parameters()
    drive(nestflow.optimizer(name, params, **settings), params, 30)
    for p, w in zip(params, loop(rule, 30)[0], strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-10)


def test_m3_reads_the_slow_memory_one_step_late() -> None:
    """A slow memory that is used in the step it is updated in gives other weights at step 4, not before."""

    def early(w: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        late = m3(w, g, s, t)
        return late if t % 4 else late + 1.0

    settings, _ = RULES["m3"]
    params = parameters()
    drive(nestflow.optimizer("m3", params, **settings), params, 4)
    assert not torch.allclose(params[0].detach(), loop(early, 4)[0][0])
    torch.testing.assert_close(params[0].detach(), loop(m3, 4)[0][0])


def test_schedule_free_is_evaluated_at_its_average_and_goes_on_where_it_was() -> None:
    params = parameters()
    opt = nestflow.optimizer("schedule_free", params, lr=0.05)
    drive(opt, params, 10)
    trained = [p.detach().clone() for p in params]
    opt.eval()
    for p, s in zip(params, loop(schedule_free, 10)[1], strict=True):
        torch.testing.assert_close(p.detach(), s["x"], rtol=1e-10, atol=1e-12)
    with pytest.raises(nestflow.NestflowError, match="NF546"):
        drive(opt, params, 1, first=10)
    opt.train()
    for p, w in zip(params, trained, strict=True):
        assert torch.equal(p.detach(), w)
    drive(opt, params, 5, first=10)
    for p, w in zip(params, loop(schedule_free, 15)[0], strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-12)


def test_lookahead_around_gd() -> None:
    opt, weights = level_optimizer(
        "level outer { memory weights(net); objective loss; update lookahead(gd(0.1), period = 3) }"
    )
    w = slow = [p.detach().clone() for p in weights.values()]
    feed(opt, weights, 7)
    for t in range(7):
        w = [a - 0.1 * g for a, g in zip(w, draw(1000 + t, [(3, 4)]), strict=True)]
        if (t + 1) % 3 == 0:
            w = slow = [s + 0.5 * (a - s) for s, a in zip(slow, w, strict=True)]
    for p, a in zip(weights.values(), w, strict=True):
        torch.testing.assert_close(p.detach(), a, rtol=1e-12, atol=1e-12)


def test_averaged_adam_is_evaluated_at_the_average_of_torchs_adam() -> None:
    opt, weights = level_optimizer(
        "level outer { memory weights(net); objective loss; update averaged(adam(1e-2), decay = 0.8) }"
    )
    (p,) = weights.values()
    theirs = torch.nn.Parameter(p.detach().clone())
    average, adam = p.detach().clone(), torch.optim.Adam([theirs], lr=1e-2)
    for t in range(8):
        feed(opt, weights, 1, first=t)
        drive(adam, [theirs], 1, first=t)
        average = 0.8 * average + 0.2 * theirs.detach()
    torch.testing.assert_close(p, theirs, rtol=1e-13, atol=1e-14)
    opt.eval()
    torch.testing.assert_close(p.detach(), average, rtol=1e-12, atol=1e-13)


def test_a_debias_with_a_varying_retain_divides_by_the_running_product() -> None:
    from nestflow.bundle.optimizer import optimizer

    text = """nestflow 1
optimizer warming(lr) {
  memory m : like(w) { value g; update gd(1 / (t + 1)); retain t / (t + 1) }
  step -lr * debias(m)
}"""
    params = parameters()
    drive(optimizer(text, params, lr=0.1), params, 9)
    weights, memories, kept = draw(0), [torch.zeros(()) for _ in range(4)], 1.0
    for t in range(1, 10):
        kept *= t / (t + 1)
        grads = draw(999 + t)
        memories = [t / (t + 1) * m + g / (t + 1) for m, g in zip(memories, grads, strict=True)]
        weights = [w - 0.1 * m / (1 - kept) for w, m in zip(weights, memories, strict=True)]
    for p, w in zip(params, weights, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)


def test_a_name_read_after_its_memory_has_changed_keeps_the_old_state() -> None:
    """`before(m)` beside `m`: the memory cannot simply be updated later, so its old state is kept."""
    from nestflow.bundle.optimizer import optimizer

    text = """nestflow 1
optimizer difference(lr, beta = 0.9) {
  memory m : like(w) { value g; update gd(1 - beta); retain beta }
  step -lr * (m - before(m) + sign(m))
}"""
    params = parameters()
    drive(optimizer(text, params, lr=0.1), params, 6)
    weights, memories = draw(0), [torch.zeros(()) for _ in range(4)]
    for t in range(6):
        new = [0.9 * m + 0.1 * g for m, g in zip(memories, draw(1000 + t), strict=True)]
        weights = [w - 0.1 * (n - m + n.sign()) for w, n, m in zip(weights, new, memories, strict=True)]
        memories = new
    for p, w in zip(params, weights, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)
