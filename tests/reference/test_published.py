"""`emit` and `emitted`: what instances publish, summed; auxiliary losses and monitors, against a plain loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import nestflow

SPEC = """nestflow 1
input x : float[T, 4]
input goal : float[T, 4]
output net(x)
level mem(x) {
  every 1 token; heads 2; memory matrix; key x |> linear |> l2norm; value x |> linear; query x |> linear; objective l2
  update gd(0.5); emit surprise = norm(M(x |> linear) - split_heads(x)) if ONE else mean(M(x |> linear))
  return y |> merge_heads
}
flow net(x) {
  repeat 2 { x = x + mem(x); emit aux = mean(x ^ 2) }
  emit aux = sum(x)
  return x
}
loss = l2(net(x), goal)
level outer {
  every 1 step; memory weights(net); objective loss + 0.1 * emitted(aux) + emitted(surprise); update gd(0.1)
}
""".replace("M(", "memory(")
LAYERS = """nestflow 1
input x : float[T, 4]
output net(x)
flow layer(x) { h = x |> linear |> tanh; emit size = mean(h ^ 2); return x + h }
flow net(x) { repeat 3 { x = layer(x) } return linear(x, 2) }
level outer { every 1 step; memory weights(net); objective mean(net(x) ^ 2) + 0.5 * emitted(size); update gd(0.1) }
"""


def data(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(3, 5, 4, generator=g, dtype=torch.float64) for n in ("x", "goal")}


def test_an_auxiliary_loss_is_the_sum_over_the_layers() -> None:
    b = nestflow.compile(LAYERS, dtype="float64", seed=3)
    x = data()["x"]
    w = dict(b.module.weights)
    h, sizes = x, []
    for i in range(3):
        a = torch.tanh(F.linear(h, w[f"net.layer.{i}.linear.weight"]))
        sizes.append(a.square().mean(-1))
        h = h + a
    want = F.linear(h, w["net.linear.weight"]).square().mean() + 0.5 * torch.stack(sizes).sum(0).mean()
    got = b.loss({"x": x})
    torch.testing.assert_close(got, want)
    grads = torch.autograd.grad(want, list(w.values()))
    for a, c in zip(torch.autograd.grad(got, list(w.values())), grads, strict=True):
        torch.testing.assert_close(a, c)
    out, published = b.module.emitted(x)
    torch.testing.assert_close(published["size"], torch.stack(sizes).sum(0))
    torch.testing.assert_close(out, b.module(x))
    report = b.step({"x": x})
    assert report["emitted"] == pytest.approx({"size": torch.stack(sizes).sum(0).mean().item()})


@pytest.mark.parametrize("one", ["true", "false"])
def test_levels_publish_per_tick_and_compiled_equals_interpreted(one: str) -> None:
    b = nestflow.compile(SPEC.replace("ONE", one), dtype="float64")
    batch, weights = data(), list(b.module.weights.values())
    got = b.loss(batch)
    want = b.reference().loss(b.graph.step_levels[0].objective, batch)
    torch.testing.assert_close(got, want)
    for a, c in zip(torch.autograd.grad(got, weights), torch.autograd.grad(want, weights), strict=True):
        torch.testing.assert_close(a, c)
    assert b.module.emitted(**batch)[1]["surprise"].shape[:2] == (3, 5)


def test_what_is_published_changes_no_output() -> None:
    without = "\n".join(line for line in LAYERS.splitlines() if line).replace("emit size = mean(h ^ 2); ", "")
    without = without.replace(" + 0.5 * emitted(size)", "")
    x = data()["x"]
    a, c = nestflow.compile(LAYERS, dtype="float64"), nestflow.compile(without, dtype="float64")
    assert torch.equal(a.module(x), c.module(x))


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("emitted(size)", "emitted(sise)", "NF244"),
        ("emitted(size)", "emitted(2)", "NF214"),
        ("emit size = mean(h ^ 2)", "emit size = next(h)", "NF403"),
        ("return x + h", "return x + emitted(size)", "NF"),
    ],
)
def test_mistakes_are_told(old: str, new: str, code: str) -> None:
    with pytest.raises(nestflow.NestflowError, match=code):
        nestflow.check(LAYERS.replace(old, new))


def test_a_memory_s_function_publishes_nothing() -> None:
    spec = """nestflow 1
input x : float[T, 4]
output m(x)
flow f(z) { h = linear(z); emit size = mean(h); return h }
level m(x) { every 1 token; memory f; key x; value x; query x; objective l2; update gd(0.1) }
"""
    with pytest.raises(nestflow.NestflowError, match="NF320"):
        nestflow.check(spec)


def test_an_emitted_constant_is_one_number() -> None:
    text = """nestflow 1
input x : float[T, 4]
input k : float[4]
output net(x)
flow net(x) { emit cost = 1.5; emit size = mean(x ^ 2); return linear(x, 2) }
flow side(k) { emit price = 0.5; return linear(k, 3) }
level outer { every 1 step; memory weights(net); update gd(0.1)
  objective mean(net(x) ^ 2) + mean(side(k))
    + mean(emitted(cost)) * emitted(cost) + mean(emitted(size)) + emitted(price) }
level other { every never; memory weights(side) }
"""
    b = nestflow.compile(text, dtype="float64", seed=3)
    given = {"x": data()["x"], "k": data()["goal"][:, 0]}
    w = b.module.weights
    want = (
        F.linear(given["x"], w["net.linear.weight"]).square().mean()
        + F.linear(given["k"], w["side.linear.weight"]).mean()
    )
    want = want + 1.5**2 + given["x"].square().mean() + 0.5
    torch.testing.assert_close(b.loss(given), want)
    torch.testing.assert_close(b.reference().loss(b.graph.step_levels[0].objective, given), want)
