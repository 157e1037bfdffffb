"""Shipped optimisers on bare parameters, against torch.optim and against the oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from tests.oracles import optim as oracle

SHAPES = ((5, 7), (7, 3), (6,))
STEPS = 100


def draws(seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(w) for w in draws(0, dtype)]


def drive(opt: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: int, first: int = 0) -> None:
    for t in range(first, first + steps):
        for p, g in zip(params, draws(1000 + t, params[0].dtype), strict=True):
            p.grad = g
        opt.step()


def after(name: str, steps: int, dtype: torch.dtype = torch.float64, **settings: Any) -> list[Tensor]:
    params = parameters(dtype)
    drive(nestflow.optimizer(name, params, **settings), params, steps)
    return [p.detach() for p in params]


def torchs(make: Any, steps: int, dtype: torch.dtype = torch.float64, **settings: Any) -> list[Tensor]:
    params = parameters(dtype)
    drive(make(params, **settings), params, steps)
    return [p.detach() for p in params]


def by_rule(rule: oracle.Rule, steps: int) -> list[Tensor]:
    weights = draws(0, torch.float64)
    for t in range(steps):
        weights = rule.step(weights, draws(1000 + t, torch.float64))
    return weights


def assert_near(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-11) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


BIT_EQUAL = {
    "adam": ("optimizers.adam", {"lr": 3e-3}, torch.optim.Adam, {"lr": 3e-3}),
    "adam, other constants": (
        "optimizers.adam",
        {"lr": 1e-2, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
        torch.optim.Adam,
        {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6},
    ),
    "adamw": (
        "optimizers.adamw",
        {"lr": 3e-3, "weight_decay": 0.1},
        torch.optim.AdamW,
        {"lr": 3e-3, "weight_decay": 0.1},
    ),
    "adamw, defaults": ("optimizers.adamw", {}, torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BIT_EQUAL)
def test_adam_and_adamw_are_torchs_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    ours, settings, make, theirs = BIT_EQUAL[name]
    for a, b in zip(after(ours, STEPS, dtype, **settings), torchs(make, STEPS, dtype, **theirs), strict=True):
        assert torch.equal(a, b), f"{name}: off by {(a - b).abs().max().item():.1e}"


SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "weight decay": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}


@pytest.mark.parametrize("name", SGD)
def test_sgd_is_torchs(name: str) -> None:
    settings = {"lr": 0.05, **SGD[name]}
    assert_near(after("optimizers.sgd", 30, **settings), torchs(torch.optim.SGD, 30, **settings))


RULES = {
    "momentum": ({"lr": 0.05, "beta": 0.9}, lambda: oracle.Momentum(0.05, 0.9)),
    "lion": ({"lr": 0.01, "weight_decay": 0.1}, lambda: oracle.Lion(0.01, weight_decay=0.1)),
    "rmsprop": ({"lr": 0.01}, lambda: oracle.Rmsprop(0.01)),
    "adagrad": ({"lr": 0.01}, lambda: oracle.Adagrad(0.01)),
    "muon": ({"lr": 0.02, "weight_decay": 0.1}, lambda: oracle.Muon(0.02, weight_decay=0.1)),
    "m3": (
        {"lr": 0.01, "beta1": 0.9, "beta2": 0.5, "beta3": 0.8, "alpha": 0.7, "period": 4},
        lambda: oracle.M3(0.01, 0.9, 0.5, 0.8, 0.7, period=4),
    ),
    "schedule_free": ({"lr": 0.05}, lambda: oracle.ScheduleFree(0.05)),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_follow_the_published_equations(name: str) -> None:
    settings, rule = RULES[name]
    assert_near(after(f"optimizers.{name}", 30, **settings), by_rule(rule(), 30), 1e-9)


def test_muon_is_torchs_up_to_bfloat16() -> None:
    """torch runs Newton-Schulz in bfloat16 and takes matrices only."""

    def matrices() -> list[torch.nn.Parameter]:
        return parameters(torch.float32)[:2]

    ours, theirs = matrices(), matrices()
    settings = {"lr": 0.02, "weight_decay": 0.1}
    for params, opt in (
        (ours, nestflow.optimizer("optimizers.muon", ours, **settings)),
        (theirs, torch.optim.Muon(theirs, **settings)),
    ):
        for t in range(6):
            for p, g in zip(params, draws(1000 + t, torch.float32), strict=False):
                p.grad = g
            opt.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", ["adam", "m3"])
def test_resuming_from_a_state_dict_is_bit_equal(name: str) -> None:
    settings = {"lr": 3e-3} if name == "adam" else RULES["m3"][0]
    whole = after(f"optimizers.{name}", 13, **settings)
    params = parameters(torch.float64)
    first = nestflow.optimizer(f"optimizers.{name}", params, **settings)
    drive(first, params, 6)
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    second = nestflow.optimizer(f"optimizers.{name}", again, **settings)
    second.load_state_dict(first.state_dict())
    drive(second, again, 7, first=6)
    for a, b in zip(again, whole, strict=True):
        assert torch.equal(a.detach(), b)


def test_dgd_on_bare_parameters_says_what_it_needs() -> None:
    with pytest.raises(nestflow.NestflowError, match="dgd"):
        nestflow.optimizer("optimizers.dgd", parameters(torch.float32), lr=0.1)


DGD = """nestflow 1
input x : float[T, 4]
input target : float[T, 3]
output net(x)
flow net(x) { return linear(x, 3) }
loss = l2(net(x), target)
level outer { every 1 step; memory weights(net); objective loss; update dgd(0.5) }
"""


def test_dgd_on_the_step_clock_takes_the_layers_inputs() -> None:
    bundle = nestflow.compile(DGD)
    bundle.module.double()
    (weight,) = dict(bundle.module.named_weights()).values()
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        x, y = (torch.randn(2, 5, n, generator=generator, dtype=torch.float64) for n in (4, 3))
        before = weight.detach().clone()
        grad = torch.einsum("bto,bti->oi", x @ before.mT - y, x) / 10
        bundle.step({"x": x, "target": y})
        assert_near([weight.detach()], [oracle.dgd_exact(before, grad, x.flatten(0, 1), 0.5)])
