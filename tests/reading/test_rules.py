"""Rules of weights that learn while the model reads: optimisers' memories of any shape, and what waits."""

from __future__ import annotations

import pytest
import torch

import nestflow
from tests.reading.models import HEAD, PLAIN, compiled, near, tokens
from tests.reading.test_reading import gradients

NESTED = (
    'level one {{ every 2 tokens; memory weights(model, "fast.**"); objective loss; update {rule}; init two; '
    "reset each(two) }}\n"
    'level two {{ every 4 tokens; memory weights(model, "slow.**"); objective loss; update {rule} }}\n'
)


@pytest.mark.parametrize("rule", ["shampoo(0.05, period = 2)", "adafactor(0.02)", "schedule_free(0.05)"])
def test_memories_of_any_shape(rule: str) -> None:
    """Memories of rows and columns, from a multiple of the identity; a fresh start of the faster level begins them
    anew. Compiled is interpreted, forward and backward, in pieces and each row alone."""
    b, x = compiled(HEAD + PLAIN + NESTED.format(rule=rule)), tokens(ticks=11)
    weights = dict(b.module.named_weights())
    y, want = b.module(tokens=x), b.reference()(tokens=x)
    near(y, want, 1e-8)
    for mine, other in zip(gradients(y, weights), gradients(want, weights), strict=True):
        near(mine, other, 1e-6)
    near(b.module(tokens=x[1:]), y[1:], 1e-8)
    stream = b.stream(2)
    near(torch.cat([stream.feed(tokens=part) for part in x.split([3, 1, 2, 5], 1)], 1), y.detach(), 1e-8)
    plain = compiled(HEAD + PLAIN)
    assert not torch.allclose(plain.module(tokens=x)[:, 4:], y[:, 4:])


def test_shampoo_is_its_equations() -> None:
    """L ← L + g gᵀ, R ← R + gᵀ g, w ← w − lr L^(−1/4) g R^(−1/4), twice, with torch's own gradients."""
    level = 'level one {{ every 3 tokens; memory weights(model, "linear.**"); objective loss; update {} }}\n'
    b = compiled(HEAD + PLAIN + level.format("shampoo(0.3, period = 1)"))
    x = tokens(1, 9)
    plain, (path,) = compiled(HEAD + PLAIN), b.graph.reading[0].weights
    w = plain.module.weights[path]
    left, right = (1e-4 * torch.eye(n, dtype=w.dtype) for n in w.shape)
    got = b.module(tokens=x)
    for at in (0, 3, 6):
        y = plain.module(tokens=x)
        near(got[:, at : at + 3], y[:, at : at + 3], 1e-8)
        if at == 6:
            break
        loss = torch.nn.functional.cross_entropy(y[0, at : at + 3], x[0, at + 1 : at + 4], reduction="sum")
        (g,) = torch.autograd.grad(loss, [w])
        left, right = left + g @ g.T, right + g.T @ g
        roots = [v @ torch.diag(e**-0.25) @ v.T for e, v in map(torch.linalg.eigh, (left, right))]
        with torch.no_grad():
            w -= 0.3 * roots[0] @ g @ roots[1]


def test_curvature_waits() -> None:
    """An optimiser that reads the curvature of the objective has none here."""
    text = HEAD + PLAIN + "level one { every 4 tokens; memory weights(model); objective loss; update sophia(0.1) }\n"
    with pytest.raises(nestflow.NestflowError, match="NF490"):
        nestflow.compile(text)


def test_examples_are_no_ticks() -> None:
    """The axis N has no order, so no level learns along it."""
    text = "nestflow 1\ninput a.x : float[N, 4]\ninput a.label : int[N] in [0, 3)\noutput f(a.x)\n"
    text += "flow f(x) { return linear(x, 3) }\nlevel r { every 2 tokens; memory weights(f); update gd(0.1); "
    with pytest.raises(nestflow.NestflowError, match="NF407"):
        nestflow.check(text + "objective cross_entropy(f(a.x), a.label) }\n")
