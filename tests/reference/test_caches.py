"""Softmax attention by definition: for each query a list of the pairs that it sees, then softmax over that list."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow

T, D, P = 9, 4, 2
KINDS = [
    {},
    {"window": 3},
    {"segment": 4},
    {"prefix": P},
    {"window": 3, "sink": 2, "prefix": P},
    {"segment": 4, "sink": 1, "prefix": P},
    {"window": 3, "segment": 4, "prefix": P},
    {"causal": False},
    {"causal": False, "window": 2},
    {"causal": False, "segment": 4, "sink": 1, "prefix": P},
]
LISTS = [("k", "v"), ("[k, v]", "[v, q]"), ("[k, k * 2]", "[v, q]")]


def bundle(options: dict[str, object], key: str = "k", value: str = "v") -> nestflow.Bundle:
    given = ", ".join(f"{k} = {str(v).lower()}" for k, v in options.items())
    return nestflow.compile(
        "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\ninput q : float[T, 4]\noutput a(k, v, q)\n"
        f"level a(k, v, q) {{ memory cache({given}); key {key}; value {value}; query q }}\n",
        dtype=torch.float64,
    )


def inputs() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    return {n: torch.randn(2, T, D, generator=source, dtype=torch.float64, requires_grad=True) for n in "kvq"}


def sees(i: int, t: int, o: dict[str, object]) -> bool:
    """Whether the query of tick t (from 0) sees the pairs of tick i."""
    if o.get("causal", True) and i > t:
        return False
    near = abs(t - i) < o.get("window", T + 1) and i // o.get("segment", T + 1) == t // o.get("segment", T + 1)
    return near or i < o.get("sink", 0)


def by_hand(x: dict[str, Tensor], w: dict[str, Tensor], o: dict[str, object], key: str, value: str) -> Tensor:
    keys, values = (eval(text, dict(x)) for text in (key, value))
    keys, values = (e if isinstance(e, list) else [e] for e in (keys, values))
    rows = []
    for b in range(2):
        for t in range(T):
            ks = [w[n] for n in w if n.endswith("prefix.key")] + [
                k[b, i : i + 1] for i in range(T) if sees(i, t, o) for k in keys
            ]
            vs = [w[n] for n in w if n.endswith("prefix.value")] + [
                v[b, i : i + 1] for i in range(T) if sees(i, t, o) for v in values
            ]
            scores = torch.cat(ks) @ x["q"][b, t] / D**0.5
            e = (scores - scores.max()).exp()
            rows.append((e / e.sum()) @ torch.cat(vs))
    return torch.stack(rows).view(2, T, D)


@pytest.mark.parametrize(("key", "value"), LISTS)
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_cache_is_attention(options: dict[str, object], key: str, value: str) -> None:
    b, x = bundle(options, key, value), inputs()
    w = b.module.weights
    assert {tuple(p.shape) for p in w.values()} == ({(P, D)} if "prefix" in options else set())
    leaves = [*x.values(), *w.values()]
    probe = torch.randn(2, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def ran(y: Tensor) -> list[Tensor]:
        return [y, *torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True, materialize_grads=True)]

    want = ran(by_hand(x, w, options, key, value))
    for run in (b.module, b.reference()):
        for got, one in zip(ran(run(**x)), want, strict=True):
            torch.testing.assert_close(got, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [o for o in KINDS if o.get("causal", True)], ids=str)
def test_split(options: dict[str, object]) -> None:
    """Any split of the stream is the whole, compiled and interpreted."""
    b = bundle(options, *LISTS[1])
    x = {n: e.detach() for n, e in inputs().items()}
    whole, stream, state, parts, slow = b.module(**x), b.stream(batch=2), None, [], []
    for i, j in ((0, 2), (2, 3), (3, 8), (8, T)):
        part = {n: e[:, i:j] for n, e in x.items()}
        parts.append(stream.feed(**part))
        y, state = b.reference().run(state, part)
        slow.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(torch.cat(slow, 1), whole)


def test_later_tokens_forbid_streaming() -> None:
    """`causal = false` reads whole sequences: a stream that goes on is told so."""
    b = bundle({"causal": False})
    x = {n: e.detach() for n, e in inputs().items()}
    stream = b.stream(batch=2)
    torch.testing.assert_close(stream.feed(**x), b.module(**x))
    with pytest.raises(nestflow.NestflowError, match="NF536"):
        stream.feed(**x)
    _, state = b.reference().run(None, x)
    with pytest.raises(nestflow.NestflowError, match="NF536"):
        b.reference().run(state, x)
    stream.reset()
    torch.testing.assert_close(stream.feed(**x), b.module(**x))


def test_two_layers_look_ahead() -> None:
    """What the second layer keeps depends on what the first one sees of later tokens."""
    b = nestflow.compile(
        "nestflow 1\ninput x : float[T, 4]\noutput f(x)\nflow f(x) { repeat 2 { x = x + a(x) }; return x }\n"
        "level a(x) { memory cache(causal = false); key x |> linear; value x |> linear; query x |> linear }\n",
        dtype=torch.float64,
    )
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = x
    for i in range(2):
        w = {n.split(".")[-3]: e for n, e in b.module.weights.items() if f"a.{i}." in n}
        y = y + ((y @ w["query"].T) @ (y @ w["key"].T).mT / 2).softmax(-1) @ (y @ w["value"].T)
    torch.testing.assert_close(b.module(x=x), y)
    torch.testing.assert_close(b.reference()(x=x), y)


def test_sequences_that_begin_in_a_row_do_not_see_each_other() -> None:
    b, x = bundle({"causal": False, "prefix": P}), {n: e.detach() for n, e in inputs().items()}
    starts = torch.zeros(2, T, dtype=torch.bool)
    starts[:, 4] = True
    y, _ = b.reference().run(None, x, starts)
    parts = [b.module(**{n: e[:, i:j] for n, e in x.items()}) for i, j in ((0, 4), (4, T))]
    torch.testing.assert_close(y, torch.cat(parts, 1))
