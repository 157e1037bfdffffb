"""Optimisers with a memory for the whole level, with a network as memory, with the curvature of the objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.bundle.curvature import signs
from nestflow.diagnostics.core import NestflowError
from nestflow.graph.build import optimizer_rule
from tests.oracles.optim import newton_schulz

from .driving import draw, drive, level_optimizer, parameters
from .test_shapes import SHAPES, own, shipped_against_interpreter


def test_hypergradient_has_one_rate_for_all_weights() -> None:
    params, weights = parameters(), draw(0)
    opt = nestflow.optimizer("hypergradient", params, lr=0.05, kappa=1e-4)
    rate, last = 0.05, [torch.zeros_like(w) for w in weights]
    for t in range(60):
        drive(opt, params, 1, first=t)
        g = draw(1000 + t)
        rate += 1e-4 * sum(float((a * b).sum()) for a, b in zip(g, last, strict=True))
        weights, last = [w - rate * x for w, x in zip(weights, g, strict=True)], g
    for p, w in zip(params, weights, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-10)
    assert all(float(opt.state[p]["rate"]) == pytest.approx(rate) for p in params)
    shipped_against_interpreter("hypergradient", 8, lr=0.05, kappa=1e-4)


def test_a_weight_without_a_gradient_has_the_levels_number_too() -> None:
    params = parameters()
    opt = nestflow.optimizer("hypergradient", params, lr=0.05, kappa=1e-2)
    for t in range(3):
        for p, g in zip(params, draw(1000 + t), strict=True):
            p.grad = None if p is params[1] else g
        opt.step()
    assert len({float(opt.state[p]["rate"]) for p in params}) == 1


def plastic(w: Tensor, g: Tensor, s: dict[str, Any], t: int, size: Tensor) -> Tensor:
    w0 = s.setdefault("w0", w)
    g = g * min(1.0, 1.0 / (float(size) + 1e-6))
    s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0.0) + 0.001 * g * g
    d = -0.3 * s["m"] / (1 - 0.9**t) / ((s["v"] / (1 - 0.999**t)).sqrt() + 1e-8)
    d = d * min(1.0, 0.2 * float(w.norm()) / float(d.norm()))
    away = w + d - w0
    return w0 + away * min(1.0, 0.5 / float(away.norm()))


def test_plastic_is_bounded_twice() -> None:
    params, weights = parameters(), draw(0)
    start = draw(0)
    states: list[dict[str, Any]] = [{} for _ in weights]
    opt = nestflow.optimizer("plastic", params, lr=0.3, bound=0.5, trust=0.2)
    for t in range(1, 61):
        drive(opt, params, 1, first=t)
        g = draw(1000 + t)
        size = torch.cat([x.flatten() for x in g]).norm()
        weights = [plastic(w, x, s, t, size) for w, x, s in zip(weights, g, states, strict=True)]
    for p, w, w0 in zip(params, weights, start, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-8, atol=1e-8)
        assert float((p.detach() - w0).norm()) <= 0.5 + 1e-9
    shipped_against_interpreter("plastic", 8, lr=0.3, bound=0.5, trust=0.2)


def test_deep_momentum_learns_by_its_objective() -> None:
    """A and B by autograd of −Σ⟨M(u), u⟩/rows, M(x) = x + tanh(x Aᵀ) Bᵀ."""
    params = parameters(shapes=[(5, 7)])
    opt = nestflow.optimizer("deep_momentum", params, lr=0.02, alpha=0.9, eta=0.3, hidden=6)
    w, a = draw(0, [(5, 7)])[0], opt.state[params[0]]["A"].clone()
    b = torch.zeros(7, 6, dtype=a.dtype)
    assert a.shape == (6, 7) and 0.01 < float(a.std()) < 0.04
    for t in range(40):
        drive(opt, params, 1, first=t)
        g = draw(1000 + t, [(5, 7)])[0]
        u = g / g.square().mean().sqrt()
        a, b = a.requires_grad_(), b.requires_grad_()
        loss = -((u + torch.tanh(u @ a.T) @ b.T) * u).sum() / 5
        da, db = torch.autograd.grad(loss, (a, b))
        a, b = (0.9 * a - 0.3 * da).detach(), (0.9 * b - 0.3 * db).detach()
        w = w - 0.02 * newton_schulz(u + torch.tanh(u @ a.T) @ b.T)
    torch.testing.assert_close(params[0].detach(), w, rtol=1e-8, atol=1e-8)
    shipped_against_interpreter("deep_momentum", 8, SHAPES, lr=0.02, hidden=6)


def test_the_curvature_is_that_of_the_objective() -> None:
    """Sophia through the bundle, against a loop with the whole Hessian of the loss."""
    text = """nestflow 1
