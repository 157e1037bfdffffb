"""`per stream; reset never`: a memory of a level that goes on when a new sequence begins in its row."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import nestflow
from tests.reading.models import near

KINDS = {
    "recurrence": "memory matrix; objective dot; update gd(0.5); retain 0.9",
    "delta": "memory matrix; objective l2; update gd(0.5); retain 0.95",
    "chunk": "memory mlp(depth = 2, expand = 1); chunk 4; objective l2; update momentum(0.1, 0.9); retain 0.95",
    "every": "memory mlp(depth = 2, expand = 1); every 2 tokens; chunk 4; objective l2; update muon(0.05)",
    "scan": "memory mlp(depth = 1); chunk 4; objective l2; update adam(0.05); weight 1 / t",
}


def compiled(kind: str) -> nestflow.Bundle:
    every = "" if "every" in KINDS[kind] else "every 1 token; "
    b = nestflow.compile(
        "nestflow 1\ninput x : float[T, 6]\noutput keep(x)\n"
        f"level keep(x) {{ {every}heads 2; key x |> linear |> short_conv(2) |> l2norm; value x |> linear\n"
        f"query x |> linear |> rope(8) |> l2norm; {KINDS[kind]}; per stream; reset never }}\n".replace(
            "linear |> rope(8)", "linear(4) |> rope"
        ).replace("x |> linear |> short_conv", "x |> linear(4) |> short_conv"),
        dtype=torch.float64,
    )
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in b.module.weights.values():
            w.add_(0.5 * torch.randn(w.shape, generator=source, dtype=torch.float64))
    return b


def values(rows: int = 2, ticks: int = 14) -> Tensor:
    return torch.randn(rows, ticks, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("border", [3, 4, 7])
def test_goes_on_beyond_a_sequence(kind: str, border: int) -> None:
    """Compiled is interpreted; the memory stands, the convolution and the positions begin anew."""
    b, x = compiled(kind), values()
    stream = b.stream(2)
    outs = [stream.feed(x=x[:, :2]), stream.feed(x=x[:, 2:border])]
    before = {p: v for p, v in stream.state.tensors.items() if ".memory." in p}
    stream.begin_sequence()
    assert stream.t == (0, 0)
    assert all(torch.equal(stream.state.tensors[p], v) for p, v in before.items())
    outs += [stream.feed(x=x[:, border:9]), stream.feed(x=x[:, 9:])]
    starts = torch.zeros(2, 14, dtype=torch.bool)
    starts[:, border] = True
    with torch.no_grad():
        want, after = b.reference().run(None, {"x": x}, starts)
    near(torch.cat(outs, 1), want)
    for path, value in stream.state.tensors.items():
        if not path.endswith("@chunk"):
            near(value, after[path])
    assert (torch.cat(outs, 1)[:, border:] - b.module(x=x[:, border:])).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_rows_begin_by_themselves_and_gradients_agree(kind: str) -> None:
    b, x = compiled(kind), values()
    stream = b.stream(2)
    first = stream.feed(x=x[:, :5])
    stream.begin_sequence([1])
    rest = stream.feed(x=x[:, 5:])
    starts = torch.zeros(2, 14, dtype=torch.bool)
    starts[1, 5] = True
    with torch.no_grad():
        want, _ = b.reference().run(None, {"x": x}, starts)
    near(torch.cat([first, rest], 1), want)
    probe = values().mean(-1, keepdim=True)
    weights = list(b.module.weights.values())
    mine, theirs = (torch.autograd.grad((f(x=x) * probe).sum(), weights) for f in (b.module, b.reference()))
    for a, c in zip(mine, theirs, strict=True):
        near(a, c, 1e-8)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ("objective l2; reset never", "NF437"),
        ("objective l2; per stream; reset each(chunk)", "NF437"),
        ("objective l2; per task; reset never", "NF490"),
        ("per stream; objective windowed(l2, 3)", "NF490"),
        ("objective l2; per street", "NF231"),
        ("objective l2; per model; reset each(chunk)", "NF437"),
        ("objective l2; per model; retain sigmoid(x |> linear(1))", "NF437"),
        ("objective l2; per model; when sum(x) > 0", "NF490"),
        ("per model; objective windowed(l2, 3)", "NF490"),
        ("objective l2; per model; reset never; init normal(0.1)", "NF490"),
        ("objective l2; per worker; reset never", "NF490"),
    ],
)
def test_what_cannot_be_is_told(fields: str, code: str) -> None:
    text = (
        "nestflow 1\ninput x : float[T, 4]\noutput m(x)\nlevel m(x) { every 1 token; memory matrix; key x; value x\n"
        f"query x; update gd(1); {fields} }}\n"
    )
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.check(text)
    assert [d.code for d in e.value.diagnostics] == [code]


def test_a_stream_of_a_model_that_learns_keeps_no_graph() -> None:
    """Without gradients a read brings none into the output or the state, at any split; so a stream can be copied."""
    b = nestflow.compile(
        "nestflow 1\ninput tokens : int[T] in [0, 8)\noutput model(tokens)\n"
        "flow model(tokens) { x = embed(tokens, 8, 4); h = x + mlp(x); return h |> linear(8) }\n"
        "loss = cross_entropy(model(tokens), next(tokens))\n"
        'level a { every 2 tokens; memory weights(model, "mlp.**"); objective loss; update adam(0.1) }\n'
        "level outer { every 1 step; memory weights(model); objective loss; update adamw(1e-3) }\n",
        dtype=torch.float64,
    )
    x = torch.randint(8, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not b.module(x).requires_grad
    stream, outs = b.stream(2), []
    for part in x.split([3, 1, 5], 1):
        outs.append(copy.deepcopy(stream).feed(part))
        torch.testing.assert_close(stream.feed(part), outs[-1], rtol=0, atol=0)
        assert not outs[-1].requires_grad
        assert not any(v.requires_grad for v in stream.state.tensors.values())
    near(torch.cat(outs, 1), b.module(x).detach())
