"""The optimizer of a level graph: periods, schedules, groups, clipping, resume, evaluation, what it refuses."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nestflow.diagnostics.core import NestflowError
from tests.oracles.optim import newton_schulz

from .driving import draw, drive, feed, level_optimizer

TWO = """
level fast { every 1 step;  memory weights(net, "up.**"); objective loss; update sgd(0.1, momentum = 0.9) }
level slow { every 3 steps; memory rest(net); objective loss; update SLOW }
"""
BODY = 'return linear(silu(linear(x, 5, name = "up")), 3, name = "down")'


def two(slow: str = "adam(1e-2)", **settings: Any) -> tuple[Any, dict[str, nn.Parameter]]:
    return level_optimizer(TWO.replace("SLOW", slow), BODY, **settings)


def test_a_slow_level_learns_from_the_sum_of_its_ticks() -> None:
    opt, weights = two()
    up, down = weights["net.up.weight"], weights["net.down.weight"]
    oracle_up, oracle_down = (nn.Parameter(w.detach().clone()) for w in (up, down))
    sgd, adam = torch.optim.SGD([oracle_up], lr=0.1, momentum=0.9), torch.optim.Adam([oracle_down], lr=1e-2)
    total = torch.zeros_like(down)
    for t in range(10):
        before = down.detach().clone()
        feed(opt, weights, 1, first=t)
        oracle_up.grad, grad_down = draw(1000 + t, [tuple(w.shape) for w in (up, down)])
        sgd.step()
        total += grad_down
        if (t + 1) % 3 == 0:
            oracle_down.grad, total = total, torch.zeros_like(down)
            adam.step()
        else:
            assert torch.equal(down, before)
        assert torch.equal(up, oracle_up) and torch.equal(down, oracle_down)
        assert opt.report() == {
            "fast": {"updated": True, "every": 1, "updates": t + 1},
            "slow": {"updated": (t + 1) % 3 == 0, "every": 3, "updates": (t + 1) // 3},
        }


def test_g_over_n_ticks_is_the_mean_over_ticks_that_brought_a_gradient() -> None:
    opt, weights = two("(g / n_ticks) |> gd(0.5)")
    down = weights["net.down.weight"]
    start = down.detach().clone()
    grads = draw(3, [tuple(down.shape)] * 2)
    for g in (grads[0], None, grads[1]):
        down.grad = g
        opt.step()
        opt.zero_grad()
    torch.testing.assert_close(down.detach(), start - 0.5 * (grads[0] + grads[1]) / 2, rtol=1e-13, atol=1e-13)


def test_no_gradient_in_a_whole_period_changes_nothing() -> None:
    opt, weights = two("adamw(1e-2, weight_decay = 0.5)")
    down = weights["net.down.weight"]
    feed(opt, weights, 3)
    before, state = down.detach().clone(), copy.deepcopy(opt.state[down])
    for _ in range(3):
        opt.step()
    assert torch.equal(down, before) and opt.state[down]["step"] == state["step"] == 1
    assert torch.equal(opt.state[down]["m"], state["m"]) and opt.report()["slow"] == {
        "updated": False,
        "every": 3,
        "updates": 1,
    }


def cosine(s: int, peak: float, warmup: int, total: int, floor: float, n: int) -> float:
    if s <= warmup:
        return peak * s / warmup
    if s >= total + n:
        return floor
    return floor + (peak - floor) * (1 + math.cos(math.pi * (s - warmup) / (total + n - warmup))) / 2


def test_a_cosine_counts_ticks_and_is_written_to_the_group() -> None:
    opt, weights = two("gd(cosine(0.4, warmup = 4, floor = 0.1))")
    with pytest.raises(NestflowError, match="NF540"):
        feed(opt, weights, 5)
    opt, weights = two("gd(cosine(0.4, warmup = 4, floor = 0.1))", total_steps=20)
    group = next(g for g in opt.param_groups if g["level"] == "slow")
    down = weights["net.down.weight"]
    total = torch.zeros_like(down)
    for t in range(26):
        want = cosine(t + 1, 0.4, 4, 20, 0.1, 3)
        before = down.detach().clone()
        feed(opt, weights, 1, first=t)
        assert group["lr"] == pytest.approx(want, abs=1e-15)
        total += draw(1000 + t, [tuple(w.shape) for w in weights.values()])[1]
        if (t + 1) % 3 == 0:
            torch.testing.assert_close(down.detach(), before - want * total, rtol=1e-12, atol=1e-12)
            total = torch.zeros_like(down)


def test_linear_decay_and_wsd() -> None:
    straight, _ = level_optimizer(
        "level a { memory weights(net); objective loss; update gd(linear_decay(1, warmup = 2, total = 8)) }"
    )
    up_and_down, weights = level_optimizer(
        "level a { memory weights(net); objective loss; update gd(wsd(1, 2, 3, 4)) }"
    )
    seen: list[list[float]] = [[], []]
    for t in range(10):
        for i, opt in enumerate((straight, up_and_down)):
            for p in weights.values():
                p.grad = torch.zeros_like(p)
            opt.step()
            seen[i].append(opt.param_groups[0]["lr"])
        assert t == straight.param_groups[0]["ticks"] - 1
    assert seen[0] == pytest.approx([0.5, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0, 0])
    assert seen[1] == pytest.approx([0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])


def test_a_schedule_inside_a_step_is_an_argument_too() -> None:
    opt, weights = level_optimizer(
        "level a { memory weights(net); objective loss; update -cosine(0.4, warmup = 2, total = 9) * g }"
    )
    (w,) = weights.values()
    want = w.detach().clone()
    feed(opt, weights, 6)
    for t in range(6):
        want = want - cosine(t + 1, 0.4, 2, 9, 0.0, 1) * draw(1000 + t, [tuple(w.shape)])[0]
    torch.testing.assert_close(w.detach(), want, rtol=1e-12, atol=1e-12)
    assert opt.param_groups[0]["lr"] == pytest.approx(cosine(6, 0.4, 2, 9, 0.0, 1))


def test_weights_are_grouped_by_what_the_rule_says_of_them() -> None:
    opt, weights = level_optimizer(
        "level a { memory weights(net); objective loss; "
        "update adamw(1e-2, weight_decay = 0.1 if ndim(w) >= 2 else 0) }",
        "return rmsnorm(linear(x, 3, bias = true))",
    )
    groups = {tuple(g["names"]): g["weight_decay"] for g in opt.param_groups}
    assert groups == {("net.linear.weight",): 0.1, ("net.linear.bias", "net.rmsnorm.weight"): 0}
    oracle = [nn.Parameter(w.detach().clone()) for w in weights.values()]
    torchs = torch.optim.AdamW(
        [{"params": oracle[:1], "weight_decay": 0.1}, {"params": oracle[1:], "weight_decay": 0.0}], lr=1e-2
    )
    feed(opt, weights, 20)
    drive(torchs, oracle, 20)
    for w, o in zip(weights.values(), oracle, strict=True):
        assert torch.equal(w, o)


def test_two_levels_clip_apart() -> None:
    opt, weights = level_optimizer(
        TWO.replace("sgd(0.1, momentum = 0.9)", "g |> clip_norm(0.5) |> gd(0.1)")
        .replace("3 steps", "1 step")
        .replace("SLOW", "g |> clip_norm(2) |> gd(0.1)"),
        BODY,
    )
    want = [w.detach().clone() for w in weights.values()]
    feed(opt, weights, 1)
    for w, start, g, bound in zip(
        weights.values(), want, draw(1000, [tuple(w.shape) for w in want]), (0.5, 2.0), strict=True
    ):
        torch.testing.assert_close(
            w.detach(), start - 0.1 * g * min(1.0, bound / (float(g.norm()) + 1e-6)), rtol=1e-12, atol=1e-12
        )


HEADS = """level mix(x) {
  every 1 token; heads 2
  memory matrix; key x |> linear(3); value x |> linear(3); query x |> linear(3)
  objective dot; update gd(0.1); return y |> rmsnorm |> merge_heads |> linear(4)
}
level a { memory weights(net); objective loss; update RULE }"""


def test_a_weight_with_heads_is_many_weights_to_the_rule() -> None:
    """Newton-Schulz, rows and ndim see each head's matrix; a head's gain is a vector."""
    opt, weights = level_optimizer(
        HEADS.replace("RULE", "muon(0.1, weight_decay = 0.5 if ndim(w) >= 2 else 0)"), "return x + mix(x)"
    )
    start = {n: w.detach().clone() for n, w in weights.items()}
    shapes = {n: tuple(w.shape) for n, w in weights.items()}
    feed(opt, weights, 1)
    grads = dict(zip(weights, draw(1000, shapes.values()), strict=True))
    heads, gains = 0, 0
    for n, w in weights.items():
        if len(shapes[n]) == 3:
            heads += 1
            scale = math.sqrt(max(1.0, shapes[n][1] / shapes[n][2]))
            want = torch.stack(
                [s * (1 - 0.05) - 0.1 * scale * newton_schulz(g) for s, g in zip(start[n], grads[n], strict=True)]
            )
        elif n.endswith("rmsnorm.weight"):
            gains += 1
            # momentum is 0.05 g and nesterov's n is 0.05 g + 0.95 · 0.05 g; rows/cols of the head's vector of 3 is 3
            want = start[n] - 0.1 * math.sqrt(3) * 0.0975 * grads[n]
        else:
            continue
        torch.testing.assert_close(w.detach(), want, rtol=1e-10, atol=1e-10)
    assert heads == 3 and gains == 1


def test_norms_of_one_weight_are_per_head() -> None:
    opt, weights = level_optimizer(HEADS.replace("RULE", "(-0.1 * g) |> trust(0.01)"), "return x + mix(x)")
    start = {n: w.detach().clone() for n, w in weights.items()}
    feed(opt, weights, 1)
    grads = dict(zip(weights, draw(1000, [tuple(w.shape) for w in weights.values()]), strict=True))
    name = next(n for n, w in weights.items() if w.ndim == 3)
    for h in range(2):
        step = -0.1 * grads[name][h]
        scale = min(1.0, 0.01 * float(start[name][h].norm()) / float(step.norm()))
        torch.testing.assert_close(weights[name].detach()[h], start[name][h] + scale * step, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("stop", [4, 6, 7])
def test_resuming_anywhere_in_a_period_is_exact(stop: int, tmp_path: Path) -> None:
    slow = "g |> clip_norm(1) |> m3(cosine(0.1, warmup = 2), 0.9, 0.5, 0.8, 0.7, period = 2)"
    whole, weights = two(slow, total_steps=16)
    feed(whole, weights, 16)
    first, part = two(slow, total_steps=16)
    feed(first, part, stop)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second, again = two(slow)
    with torch.no_grad():
        for n, w in again.items():
            w.copy_(part[n])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    feed(second, again, 16 - stop, first=stop)
    for n, w in again.items():
        assert torch.equal(w, weights[n])
    assert second.report() == whole.report()
    assert [g["lr"] for g in second.param_groups] == [g["lr"] for g in whole.param_groups]


def test_asking_for_the_state_of_a_fresh_optimizer_runs_no_step() -> None:
    """torch.distributed.checkpoint runs a step with zero gradients on an optimizer that has no state yet."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    class Net(nn.Module):
        def __init__(self, weights: dict[str, nn.Parameter]) -> None:
            super().__init__()
            self.up, self.down = nn.Module(), nn.Module()
            self.up.weight, self.down.weight = weights["net.up.weight"], weights["net.down.weight"]

    opt, weights = two("adamw(1e-2, weight_decay = 0.5)")
    before = {n: w.detach().clone() for n, w in weights.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_optimizer_state_dict(Net(weights), opt)
        assert all(g["ticks"] == 0 for g in opt.param_groups)
        assert all(torch.equal(w, before[n]) for n, w in weights.items())
        feed(opt, weights, 4)
        saved = copy.deepcopy(get_optimizer_state_dict(Net(weights), opt))
        other, again = two("adamw(1e-2, weight_decay = 0.5)")
        with torch.no_grad():
            for n, w in again.items():
                w.copy_(weights[n])
        set_optimizer_state_dict(Net(again), other, saved)
    feed(opt, weights, 5, first=4)
    feed(other, again, 5, first=4)
    assert all(torch.equal(w, again[n]) for n, w in weights.items())


def test_settings_reach_the_levels_that_have_them() -> None:
    opt, _ = two("adam(1e-2)", **{"slow.lr": 0.5})
    assert {g["level"]: g["lr"] for g in opt.param_groups} == {"fast": 0.1, "slow": 0.5}
    opt, _ = two("adam(cosine(1e-2))", lr=0.25)
    assert {g["lr"] for g in opt.param_groups} == {0.25}
    with pytest.raises(NestflowError, match=r"NF541.*`wd`"):
        two(wd=0.1)
    with pytest.raises(NestflowError, match="NF541"):
        two(**{"fast.eps": 0.1})


def test_a_fixed_rate_stays_where_a_schedule_would_move_it() -> None:
    opt, weights = two("adam(cosine(1e-2))", lr=0.25, total_steps=5)
    feed(opt, weights, 5)
    assert {g["lr"] for g in opt.param_groups} == {0.25}


def test_different_objectives_cannot_be_stepped_by_hand() -> None:
    opt, weights = level_optimizer(
        """other = mean(net(x) ^ 4)
level a { memory weights(net, "up.**"); objective loss; update gd(0.1) }
level b { memory rest(net); objective other; update gd(0.1) }""",
        BODY,
    )
    with pytest.raises(NestflowError, match="NF542"):
        feed(opt, weights, 1)
    before = weights["net.up.weight"].detach().clone()
    for w in weights.values():
        w.grad = torch.ones_like(w)
    opt._step_levels(["b"])
    assert torch.equal(weights["net.up.weight"], before)
    assert opt.report() == {
        "a": {"updated": False, "every": 1, "updates": 0},
        "b": {"updated": True, "every": 1, "updates": 1},
    }


def test_frozen_levels_are_not_in_it() -> None:
    opt, weights = level_optimizer(
        """level a { memory weights(net, "up.**"); objective loss; update gd(0.1) }
level frozen { every never; memory rest(net) }""",
        BODY,
    )
    assert [g["names"] for g in opt.param_groups] == [["net.up.weight"]]
    before = weights["net.down.weight"].detach().clone()
    feed(opt, weights, 2)
    assert torch.equal(weights["net.down.weight"], before)


def test_missing_weights_and_sparse_gradients_are_told() -> None:
    opt, weights = two()
    with pytest.raises(NestflowError, match=r"NF544.*net.down.weight"):
        type(opt)({"net.up.weight": weights["net.up.weight"]})
    weights["net.up.weight"].grad = torch.ones(5, 4, dtype=torch.float64).to_sparse()
    with pytest.raises(NestflowError, match=r"NF545.*net.up.weight"):
        opt.step()


def test_weights_may_come_as_pairs_or_in_order() -> None:
    opt, weights = two()
    feed(opt, weights, 6)
    for form in (lambda w: list(w.items()), lambda w: list(w.values())):
        other, again = two()
        other = type(opt)(form(again))
        feed(other, again, 6)
        assert all(torch.equal(w, again[n]) for n, w in weights.items())


def test_dgd_takes_the_grams_and_sums_them_over_a_period() -> None:
    opt, weights = level_optimizer(
        "level a { every 2 steps; memory weights(net); objective loss; update dgd(0.5) }",
        "return linear(x, 3, bias = true)",
    )
    weight, bias = weights["net.linear.weight"], weights["net.linear.bias"]
    assert type(opt).needs_inputs == {"net.linear.weight": False}
    with pytest.raises(NestflowError, match=r"NF543.*net.linear.weight"):
        feed(opt, weights, 1)
    opt = type(opt)(weights)
    start, start_bias = weight.detach().clone(), bias.detach().clone()
    grams = [a @ a.T for a in draw(5, [(4, 4), (4, 4)])]
    for t, gram in enumerate(grams):
        opt.input_grams = {"net.linear.weight": gram}
        feed(opt, weights, 1, first=t)
    g, b = (sum(x) for x in zip(*(draw(1000 + t, [(3, 4), (3,)]) for t in range(2)), strict=True))
    gram = grams[0] + grams[1]
    rate = 0.5 / (1 + 0.5 * gram.trace())
    torch.testing.assert_close(weight.detach(), start - rate * (start @ gram + g), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bias.detach(), start_bias - 0.5 * b, rtol=1e-12, atol=1e-12)


def test_an_operation_on_features_is_told_at_its_place() -> None:
    with pytest.raises(NestflowError, match=r"NF547.*`softmax`") as caught:
        level_optimizer("level a { memory weights(net); objective loss; update -0.1 * softmax(g) }")
    span = caught.value.diagnostics[0].span
    assert span is not None and span.text == "softmax(g)"


@pytest.mark.parametrize(
    ("update", "step"),
    [
        ("-0.1 * g / norm_all(g)", lambda w, g: -0.1 * g / g.norm()),
        ("-0.1 * g / total(g * g)", lambda w, g: -0.1 * g / (g * g).sum()),
        ("-0.1 * g / rms(g)", lambda w, g: -0.1 * g / (g * g).mean().sqrt()),
        ("-0.1 * clamp(g, -0.5, 0.5)", lambda w, g: -0.1 * g.clamp(-0.5, 0.5)),
        ("-0.1 * (g if w * g > 0 else 0 * g)", lambda w, g: -0.1 * g * (w * g > 0)),
        ("-0.1 * g @ transpose(g) @ g", lambda w, g: -0.1 * g @ g.T @ g),
        ("2 - w - 0.5 * (w - w0) * rows(w) / cols(w)", lambda w, g: 2 - w),
        ("g |> adam(1e-3) |> clip_norm(0.001)", lambda w, g: -g.sign() * 0.001 / math.sqrt(12)),
        ("-0.1 * max(g, 0.2) / min(abs(w), 3) ^ 2", lambda w, g: -0.1 * g.clamp(min=0.2) / w.abs().clamp(max=3) ** 2),
        ("adam(lr = 0.1 / norm_all(g))", lambda w, g: -g.sign() * 0.1 / g.norm()),
    ],
)
def test_a_step_may_be_any_expression(update: str, step: Any) -> None:
    """One step on one matrix against the same expression in torch."""
    opt, weights = level_optimizer(f"level a {{ memory weights(net); objective loss; update {update} }}")
    (w,) = weights.values()
    want = w.detach() + step(w.detach(), draw(1000, [(3, 4)])[0])
    feed(opt, weights, 1)
    torch.testing.assert_close(w.detach(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "update",
    [
        "-0.1 * rmsnorm(g)",
        "-0.1 * layernorm(g)",
        "-0.1 * outer_product(g, g)",
        "-0.1 * linear(g, 3)",
        "-0.1 * stack(g, w)",
        'newton_schulz(g, dtype = "int8")',
    ],
)
def test_what_a_rule_cannot_use_is_told(update: str) -> None:
    with pytest.raises(NestflowError, match="NF547"):
        level_optimizer(f"level a {{ memory weights(net); objective loss; update {update} }}")


@pytest.mark.parametrize("given", ["[1, 2]", "[[1, 2, 3], [1, 2, 3]]", "[[1, 2, 3], [1, 2]]", "[]"])
def test_coefficients_of_newton_schulz_are_counted(given: str) -> None:
    with pytest.raises(NestflowError, match="NF306"):
        update = f"newton_schulz(g, iters = 3, coefficients = {given})"
        level_optimizer(f"level a {{ memory weights(net); objective loss; update {update} }}")


def test_coefficients_for_each_iteration() -> None:
    """X / ‖X‖, then aX + bAX + cA²X with a triple of its own for each of the two iterations."""
    triples = [[2.0, -1.5, 0.5], [3.0, -2.0, 0.25]]
    update = f"newton_schulz(g, iters = 2, coefficients = {triples})"
    opt, weights = level_optimizer(f"level a {{ memory weights(net); objective loss; update {update} }}")
    before = [w.detach().clone() for w in weights.values()]
    feed(opt, weights, 1)
    grads = draw(1000, [tuple(w.shape) for w in before])
    for w, start, g in zip(weights.values(), before, grads, strict=True):
        tall = g.shape[0] > g.shape[1]
        x = (g.T if tall else g) / g.norm()
        for a, b, c in triples:
            x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
        torch.testing.assert_close(w.detach(), start + (x.T if tall else x))


def test_a_copy_goes_on_alone() -> None:
    opt, weights = two("g |> clip_norm(1) |> adam(cosine(1e-2))", total_steps=12)
    feed(opt, weights, 4)
    other, again = copy.deepcopy((opt, weights))
    feed(opt, weights, 5, first=4)
    assert all(g["ticks"] == 4 for g in other.param_groups)
    feed(other, again, 5, first=4)
    assert all(torch.equal(w, again[n]) for n, w in weights.items())
    assert other.report() == opt.report()
