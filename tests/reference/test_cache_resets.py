"""Caches that begin anew at ticks of their own (`reset where`, `each`), and caches that outlive a sequence."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import nestflow

T, D = 11, 4
OPTIONS = [
    "",
    "window = 3",
    "segment = 3",
    "sink = 1, window = 3",
    "sink = 2, segment = 4, prefix = 2",
    "causal = false",
    "causal = false, window = 2",
    "causal = false, segment = 3, prefix = 2",
]
HEAD = (
    "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\ninput q : float[T, 4]\ninput s : bool[T]\n"
    "output a(k, v, q, s)\n"
    "level a(k, v, q, s) {{ memory cache({options}); key {key}; value {value}; query q; {more} }}\n"
)
LISTS = {"k": "v", "[k, v]": "[v, q]"}


def bundle(options: str, more: str = "reset where(s)", key: str = "k") -> nestflow.Bundle:
    return nestflow.compile(HEAD.format(options=options, more=more, key=key, value=LISTS[key]), dtype="float64")


def inputs(rows: int = 2) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = {n: torch.randn(rows, T, D, generator=source, dtype=torch.float64) for n in "kvq"}
    return x | {"s": torch.rand(rows, T, generator=source) < 0.3}


def documents(x: dict[str, Tensor]) -> list[list[tuple[int, int]]]:
    """Of each row: [first, end) of every stretch between resets."""
    found = []
    for row in x["s"]:
        cuts = sorted({0, *(i for i in range(T) if row[i]), T})
        found.append(list(pairwise(cuts)))
    return found


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y, *torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True, materialize_grads=True)]


def near(mine: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_document_is_read_as_if_alone(options: str, key: str) -> None:
    """What stands between two resets gets what a fresh call of that stretch alone gets (a spec without `reset`)."""
    b, alone, x = bundle(options, key=key), bundle(options, "", key), inputs()
    alone.module.load_state_dict(b.module.state_dict())
    assert any(len(cuts) > 2 for cuts in documents(x))
    leaves = [x[n].requires_grad_() for n in "kvq"]
    rows = []
    for i, cuts in enumerate(documents(x)):
        parts = [alone.module(**{n: e[i : i + 1, low:high] for n, e in x.items()}) for low, high in cuts]
        rows.append(torch.cat(parts, 1))
    want = gradients(torch.cat(rows), leaves)
    for run in (b.module, b.reference()):
        for mine, other in zip(gradients(run(**x), leaves), want, strict=True):
            near(mine, other)


@pytest.mark.parametrize("options", [o for o in OPTIONS if "causal" not in o])
@pytest.mark.parametrize("more", ["reset where(s)", "reset never; per stream", "reset each(chunk); chunk 4"])
def test_splits_are_the_whole(options: str, more: str) -> None:
    if "chunk" in more and options not in ("", "window = 3"):
        return
    b, x = bundle(options, more), inputs()
    whole, stream, state, parts, slow = b.module(**x), b.stream(batch=2), None, [], []
    near(b.reference()(**x), whole)
    for low, high in ((0, 2), (2, 3), (3, 8), (8, T)):
        part = {n: e[:, low:high] for n, e in x.items()}
        parts.append(stream.feed(**part))
        y, state = b.reference().run(state, part)
        slow.append(y)
    near(torch.cat(parts, 1), whole)
    near(torch.cat(slow, 1), whole)
    assert state is not None
    for path, value in stream.state.tensors.items():
        if path.endswith("@since"):
            near(value, state[path])


def test_each_chunk_is_a_segment() -> None:
    x = inputs()
    still = x | {"s": x["s"] & False}
    near(bundle("", "reset each(chunk); chunk 4").module(**x), bundle("segment = 4").module(**still))


def test_heads_reset_for_themselves() -> None:
    """A condition of each head: one head of two forgets."""
    b = nestflow.compile(
        "nestflow 1\ninput x : float[T, 4]\ninput s : bool[T]\noutput a(x, s)\nlevel a(x, s) { heads 2; memory cache; "
        "key linear(x); value linear(x); query linear(x); reset where(s and head == 1) }\n",
        dtype="float64",
    )
    given = inputs()
    x, s = given["k"], given["s"]
    y = b.module(x=x, s=s)
    near(y, b.reference()(x=x, s=s))
    never, always = (b.module(x=x, s=s & False), y)
    near(always[..., :2], never[..., :2])
    assert (always[..., 2:] - never[..., 2:]).abs().max() > 1e-3


@pytest.mark.parametrize("options", ["", "window = 3", "segment = 3", "sink = 1, window = 3"])
def test_per_stream_goes_on_beyond_a_sequence(options: str) -> None:
    """A sequence that begins in the stream sees what was kept before: one long call, where nothing counts ticks."""
    b, x = bundle(options, "reset never; per stream"), inputs()
    whole = b.module(**x)
    stream = b.stream(batch=2)
    got = [stream.feed(**{n: e[:, :4] for n, e in x.items()})]
    stream.begin_sequence()
    got.append(stream.feed(**{n: e[:, 4:6] for n, e in x.items()}))
    got.append(stream.feed(**{n: e[:, 6:] for n, e in x.items()}))
    near(torch.cat(got, 1), whole)
    starts = torch.zeros(2, T, dtype=torch.bool)
    starts[:, 4] = True
    near(b.reference().run(None, x, starts)[0], whole)
    forgets = bundle(options, "")
    near(forgets.reference().run(None, x, starts)[0][:, 4:], forgets.module(**{n: e[:, 4:] for n, e in x.items()}))
    stream.reset()
    near(stream.feed(**{n: e[:, :4] for n, e in x.items()}), whole[:, :4])


def test_rows_that_begin_by_themselves() -> None:
    b, x = bundle("", "reset never; per stream"), inputs()
    stream = b.stream(batch=2)
    got = [stream.feed(**{n: e[:, :5] for n, e in x.items()})]
    stream.begin_sequence(1)
    got.append(stream.feed(**{n: e[:, 5:] for n, e in x.items()}))
    near(torch.cat(got, 1), b.module(**x))


@pytest.mark.parametrize(
    ("options", "more", "code"),
    [
        ("segment = 4", "reset each(chunk); chunk 4", "NF436"),
        ("sink = 1", "reset each(chunk); chunk 4", "NF436"),
        ("causal = false", "reset each(chunk); chunk 4", "NF436"),
        ("", "reset never; per model", "NF490"),
        ("", "reset where(q)", "NF305"),
        ("causal = false", "reset never; per stream", "NF437"),
    ],
)
def test_what_does_not_go_together_is_told(options: str, more: str, code: str) -> None:
    with pytest.raises(nestflow.NestflowError, match=code):
        bundle(options, more)
