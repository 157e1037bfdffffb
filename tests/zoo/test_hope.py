"""HOPE's self-modifying memory (Nested Learning 83 to 93) from x, token by token, in every reading that is a param.

The loop is written from the paper and knows tensors only. Everything a memory generates, and every gradient, is taken
at the state that its chunk began with.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, softplus

import nestflow
from tests.zoo import deep
from tests.zoo.layers import HEADS, L, merge, unit
from tests.zoo.test_recurrences import near

DIM, CHUNK, T = 8, 4, 10
D = DIM // HEADS
TEXT = "nestflow 1\nuse self_modifying of hope\ninput x : float[T, dim]\noutput self_modifying(x)\n"
READINGS: list[dict[str, Any]] = [
    {},
    {"own_query": True},
    {"store_chunk": 2},
    {"store_chunk": 8},
    {"read_start": True},
    {"read_before": True},
    {"exact": False, "rate": 0.2},
    {"unit_inputs": True},
    {"unit_inputs": True, "exact": False},
    {"first_only": True},
    {"first_only": True, "exact": False, "store_chunk": 2},
    {"erase": False, "rate": 0.3},
    {"decay": False},
    {"smoothing": 0.6},
    {"channels": True},
    {"channels": True, "exact": False, "rate": 0.2},
    {"channels": True, "smoothing": 0.5},
    {"channels": True, "first_only": True, "own_query": True},
    {"soft_rates": True},
    {"one_input": True},
    {"conv_first": True},
    {"fixed_target": False},
    {"out_gate": True},
    {"expand": 2},
]


def layer(w: L, x: Tensor, r: dict[str, Any]) -> Tensor:
    """The level, [B, T, dim] -> [B, T, dim]. r: the reading."""
    channels, rate, span = r.get("channels", False), r.get("rate", 1.0), r.get("store_chunk") or CHUNK
    names = ["keys", "values", "store", "rates", "gates", *(["queries"] if r.get("own_query") else [])]

    def net(m: str, theta: list[Tensor], z: Tensor) -> Tensor:
        y = deep.apply(theta[1], gelu(deep.apply(theta[0], z)))
        return y if m in ("rates", "gates") and not channels else z + y

    def inward(name: str) -> Tensor:
        if r.get("conv_first"):
            return unit(w.lin(w.conv(x, name), f"{name}.linear"))
        return unit(w.conv(w.lin(x, f"{name}.linear"), name))

    asked = inward("a")
    rest = asked if r.get("one_input") else inward("u")
    start = {m: [w(f"{m}.linear.weight"), w(f"{m}.linear_2.weight")] for m in names}
    state = {m: deep.copies(start[m], x) for m in names}
    anchor = dict(state)
    mean = {m: [torch.zeros_like(a) for a in state[m]] for m in names}
    ys = []
    for t in range(x.shape[1]):
        anchor = {m: state[m] if t % (span if m == "store" else CHUNK) == 0 else anchor[m] for m in names}
        before = state["store"]
        a, u = asked[:, :, t], rest[:, :, t]
        k, v = unit(net("keys", anchor["keys"], a)), unit(net("values", anchor["values"], u))
        if "queries" in names:
            q = unit(net("queries", anchor["queries"], u))
        else:
            q = unit(torch.einsum("bhd,hod->bho", u, w("q.linear.weight")))
        raw = net("rates", anchor["rates"], u)
        eta = rate * 1e-3 * softplus(raw) if r.get("soft_rates") else rate * 4.8 / max(CHUNK, span) * raw.sigmoid()
        alpha = (net("gates", anchor["gates"], u) + 8).sigmoid() if r.get("decay", True) else torch.ones_like(eta)
        state = {m: learned(m, net, state[m], anchor[m], mean[m], k, v, eta, alpha, r) for m in names}
        at = anchor["store"] if r.get("read_start") else before if r.get("read_before") else state["store"]
        ys.append(net("store", at, q))
    y = w.norm(torch.stack(ys, 2), "out")
    if r.get("out_gate"):
        return w.lin(merge(y * w.lin(x, "out.linear").sigmoid()), "out.linear_2")
    return w.lin(merge(y), "out.linear")


def learned(
    m: str, net: Any, state: list[Tensor], anchor: list[Tensor], mean: list[Tensor], k: Tensor, v: Tensor, eta: Tensor,
    alpha: Tensor, r: dict[str, Any],
) -> list[Tensor]:  # fmt: skip
    """M ← M (α I − η k kᵀ) − η ∇ℓ, ℓ = ½‖M(k) − M(v)‖², matrix by matrix, k being what enters it. mean: of the
    gradients so far, changed in place."""
    theta = [a * 1 for a in anchor]  # what the inner derivative is in; k, v and the target depend on the anchor too
    constant = r.get("fixed_target", True)
    target = net(m, anchor if constant else theta, v)
    grads = deep.gradients(deep.l2(net(m, theta, k), target), theta)
    entered = [[k, gelu(deep.apply(anchor[0], k))]]
    if not constant:
        entered.append([v, gelu(deep.apply(anchor[0], v))])
    new = []
    for i, (w, g) in enumerate(zip(state, grads, strict=True)):
        inputs = [e[i] for e in entered]
        if r.get("unit_inputs"):
            inputs = [h / h.norm(dim=-1, keepdim=True) for h in inputs]
        kk = sum((h[..., :, None] * h[..., None, :] for h in inputs), torch.zeros(()))
        trace = sum((h.square().sum(-1) for h in inputs), torch.zeros(()))[..., None, None]
        pace = eta[..., :, None]  # a number, or one for each row
        beta = r.get("smoothing", 0)
        if beta:
            g = mean[i] = beta * mean[i] + (1 - beta) * g
        if r.get("erase", True) and (i == 0 or not r.get("first_only")):
            pace = pace / (1 + pace * trace) if r.get("exact", True) else pace
            g = w @ kk + g
        new.append(alpha[..., None, :] * w - pace * g)
    return new


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_every_reading_is_the_paper(reading: dict[str, Any]) -> None:
    """Output to 1e-9, and the gradients of x and of every weight."""
    b = nestflow.compile(TEXT, dtype=torch.float64, dim=DIM, n_heads=HEADS, chunk=CHUNK, **reading)
    source = torch.Generator().manual_seed(3)
    weights = dict(b.module.named_weights())
    with torch.no_grad():
        for w in weights.values():
            w.add_(0.1 * torch.randn(w.shape, generator=source, dtype=torch.float64))
    x = torch.randn(2, T, DIM, generator=source, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, T, DIM, generator=source, dtype=torch.float64)
    got, want = b.module(x=x), layer(L(weights, "self_modifying"), x, reading)
    near(got, want, 1e-9, "output")
    near(b.reference()(x=x), want, 1e-9, "interpreted")
    leaves = {"x": x, **weights}
    mine, theirs = (
        torch.autograd.grad((y * probe).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        for y in (got, want)
    )
    for path, one, two in zip(leaves, mine, theirs, strict=True):
        assert two.abs().max() > 0 or "decay" in reading, f"{path} has no effect at all"
        near(one, two, 1e-9, f"gradient of {path}")
