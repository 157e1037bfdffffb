"""Levels of several memories: every mixture of patterns computes what a scan computes, in any split."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.lowering.compiled import Compiled, as_interpreted, error, same

SELF_MODIFYING = """
  a = x |> linear |> short_conv(3) |> l2norm
  u = x |> linear |> l2norm
  k = keys(a) |> l2norm
  v = values(u) |> l2norm
  for m in [keys, values, store] { memory m : mlp(depth = 2, expand = 1, residual = true) { key k; value m(v) } }
  for m in [rates, gates] { memory m : mlp(depth = 2, expand = 1, out = 1) { key k; value m(v) } }
  objective l2
  retain sigmoid(gates(u) + 5)
  return store(u) |> rmsnorm |> merge_heads |> linear(8)
"""
MLP = "memory mlp(depth = 2, expand = 1); key l2norm(x); value x; query x; objective l2"
LEVELS = {
    "five memories, dgd": "chunk 4; heads 2;" + SELF_MODIFYING + "update dgd(lr = 0.2 * sigmoid(rates(u)))",
    "five memories, gd, read before": "chunk 4; read before; heads 2;"
    + SELF_MODIFYING
    + "update gd(0.1 * sigmoid(rates(u)))",
    "five memories, momentum": "chunk 3; heads 2;" + SELF_MODIFYING + "update momentum(0.1 * sigmoid(rates(u)), 0.5)",
    "five memories, chunk 1": "heads 2;" + SELF_MODIFYING + "update dgd(lr = 0.2 * sigmoid(rates(u)))",
    "five memories, clipped together": "chunk 4; heads 2;"
    + SELF_MODIFYING
    + "update g |> clip_norm(0.3) |> gd(0.1 * sigmoid(rates(u)))",
    "five memories, steps constant": "chunk 4; gradient stop; heads 2;"
    + SELF_MODIFYING
    + "update dgd(lr = 0.2 * sigmoid(rates(u)))",
    "clocks that differ": """heads 2
  k = x |> linear |> l2norm
  memory fast : matrix { key k; value linear(x); objective dot; update gd(0.1); retain 0.9 }
  memory delta : matrix { key k; value linear(x); objective l2; update gd(sigmoid(linear(x, 1))) }
  memory slow : mlp(depth = 2, expand = 1) {
    every 2 tokens; chunk 6; key k; value linear(x); objective l2; update momentum(0.1, 0.5)
  }
  memory slower : mlp(depth = 2, expand = 1) {
    every 4 tokens; key k; value linear(x); objective l2; update muon(0.01, iters = 2)
  }
  q = x |> linear |> l2norm
  return concat(fast(q) + delta(q), slow(q) * slower(q)) |> merge_heads |> linear(8)""",
    "a memory feeds another": """
  memory inner : mlp(depth = 2, expand = 1) { chunk 4; key l2norm(x); value linear(x); objective l2; update gd(0.1) }
  memory outer : matrix { chunk 2; key inner(x) |> l2norm; value linear(x); objective l2; update gd(0.2); retain 0.95 }
  return outer(inner(x) |> l2norm) + inner(x)""",
    "a closed form is asked with what a scan has just learned": """heads 2; objective dot; update gd(1)
  a = sigmoid(linear(x, 3))
  memory slots : matrix { key linear(x); value 1 - a; retain on_value(a) }
  memory store : matrix { key 1 - a; value linear(x); retain a }
  return store(softmax(slots(linear(x)))) |> merge_heads""",
    "a closed form between two that learn tick by tick": """
  memory first : matrix { key l2norm(x); value linear(x); objective l2; update adam(0.1) }
  memory middle : matrix { key linear(x); value linear(x); objective dot; update momentum(0.1, 0.5); retain 0.9 }
  memory last : matrix { key l2norm(x); value middle(x); objective l2; update adam(0.1) }
  return last(middle(first(x)))""",
    "attention beside a memory": """heads 2
  k = x |> linear |> l2norm
  memory near : cache(window = 3) { key k; value linear(x) }
  memory far : mlp(depth = 2, expand = 1) { chunk 4; key k; value linear(x); objective l2; update gd(0.1) }
  return (near(k) + far(k)) |> merge_heads""",
    "rates per tensor": """chunk 4
  memory mlp(depth = 2, expand = 1, bias = true); key l2norm(x); value x; query x; objective l2
  update -(0.1 if ndim(w) >= 2 else 0.05) * g - 0.01 * w""",
    "schedule-free inside": f"chunk 4; {MLP}; update schedule_free(0.05)",
    "adam inside": f"chunk 4; {MLP}; update adam(0.01, eps = 0.01)",
    "a rule with a period": """chunk 4; memory mlp(depth = 2, expand = 1); key l2norm(x); value x; query x; objective l2
  update m3(lr = 0.01, beta1 = 0.3, beta2 = 0.1, beta3 = 0.2, alpha = 0.5, eps = 0.1, period = 3)""",
    "look-back on a recalled key": """chunk 4; heads 2
  k = keys(x |> linear |> l2norm) |> short_conv(3) |> l2norm
  memory keys : mlp(depth = 2, expand = 1) { key k; value linear(x) |> previous; objective l2; update gd(0.1) }
  memory store : mlp(depth = 2, expand = 1) { key k; value linear(x); objective l2; update gd(0.1) }
  return store(k |> previous(2) |> rope) |> merge_heads""",
    "a query that nobody asks": """chunk 4; memory mlp(depth = 2, expand = 1); key l2norm(x); value x
  query x |> short_conv(3); objective l2; update gd(0.1); return memory(l2norm(x))""",
    "dgd by part": """chunk 4; memory mlp(depth = 2, expand = 1, bias = true); key l2norm(x); value x; query x
  objective l2
  update dgd(lr = 0.1, only = "linear.*", normalize = true)""",
    "retain by key": """memory matrix; key l2norm(x); value x; query x; objective l2; update gd(0.2)
  retain 0.9 + 0.1 * sigmoid(linear(x))""",
    "gated linear attention": """heads 2; memory matrix; key x |> linear |> l2norm; value linear(x); query linear(x)
  objective dot; update gd(sigmoid(linear(x, 1))); retain sigmoid(linear(x))""",
    "key gates before the error": """heads 2; memory matrix; key x |> linear |> l2norm; value linear(x); query linear(x)
  objective l2; update gd(sigmoid(linear(x, 1))); retain decay_first(sigmoid(linear(x)))""",
    "key gates and dgd": """memory matrix; key l2norm(x); value x; query x; objective l2; update dgd(0.5); read before
  retain sigmoid(linear(x) + 2)""",
    "key gates that are learned": """chunk 4; memory matrix; key l2norm(x); value x; query x; objective l2
  update gd(0.2); retain sigmoid(learned(8) + 2)""",
    "key gates, long chunk": """chunk 48; memory matrix; key l2norm(x); value x; query x; objective l2; update gd(0.02)
  retain sigmoid(linear(x) + 2); read chunk_start""",
    "key gates and momentum": """memory matrix; key l2norm(x); value x; query x; objective l2; update momentum(0.2, 0.5)
  retain sigmoid(linear(x) + 2)""",
    "retain by value": """memory matrix; key l2norm(x); value x; query x; objective dot; update gd(0.2)
  retain on_value(0.9 + 0.1 * sigmoid(linear(x)))""",
    "the objective by hand": """memory matrix; erase = l2norm(x); keep = x |> linear |> l2norm; key keep; value x
  query x
  objective inner(memory(erase), M(0.3 * erase)) - inner(M(keep), value); update gd(1); retain 0.95""",
}


def compiled(fields: str, patterns: list[str] | None = None) -> Compiled:
    sep = "" if "every" in fields.split(";")[0] else "every 1 token; "
    text = f"nestflow 1\ninput x : float[T, 8]\noutput mem(x)\nlevel mem(x) {{ {sep}{fields} }}\n"
    return Compiled(text, patterns) if patterns else Compiled(text)


def draw(batch: int, ticks: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(batch, ticks, 8, generator=g, dtype=torch.float64).requires_grad_()}


@pytest.mark.parametrize("name", LEVELS)
def test_patterns_equal_scan_in_any_split(name: str) -> None:
    fast, slow = compiled(LEVELS[name]), compiled(LEVELS[name], ["cache", "scan"])
    x, rng = draw(2, 14), random.Random(name)
    w = fast.weights()
    got = fast(x, w)
    same(got, slow(x, w), x, w)
    for _ in range(2):
        cuts = sorted(rng.sample(range(1, 14), rng.randint(1, 5)))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 14])]
        assert error(fast(x, w, sizes), got) < 1e-11
        assert error(slow(x, w, sizes), got) < 1e-10


@pytest.mark.parametrize("name", LEVELS)
def test_compiled_equals_the_interpreter(name: str) -> None:
    as_interpreted(compiled(LEVELS[name]), draw(2, 9, 1))


def test_patterns_of_levels() -> None:
    assert set(compiled(LEVELS["five memories, dgd"]).patterns) == {"chunk"}
    assert set(compiled(LEVELS["five memories, chunk 1"]).patterns) == {"scan"}
    assert compiled(LEVELS["clocks that differ"]).patterns == ["recurrence", "delta", "chunk", "scan"]
    assert compiled(LEVELS["attention beside a memory"]).patterns == ["cache", "chunk"]
    assert compiled(LEVELS["rates per tensor"]).patterns == ["chunk"]
    assert compiled(LEVELS["schedule-free inside"]).patterns == ["chunk"]
    assert compiled(LEVELS["adam inside"]).patterns == ["scan"]
    assert compiled(LEVELS["gated linear attention"]).patterns == ["recurrence"]
    assert compiled(LEVELS["a closed form is asked with what a scan has just learned"]).patterns == [
        "scan",
        "recurrence",
    ]
    assert compiled(LEVELS["key gates before the error"]).patterns == ["delta"]
    assert compiled(LEVELS["key gates that are learned"]).patterns == ["chunk"]
    assert compiled(LEVELS["key gates and momentum"]).patterns == ["scan"]


def test_a_scan_says_why() -> None:
    (level,) = compiled(LEVELS["adam inside"]).plan.levels.values()
    assert any("not linear" in r for r in level.memories[0].reasons)
