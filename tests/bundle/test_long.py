"""A long sequence without gradients, in blocks of ticks: the numbers of the whole, less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nestflow
from nestflow.bundle import long
from nestflow.bundle.unread import computed

CHUNKED = """nestflow 1
input x : float[T, 6]
output memory(x) + gate(x)
level gate(x) {
  every  1 token
  memory matrix(3, 3)
  heads  2
  key    x |> short_conv(3) |> linear(3) |> l2norm
  value  x |> linear(3)
  query  x |> linear(3)
  update gd(3 / (9 + t))
  objective l2
  retain sigmoid(linear(x, 1) + 3)
  return y |> merge_heads |> linear(6)
}
level memory(x) {
  every  2 tokens
  chunk  48
  memory mlp(depth = 2, expand = 2)
  key    x |> l2norm
  value  x |> linear
  query  x
  update momentum(lr = 0.1, beta = 0.9)
  reset  each(chunk)
  objective l2
}
"""


def module(text: str = CHUNKED, **more: Any) -> Any:
    return nestflow.compile(text, **more).module.double()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ticks each pass of the generated code has; blocks of 384 ticks."""
    monkeypatch.setattr(long, "NUMBERS", 1)
    found: list[int] = []

    def watched(entry: Any, c: Any, given: list[Any]) -> Any:
        found.append(given[0].shape[1])
        return computed(entry, c, given)

    monkeypatch.setattr("nestflow.bundle.module.computed", watched)
    return found


def test_blocks_are_the_whole(calls: list[int]) -> None:
    m, x = module(), torch.randn(2, 1003, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = m(x)  # gradients may be asked for
    assert calls == [1003]
    calls.clear()
    with torch.no_grad():
        blocks = m(x)
        assert calls == [384, 384, 235]
        torch.testing.assert_close(blocks, whole, rtol=1e-10, atol=1e-12)
        calls.clear()
        m(x[:, :767])  # less than two blocks
        assert calls == [767]


def test_a_stream_goes_on_behind_blocks(calls: list[int]) -> None:
    m, x = module(), torch.randn(3, 1210, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, state = m.run(None, x[:, :7])
        b, state = m.run(state, x[:, 7:1200])
        c, state = m.run(state, x[:, 1200:])
        assert calls == [7, 384, 384, 384, 41, 10]
    assert {g.t for g in state.groups} == {1210}
    torch.testing.assert_close(torch.cat([a, b, c], 1), m(x), rtol=1e-10, atol=1e-12)


def test_a_memory_goes_on_beyond_its_sequence(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its t does too, which here is a rate's."""
    m = module(CHUNKED.replace("  heads  2\n", "  heads  2\n  per    stream\n  reset  never\n"))
    x = torch.randn(2, 1010, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, state = m.run(None, x[:, :7])
        state = m.begin_sequence(state)
        calls.clear()
        blocks = m.run(state, x[:, 7:])
        assert calls == [384, 384, 235]
        monkeypatch.setattr(long, "NUMBERS", 1 << 30)
        whole = m.run(state, x[:, 7:])
        assert calls[3:] == [1003]
    torch.testing.assert_close(blocks[0], whole[0], rtol=1e-10, atol=1e-12)
    assert [g.place for g in blocks[1].groups] == [g.place for g in whole[1].groups]


def test_numbers_that_are_not_finite_stay_behind_their_tick(calls: list[int]) -> None:
    m, x = module(), torch.randn(1, 1003, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bad = x.clone()
    bad[0, 500, 2] = torch.inf
    with torch.no_grad():
        good, found = m(x), m(bad)
    assert torch.equal(good[:, :500], found[:, :500])
    assert found[:, 500:].isnan().any()


CACHE = """level memory(x) {
  memory cache(window = 9)
  key    x
  value  x
  query  x
}
"""


@pytest.mark.parametrize(
    "text",
    [
        CHUNKED[: CHUNKED.index("level memory")] + CACHE,
        CHUNKED.replace("key    x |> l2norm", "key    x |> dropout(0.5)"),
        CHUNKED.replace("reset  each(chunk)", "per    model\n  reset  never"),
        CHUNKED.replace("output memory(x) + gate(x)", "output {y: memory(x), z: gate(x)}"),
    ],
    ids=["caches", "chance", "one copy", "several outputs"],
)
def test_what_is_read_as_a_whole(calls: list[int], text: str) -> None:
    m = module(text)
    with torch.no_grad():
        m(torch.zeros(1, 1003, 6, dtype=torch.float64))
    assert calls == [1003]
