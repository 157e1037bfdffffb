"""Optimisers inside memories that learn at tokens: compiled as interpreted, with matrices of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow

MEMORIES = {
    "matrix": "memory matrix; key linear(x, 4) |> l2norm; value linear(x, 3); query linear(x, 4)",
    "mlp": "memory mlp(depth = 2, expand = 1); key linear(x, 4) |> l2norm; value linear(x, 4); query linear(x, 4)",
}
CLOCKS = {"each token": "every 1 token", "each second token": "every 2 tokens; chunk 4; heads 2"}
CASES = [
    ("shampoo(0.1, period = 3)", "matrix", "each token"),
    ("shampoo(0.1, period = 3)", "matrix", "each second token"),
    ("adafactor(0.1)", "mlp", "each second token"),
    ("delta_momentum(0.1, 0.9, 0.3)", "mlp", "each token"),
    ("plastic(0.1, 0.5)", "mlp", "each second token"),
    ("hypergradient(0.1, 0.01)", "mlp", "each second token"),
    ("m3_ema(0.05, period = 3)", "mlp", "each token"),
]


@pytest.mark.parametrize("update, memory, clock", CASES)
def test_compiled_is_interpreted_in_any_split(update: str, memory: str, clock: str) -> None:
    b = nestflow.compile(
        f"""nestflow 1
input x : float[T, 6]
output f(x)
flow f(x) {{ return lev(x) }}
level lev(x) {{ {CLOCKS[clock]}; {MEMORIES[memory]}; objective l2; update {update}; retain 0.9 }}
""",
        dtype="float64",
        seed=3,
    )
    x = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = list(dict(b.module.named_weights()).values())
    results: list[tuple[Tensor, tuple[Tensor, ...]]] = []
    for run in (b.module, b.reference()):
        y = run(x=x)
        results.append((y, torch.autograd.grad(y.square().sum(), weights)))
    (y, g), (want, slopes) = results
    assert float(y.detach().abs().max()) > 1e-3
    torch.testing.assert_close(y, want, rtol=1e-7, atol=1e-8)
    for a, c in zip(g, slopes, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-6, atol=1e-7 * float(1 + c.abs().max()))
    stream = b.stream(batch=2)
    parts = torch.cat([stream.feed(x=x[:, :4]), stream.feed(x=x[:, 4:5]), stream.feed(x=x[:, 5:])], 1)
    torch.testing.assert_close(parts, y, rtol=1e-9, atol=1e-9)
    alone = b.module(x=x[1:])
    torch.testing.assert_close(alone, y[1:], rtol=1e-7, atol=1e-8)


def test_the_state_has_the_matrices_and_starts_again() -> None:
    b = nestflow.compile(
        """nestflow 1
input x : float[T, 4]
output lev(x)
level lev(x) { every 1 token; memory matrix; key x |> l2norm; value linear(x, 3); query x; objective l2
  update shampoo(0.1, eps = 0.5); reset each(chunk); chunk 3 }
""",
        dtype="float64",
    )
    state = {s.path: s.shape for s in b.graph.state}
    assert state["lev.memory.L.weight"] == (3, 3) and state["lev.memory.R.weight"] == (4, 4)
    assert "lev.memory.v.weight" not in state  # a matrix takes the first branch
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    y = b.module(x=x.repeat(1, 2, 1))
    torch.testing.assert_close(y[:, 3:], y[:, :3])
    torch.testing.assert_close(y, b.reference()(x=x.repeat(1, 2, 1)))
