"""Several updates in a tick, in closed form: against the interpreter, a scan, and the published loop."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.lowering.compiled import Compiled, as_interpreted, as_scanned, error, gradients
from tests.lowering.test_levels import compiled, draw

TWO = "memory matrix; key [l2norm(x), x |> linear |> l2norm]; value [x, linear(x)]; query linear(x)"
SAME = "memory matrix; rounds 2; key l2norm(x); value linear(x); query x"
GATE = "retain sigmoid(linear(x, 1) + 2)"
ROUNDS = {
    "a falling rate": (
        "rounds 3;" + SAME.replace("rounds 2;", "") + f"; objective l2; update gd(0.9 / t); {GATE}",
        "delta",
    ),
    "two keys under heads": (
        """heads 2; memory matrix; key [x |> linear |> l2norm, x |> linear |> l2norm]; value [linear(x), linear(x)]
        query linear(x); objective l2; update gd([2 * sigmoid(linear(x, 1)), sigmoid(linear(x, 1))])
        retain decay_first(sigmoid(linear(x, 1) + 2)); return merge_heads(y)""",
        "delta",
    ),
    "momentum, read before": (TWO + f"; objective l2; update momentum([0.3, 0.2], 0.4); {GATE}; read before", "delta"),
    "nesterov": (TWO + f"; objective l2; update nesterov(0.2, [0.5, 0.3]); {GATE}", "delta"),
    "numbers only": (SAME + "; objective l2; update gd(0.3)", "delta"),
    "three that look at nothing": (
        "memory matrix; key [x, linear(x), l2norm(x)]; value x; query x; objective dot; update gd(0.3); retain 0.8",
        "recurrence",
    ),
    "a vector": (
        "memory vector(8); rounds 2; value x; objective dot; update momentum(0.2, 0.5); retain 0.9",
        "recurrence",
    ),
    "the memory itself": (
        TWO + f"; objective l2; update gd(0.4); {GATE}; return solve(memory + 9 * diag(0 * x + 1), x)",
        "delta",
    ),
    "key gates": (SAME + "; objective l2; update gd([0.3, 0.1]); retain sigmoid(linear(x) + 2)", "delta"),
    "key gates first": (
        SAME + "; objective l2; update gd([0.3, 0.1]); retain decay_first(sigmoid(linear(x) + 2)); read before",
        "delta",
    ),
    "some ticks": (SAME + f"; objective l2; update momentum([0.3, 0.1], 0.4); when x[0] > 0; {GATE}", "delta"),
    "delta steps": (TWO + f"; objective l2; update dgd([0.5, 0.2]); {GATE}", "delta"),
    "solved steps": (TWO + f"; objective l2; update prox([0.5, 0.2]); {GATE}", "delta"),
    "weights": (TWO + f"; objective l2; weight [sigmoid(linear(x, 1)), 0.3]; update gd(0.9); {GATE}", "delta"),
    "steps constant": (TWO + f"; objective l2; update gd(0.5); {GATE}; gradient stop", "delta"),
    "beside another": (
        """k = x |> linear |> l2norm; objective l2; update gd(0.4)
        memory one : matrix { key [k, l2norm(x)]; value x; retain 0.9 }
        memory two : matrix { key k; value x; retain 0.9 }
        memory three : mlp(depth = 2, expand = 1) { key [k, l2norm(x)]; value x; update gd(0.02) }
        return one(k) + two(x) + three(k)""",
        "delta",
    ),
    "a round that cannot": (TWO + "; objective l2; update adam(0.1)", "scan"),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds(name: str) -> None:
    """70 ticks are three pieces, cut anywhere by two calls."""
    text, pattern = ROUNDS[name]
    fast, slow = compiled(text), compiled(text, ["cache", "scan"])
    assert fast.patterns[0] == pattern
    as_scanned(fast, slow, draw(2, 70), random.Random(name).randint(1, 69))


@pytest.mark.parametrize("name", ROUNDS)
def test_the_interpreter(name: str) -> None:
    as_interpreted(compiled(ROUNDS[name][0]), draw(2, 9, 1))


PRODUCT = """nestflow 1
input k : float[T, 6]
input l : float[T, 6]
input v : float[T, 5]
input u : float[T, 5]
input b : float[T, 1]
input c : float[T, 1]
input a : float[T, 1]
output product(k, l, v, u, b, c, a)
level product(k, l, v, u, b, c, a) {
  every 1 token; memory matrix(5, 6); key [k, l]; value [v, u]; query l; objective l2
  update gd([b, c]); retain decay_first(a)
}
"""


def product(x: dict[str, Tensor]) -> Tensor:
    """DeltaProduct as published: W <- a W, then two steps W <- W (I - b k kᵀ) + b v kᵀ."""
    batch, ticks, width = x["k"].shape
    w, ys = x["k"].new_zeros(batch, x["v"].shape[-1], width), []
    for t in range(ticks):
        w = x["a"][:, t, :, None] * w
        for k, v, b in (("k", "v", "b"), ("l", "u", "c")):
            key, value, rate = x[k][:, t], x[v][:, t], x[b][:, t, :, None]
            w = (
                w @ (torch.eye(width, dtype=w.dtype) - rate * key[:, :, None] * key[:, None])
                + rate * value[:, :, None] * key[:, None]
            )
        ys.append((w @ x["l"][:, t, :, None])[..., 0])
    return torch.stack(ys, 1)


@pytest.mark.parametrize("keys", ["free", "equal", "nearly equal", "zero"])
def test_the_published_loop(keys: str) -> None:
    """Rates up to 2, gates that are zero; keys of ordinary text are nearly equal."""
    g = torch.Generator().manual_seed(3)
    x = {n: torch.randn(2, 75, d, generator=g, dtype=torch.float64) for n, d in zip("klvubca", (6, 6, 5, 5, 1, 1, 1))}
    if keys != "free":
        spread = {"equal": 0.0, "nearly equal": 1e-3, "zero": 0.0}[keys]
        base = torch.zeros(6) if keys == "zero" else torch.ones(6)
        x |= {n: base + spread * x[n] for n in "kl"}
    x |= {n: x[n] / (x[n].square().sum(-1, keepdim=True) + 1e-9).sqrt() for n in "kl"}
    x |= {"b": 2 * x["b"].sigmoid(), "c": 2 * x["c"].sigmoid(), "a": (x["a"].sigmoid() * 1.2).clamp(max=1)}
    x["a"][0, 40], x["a"][1, ::9], x["b"][0, 3] = 0.0, 0.0, 0.0
    x = {n: i.requires_grad_() for n, i in x.items()}
    compiled = Compiled(PRODUCT)
    assert compiled.patterns == ["delta"]
    got, want = compiled(x, {}), product(x)
    assert error(got, want) < 1e-10
    for name, a, b in zip(x, gradients(got, [*x.values()]), gradients(want, [*x.values()]), strict=True):
        assert error(a, b) < 1e-9, name


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_with_its_tick(number: float) -> None:
    compiled, slow = Compiled(PRODUCT), Compiled(PRODUCT, ["cache", "scan"])
    g = torch.Generator().manual_seed(4)
    x = {
        n: torch.rand(2, 40, d, generator=g, dtype=torch.float64) / 3 for n, d in zip("klvubca", (6, 6, 5, 5, 1, 1, 1))
    }
    clean = compiled(x, {})
    for name in x:
        bad = {n: i.clone() for n, i in x.items()}
        bad[name][0, 23, 0] = number
        got, want = compiled(bad, {}), slow(bad, {})
        assert torch.equal(got[0, :23], clean[0, :23]), name
        assert torch.equal(got[1], clean[1]), name
        assert not (got.isfinite() & ~want.isfinite()).any(), name
