"""Many small weights at once: the lists give what the loop gives, bit for bit, and the state is the loop's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nestflow
from nestflow.ops.many import Many, bunches

from .driving import drive, parameters

SHAPES = [(4, 3)] * 6 + [(5,), (), (2, 3, 4), (200, 100)]
RULES: dict[str, dict[str, Any]] = {
    "adam": {},
    "adamw": {"weight_decay": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    "nesterov": {"lr": 0.1, "beta": 0.9},
    "momentum": {"lr": 0.1, "beta": 0.9},
    "rmsprop": {},
    "adagrad": {},
    "lion": {"weight_decay": 0.1},
    "gd": {"lr": 0.1},
    "schedule_free": {"lr": 0.1},
}
TORCH = {
    "adam": lambda p: torch.optim.Adam(p, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.1, foreach=False),
}


def optimizer(name: str, params: list[torch.nn.Parameter], many: bool) -> Any:
    opt = nestflow.optimizer(name, params, foreach=many, **RULES[name])
    assert opt.levels[0].elementwise
    return opt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_lists_are_the_loop(name: str, dtype: torch.dtype) -> None:
    results = []
    for many in (True, False):
        params = parameters(dtype, SHAPES)
        drive(optimizer(name, params, many), params, 10)
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", TORCH)
def test_lists_are_torchs_default(name: str) -> None:
    ours, theirs = parameters(torch.float32, SHAPES), parameters(torch.float32, SHAPES)
    drive(optimizer(name, ours, True), ours, 20)
    drive(TORCH[name](theirs), theirs, 20)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_run_goes_on_either_way() -> None:
    for first, then in ((True, False), (False, True)):
        params, whole = parameters(torch.float32, SHAPES), parameters(torch.float32, SHAPES)
        opt = optimizer("adam", params, first)
        drive(opt, params, 4)
        again = optimizer("adam", params, then)
        again.load_state_dict(opt.state_dict())
        drive(again, params, 4, first=4)
        drive(optimizer("adam", whole, True), whole, 8)
        assert all(torch.equal(a, b) for a, b in zip(params, whole, strict=True))


def test_weights_without_a_gradient_are_left_out() -> None:
    params = parameters(torch.float32, SHAPES)
    opt = optimizer("adam", params, True)
    start = params[2].detach().clone()
    for i, p in enumerate(params):
        p.grad = None if i == 2 else torch.ones_like(p)
    opt.step()
    for p in params:
        p.grad = torch.ones_like(p)
    before = opt.state[params[2]]["step"], opt.state[params[3]]["step"]
    assert before == (0, 1) and torch.equal(params[2], start)
    opt.step()
    assert opt.state[params[2]]["step"] == 1 and not torch.equal(params[2], start)


def test_large_and_half_weights_go_alone() -> None:
    state, group = {"step": 1}, {}
    ready = [
        (torch.zeros(3), None, state, group),
        (torch.zeros(200, 200), None, state, group),
        (torch.zeros(3, dtype=torch.bfloat16), None, state, group),
        (torch.zeros(4), None, state, group),
        (torch.zeros(4), None, {"step": 2}, group),
    ]
    assert sorted(len(b) for b in bunches(ready)) == [1, 1, 1, 2]


def test_numbers_and_lists_mix() -> None:
    x = Many([torch.tensor([4.0]), torch.tensor(9.0)])
    for got, want in (
        (1 - x, [-3.0, -8.0]),
        (36 / x, [9.0, 4.0]),
        (2 * x + 1 - x, [5.0, 10.0]),
        (x.sqrt().lerp(x, 0.5), [3.0, 6.0]),
        (x.add(x, alpha=2).sub(x, alpha=0.5), [10.0, 22.5]),
        ((-x).abs().square(), [16.0, 81.0]),
        (x**2, [16.0, 81.0]),
        (x ** x.sqrt(), [16.0, 729.0]),
        (2**x, [16.0, 512.0]),
    ):
        assert [float(t) for t in got.tensors] == want


def test_powers_in_a_rule_of_ones_own() -> None:
    rule = """nestflow 1
    optimizer powers(lr = 0.1) {
      memory v : like(w) { value g ^ 2; update gd(0.1); retain 0.9 }
      step -lr * (g ^ 3 + 2 ^ g) / (v ^ 0.5 + 1)
    }"""
    lists, loop = parameters(torch.float64, SHAPES), parameters(torch.float64, SHAPES)
    for params, many in ((lists, True), (loop, False)):
        opt = nestflow.optimizer(rule, params, foreach=many)
        assert opt.levels[0].elementwise
        drive(opt, params, 5)
    assert all(torch.equal(a, b) for a, b in zip(lists, loop, strict=True))


def test_rules_that_ask_what_a_weight_is_keep_the_loop() -> None:
    for name in ("muon", "adafactor", "m3_ema"):
        assert not nestflow.optimizer(name, parameters()).levels[0].elementwise
