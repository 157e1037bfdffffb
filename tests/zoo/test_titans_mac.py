"""Titans' memory as context (equations 21 to 25), segment by segment and token by token, from the layer's weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow
from tests.oracles.attention import rope
from tests.zoo import deep
from tests.zoo.layers import L, merge, unit
from tests.zoo.test_recurrences import near

HEADS, DIM, CHUNK, P = 2, 8, 4, 3
NET = deep.mlp(True)


def bundle() -> nestflow.Bundle:
    text = "nestflow 1\nuse mac of titans_mac\ninput x : float[T, dim]\noutput mac(x)\n"
    return nestflow.compile(text, dtype=torch.float64, dim=DIM, n_heads=HEADS, chunk=CHUNK, expand=1, persistent=P)


def attended(w: L, x: Tensor, h: Tensor) -> Tensor:
    """Causal attention inside one segment over [P ‖ h ‖ x]: token t sees h_i and x_i up to its own."""
    q, kh, kx = rope(w.lin(x, "query.linear")), rope(w.lin(h, "key.linear")), rope(w.lin(x, "key.linear_2"))
    vh, vx = w.lin(h, "value.linear"), w.lin(x, "value.linear_2")
    rows = []
    for t in range(x.shape[1]):
        learned = [w(f"memory.prefix.{n}").expand(x.shape[0], -1, -1, -1) for n in ("key", "value")]
        k = torch.cat([learned[0], kh[:, :, : t + 1], kx[:, :, : t + 1]], 2)
        v = torch.cat([learned[1], vh[:, :, : t + 1], vx[:, :, : t + 1]], 2)
        p = (torch.einsum("bhd,bhnd->bhn", q[:, :, t], k) / k.shape[-1] ** 0.5).softmax(-1)
        rows.append(torch.einsum("bhn,bhnd->bhd", p, v))
    return w.lin(merge(torch.stack(rows, 2)), "out.linear")


def mac(w: L, x: Tensor) -> Tensor:
    m = w.below("m")
    start = [m("memory.linear.weight"), m("memory.linear_2.weight")]
    state = deep.copies(start, x.new_zeros(x.shape[0], HEADS, 1))
    momentum = [torch.zeros_like(a) for a in state]
    asked = unit(m.mixed(x, "query"))  # what the memory is asked before the tokens are attended to
    zs, out = [], []
    for first in range(0, x.shape[1], CHUNK):
        anchor, here = state, slice(first, min(first + CHUNK, x.shape[1]))
        h = torch.stack([NET(anchor, asked[:, :, t]) for t in range(here.start, here.stop)], 2)
        h = m.lin(merge(m.norm(h, "out")), "out.linear")
        z = attended(w.below("core"), x[:, here], h)
        z = z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w("rmsnorm.weight")
        zs.append(z)
        seen = torch.cat(zs, 1)  # convolutions look back over segments
        key, value, query = (unit(m.mixed(seen, n)) for n in ("key", "value", "query"))
        beta = m.lin(seen, "beta.linear").sigmoid()
        rate = 1.6 / CHUNK * (1 - beta) * m.lin(seen, "update.linear").sigmoid()
        retain = (m.lin(seen, "retain.linear") + 6).sigmoid()
        ys = []
        for t in range(here.start, here.stop):
            theta = [a * 1 for a in anchor]  # the key depends on the anchor too, and is a constant in the error
            g = deep.gradients(deep.l2(NET(theta, key[:, :, t]), value[:, :, t]), theta)
            momentum = [
                deep.number(beta[:, :, t], s) * s - deep.number(rate[:, :, t], s) * d
                for s, d in zip(momentum, g, strict=True)
            ]
            state = [deep.number(retain[:, :, t], a) * a + s for a, s in zip(state, momentum, strict=True)]
            ys.append(NET(state, query[:, :, t]))
        y = m.lin(merge(m.norm(torch.stack(ys, 2), "out")), "out.linear")
        out.append(z * y.sigmoid())
    return torch.cat(out, 1)


@pytest.mark.parametrize("length", [10, 8, 3])
def test_layer_is_the_paper(length: int) -> None:
    b = bundle()
    weights, source = b.module.weights, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for w in weights.values():
            w.add_(0.2 * torch.randn(w.shape, generator=source, dtype=w.dtype))
    x = torch.randn(2, length, DIM, generator=source, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, length, DIM, generator=source, dtype=torch.float64)
    leaves = {"x": x, **weights}

    def ran(y: Tensor) -> list[Tensor]:
        return [y, *torch.autograd.grad((y * probe).sum(), list(leaves.values()), allow_unused=True)]

    want = ran(mac(L(weights, "mac"), x))
    for run in (b.module, b.reference()):
        for name, got, one in zip(["output", *leaves], ran(run(x=x)), want, strict=True):
            if one is None:
                assert got is None or not got.any()
            else:
                near(got, one, 1e-9, name)


def test_what_it_recalls_is_context() -> None:
    """The second segment's attention depends on the first segment through the memory alone."""
    b = bundle()
    x = torch.randn(1, 2 * CHUNK, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = x.clone()
    other[:, 0] += 1
    assert not torch.allclose(b.module(x=x)[:, -1], b.module(x=other)[:, -1], rtol=0, atol=1e-9)
    frozen = nestflow.compile(b.spec, dtype=torch.float64, **b.params | {"rate": 0.0})
    frozen.module.load_state_dict(b.module.state_dict())
    torch.testing.assert_close(frozen.module(x=x)[:, -1], frozen.module(x=other)[:, -1])
