"""Optimisers whose memories have shapes of their own: a branch by what a weight is, sums along an axis, matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.bundle.optimizer import rule_class
from nestflow.bundle.step_optimizer import StepOptimizer
from nestflow.diagnostics.core import NestflowError
from nestflow.graph.build import optimizer_rule
from nestflow.reference import init_slots, run_rule
from tests.oracles.optim import newton_schulz

from .driving import draw, drive, parameters

SHAPES = ((5, 7), (7, 3), (6,), (2, 3, 4), (2, 3, 2, 2), ())


def shipped_against_interpreter(name: str, steps: int, shapes: Any = SHAPES, **settings: Any) -> None:
    """The emitted optimizer and the interpreter take the same steps, in float64."""
    rule = optimizer_rule(name, settings)
    params = parameters(shapes=shapes)
    drive(nestflow.optimizer(name, params, **settings), params, steps)
    w = start = {str(i): x for i, x in enumerate(draw(0, shapes))}
    slots: Any = init_slots(rule, w)
    for t in range(steps):
        g = {str(i): x for i, x in enumerate(draw(1000 + t, shapes))}
        w, slots = run_rule(rule, w, g, slots, updates=t + 1, w0=start)
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

    fast = power = slow = torch.zeros_like(g[0])
    steps, waiting = [], torch.zeros_like(g[0])
    for t, x in enumerate(g, 1):
        fast, power = 0.9 * fast + 0.1 * x, 0.999 * power + 0.001 * x * x
        ratio = (power / (1 - 0.999**t)).sqrt() + 1e-8
        steps.append(-0.01 * (newton_schulz(fast) + 0.5 * newton_schulz(slow)) / ratio)
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


def power(x: Tensor, p: float) -> Tensor:
    """A symmetric matrix to a power, by its singular values."""
    u, s, _ = torch.linalg.svd(x)
    return u @ torch.diag(s**p) @ u.T


def shampoo(w: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
    if w.ndim < 2:
        s["v"] = s.get("v", 1e-4) + g * g
        return w - 0.1 * g / s["v"].sqrt()
    x = g.reshape(len(g), -1)
    s["L"] = s.get("L", 1e-4 * torch.eye(len(x), dtype=x.dtype)) + x @ x.T
    s["R"] = s.get("R", 1e-4 * torch.eye(x.shape[1], dtype=x.dtype)) + x.T @ x
    if t % 4 == 1:
        s["roots"] = power(s["L"], -0.25), power(s["R"], -0.25)
    left, right = s["roots"]
    return w - 0.1 * (left @ x @ right).reshape(w.shape)


def soap(w: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
    """As its authors write it: the first step only fills L and R, a basis is turned after the step."""
    mix = lambda a, b: b if a is None else 0.95 * a + 0.05 * b  # noqa: E731
    left, right = 0.05 * g @ g.T, 0.05 * g.T @ g
    if t == 1:
        s.update(L=left, R=right, m=0.0, v=0.0)
        s["U"], s["V"] = (torch.linalg.eigh(x)[1] for x in (left, right))
        return w
    seen = s["U"].T @ g @ s["V"]
    s["m"], s["v"] = mix(s["m"], g), mix(s["v"], seen * seen)
    n = t - 1
    scaled = s["U"].T @ s["m"] @ s["V"] / (s["v"].sqrt() + 1e-8)
    w = w - 0.01 * (1 - 0.95**n) ** 0.5 / (1 - 0.95**n) * (s["U"] @ scaled @ s["V"].T)
    s["L"], s["R"] = 0.95 * s["L"] + left, 0.95 * s["R"] + right
    if n % 4 == 0:
        for basis, kept in (("U", "L"), ("V", "R")):
            q, r = torch.linalg.qr(
                (s[kept] + 1e-6 * s[kept].trace() * torch.eye(len(s[kept]), dtype=g.dtype)) @ s[basis]
            )
            s[basis] = q * torch.sign(torch.diagonal(r))
    return w


def delta_momentum(w: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
    """The gradient of ½‖m uᵀ − I‖² by autograd; a vector is one row."""
    x = g.reshape(len(g), -1) if g.ndim >= 2 else g.reshape(1, -1)
    u = x / x.norm()
    m = s.get("m", torch.zeros_like(x)).requires_grad_()
    error = m @ u.T - torch.eye(len(x), dtype=x.dtype)
    (slope,) = torch.autograd.grad((error * error).sum() / 2, m)
    s["m"] = (0.8 * m - 0.5 * slope).detach()
    return w - 0.03 * s["m"].reshape(w.shape)


LOOPS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "shampoo": (shampoo, {"lr": 0.1, "period": 4}, SHAPES),
    # where L or R is singular, a basis of the rest is any: the loop and torch would choose different ones
    "soap": (soap, {"lr": 0.01, "period": 4}, ((6, 6), (4, 4))),
    "delta_momentum": (delta_momentum, {"lr": 0.03, "alpha": 0.8, "eta": 0.5}, SHAPES),
}


@pytest.mark.parametrize("name", LOOPS)
def test_matrices_as_memories_are_their_equations(name: str) -> None:
    loop, settings, shapes = LOOPS[name]
    params, weights = parameters(shapes=shapes), draw(0, shapes)
    states: list[dict[str, Any]] = [{} for _ in weights]
    opt = nestflow.optimizer(name, params, **settings)
    for t in range(1, 101):
        drive(opt, params, 1, first=t)
        gradients = draw(1000 + t, shapes)
        weights = [loop(w, g, s, t) for w, g, s in zip(weights, gradients, states, strict=True)]
    for p, w in zip(params, weights, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-7, atol=1e-7)
    shipped_against_interpreter(name, 12, shapes, **settings)


@pytest.mark.parametrize("name", LOOPS)
def test_single_precision_and_resume(name: str) -> None:
    """float32 stays near float64, and a run that goes on from its state is the run that never stopped."""
    _, settings, shapes = LOOPS[name]
    exact, params = parameters(shapes=shapes), parameters(torch.float32, shapes)
    drive(nestflow.optimizer(name, exact, **settings), exact, 10)
    opt = nestflow.optimizer(name, params, **settings)
    drive(opt, params, 5)
    again = nestflow.optimizer(name, params, **settings)
    again.load_state_dict(opt.state_dict())
    drive(again, params, 5, first=5)
    whole = parameters(torch.float32, shapes)
    drive(nestflow.optimizer(name, whole, **settings), whole, 10)
    for a, b, c in zip(params, whole, exact, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a.detach().double(), c.detach(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["shampoo", "delta_momentum", "adafactor"])
def test_a_weight_under_heads_is_h_weights(name: str) -> None:
    settings = {"lr": 0.1}
    heads, alone = draw(0, [(3, 4, 5)])[0], []
    rule = optimizer_rule(name, settings)
    g = [draw(9 + t, [(3, 4, 5)])[0] for t in range(5)]
    for h in range(3):
        w = {"w": heads[h]}
        slots: Any = init_slots(rule, w)
        for t in range(5):
            w, slots = run_rule(rule, w, {"w": g[t][h]}, slots, updates=t + 1)
        alone.append(w["w"])
    w, slots = {"w": heads}, init_slots(rule, {"w": heads}, ["w"])
    for t in range(5):
        w, slots = run_rule(rule, w, {"w": g[t]}, slots, updates=t + 1, heads=["w"])
    torch.testing.assert_close(w["w"], torch.stack(alone), rtol=1e-10, atol=1e-10)
    level = rule_class(rule).levels[0]
    param = torch.nn.Parameter(heads.clone())
    opt = type("Heads", (StepOptimizer,), {"levels": (type("H", (level,), {"per_head": frozenset(["w"])}),)})(
        [("w", param)], **settings
    )
    for x in g:
        param.grad = x
        opt.step()
    torch.testing.assert_close(param.detach(), torch.stack(alone), rtol=1e-10, atol=1e-10)


def test_norms_over_all_weights_above_a_branch(tmp_path: Path) -> None:
    """A name taken above the `if`, and a clipped gradient that goes into an optimiser with branches."""
    branches = "if ndim(w) >= 2 { step -lr * g / size } else { step -2 * lr * g / size }"
    named = own(tmp_path, f"size = norm_all(g)\n{branches}")
    matrix, vector = after(named, 1, lr=0.1)
    g = draw(1000, [(4, 3), (5,)])
    size = torch.cat([x.flatten() for x in g]).norm()
    w = draw(0, [(4, 3), (5,)])
    torch.testing.assert_close([matrix, vector], [w[0] - 0.1 * g[0] / size, w[1] - 0.2 * g[1] / size])
    shipped_against_interpreter(named, 3, lr=0.1)
    inside = own(tmp_path, "step g |> clip_norm(0.5) |> shampoo(lr)")
    shipped_against_interpreter(inside, 4, lr=0.1)


def test_a_rule_that_does_not_fit_a_parameter_is_told(tmp_path: Path) -> None:
    spec = own(
        tmp_path, "memory m : matrix(rows(w), rows(w)) { value g @ transpose(g); update gd(1) }\nstep -lr * (m @ g)"
    )
    assert len(after(spec, 2, [(4, 3)], lr=0.1)) == 1
    with pytest.raises(NestflowError) as caught:
        after(spec, 1, [(4, 3), (5,)], lr=0.1)
    (d,) = caught.value.diagnostics
    assert d.code == "NF301" and d.span is not None and "[5]" in d.message


@pytest.mark.parametrize("name", ["shampoo", "soap", "muon", "m3_ema"])
def test_weights_without_numbers_are_left_alone(name: str) -> None:
    """Networks have them: a table of no rows. Rules of matrices have no root or norm of such a weight."""
    shapes = [(0, 3), (3, 0), (0,), (4, 3)]
    params = parameters(shapes=shapes)
    drive(nestflow.optimizer(name, params), params, 3)
    alone = parameters(shapes=shapes)[3:]
    opt = nestflow.optimizer(name, alone)
    for t in range(3):
        alone[0].grad = draw(1000 + t, shapes)[3]
        opt.step()
    assert torch.equal(params[3], alone[0])


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_a_gradient_that_is_not_finite_is_no_traceback(name: str) -> None:
    """LAPACK refuses its matrices. The weight becomes NaN, as Adam's does, and the loss tells it (NF526)."""
    params = parameters(shapes=[(4, 3), (3, 4)])
    opt = nestflow.optimizer(name, params, period=1)
    for _ in range(3):
        params[0].grad, params[1].grad = torch.full((4, 3), torch.inf).double(), draw(0, [(3, 4)])[0]
        opt.step()
    assert params[0].isnan().all() and params[1].isfinite().all()


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_a_period_of_zero_is_told(name: str) -> None:
    with pytest.raises(NestflowError, match=r"`period` of `[a-z]+` is at least 1, and this is 0"):
        nestflow.optimizer(name, parameters(), period=0)
