"""Emitted rules against torch.optim's default path on CPU: the same numbers, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nestflow

from .driving import SHAPES, drive, level_optimizer, parameters

BITWISE: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "adam": ("adam", {"lr": 3e-3}, torch.optim.Adam, {"lr": 3e-3}),
    "adam, other constants": (
        "adam",
        {"lr": 1e-2, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
        torch.optim.Adam,
        {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6},
    ),
    "adamw": ("adamw", {"lr": 3e-3, "weight_decay": 0.1}, torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}),
    "sgd": ("sgd", {"lr": 0.05}, torch.optim.SGD, {"lr": 0.05}),
    "sgd, momentum": ("sgd", {"lr": 0.05, "momentum": 0.9}, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "sgd, dampening": (
        "sgd",
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
    ),
    "sgd, decay": (
        "sgd",
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    ),
    "sgd, nesterov": (
        "sgd",
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ),
    "nesterov": (
        "nesterov",
        {"lr": 0.05, "beta": 0.9},
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ),
    "gd": ("gd", {"lr": 0.05}, torch.optim.SGD, {"lr": 0.05}),
    "rmsprop": ("rmsprop", {"lr": 0.01}, torch.optim.RMSprop, {"lr": 0.01}),
    "adagrad": ("adagrad", {"lr": 0.01}, torch.optim.Adagrad, {"lr": 0.01}),
}


def both(case: str, dtype: torch.dtype, steps: int) -> tuple[list[Any], list[Any]]:
    name, settings, make, theirs = BITWISE[case]
    a, b = parameters(dtype), parameters(dtype)
    drive(nestflow.optimizer(name, a, **settings), a, steps)
    drive(make(b, **theirs), b, steps)
    return a, b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", BITWISE)
def test_a_hundred_steps_are_torchs_bit_for_bit(case: str, dtype: torch.dtype) -> None:
    a, b = both(case, dtype, 100)
    for x, y, shape in zip(a, b, SHAPES, strict=True):
        assert torch.equal(x, y), f"{case} {shape}: off by {(x - y).abs().max().item():.1e}"


def test_amsgrad_is_torchs() -> None:
    a, b = parameters(), parameters()
    drive(nestflow.optimizer("amsgrad", a, lr=3e-3), a, 60)
    drive(torch.optim.Adam(b, lr=3e-3, amsgrad=True), b, 60)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)


def test_muon_in_bfloat16_is_torchs() -> None:
    shapes = [(9, 5), (4, 11), (6, 6)]
    a, b = parameters(torch.float32, shapes), parameters(torch.float32, shapes)
    drive(nestflow.optimizer("muon", a, lr=0.02, weight_decay=0.1, half=True), a, 20)
    drive(torch.optim.Muon(b, lr=0.02, weight_decay=0.1), b, 20)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_clipping_by_the_norm_of_all_weights_is_torchs_bit_for_bit(bound: float) -> None:
    opt, weights = level_optimizer(
        f"level a {{ memory weights(net); objective loss; update g |> clip_norm({bound}) |> adamw(1e-2) }}",
        "return rmsnorm(linear(x, 3, bias = true))",
    )
    a = list(weights.values())
    b = [torch.nn.Parameter(w.detach().clone()) for w in a]
    drive(opt, a, 30)
    drive(torch.optim.AdamW(b, lr=1e-2), b, 30, clip=bound)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_half_precision_weights_keep_their_memories_in_float32() -> None:
    """The oracle keeps a float32 copy and rounds it after every step, which is what storing w in bfloat16 means."""
    a = parameters(torch.bfloat16)
    b = [p.detach().float() for p in a]
    opt = nestflow.optimizer("adam", a, lr=1e-2)
    state = [(torch.zeros_like(w), torch.zeros_like(w)) for w in b]
    for t in range(1, 11):
        for p, seed in zip(a, range(4), strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + seed)).to(torch.bfloat16)
        for w, p, (m, v) in zip(b, a, state, strict=True):
            g = p.grad.float()
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            w.sub_(1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
            w.copy_(w.to(torch.bfloat16).float())
        opt.step()
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    for w, p in zip(b, a, strict=True):
        assert opt.state[p]["m"].dtype == torch.float32
        torch.testing.assert_close(p.detach().float(), w, rtol=1e-2, atol=1e-3)


def test_a_parameter_without_gradient_is_left_alone_as_in_torch() -> None:
    a, b = parameters(), parameters()
    ours, theirs = nestflow.optimizer("adamw", a), torch.optim.AdamW(b)
    for t in range(6):
        for p in (a, b):
            for i, w in enumerate(p):
                w.grad = None if (i + t) % 3 == 0 else torch.full_like(w, 0.1 * (t + 1))
        ours.step()
        theirs.step()
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_groups_settings_and_torchs_schedulers_act_as_on_torchs_adamw() -> None:
    def run(make: Any, **extra: Any) -> list[Any]:
        p = parameters()
        opt = make([{"params": p[:2], "lr": 1e-2}, {"params": p[2:], "weight_decay": 0.5}], lr=1e-3, **extra)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
        for t in range(12):
            drive(opt, p, 1, first=t)
            schedule.step()
        return p

    ours = run(lambda groups, **k: nestflow.optimizer("adamw", groups, **k))
    for x, y in zip(ours, run(torch.optim.AdamW), strict=True):
        assert torch.equal(x, y)


def test_a_group_added_later_and_a_closure() -> None:
    a, b = parameters(), parameters()
    ours, theirs = nestflow.optimizer("adam", a[:2], lr=1e-2), torch.optim.Adam(b[:2], lr=1e-2)
    drive(ours, a[:2], 3)
    drive(theirs, b[:2], 3)
    ours.add_param_group({"params": a[2:], "lr": 0.1})
    theirs.add_param_group({"params": b[2:], "lr": 0.1})
    assert ours.param_groups[-1]["names"] == ["2", "3"]

    def closure(opt: torch.optim.Optimizer, p: list[Any]) -> Any:
        def run() -> torch.Tensor:
            opt.zero_grad()
            loss = sum(((w - 1) ** 2).sum() for w in p)
            loss.backward()
            return loss

        return run

    for _ in range(3):
        assert torch.equal(ours.step(closure(ours, a)), theirs.step(closure(theirs, b)))
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)
