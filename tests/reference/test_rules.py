"""Rules on plain parameters: against torch.optim, and against what the words say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.diagnostics.core import NestflowError
from nestflow.ir.rule import Rule
from nestflow.reference import Reference, eval_weights, init_slots, run_rule

from .models import D, T, bare, close, draw, streams

SHAPES = {"a.weight": (3, 4), "b.weight": (4, 2), "b.bias": (2,)}


def rule_of(update: str) -> Rule:
    graph = nestflow.check(
        "nestflow 1\ninput x : float[T, 3]\noutput f(x)\nflow f(x) { return linear(x) }\n"
        f"level outer {{ every 1 step; memory weights(f); objective mean(f(x)); update {update} }}\n"
    )
    (level,) = graph.step_levels
    assert level.rule is not None
    return level.rule


def start() -> dict[str, Tensor]:
    return {p: draw(*s, seed=i) for i, (p, s) in enumerate(SHAPES.items())}


def gradient(step: int) -> dict[str, Tensor]:
    return {p: draw(*s, seed=100 * step + i) for i, (p, s) in enumerate(SHAPES.items())}


def trained(rule: Rule, steps: int, **more: Any) -> tuple[dict[str, Tensor], Any]:
    w = start()
    slots: Any = init_slots(rule, w)
    for t in range(1, steps + 1):
        w, slots = run_rule(rule, w, gradient(t), slots, updates=t, **more)
    return w, slots


TORCH = {
    "gd(0.1)": (torch.optim.SGD, {"lr": 0.1}),
    "sgd(0.1, momentum = 0.9, weight_decay = 0.1)": (
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    ),
    "nesterov(0.1, 0.8)": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam(3e-3)": (torch.optim.Adam, {"lr": 3e-3}),
    "adamw(3e-3, weight_decay = 0.1)": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}),
    "amsgrad(3e-3)": (torch.optim.Adam, {"lr": 3e-3, "amsgrad": True}),
    "rmsprop(0.01)": (torch.optim.RMSprop, {"lr": 0.01}),
    "adagrad(0.01)": (torch.optim.Adagrad, {"lr": 0.01}),
}


@pytest.mark.parametrize("update", TORCH)
def test_is_torchs(update: str) -> None:
    make, settings = TORCH[update]
    params = {p: x.clone().requires_grad_() for p, x in start().items()}
    optimizer = make(list(params.values()), **settings)
    for t in range(1, 21):
        for p, g in gradient(t).items():
            params[p].grad = g
        optimizer.step()
    got, _ = trained(rule_of(update), 20)
    for p in SHAPES:
        close(got[p], params[p].detach(), 1e-11)


def test_clip_norm_is_over_all_weights() -> None:
    w, g = start(), gradient(1)
    got, _ = run_rule(rule_of("g |> clip_norm(0.5) |> gd(1)"), w, g, {p: {} for p in w}, updates=1)
    size = math.sqrt(sum(float(x.square().sum()) for x in g.values()))
    for p in w:
        close(got[p], w[p] - g[p] * 0.5 / (size + 1e-6))


def test_facts_of_a_weight_do_not_see_its_heads() -> None:
    """ndim, rows, cols and norm(w) are those of one head; a clip of slow weights goes over all of them."""
    w = {"w": draw(2, 3, 4)}
    got, _ = run_rule(
        rule_of("-0.1 * w / norm(w) * rows(w) / cols(w) if ndim(w) == 2 else 0 * w"),
        w,
        {"w": draw(2, 3, 4, seed=1)},
        {"w": {}},
        updates=1,
        heads=["w"],
    )
    size = w["w"].flatten(1).norm(dim=1)[:, None, None]
    close(got["w"], w["w"] - 0.1 * w["w"] / size * 3 / 4)
    g = {"w": draw(2, 3, 4, seed=1)}
    clipped, _ = run_rule(rule_of("g |> clip_norm(0.1) |> gd(1)"), w, g, {"w": {}}, updates=1, heads=["w"])
    close((clipped["w"] - w["w"]).norm(), torch.tensor(0.1, dtype=torch.float64), 1e-6)


def test_muon_orthogonalises_each_head() -> None:
    rule, w, g = rule_of("muon(0.1, beta = 0.5)"), {"w": draw(2, 3, 4)}, {"w": draw(2, 3, 4, seed=1)}
    both, _ = run_rule(rule, w, g, init_slots(rule, w, ["w"]), updates=1, heads=["w"])
    for h in range(2):
        one, alone = {"w": w["w"][h]}, {"w": g["w"][h]}
        got, _ = run_rule(rule, one, alone, init_slots(rule, one), updates=1)
        close(both["w"][h], got["w"])
        size = torch.linalg.svdvals((got["w"] - one["w"]) / 0.1)
        assert float(size.min()) > 0.6 and float(size.max()) < 1.3


def test_a_period_sums_between_its_ticks() -> None:
    """m3's slow memory takes the sum of its gradients once in three updates."""
    _, slots = trained(rule_of("m3(0.01, 0.5, 0.1, 0.2, 0.5, period = 3)"), 5)
    for p in SHAPES:
        close(slots[p]["slow"], 0.2 * sum(gradient(t)[p] for t in (1, 2, 3)))
        close(slots[p]["slow.pending"], sum(gradient(t)[p] for t in (4, 5)))