input x : float[T, 3]
input v : float[T, 2]
output net(x)
flow net(x) { return x |> linear(4, bias = true) |> tanh |> linear(2) }
level outer { every 1 step; memory weights(net); objective l2(net(x), v)
  update sophia(0.05, gamma = 0.5, period = 3, weight_decay = 0.1) }
"""
    b = nestflow.compile(text, dtype="float64", seed=5)
    names = [w.path for w in b.graph.weights]
    w = {n: p.detach().clone() for n, p in b.module.named_weights()}
    x, v = draw(3, [(2, 5, 3), (2, 5, 2)])

    def loss(flat: Tensor) -> Tensor:
        parts, at = {}, 0
        for n in names:
            parts[n] = flat[at : at + w[n].numel()].reshape(w[n].shape)
            at += w[n].numel()
        h = torch.tanh(x @ parts["net.linear.weight"].T + parts["net.linear.bias"])
        return (h @ parts["net.linear_2.weight"].T - v).square().sum(-1).mean() / 2

    m = h = torch.zeros(sum(p.numel() for p in w.values()), dtype=torch.float64)
    flat = torch.cat([w[n].flatten() for n in names])
    for t in range(1, 9):
        b.step({"x": x, "v": v})
        (g,) = torch.autograd.grad(loss(leaf := flat.clone().requires_grad_()), leaf)
        hessian = torch.autograd.functional.hessian(loss, flat)
        flat = flat * (1 - 0.05 * 0.1)
        m = 0.96 * m + 0.04 * g
        if t % 3 == 1:
            z = torch.cat([signs(n, t, 5, w[n]).flatten() for n in names])
            h = 0.99 * h + 0.01 * z * (hessian @ z)
        flat = flat - 0.05 * (m / (0.5 * h).clamp(min=1e-12)).clamp(-1, 1)
    got = dict(b.module.named_weights())
    torch.testing.assert_close(torch.cat([got[n].detach().flatten() for n in names]), flat, rtol=1e-9, atol=1e-9)


def test_sophia_goes_through_attention_and_resumes(tmp_path: Path) -> None:
    spec = """nestflow 1
use optimizers.sophia
input tokens : int[T] in [0, 11)
output model(tokens)
flow model(tokens) { return tokens |> embed(11, 8) |> attend |> linear(11) }
level attend(x) { memory cache; key linear(x); value linear(x); query linear(x); return x + y }
level outer { every 2 steps; memory weights(model); objective cross_entropy(model(tokens), next(tokens))
  update sophia(0.01, period = 2) }
