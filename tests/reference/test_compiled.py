"""Compiled against interpreted: every shipped rule as the rule of a memory, outputs, gradients and final state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow

from .models import B, streams

RULES = [
    "gd(0.05)",
    "momentum(0.05 * sigmoid(r_), 0.9)",
    "nesterov(0.02, 0.9)",
    "sgd(0.05, momentum = 0.9, weight_decay = 0.01)",
    "adam(0.01)",
    "adamw(0.01, weight_decay = 0.1)",
    "amsgrad(0.01)",
    "lion(0.01)",
    "rmsprop(0.01)",
    "adagrad(0.01)",
    "muon(0.02)",
    "m3(0.01, 0.5, 0.1, 0.2, 0.5, period = 2)",
    "schedule_free(0.05)",
    "lookahead(gd(0.05))",
    "g |> clip_norm(0.1) |> gd(0.05)",
    "g |> clip_norm(0.3) |> dgd(0.1)",
    "dgd(0.05 * sigmoid(r_), normalize = true)",
    "dgd(0.05, exact = false)",
    "g |> clip_norm(1) |> adam(0.01) |> trust(0.1)",
    "average(0.1)",
    "(g / n_ticks) |> gd(0.05)",
    "(g / n_ticks) |> momentum(0.05, 0.5)",
    "(2 * g) |> gd(0.05) |> gd(-0.5)",
    "momentum(0.1, 0.5) |> gd(-0.5)",
    "g |> clip_norm(1) |> adam(0.1) |> momentum(-0.1, 0.5)",
]
# a linear rule that counts its updates: rows between two updates must not divide by none
AVERAGE = "optimizer average(lr) { memory m : like(w) { value g; update gd(0.2); retain 0.8 }; step -lr * debias(m) }"
CLOCKS = ["every 1 token", "every 1 token; chunk 4", "every 2 tokens; chunk 4", "every 3 tokens"]
MEMORIES = ["matrix", "mlp(depth = 2, expand = 1, act = tanh, residual = true)"]
MORE = ["", "gradient stop; read before", "read chunk_start"]
CASES = [(rule, CLOCKS[(i + j) % 4], memory, MORE[(i + j) % 3]) for i, rule in enumerate(RULES)
         for j, memory in enumerate(MEMORIES)]  # fmt: skip


@pytest.mark.parametrize(("rule", "clock", "memory", "more"), CASES)
def test_compiled_is_interpreted(rule: str, clock: str, memory: str, more: str) -> None:
    b = nestflow.compile(
        "nestflow 1\ninput k : float[T, 6]\ninput v : float[T, 6]\ninput q : float[T, 6]\n"
        f"input r : float[T, 2]\noutput mem(k, v, q, r)\n{AVERAGE}\n"
        f"level mem(k, v, q, r) {{\n{clock}; heads 2; memory {memory}\n"
        "r_ = split_heads(r); key split_heads(k) |> short_conv(2) |> l2norm; value split_heads(v)\n"
        f"query split_heads(q); objective l2; update {rule}; retain 0.9 + 0.1 * sigmoid(r_); {more} }}\n",
        dtype=torch.float64,
    )
    inputs = streams("k", "v", "q", "r")
    leaves = [*inputs.values(), *b.module.weights.values()]

    def ran(y: Tensor) -> list[Tensor]:
        probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True, materialize_grads=True)
        return [y, *grads]

    for got, want in zip(ran(b.module(**inputs)), ran(b.reference()(**inputs)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        stream = b.stream(batch=B)
        stream.feed(**inputs)
        _, state = b.reference().run(None, inputs)
    kept = stream.state.tensors
    assert set(kept) == set(state) - {"@t"}
    for path, x in kept.items():
        torch.testing.assert_close(x, state[path], rtol=1e-9, atol=1e-9, msg=lambda m, path=path: f"{path}: {m}")