def test_schedule_free_is_read_at_its_average() -> None:
    rule = rule_of("schedule_free(0.1, beta = 0.9)")
    w, slots = trained(rule, 4)
    for p, x in start().items():
        z, mean = x, x
        for t in range(1, 5):
            z = z - 0.1 * gradient(t)[p]
            mean = mean + (z - mean) / t
        close(w[p], 0.1 * z + 0.9 * mean)
        close(eval_weights(rule, w, slots, updates=4)[p], mean)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (
            "cosine(1, warmup = 2, total = 10)",
            {1: 0.5, 2: 1.0, 10: (1 + math.cos(math.pi * 8 / 9)) / 2, 11: 0.0, 50: 0.0},
        ),
        ("linear_decay(1, warmup = 2, total = 10, floor = 0.1)", {2: 1.0, 10: 0.1 + 0.9 / 9, 11: 0.1}),
        ("wsd(1, 2, 3, 4)", {1: 0.5, 2: 1.0, 5: 1.0, 7: 0.5, 9: 0.0, 20: 0.0}),
    ],
)
def test_schedules(schedule: str, wanted: dict[int, float]) -> None:
    """s counts ticks from 1; the last update of a run still learns."""
    rule, w = rule_of(f"gd({schedule})"), {"w": torch.zeros(1, dtype=torch.float64)}
    for s, rate in wanted.items():
        got, _ = run_rule(rule, w, {"w": -torch.ones(1, dtype=torch.float64)}, {"w": {}}, updates=s)
        assert got["w"].item() == pytest.approx(rate, abs=1e-12)


def test_a_schedule_without_a_length_says_so() -> None:
    rule, w = rule_of("gd(cosine(1))"), {"w": torch.zeros(1)}
    with pytest.raises(NestflowError, match="length of the run"):
        run_rule(rule, w, w, {"w": {}}, updates=1)
    got, _ = run_rule(rule, w, {"w": -torch.ones(1)}, {"w": {}}, updates=11, run_length=10)
    assert abs(got["w"].item()) < 1e-6


def test_dgd_needs_the_inputs_of_a_weight() -> None:
    """With K the exact step; a tensor without an input takes plain gradient descent."""
    rule, w, g, k = rule_of("dgd(0.2)"), start(), gradient(1), draw(5, 4, seed=9)
    got, _ = run_rule(rule, w, g, {p: {} for p in w}, updates=1, gram={"a.weight": k.T @ k})
    eta = 0.2 / (1 + 0.2 * k.square().sum())
    close(got["a.weight"], w["a.weight"] - eta * (w["a.weight"] @ k.T @ k + g["a.weight"]))
    close(got["b.bias"], w["b.bias"] - 0.2 * g["b.bias"])


def test_debias_with_a_retain_that_varies_divides_by_the_running_product() -> None:
    """An average whose weights sum to one: of a constant gradient it is that gradient."""
    text = (
        "optimizer steady(lr, keep) { memory m : like(w) { value g; update gd(1 - keep); retain keep } "
        "; step -lr * debias(m) }"
    )
    graph = nestflow.check(
        f"nestflow 1\n{text}\ninput k : float[T, 3]\ninput v : float[T, 3]\ninput r : float[T, 1]\n"
        "output mem(k, v, r)\n"
        "level mem(k, v, r) { every 1 token; memory matrix; key k; value v; query k; objective dot; "
        "update steady(0.1, sigmoid(r)) }\n"
    )
    k, v = (draw(1, 1, D, seed=i).expand(1, T, D) for i in (1, 2))
    r = draw(1, T, 1, seed=3)
    for t, state in enumerate(Reference(graph, {}).trace(k=k, v=v, r=r), 1):
        close(state["mem.memory.weight"][0], 0.1 * t * v[0, 0, :, None] * k[0, 0])


def test_inner_rules_clip_one_copy_at_a_time() -> None:
    """Under heads and rows each copy has a norm of its own, over all its tensors."""
    graph = bare(
        "memory mlp(depth = 2, expand = 1); key split_heads(k); value split_heads(v); query split_heads(q); "
        "objective l2; update g |> clip_norm(0.01) |> gd(1)"
    )
    weights = {w.path: draw(*w.full_shape, seed=i) for i, w in enumerate(graph.weights)}
    ref, inputs = Reference(graph, weights), streams(ticks=1)
    before = ref.initial_state(2)
    (after,) = ref.trace(**inputs)
    moved = torch.cat([(after[p] - before[p]).flatten(2) for p in before if p != "@t"], -1).norm(dim=-1)
    close(moved, torch.full_like(moved, 0.01), 1e-5)
