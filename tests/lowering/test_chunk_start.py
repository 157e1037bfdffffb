"""Rules that go from what the memory was as its chunk began (`w_chunk`): one more start of the closed form."""

from __future__ import annotations

import random

import pytest

from nestflow.reference.model import Reference
from tests.lowering.compiled import Compiled, error, gradients
from tests.lowering.test_levels import draw

SUM = """optimizer chunk_gd(lr) {
  memory s : like(w) { value g; update gd(1); reset each(chunk) }
  set w_chunk - lr * s
}
"""
PULL = """optimizer pulled(lr) {
  memory s : like(w) { value g; update gd(1); retain 0.7 }
  set 0.9 * w + 0.1 * w_chunk - lr * s
}
"""
KVQ = "key l2norm(x); value x; query linear(x); objective l2"
MLP = "memory mlp(depth = 2, expand = 1, bias = true)"
RULES = {
    "ttt": (SUM, f"chunk 4; {MLP}; {KVQ}; i = (t - 1) % 4; update chunk_gd(0.3 / (i + 1))", "chunk"),
    "ttt, a normed flow": (
        SUM + "flow net(z) { return z + layernorm(linear(z, 4, bias = true, init = normal(0.1))) }\n",
        "heads 2; chunk 5; memory net(slow = 'layernorm.**'); key linear(x); value linear(x); query linear(x)\n"
        "objective l2; weight sigmoid(linear(x, 1)); update chunk_gd(0.2); return merge_heads(y)".replace("'", '"'),
        "chunk",
    ),
    "pulled back": (PULL, f"chunk 6; {MLP}; {KVQ}; update pulled(0.1 * sigmoid(linear(x, 1)))", "chunk"),
    "between updates": (SUM, f"every 2 tokens; chunk 6; {MLP}; {KVQ}; update chunk_gd(0.1)", "chunk"),
    "a long chunk, read before": (SUM, f"chunk 90; memory matrix; {KVQ}; update chunk_gd(0.01); read before", "chunk"),
    "two chunks of their own": (
        PULL,
        "key l2norm(x); value x; objective l2; update pulled(0.1); return a(x) + b(linear(x))\n"
        "memory a : matrix { chunk 4 }; memory b : mlp(depth = 2, expand = 1, bias = true) { chunk 6 }",
        "chunk",
    ),
    "all begins anew": (
        "",
        f"chunk 4; {MLP}; {KVQ}; update momentum(0.2, 0.8); retain 0.9; reset each(chunk)",
        "chunk",
    ),
    "errors that are free": (
        PULL,
        "chunk 4; memory matrix; key x; value x; query x; objective dot; update pulled(0.1)",
        "recurrence",
    ),
    "some ticks": (PULL, f"chunk 4; {MLP}; {KVQ}; when x[0] > 0; update pulled(0.1)", "chunk"),
    "no chunk": (PULL, f"chunk 1; memory matrix; {KVQ}; update pulled(0.1)", "scan"),
    "key gates": (SUM, f"chunk 4; memory matrix; {KVQ}; update chunk_gd(0.1); retain sigmoid(linear(x) + 2)", "scan"),
    "steps constant": (SUM, f"chunk 4; {MLP}; {KVQ}; update chunk_gd(0.1); gradient stop", "scan"),
}


def both(name: str) -> tuple[Compiled, Compiled]:
    helpers, fields, _ = RULES[name]
    clock = "" if "every" in fields.split(";")[0] else "every 1 token; "
    text = f"nestflow 1\n{helpers}input x : float[T, 8]\noutput mem(x)\nlevel mem(x) {{ {clock}{fields} }}\n"
    return Compiled(text), Compiled(text, ["cache", "scan"])


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    fast, slow = both(name)
    assert set(fast.patterns) == {RULES[name][2]}
    x, w, ticks = draw(2, 70), fast.weights(scale=0.2), 70
    got, want = fast(x, w), slow(x, w)
    assert error(got, want) < 1e-10
    leaves = [*x.values(), *w.values()]
    for path, a, b in zip([*x, *w], gradients(got, leaves), gradients(want, leaves), strict=True):
        assert error(a, b) < 1e-9, path
    cuts = sorted(random.Random(name).sample(range(1, ticks), 4))
    y, state = fast.run(x, w, [b - a for a, b in zip([0, *cuts], [*cuts, ticks])])
    assert error(y, got) < 1e-11
    for key, kept in slow.run(x, w, [ticks])[1].items():
        assert error(state[key], kept) < 1e-9, key


@pytest.mark.parametrize("name", RULES)
def test_the_interpreter(name: str) -> None:
    fast, x = both(name)[0], draw(2, 9, 1)
    w = fast.weights(scale=0.2)
    got, want = fast(x, w), Reference(fast.graph, w)(**x)
    assert error(got, want) < 1e-10
    leaves = [*x.values(), *w.values()]
    for path, a, b in zip([*x, *w], gradients(got, leaves), gradients(want, leaves), strict=True):
        assert error(a, b) < 1e-9, path
