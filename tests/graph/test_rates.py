"""Rates, weights and keys that are no single number: what they make, and what is said of those that fit nothing."""

from __future__ import annotations

import math

import pytest
import torch

import nestflow
from nestflow.diagnostics.core import NestflowError

KVQ = "key x |> linear(4) |> l2norm; value x |> linear(3); query x |> linear(4);"
PAIR = "key [x |> linear(4), x |> linear(4)]; value [x |> linear(3), x |> linear(3)]; query x |> linear(4);"
NET = """flow net(z, n) { return linear(silu(linear(z, 5, name = "up")), n, name = "down") }
"""


def spec(fields: str, before: str = "") -> str:
    return f"nestflow 1\ninput x : float[T, 8]\noutput one(x)\n{before}level one(x) {{ every 1 token; {fields} }}\n"


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("NF322", f"memory matrix; {KVQ} objective l2; update gd(x |> linear(5))"),
        ("NF322", f"memory matrix; {KVQ} objective l2; update gd(on_value(x |> linear(4)))"),
        ("NF322", f"memory mlp(depth = 2); {KVQ} objective l2; update gd(x |> linear(4))"),
        ("NF322", f"memory matrix; {KVQ} weight x |> linear(4); objective l2; update gd(0.1)"),
        ("NF322", f"memory net(n = 3); {KVQ} objective l2; update gd({{up: 0.1}})"),
        ("NF322", f"memory net(n = 3); {KVQ} weight {{up: 1, down: 1, gate: 1}}; objective l2; update gd(0.1)"),
        ("NF312", f"memory matrix; {PAIR} objective l2; update gd([0.1, 0.2, 0.3])"),
        ("NF312", f"memory matrix; {PAIR} rounds 3; objective l2; update gd(0.1)"),
        ("NF304", f"memory matrix; {KVQ} rounds 0; objective l2; update gd(0.1)"),
        ("NF417", f"memory matrix; chunk 4; {PAIR} objective l2; update gd(0.1)"),
        ("NF416", f"memory matrix; {KVQ} objective dot; update prox(0.1)"),
        ("NF416", f"memory matrix; chunk 4; {KVQ} objective l2; update prox(0.1)"),
        ("NF408", f"memory matrix; {KVQ} objective l2; update g |> prox(0.1)"),
        ("NF319", f"memory matrix; {KVQ} objective l2; update replace"),
        ("NF310", "memory matrix; key grouped(x |> linear, 2); value x; query x; objective l2; update gd(0.1)"),
        ("NF307", "heads 4; memory cache; key grouped(x |> linear, 3); value x |> linear; query x |> linear"),
        ("NF214", "heads 4; memory cache; key x |> linear |> grouped(2); value x |> linear; query x |> linear"),
        ("NF319", "heads 4; memory cache; key grouped(x, 2); value x |> linear; query x |> linear"),
    ],
)
def test_what_fits_nothing_is_told(code: str, fields: str) -> None:
    with pytest.raises(NestflowError) as told:
        nestflow.compile(spec(fields, NET))
    assert [d.code for d in told.value.diagnostics] == [code]


def test_starts_are_drawn_and_mapped() -> None:
    fields = """heads 4; memory matrix; key grouped(x |> linear, 1); value x |> linear; query grouped(x |> linear, 1)
      dt = softplus(linear(x, 1) + learned(64, init = inverse_softplus(log_uniform(1e-3, 0.1))))
      objective dot; update gd(mean(dt)); retain exp(-exp(mean(learned(64, init = log(uniform(1, 16))))))"""
    weights = dict(nestflow.compile(spec(fields)).module.named_weights())
    decay, dt = weights["one.retain.learned"], weights["one.dt.learned"]
    assert decay.shape == (4, 64) and 0 <= decay.min() < 1 and 2 < decay.max() <= math.log(16)
    steps = torch.nn.functional.softplus(dt)
    assert 9e-4 < steps.min() < 3e-3 and 0.03 < steps.max() < 0.101


def test_a_cache_keeps_the_pairs_of_groups() -> None:
    fields = "heads 4; memory cache; key grouped(x |> linear, 2); value grouped(x |> linear, 1); query x |> linear"
    bundle = nestflow.compile(spec(fields))
    weights = dict(bundle.module.named_weights())
    assert weights["one.key.linear.weight"].shape == (2, 2, 8) and weights["one.value.linear.weight"].shape == (1, 2, 8)
    _, state = bundle.module.run(None, x=torch.randn(3, 5, 8))
    assert state.tensors["one.memory.key"].shape == (3, 2, 5, 2)
    assert state.tensors["one.memory.value"].shape == (3, 1, 5, 2)


@pytest.mark.parametrize(
    ("fields", "way_out"),
    [
        ("update gd([0.1, linear(x, 4)])", "number + 0 * vector"),
        ("update gd(0.1); when [mean(x) > 0, mean(x) < 0]", "here one is for all"),
    ],
)
def test_lists_that_cannot_be_have_a_way_out(fields: str, way_out: str) -> None:
    text = "nestflow 1\ninput x : float[T, 4]\noutput m(x)\nlevel m(x) { memory matrix; key [x, linear(x)]; value x\n"
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.check(f"{text}query x; objective l2; {fields} }}\n")
    assert way_out in (e.value.diagnostics[0].help or "")
    fields = fields.replace("[0.1,", "[0.1 + 0 * linear(x, 4),").replace("[mean(x) > 0, mean(x) < 0]", "mean(x) > 0")
    nestflow.check(f"{text}query x; objective l2; {fields} }}\n")
