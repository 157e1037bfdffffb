"""`gram(w_in)`: the inputs of a weight in a rule of one's own. Delta gradient descent written out is the word `dgd`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nestflow
from nestflow.diagnostics.core import NestflowError

from .driving import draw, parameters
from .test_shapes import own

WRITTEN = """
optimizer mine(lr) {
  if ndim(w) == 2 {
    k = gram(w_in)
    rate = lr / (1 + lr * trace(k))
    step -rate * (w @ k + g)
  } else {
    step -lr * g
  }
}
"""


@pytest.mark.parametrize("every", ["every 1 step", "every 3 steps"])
def test_on_the_step_clock(every: str) -> None:
    results = []
    for update in ("dgd(0.3)", "mine(0.3)"):
        b = nestflow.compile(
            f"""nestflow 1
input x : float[T, 3]
input v : float[T, 2]
output net(x)
flow net(x) {{ return x |> linear(4, bias = true) |> tanh |> linear(2) }}
{WRITTEN}
level outer {{ {every}; memory weights(net); objective l2(net(x), v); update {update} }}
""".replace(WRITTEN, WRITTEN if "mine" in update else ""),
            dtype="float64",
            seed=2,
        )
        for t in range(7):
            x, v = draw(t, [(2, 5, 3), (2, 5, 2)])
            b.step({"x": x, "v": v})
        results.append([p.detach() for _, p in b.module.named_weights()])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("memory", ["memory matrix", "memory mlp(depth = 2, expand = 1, residual = true)"])
@pytest.mark.parametrize("clock", ["every 1 token", "every 2 tokens; chunk 4; heads 2; weight sigmoid(linear(x, 1))"])
def test_on_the_token_clock(memory: str, clock: str) -> None:
    results = []
    x = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for update in ("dgd(0.2)", "mine(0.2)"):
        b = nestflow.compile(
            f"""nestflow 1
input x : float[T, 6]
output f(x)
flow f(x) {{ return lev(x) }}
level lev(x) {{ {clock}; {memory}; key linear(x, 4) |> l2norm; value linear(x, 4); query linear(x, 4)
  objective l2; update {update}; retain 0.9 }}
{WRITTEN if "mine" in update else ""}
""",
            dtype="float64",
            seed=3,
        )
        y = b.module(x=x)
        torch.testing.assert_close(y, b.reference()(x=x), rtol=1e-9, atol=1e-9)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(dict(b.module.named_weights()).values()))))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-9)


def test_inputs_are_wanted(tmp_path: Path) -> None:
    with pytest.raises(NestflowError) as caught:
        nestflow.optimizer(own(tmp_path, "step -lr * (w @ gram(w_in) + g)"), parameters(), lr=0.1)
    assert caught.value.diagnostics[0].code == "NF543"
    with pytest.raises(NestflowError) as caught:
        nestflow.optimizer(own(tmp_path, "step -lr * (w @ gram(g) + g)"), parameters(), lr=0.1)
    assert caught.value.diagnostics[0].code == "NF238"
