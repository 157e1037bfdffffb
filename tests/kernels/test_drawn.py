"""Levels drawn at random around one matrix: as a whole they give what the loop gives, and what the interpreter does."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import nestflow
from tests.kernels.memories import near

# `split_heads` where the level has heads
KEYS = ["l2norm(linear(x, 4))", "l2norm(short_conv(linear(x, 4), 3))", "l2norm(linear(x, 4)) * 0.7"]
VALUES = ["linear(x, 3)", "silu(linear(x, 3))", "rmsnorm(linear(x, 3))"]
QUERIES = ["linear(x, 4)", "silu(linear(x, 4))", "KEY"]
OBJECTIVES = ["dot", "l2", "0.5 * g1 * inner(M(key), M(key)) - inner(M(key), value)", "-2 * inner(M(key), value)"]
RATES = ["0.5", "sigmoid(linear(x, 1))", "0.3 * sigmoid(learned(1))", "g1", "0.5 / (1 + t)"]
RETAINS = [
    "",
    "0.9",
    "g1",
    "sigmoid(linear(x, 4) + 2)",
    "decay_first(g1)",
    "decay_first(sigmoid(linear(x, 4)))",
    "-0.5",
]
STARTS = ["", "init learned(normal(0.3))", "init ones"]
RETURNS = ["y", "y * g1", "y + linear(g1 * k, 3)", "rmsnorm(y + v)"]


def drawn(seed: int) -> str:
    source = random.Random(seed)
    key, value, query, objective, rate, retain, start, result = (
        source.choice(x) for x in (KEYS, VALUES, QUERIES, OBJECTIVES, RATES, RETAINS, STARTS, RETURNS)
    )
    heads = source.choice(["", "heads 2\n  "])
    retain = f"\n  retain {retain}" if retain else ""
    start = f"\n  {start}" if start else ""
    result = f"merge_heads({result})" if heads else result
    return f"""nestflow 1
input x : float[T, 5]
output f(x)
flow f(x) {{ return linear(m(x), 2) }}
level m(x) {{
  {heads}memory matrix
  k = {key}
  v = {value}
  g1 = sigmoid(linear(x, 1) + 1)
  key k; value v; query {query.replace("KEY", "k")}
  objective {objective}
  update gd({rate}){retain}{start}
  return {result}
}}
level outer {{ every 1 step; memory weights(f); objective mean(square(f(x))); update gd(0.1) }}
"""


def gradients(b: nestflow.Bundle, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {"x": x, **{n: w for n, w in b.module.named_weights() if w.requires_grad}}
    y = b.module(x=x)
    found = torch.autograd.grad(y.sin().sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return y, dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_a_level_as_a_whole_is_its_loop(seed: int) -> None:
    text = drawn(seed)
    whole, loop = (nestflow.compile(text, dtype=torch.float64, execution={"backend": n}) for n in ("whole", "torch"))
    (plan,) = whole.plan.levels.values()
    assert plan.by == "whole" and "at_once(" in whole.source, text
    x = torch.randn(2, 21, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    (y, mine), (want, theirs) = gradients(whole, x), gradients(loop, x)
    near(y, want, 1e-9, "output")
    for n, g in theirs.items():
        near(mine[n], g, 1e-8, f"gradient of {n}")
    near(whole.reference()(x=x.detach()), y, 1e-9, "interpreted")
    first, state = whole.module.run(None, x=x[:, :17])  # one call as a whole, one by the loop
    second, _ = whole.module.run(state, x=x[:, 17:])
    near(torch.cat([first, second], 1), want, 1e-9, "in parts")
