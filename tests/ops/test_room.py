"""What loops keep for the backward pass where `execution` does not say: a quarter of the memory, then segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import nestflow
from nestflow.ops import loop, room

SPEC = """nestflow 1
EXECUTION
input x : float[T, 6]
output m(x)
level m(x) {
  every  1 token
  chunk  4
  memory mlp(depth = 2, expand = 2)
  key    x |> linear |> l2norm
  value  x |> linear
  query  x
  update momentum(lr = 0.01 * sigmoid(linear(x, 1)), beta = 0.9); retain 0.98
  objective l2
}
"""
TICKS = 4 * 70 + 3


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pieces each segment has that runs again."""
    found: list[int] = []
    plain = loop._segment

    def watched(*given: Any) -> Any:
        found.append(len(given[4]))
        return plain(*given)

    monkeypatch.setattr(loop, "_segment", watched)
    return found


def numbers(execution: str = "", around: Callable[..., Any] = lambda m, x: m(x), ticks: int = TICKS) -> list[Tensor]:
    """The output, and the gradients of the input and of the weights."""
    m = nestflow.compile(SPEC.replace("EXECUTION", execution)).module.double()
    x = torch.randn(2, ticks, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = around(m, x)
    y.square().mean().backward()
    return [y.detach(), *(t.grad for t in (x, *m.weights.values()) if t.grad is not None)]


def in_mid_chunk(m: Any, x: Tensor) -> Tensor:
    """The loop that is long begins two ticks behind a chunk's first."""
    first, state = m.run(None, x[:, :2])
    return torch.cat([first, m.run(state, x[:, 2:])[0]], 1)


@pytest.mark.parametrize("around", [lambda m, x: m(x), in_mid_chunk], ids=["whole", "in mid-chunk"])
def test_a_loop_that_would_keep_too_much_goes_in_segments(
    around: Callable[..., Any], segments: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = numbers(around=around)
    assert not segments
    monkeypatch.setattr(room, "memory_of", lambda device: 1 << 16)
    found = numbers(around=around)
    assert sum(segments) == 69
    assert max(segments) <= 9
    assert all(x.isfinite().all() for x in want)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_is_counted_is_what_the_loop_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(room.Room, "holds", lambda self, bytes_, device: asked.append(bytes_) or True)
    numbers()
    monkeypatch.undo()
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        m = nestflow.compile(SPEC.replace("EXECUTION", "")).module.double()
        y = m(torch.randn(2, TICKS, 6, dtype=torch.float64))
    del y
    assert 0.6 * sum(kept.values()) < asked[0] < sum(kept.values())  # the rest is kept before and behind the loop


@pytest.mark.parametrize("case", ["said", "short", "watched", "checkpointed", "no gradients"])
def test_what_is_not_looked_at(case: str, segments: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_of", lambda device: 1)
    if case == "said":
        numbers("execution { checkpointing none }")
    elif case == "short":
        numbers(ticks=4 * 63)
    elif case == "watched":
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            numbers()
    elif case == "checkpointed":
        numbers(around=lambda m, x: checkpoint(m, x, use_reentrant=False))
    else:
        with torch.no_grad():
            nestflow.compile(SPEC.replace("EXECUTION", "")).module(torch.zeros(1, TICKS, 6))
    assert not segments


def test_levels_share_the_room() -> None:
    left = room.Room(100)
    device = torch.device("cpu")
    assert left.holds(60, device)
    assert not left.holds(60, device)
    assert left.holds(40, device)
    assert room.memory_of(device) > 1 << 20
