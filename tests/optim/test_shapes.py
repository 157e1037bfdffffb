"""Optimisers whose memories have shapes of their own: a branch by what a weight is, sums along an axis, matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.diagnostics.core import NestflowError
from nestflow.graph.build import optimizer_rule
from nestflow.reference import init_slots, run_rule

from .driving import draw, drive, parameters

SHAPES = ((5, 7), (7, 3), (6,), (2, 3, 4), (2, 3, 2, 2), ())


def shipped_against_interpreter(name: str, steps: int, shapes: Any = SHAPES, **settings: Any) -> None:
    """The emitted optimizer and the interpreter take the same steps, in float64."""
    rule = optimizer_rule(name, settings)
    params = parameters(shapes=shapes)
    drive(nestflow.optimizer(name, params, **settings), params, steps)
    w = {str(i): x for i, x in enumerate(draw(0, shapes))}
    slots: Any = init_slots(rule, w)
    for t in range(steps):
        g = {str(i): x for i, x in enumerate(draw(1000 + t, shapes))}
        w, slots = run_rule(rule, w, g, slots, updates=t + 1)
    for p, x in zip(params, w.values(), strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adafactor_is_torchs(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype, SHAPES), parameters(dtype, SHAPES)
    settings = {"lr": 0.03, "weight_decay": 0.1}
    drive(nestflow.optimizer("adafactor", ours, floor=torch.finfo(dtype).eps, **settings), ours, 100)
    drive(torch.optim.Adafactor(theirs, foreach=False, **settings), theirs, 100)
    near = 1e-12 if dtype == torch.float64 else 2e-6
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=near, atol=near)


def test_adafactor_keeps_rows_and_columns_only() -> None:
    params = parameters(shapes=[(5, 7), (2, 3, 4), (6,)])
    opt = nestflow.optimizer("adafactor", params)
    kept = [{k: tuple(v.shape) for k, v in opt.state[p].items() if isinstance(v, Tensor)} for p in params]
    assert kept == [{"r": (5, 1), "c": (1, 7)}, {"r": (2, 3, 1), "c": (2, 1, 4)}, {"v": (6,)}]


@pytest.mark.parametrize("name", ["adafactor", "m3_ema"])
def test_compiled_is_interpreted(name: str) -> None:
    shipped_against_interpreter(name, 12)


def m3_ema(g: list[Tensor], period: int) -> list[Tensor]:
    """m3 with averages, written out: the steps from these gradients."""

    def orthogonal(x: Tensor) -> Tensor:
        y = x / max(float(x.norm()), 1e-7)
        for _ in range(5):
            gram = y @ y.T
            y = 3.4445 * y + (-4.7750 * gram + 2.0315 * gram @ gram) @ y
        return y

    fast = power = slow = torch.zeros_like(g[0])
    steps, waiting = [], torch.zeros_like(g[0])
    for t, x in enumerate(g, 1):
        fast, power = 0.9 * fast + 0.1 * x, 0.999 * power + 0.001 * x * x
        ratio = (power / (1 - 0.999**t)).sqrt() + 1e-8
        steps.append(-0.01 * (orthogonal(fast) + 0.5 * orthogonal(slow)) / ratio)
        waiting = waiting + x / period
        if t % period == 0:
            slow, waiting = 0.9 * slow + 0.1 * waiting, torch.zeros_like(x)
    return steps


def test_m3_ema_is_written_out() -> None:
    params = parameters(shapes=[(5, 7)])
    drive(nestflow.optimizer("m3_ema", params, lr=0.01, alpha=0.5, period=4), params, 20)
    w = draw(0, [(5, 7)])[0]
    for step in m3_ema([draw(1000 + t, [(5, 7)])[0] for t in range(20)], 4):
        w = w + step
    torch.testing.assert_close(params[0].detach(), w, rtol=1e-9, atol=1e-9)


def own(tmp_path: Path, body: str, slots: str = "lr") -> str:
    path = tmp_path / "mine.nl"
    path.write_text(f"nestflow 1\noptimizer mine({slots}) {{\n{body}\n}}\n")
    return str(path)


def after(spec: str, steps: int = 3, shapes: Any = ((4, 3), (5,)), **settings: Any) -> list[Tensor]:
    params = parameters(shapes=shapes)
    drive(nestflow.optimizer(spec, params, **settings), params, steps)
    return [p.detach() for p in params]


def test_each_weight_runs_its_branch(tmp_path: Path) -> None:
    spec = own(
        tmp_path,
        """
        if ndim(w) >= 2 {
          memory m : like(w) { value g; update gd(1); retain 0.5 }
          step -lr * m
        } else {
          step -2 * lr * g
        }
        memory n : like(w) { value g; update gd(1) }
        step -lr * n
        """,
    )
    matrix, vector = after(spec, lr=0.1)
    g = [draw(1000 + t, [(4, 3), (5,)]) for t in range(3)]
    w, v = draw(0, [(4, 3), (5,)])
    m = torch.zeros_like(w)
    sums = [torch.zeros_like(w), torch.zeros_like(v)]
    for a, b in g:
        m = 0.5 * m + a
        sums = [sums[0] + a, sums[1] + b]
        w, v = w - 0.1 * m - 0.1 * sums[0], v - 0.2 * b - 0.1 * sums[1]
    torch.testing.assert_close([matrix, vector], [w, v], rtol=1e-12, atol=1e-12)
    shipped_against_interpreter(spec, 4, lr=0.1)


def test_a_name_keeps_what_it_was_before_a_step(tmp_path: Path) -> None:
    spec = own(tmp_path, "size = norm(w)\nhalf = w / 2\nstep -lr * w\nstep -0.01 * size * half + 0 * g")
    for got, w in zip(after(spec, 1, lr=0.5), draw(0, [(4, 3), (5,)]), strict=True):
        torch.testing.assert_close(got, 0.5 * w - 0.01 * w.norm() * w / 2, rtol=1e-12, atol=1e-12)
    shipped_against_interpreter(spec, 3, lr=0.1)


def test_an_optimiser_with_branches_inside_another(tmp_path: Path) -> None:
    spec = own(tmp_path, "step adafactor(lr) / 2 + adafactor(lr) / 2")
    for a, b in zip(after(spec, 5, SHAPES, lr=0.1), after("adafactor", 5, SHAPES, lr=0.1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


WRONG = {
    "if norm(g) > 1 { step -lr * g }": "NF302",
    "memory m : matrix(rows(w)) { value g; update gd(1) }\nstep -lr * g": "NF226",
    "memory m : matrix(lr, 2) { value g; update gd(1) }\nstep -lr * g": "NF302",
    "memory m : like(rows(w)) { value g; update gd(1) }\nstep -lr * g": "NF226",
    "memory m : vector(rows(w)) { value g; update gd(1) }\nstep -lr * g": "NF301",
    "memory m : matrix(rows(w), rows(w)) { value g @ transpose(g); update gd(1) }\nstep -lr * m": "NF301",
    "step -lr * mean(g, axis = 0)": "NF308",
}


@pytest.mark.parametrize("body", WRONG)
def test_mistakes_in_shapes_are_told(body: str, tmp_path: Path) -> None:
    with pytest.raises(NestflowError) as caught:
        nestflow.optimizer(own(tmp_path, body), parameters(), lr=0.1)
    assert [d.code for d in caught.value.diagnostics] == [WRONG[body]]
