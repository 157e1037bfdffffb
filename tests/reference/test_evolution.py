"""`es(e, sigma, pairs)`: its gradient against a plain loop with draws in plain integers, compiled = interpreted, and
what cannot stand beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow
from nestflow.diagnostics.core import NestflowError
from nestflow.reference.slow import Slow
from tests.reference.test_chance import draw

SEED = 5
NET = """nestflow 1
input x : float[3]
input label : int in [0, 3)
output net(x)
flow net(x) { return x |> linear(4) |> tanh |> linear(3) }
loss = cross_entropy(net(x), label)
"""
READER = """nestflow 1
input x : float[T, 4]
output model(x)
level store(x) {
  every 1 token; chunk 2; heads 2; memory matrix; key x |> linear(2) |> l2norm; value linear(x, 2); query linear(x, 2)
  objective l2; update gd(0.5); init learned(normal(0.1)); return merge_heads(y) |> linear(4)
}
flow model(x) { h = dropout(x + store(x), 0.1); emit size = mean(h * h); return linear(h) }
level outer { every 1 step; memory weights(model); update adam(0.01)
  objective es(mean(square(model(x))) + 0.1 * emitted(size), sigma = 0.05, pairs = 2) + 0.01 * total(outer ^ 2) }
"""
MAML = """nestflow 1
input support.x : float[N, 4]
input support.goal : float[N, 2]
input query.x : float[N, 4]
input query.goal : float[N, 2]
output task(query.x)
flow net(x) { return x |> linear(3) |> tanh |> linear(2) }
level task { per task; memory net; init meta; reset each(step); rounds 2; update gd(0.1)
  objective mean(square_distance(task(support.x), support.goal)) }
level meta { every 1 step; memory weights(net); update gd(0.1)
  objective es(mean(square_distance(task(query.x), query.goal)), sigma = 0.05, pairs = 2) }
"""


def noise(path: str, step: int, pair: int, shape: tuple[int, ...]) -> Tensor:
    count = torch.Size(shape).numel()
    flat = [draw(SEED, f"es:{path}", step, pair, 1, 0, j)[1] for j in range(count)]
    return torch.tensor(flat, dtype=torch.float64).reshape(shape)


def estimate(e: Callable[[dict[str, Tensor]], Tensor], w: dict[str, Tensor], step: int, sigma: float, pairs: int):
    """The equation, a pair at a time."""
    g = {p: torch.zeros_like(x) for p, x in w.items()}
    for i in range(pairs):
        eps = {p: noise(p, step, i, tuple(x.shape)) for p, x in w.items()}
        up = e({p: x + sigma * eps[p] for p, x in w.items()})
        down = e({p: x - sigma * eps[p] for p, x in w.items()})
        g = {p: g[p] + (up - down) * eps[p] / (2 * sigma * pairs) for p in w}
    return g


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(6, 3, generator=g, dtype=torch.float64), "label": torch.randint(0, 3, (6,), generator=g)}


def plain(w: dict[str, Tensor]) -> Tensor:
    b = batch()
    h = torch.tanh(F.linear(b["x"], w["net.linear.weight"]))
    return F.cross_entropy(F.linear(h, w["net.linear_2.weight"]), b["label"])


@pytest.mark.parametrize("piped", [False, True])
def test_a_step_is_that_of_the_equation(piped: bool) -> None:
    objective = "loss |> es(0.1, 3)" if piped else "es(loss, sigma = 0.1, pairs = 3)"
    level = f"level outer {{ every 1 step; memory weights(net); objective {objective}; update gd(0.2) }}"
    b = nestflow.compile(NET + level, dtype="float64", seed=SEED)
    w = {p: x.detach().clone() for p, x in b.module.weights.items()}
    for step in (1, 2, 3):
        loss = plain(w)
        g = estimate(plain, w, step, 0.1, 3)
        w = {p: x - 0.2 * g[p] for p, x in w.items()}
        torch.testing.assert_close(b.step(batch())["loss"], float(loss), rtol=1e-10, atol=0)
        for p, x in b.module.weights.items():
            torch.testing.assert_close(x.detach(), w[p], rtol=1e-9, atol=1e-12)
    h = torch.tanh(F.linear(batch()["x"], w["net.linear.weight"]))
    right = (F.linear(h, w["net.linear_2.weight"]).argmax(-1) == batch()["label"]).sum()
    assert [int(n) for n in b.module.metrics(**batch())["accuracy of outer"]] == [int(right), 6]


def test_levels_of_one_objective_are_disturbed_together_and_others_are_not() -> None:
    text = NET + (
        "guess = es(loss, 0.1, 2)\n"
        'level first { every 1 step; memory weights(net, "linear.**"); objective guess; update gd(1) }\n'
        'level second { every 1 step; memory weights(net, "linear_2.**"); objective guess; update gd(2) }\n'
    )
    b = nestflow.compile(text, dtype="float64", seed=SEED)
    w = {p: x.detach().clone() for p, x in b.module.weights.items()}
    g = estimate(plain, w, 1, 0.1, 2)
    b.step(batch())
    for (p, x), rate in zip(b.module.weights.items(), (1, 2), strict=True):
        torch.testing.assert_close(x.detach(), w[p] - rate * g[p], rtol=1e-9, atol=1e-12)
    alone = nestflow.compile(text.replace("second { every 1 step", "second { every never").replace(
        "; objective guess; update gd(2)", ""), dtype="float64", seed=SEED)  # fmt: skip
    alone.step(batch())
    own = "net.linear.weight"
    g = estimate(lambda one: plain({**w, **one}), {own: w[own]}, 1, 0.1, 2)
    torch.testing.assert_close(alone.module.weights[own].detach(), w[own] - g[own], rtol=1e-9, atol=1e-12)


def test_it_learns_from_an_objective_without_a_gradient() -> None:
    """How many are wrong is flat almost everywhere: its own gradient is 0."""
    text = """nestflow 1
