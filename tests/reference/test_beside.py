"""Constructs side by side, by hand: rounds with conditions and windows, delta gradient descent over a window."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import nestflow

T, D, W = 9, 4, 3
Step = Callable[[Tensor, int, dict[str, Tensor]], Tensor]


def gradient(a: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """∇ ½‖A k − v‖²"""
    return (a @ k - v)[:, None] * k[None]


def window(t: int) -> range:
    return range(max(0, t - W + 1), t + 1)


def rounds_when(a: Tensor, t: int, x: dict[str, Tensor]) -> Tensor:
    """Two steps from state to state, where the tick brings a pair; the gate acts in the first."""
    if not x["k"][t, 0] > 0:
        return a
    for i in range(2):
        a = (0.9 if i == 0 else 1) * a - 0.3 * gradient(a, x["k"][t], x["v"][t])
    return a


def rounds_window(a: Tensor, t: int, x: dict[str, Tensor]) -> Tensor:
    """Two steps, the second over other pairs that weigh half; the older pairs as they were."""
    for k, v, weight in ((x["k"], x["v"], 1.0), (x["v"], x["q"], 0.5)):
        a = a - sum(0.1 * weight * 0.5 ** (t - i) * gradient(a, k[i], v[i]) for i in window(t))
    return a


def dgd_window(a: Tensor, t: int, x: dict[str, Tensor], exact: bool = True) -> Tensor:
    """−η(A K + g), K = Σ e_i k_i k_iᵀ with the weights of g, η = lr/(1 + lr tr K)."""
    weights = {i: 0.5 ** (t - i) * float(x["r"][i, 0].sigmoid()) for i in window(t)}
    k = sum(w * torch.outer(x["k"][i], x["k"][i]) for i, w in weights.items())
    g = sum(w * gradient(a, x["k"][i], x["v"][i]) for i, w in weights.items())
    assert isinstance(k, Tensor)
    rate = 0.4 / (1 + 0.4 * k.trace()) if exact else 0.1
    return a - rate * (a @ k + g)


CASES: dict[str, tuple[str, Step]] = {
    "rounds when": ("key k; value v; objective l2; rounds 2; when k[0] > 0; update gd(0.3); retain 0.9", rounds_when),
    "rounds window": (
        "key [k, v]; value [v, q]; weight [1, 0.5]; objective windowed(l2, 3, weight = 0.5 ^ age); update gd(0.1)",
        rounds_window,
    ),
    "dgd window": (
        "key k; value v; weight sigmoid(r); objective windowed(l2, 3, weight = 0.5 ^ age); update dgd(0.4)",
        dgd_window,
    ),
    "dgd window as printed": (
        "key k; value v; weight sigmoid(r); objective windowed(l2, 3, weight = 0.5 ^ age)\n"
        "update dgd(0.1, exact = false)",
        lambda a, t, x: dgd_window(a, t, x, exact=False),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name: str) -> None:
    fields, step = CASES[name]
    inputs = "".join(f"input {n} : float[T, {1 if n == 'r' else D}]\n" for n in "kvqr")
    b = nestflow.compile(
        f"nestflow 1\n{inputs}output m(k, v, q, r)\nlevel m(k, v, q, r) {{ memory matrix; {fields}; query q }}\n",
        dtype=torch.float64,
    )
    source = torch.Generator().manual_seed(0)
    x = {n: torch.randn(2, T, 1 if n == "r" else D, generator=source, dtype=torch.float64) for n in "kvqr"}
    rows = []
    for row in range(2):
        mine, a, ys = {n: e[row] for n, e in x.items()}, torch.zeros(D, D, dtype=torch.float64), []
        for t in range(T):
            a = step(a, t, mine)
            ys.append(a @ mine["q"][t])
        rows.append(torch.stack(ys))
    want, stream, state, parts, slow = torch.stack(rows), b.stream(batch=2), None, [], []
    for i, j in ((0, 1), (1, 5), (5, T)):
        piece = {n: e[:, i:j] for n, e in x.items()}
        parts.append(stream.feed(**piece))
        y, state = b.reference().run(state, piece)
        slow.append(y)
    for got in (b.module(**x), b.reference()(**x), torch.cat(parts, 1), torch.cat(slow, 1)):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("memory", ["matrix", "mlp(depth = 2, expand = 1)"])
@pytest.mark.parametrize("clock", ["every 1 token", "every 2 tokens; chunk 4"])
@pytest.mark.parametrize(
    "fields",
    [
        "objective windowed(l2, 2); when sum(x) > 0; update dgd(0.3)",
        "objective windowed(l2(M(2 * key), value) + 0.1 * l2(M(key), value), 2, weight = learned(2)[age] + 1)\n"
        "weight sigmoid(linear(x, 1)); update dgd(0.3, normalize = true)",
        "objective l2; when norm(M(key) - value) > 2; rounds 3; update gd(0.2 / t)",
        "objective windowed(l2, 2); when sum(x) > 0; rounds 2; update adam(0.05)",
    ],
)
def test_compiled_is_interpreted(memory: str, clock: str, fields: str) -> None:
    if "rounds" in fields and clock != "every 1 token":
        pytest.skip("rounds go from state to state")
    b = nestflow.compile(
        f"nestflow 1\ninput x : float[T, 8]\noutput m(x)\nlevel m(x) {{ {clock}; heads 2; memory {memory}; {fields}\n"
        "key x |> linear |> l2norm; value x |> linear; query x |> linear }\n",
        dtype=torch.float64,
    )
    x = torch.randn(2, T, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for run in (b.module, b.reference()):
        y = run(x=x)
        probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        weights = list(b.module.weights.values())
        found.append([y, *torch.autograd.grad((y * probe).sum(), weights, allow_unused=True, materialize_grads=True)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    stream = b.stream(batch=2)
    parts = torch.cat([stream.feed(x=x[:, :3]), stream.feed(x=x[:, 3:4]), stream.feed(x=x[:, 4:])], 1)
    torch.testing.assert_close(parts, found[0][0])
