"""Every shipped layer, as its spec has it, is the layer of its paper: same weights, same output and gradients."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import nestflow
from tests.zoo.layers import LAYERS, L
from tests.zoo.test_recurrences import near

every_layer = pytest.mark.parametrize("name", LAYERS)


@cache
def layer(name: str) -> nestflow.Bundle:
    """The spec's own level (or the flow around it), on vectors."""
    return nestflow.compile(text_of(name), dtype=torch.float64, dim=8, n_heads=2, **LAYERS[name][1])


def text_of(name: str) -> str:
    word, spec = LAYERS[name][0], name.partition(",")[0]
    return f"nestflow 1\nuse {word} of {spec}\ninput x : float[T, dim]\noutput {word}(x)\n"


def moved(name: str) -> dict[str, Tensor]:
    """The layer's weights, away from their ones and zeros."""
    weights = dict(layer(name).module.named_weights())
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for w in weights.values():
            w.add_(0.1 * torch.randn(w.shape, generator=source, dtype=torch.float64))
    return weights


@every_layer
def test_layer_is_the_paper(name: str) -> None:
    word, _, paper = LAYERS[name]
    weights = moved(name)
    source = torch.Generator().manual_seed(5)
    x = torch.randn(2, 10, 8, generator=source, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, 10, 8, generator=source, dtype=torch.float64)
    got, want = layer(name).module(x=x), paper(L(weights, word), x)
    near(got, want, 1e-9, "output")
    leaves = {"x": x, **weights}
    mine, theirs = (torch.autograd.grad((y * probe).sum(), list(leaves.values())) for y in (got, want))
    for path, a, b in zip(leaves, mine, theirs, strict=True):
        near(a, b, 1e-9, f"gradient of {path}")


@pytest.mark.parametrize("name", ["mamba2", "gated_deltanet", "kda", "comba", "deltaproduct"])
def test_published_starts(name: str) -> None:
    """A in U(1, 16) (Gated DeltaNet and DeltaProduct: U(0, 16)), softplus(b) in [0.001, 0.1], one per head."""
    params = LAYERS[name][1]
    weights = dict(nestflow.compile(text_of(name), dim=64, n_heads=32, **params).module.named_weights())
    a = next(w for n, w in weights.items() if n.endswith(".a.learned")).exp()
    b = next(w for n, w in weights.items() if n.endswith((".b.learned", ".delta.learned")))
    low = 0 if name in ("gated_deltanet", "deltaproduct") else 1
    assert a.shape == (32, 1) and low <= a.min() < 4 and 12 < a.max() <= 16
    step = torch.nn.functional.softplus(b)
    assert 0.001 - 1e-6 <= step.min() < 0.003 and 0.04 < step.max() <= 0.1 + 1e-6


def test_retnet_forgets_by_head() -> None:
    """The gates that the layer has at the start: 31/32, 63/64."""
    b = nestflow.compile(text_of("retnet"), dtype=torch.float64, dim=8, n_heads=2)
    stream = b.stream(batch=1)
    stream.feed(x=torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    (path,) = [s.path for s in b.graph.state if s.role == "memory"]
    first = stream.state.tensors[path].clone()
    stream.feed(x=torch.zeros(1, 1, 8, dtype=torch.float64))
    kept = stream.state.tensors[path] / first
    torch.testing.assert_close(kept[0, 0], torch.full_like(kept[0, 0], 31 / 32))
    torch.testing.assert_close(kept[0, 1], torch.full_like(kept[0, 1], 63 / 64))


def test_longhorn_solved() -> None:
    """`exact`: the solved step, on the same weights."""
    exact = nestflow.compile(text_of("longhorn"), dtype=torch.float64, dim=8, n_heads=2, exact=True)
    exact.module.load_state_dict(layer("longhorn").module.state_dict())
    x = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    from tests.zoo import layers, matrices

    w = L(dict(exact.module.named_weights()), "longhorn")
    v = w.lin(torch.nn.functional.silu(w.conv(x, "value")), "value.linear")
    b = w.lin(x, "b.linear").sigmoid()
    y = matrices.longhorn(w.lin(x, "k.linear"), v, w.lin(x, "query.linear"), b, exact=True)
    gate = torch.nn.functional.silu(w.lin(x, "out.linear"))
    near(exact.module(x=x), w.lin(layers.merge(w.norm(y, "out") * gate), "out.linear_2"), 1e-9, "output")