input x : float[2]
output net(x)
flow net(x) { return sum(x |> linear(1)) }
wrong = mean(0.0 if net(x) > 0 else 1.0)
level outer { every 1 step; memory weights(net); objective es(wrong, sigma = 1, pairs = 16); update gd(1) }
"""
    b = nestflow.compile(text, dtype="float64", seed=SEED)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    with torch.no_grad():  # it begins on the wrong side
        next(iter(b.module.weights.values())).fill_(1.0)
    assert b.step({"x": x})["loss"] > 0.9
    for _ in range(20):
        last = b.step({"x": x})["loss"]
    assert last < 0.1


@pytest.mark.parametrize("text", [READER, MAML], ids=["a level that reads", "levels inside a step"])
def test_compiled_is_interpreted(text: str) -> None:
    """With states that start from disturbed weights, chance, what is published, and the whole inner run repeated."""
    b = nestflow.compile(text, dtype="float64", seed=SEED)
    g = torch.Generator().manual_seed(2)
    given = {i.name: torch.randn(3, 5, *i.type.shape, generator=g, dtype=torch.float64) for i in b.graph.inputs}
    slow = Slow(b.graph, {**b.module.weights}, seed=SEED)
    for _ in range(2):
        loss = next(iter(slow.step(given).values()))
        torch.testing.assert_close(b.step(given)["loss"], loss, rtol=1e-9, atol=0)
        for p, w in b.module.weights.items():
            torch.testing.assert_close(w.detach(), slow.tensors[p], rtol=1e-7, atol=1e-11)


OWN = {
    "a number": """level outer { every 1 step; memory weights(net); objective loss; update gd(0.1) }
level heat { every 1 step; memory scalar; init 0.3; update adam(0.01)
  objective es(cross_entropy(net(x) / exp(heat), label), sigma = 0.1, pairs = 2) }""",
    "a copy": """level outer { every 1 step; memory weights(net); objective loss; update gd(0.1) }
level far { every 2 steps; memory net; init outer; update gd(0.1); when loss > 0; weight 2
  objective es(cross_entropy(far(x), label) + total((far - before(outer)) ^ 2), sigma = 0.1, pairs = 2) }""",
}


@pytest.mark.parametrize("name", OWN)
def test_tensors_of_a_levels_own_are_disturbed(name: str) -> None:
    b = nestflow.compile(NET + OWN[name], dtype="float64", seed=SEED)
    slow = b.reference_steps()
    before = {p: w.detach().clone() for p, w in b.module.kept.items()}
    for _ in range(4):
        b.step(batch())
        slow.step(batch())
        for p, w in {**b.module.weights, **b.module.kept}.items():
            torch.testing.assert_close(w.detach(), slow.tensors[p], rtol=1e-8, atol=1e-11)
    assert any((w != before[p]).any() for p, w in b.module.kept.items())


def test_a_resumed_run_draws_on(tmp_path: object) -> None:
    level = "level outer { every 1 step; memory weights(net); objective es(loss, 0.1, 2); update adam(0.1) }"
    whole, half = (nestflow.compile(NET + level, dtype="float64", seed=SEED) for _ in range(2))
    for _ in range(3):
        whole.step(batch())
    half.step(batch())
    half.save(tmp_path / "half")  # type: ignore[operator]
    again = nestflow.load(tmp_path / "half")  # type: ignore[operator]
    for _ in range(2):
        again.step(batch())
    for p, w in whole.module.weights.items():
        torch.testing.assert_close(again.module.weights[p], w, rtol=0, atol=0)


LEVEL = "level outer {{ every 1 step; memory weights(net); objective {}; update {} }}"


@pytest.mark.parametrize(
    ("code", "tail"),
    [
        ("NF214", LEVEL.format("es(loss)", "gd(1)")),
        ("NF211", LEVEL.format("es(loss, 0.1, sigma = 0.1, pairs = 2)", "gd(1)")),
        ("NF202", LEVEL.format("es(loss, 0.1, samples = 2)", "gd(1)")),
        ("NF304", LEVEL.format("es(loss, 0, 2)", "gd(1)")),
        ("NF304", LEVEL.format("es(loss, 0.1, 2.5)", "gd(1)")),
        ("NF205", LEVEL.format("es(es(loss, 0.1, 2), 0.1, 2)", "gd(1)")),
        ("NF205", LEVEL.format("loss", "gd(1); when es(loss, 0.1, 2) > 0")),
        ("NF490", LEVEL.format("es(loss, 0.1, 2)", "dgd(1)")),
        ("NF490", LEVEL.format("es(loss, 0.1, 2)", "g / (1 + abs(curvature(hutchinson)))")),
    ],
)
def test_mistakes_are_told(code: str, tail: str) -> None:
    with pytest.raises(NestflowError) as e:
        nestflow.compile(NET + tail)
    assert [d.code for d in e.value.diagnostics] == [code]


def test_it_stands_in_no_flow_and_in_no_output() -> None:
    for text in (
        NET.replace("linear(3) }", "linear(3) |> es(0.1, 2) }") + LEVEL.format("loss", "gd(1)"),
        NET.replace("output net(x)", "output es(loss, 0.1, 2)") + LEVEL.format("loss", "gd(1)"),
    ):
        with pytest.raises(NestflowError) as e:
            nestflow.compile(text)
        assert "NF205" in [d.code for d in e.value.diagnostics]