"""
    batch = {"tokens": torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))}
    whole, part = (nestflow.compile(spec, seed=1) for _ in range(2))
    losses = [whole.step(batch)["loss"] for _ in range(12)]
    for _ in range(5):
        part.step(batch)
    part.save(tmp_path / "kept")
    again = nestflow.load(tmp_path / "kept")
    assert [again.step(batch)["loss"] for _ in range(7)] == losses[5:]
    assert losses[-1] < losses[0]


def test_curvature_needs_the_objective(tmp_path: Path) -> None:
    for spec, settings in (("sophia", {"lr": 0.1}), (own(tmp_path, "step -lr * curvature(hutchinson)"), {"lr": 0.1})):
        with pytest.raises(NestflowError) as caught:
            nestflow.optimizer(spec, parameters(), **settings)
        assert caught.value.diagnostics[0].code == "NF543"
    opt, weights = level_optimizer("level a { every 1 step; memory weights(net); objective loss; update sophia(0.1) }")
    for p in weights.values():
        p.grad = torch.ones_like(p)
    with pytest.raises(NestflowError) as caught:
        opt.step()
    assert caught.value.diagnostics[0].code == "NF543"


WRONG = {
    "step -lr * curvature(exact)": "NF238",
    "memory m : like(w) { value g; update gd(1); per level }\nstep -lr * g": "NF301",
    "memory m : scalar { value norm(g); update gd(1); per level }\nstep -lr * g": "NF301",
    "memory m : scalar { value 1; update gd(1); per sequence }\nstep -lr * g": "NF231",
    "memory m : matrix(rows(w), cols(w)) { key g; value eye(rows(w)); update gd(1) }\nstep -lr * m": "NF232",
    "memory m : matrix(rows(w), rows(w)) { key g; value g; objective l2; update gd(1) }\nstep -lr * g": "NF301",
    "memory m : matrix(2, cols(w)) { key g; value g; objective l2; update replace }\nstep -lr * g": "NF301",
    "memory m : matrix(2, 3) { key eye(3); value eye(3); objective dot; update replace }\nstep -lr * g": "NF301",
}


@pytest.mark.parametrize("body", WRONG)
def test_mistakes_are_told(body: str, tmp_path: Path) -> None:
    with pytest.raises(NestflowError) as caught:
        optimizer_rule(own(tmp_path, body), {"lr": 0.1})
    assert [d.code for d in caught.value.diagnostics] == [WRONG[body]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_as_memories_keep_the_weights_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """A scalar by gd and by adam: one for each weight, in its dtype."""
    spec = own(
        tmp_path,
        "memory s : scalar { value norm(g); update gd(1); retain 0.5 }\n"
        "memory a : scalar { value norm(g); update adam(0.1); init 1 }\nstep -lr * g / (s + a)",
    )
    params = parameters(dtype)
    opt = nestflow.optimizer(spec, params, lr=0.1)
    drive(opt, params, 4)
    assert {opt.state[p][k].dtype for p in params for k in ("s", "a")} == {dtype}
    shipped_against_interpreter(spec, 6, lr=0.1)


def test_objectives_of_memories_and_the_gradient_that_they_took(tmp_path: Path) -> None:
    """Memories that move towards g by lp and huber, and a step that reads their gradients."""
    spec = own(
        tmp_path,
        "memory a : like(w) { value g; objective lp(3); update gd(0.1) }\n"
        "memory b : like(w) { value g; objective huber(0.5); update gd(0.3) }\n"
        "step -lr * (a + b + a.g - b.g)",
    )
    params, weights = parameters(), draw(0)
    a = b = [torch.zeros_like(w) for w in weights]
    opt = nestflow.optimizer(spec, params, lr=0.1)
    for t in range(10):
        drive(opt, params, 1, first=t)
        g = draw(1000 + t)
        da = [(x - y).sign() * (x - y).square() for x, y in zip(a, g, strict=True)]
        db = [(x - y).clamp(-0.5, 0.5) for x, y in zip(b, g, strict=True)]
        a = [x - 0.1 * d for x, d in zip(a, da, strict=True)]
        b = [x - 0.3 * d for x, d in zip(b, db, strict=True)]
        steps = zip(weights, a, b, da, db, strict=True)
        weights = [w - 0.1 * (x + y + p - q) for w, x, y, p, q in steps]
    for p, w in zip(params, weights, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-10)
    shipped_against_interpreter(spec, 5, lr=0.1)
