"""Whole models: flows, calls, losses, inputs, mistakes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import nestflow
from nestflow.diagnostics.core import NestflowError
from nestflow.ir.node import Node
from nestflow.reference import Reference

from .models import close, draw, weights_of

LM = """nestflow 1
input tokens : int[T] in [0, 8)
output model(tokens)
level att(x) {{
  every 1 token; heads 2; memory cache
  key x |> linear |> rope; value x |> linear; query x |> linear |> rope
}}
flow block(x) {{
  x = x + att(rmsnorm(x))
  return x + swiglu(rmsnorm(x))
}}
flow model(tokens) {{
  shared emb = embed(8, 8)
  x = emb(tokens)
  repeat 2 {{ x = block(x) }}
  return rmsnorm(x) @ transpose(emb.weight)
}}
level outer {{ every 1 step; memory weights(model); objective {objective}; update gd(0.1) }}
"""


def model(objective: str = "cross_entropy(model(tokens), next(tokens))") -> Reference:
    graph = nestflow.check(LM.format(objective=objective))
    return Reference(graph, weights_of(graph))


def tokens(rows: int = 2, ticks: int = 6) -> torch.Tensor:
    return torch.randint(0, 8, (rows, ticks), generator=torch.Generator().manual_seed(3))


def rms(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Complex form of rope: pairs (i, i + d/2) as complex numbers, turned by p · 10000^(−2i/d)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def test_a_transformer_written_out() -> None:
    ref, x = model(), tokens()
    w = ref.weights
    h = w["model.emb.weight"][x]
    for i in range(2):
        at = f"model.block.{i}."
        n = rms(h, w[at + "rmsnorm.weight"])
        k, v, q = (torch.einsum("hod,btd->bhto", w[f"{at}att.{f}.linear.weight"], n) for f in ("key", "value", "query"))
        y = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        h = h + y.transpose(1, 2).flatten(2)
        n = rms(h, w[at + "rmsnorm_2.weight"])
        gate, up, down = (
            next(m for p, m in w.items() if p.startswith(f"{at}swiglu.{s}")) for s in ("gate", "up", "down")
        )
        h = h + (F.silu(n @ gate.T) * (n @ up.T)) @ down.T
    want = rms(h, w["model.rmsnorm.weight"]) @ w["model.emb.weight"].T
    close(ref(tokens=x), want)
    close(ref(x), want)


def objective_of(ref: Reference) -> Node:
    objective = ref.graph.step_levels[0].objective
    assert objective is not None
    return objective


def test_cross_entropy_leaves_out_the_last_tick() -> None:
    ref, x = model(), tokens()
    want = F.cross_entropy(ref(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    got = ref.loss(objective_of(ref), {"tokens": x})
    close(got, want)
    for a, b in zip(*(torch.autograd.grad(y, list(ref.weights.values())) for y in (got, want)), strict=True):
        close(a, b)


def test_label_smoothing_is_torchs() -> None:
    ref, x = model("cross_entropy(model(tokens), next(tokens), smoothing = 0.2)"), tokens()
    want = F.cross_entropy(ref(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten(), label_smoothing=0.2)
    close(ref.loss(objective_of(ref), {"tokens": x}), want)


def test_a_mask_takes_terms_out_of_the_mean() -> None:
    ref, x = model("cross_entropy(model(tokens), next(tokens), mask = next(tokens) > 2)"), tokens()
    terms = F.cross_entropy(ref(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten(), reduction="none")
    keep = (x[:, 1:] > 2).flatten()
    assert 0 < keep.sum() < keep.numel()
    close(ref.loss(objective_of(ref), {"tokens": x}), terms[keep].mean())


def test_nothing_left_is_zero() -> None:
    ref, x = model(), tokens(ticks=1)
    loss = ref.loss(objective_of(ref), {"tokens": x})
    assert loss.item() == 0


def test_a_penalty_beside_the_loss() -> None:
    ref, x = model("cross_entropy(model(tokens), next(tokens)) + 0.1 * mean(square(model(tokens)))"), tokens()
    y = ref(x)
    want = F.cross_entropy(y[:, :-1].flatten(0, 1), x[:, 1:].flatten()) + 0.1 * y.square().mean()
    close(ref.loss(objective_of(ref), {"tokens": x}), want)


def test_wrong_inputs_are_told() -> None:
    ref = model()
    with pytest.raises(NestflowError, match="no input `token`"):
        ref(token=tokens())
    with pytest.raises(NestflowError, match="`tokens` is missing"):
        ref()
    with pytest.raises(NestflowError, match="embed has 8 rows"):
        ref(tokens() + 5)


def test_float32_stays_float32() -> None:
    graph = nestflow.check(LM.format(objective="cross_entropy(model(tokens), next(tokens))"))
    ref = Reference(graph, {p: w.detach().float() for p, w in weights_of(graph).items()})
    y = ref(tokens())
    assert y.dtype == torch.float32
    close(y.double(), model()(tokens()).detach(), 1e-4)


def test_short_conv_and_previous_see_zeros_before_the_start() -> None:
    graph = nestflow.check(
        "nestflow 1\ninput x : float[T, 3]\noutput f(x)\n"
        "flow f(x) { return concat(short_conv(x, 3, bias = true), previous(x, 2)) }\n"
    )
    ref, x = Reference(graph, weights_of(graph)), draw(2, 5, 3, seed=7)
    w, b = ref.weights["f.short_conv.weight"], ref.weights["f.short_conv.bias"]
    padded = F.pad(x.mT, (2, 0))
    conv = F.conv1d(padded, w.flip(-1).unsqueeze(1), b, groups=3).mT
    close(ref(x), torch.cat([conv, padded.mT[:, :5]], -1))


def test_positions_and_heads_count() -> None:
    graph = nestflow.check(
        "nestflow 1\ninput x : float[T, 4]\noutput lev(x)\nlevel lev(x) { every 1 token; heads 2; "
        "memory matrix; k = split_heads(x); key k; value k * (1 + head) * t; query k; objective dot; "
        "update gd(1) }\n"
    )
    x = draw(1, 4, 4)
    k = x.unflatten(-1, (2, 2)).transpose(1, 2)
    scale = (1 + torch.arange(2)).view(1, 2, 1, 1) * (1 + torch.arange(4)).view(1, 1, 4, 1)
    want = (k @ k.mT).tril() @ (k * scale)
    close(Reference(graph, {})(x), want.transpose(1, 2).flatten(2))


def test_inputs_of_any_type_are_taken_as_the_module_takes_them() -> None:
    b = nestflow.compile(
        "nestflow 1\ninput x : float[T, 4]\noutput f(x)\nflow f(x) { return linear(x, 3) }", dtype="float64"
    )
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(b.reference()(x=x), b.module(x=x))
