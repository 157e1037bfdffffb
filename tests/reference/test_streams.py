"""Streams: any split is the whole, rows do not meet, states change at their ticks, marked starts begin anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nestflow.graph.state import state_slots
from nestflow.reference import Reference

from .models import SPLIT, B, D, H, T, bare, close, draw, reference, streams

MLP = "memory mlp(depth = 2, expand = 1)"
LEVELS = {
    "matrix": f"memory matrix; {SPLIT}; objective l2; update gd(0.2); retain 0.9",
    "momentum in chunks": f"chunk 4; {MLP}; {SPLIT}; objective l2; update momentum(0.1, 0.5)",
    "adam, once in two": f"chunk 4; {MLP}; {SPLIT}; objective l2; update adam(0.01)",
    "dgd, summed": f"memory matrix; {SPLIT}; objective l2; update dgd(0.2)",
    "a rule with a period": f"memory matrix; {SPLIT}; objective l2; update m3(0.01, 0.5, 0.1, 0.2, 0.5, period = 3)",
    "window": f"memory cache(window = 3); {SPLIT}",
    "attention with rope": "memory cache; key split_heads(k) |> linear(4) |> rope; value split_heads(v); "
    "query split_heads(q) |> linear(4) |> rope",
    "look-back": "memory matrix; key split_heads(k) |> short_conv(3); value split_heads(v) |> previous(2); "
    "query split_heads(q); objective l2; update gd(0.2)",
}
EVERY = {"adam, once in two": "2 tokens", "dgd, summed": "3 tokens"}
every_level = pytest.mark.parametrize("name", LEVELS)


def made(name: str) -> Reference:
    return reference(bare(LEVELS[name], every=EVERY.get(name, "1 token")))


def cut(inputs: dict[str, Tensor], low: int, high: int) -> dict[str, Tensor]:
    return {n: x[:, low:high] for n, x in inputs.items()}


def equal_states(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert a.keys() == b.keys()
    for path in a:
        close(a[path], b[path], tolerance)


@every_level
@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5, 6), (3,), (4, 6), (5,)], ids=str)
def test_any_split_is_the_whole(name: str, cuts: tuple[int, ...]) -> None:
    ref, inputs = made(name), streams()
    want, end = ref.run(None, inputs)
    close(ref(**inputs), want)
    state: dict[str, Tensor] = ref.initial_state(B, torch.float64)
    parts = []
    for low, high in zip((0, *cuts), (*cuts, T), strict=True):
        y, state = ref.run(state, cut(inputs, low, high))
        parts.append(y)
    close(torch.cat(parts, 1), want)
    equal_states(state, end)


@every_level
def test_a_row_alone_is_the_row_in_company(name: str) -> None:
    ref, inputs = made(name), streams(rows=3)
    together = ref(**inputs)
    for i in range(3):
        close(ref(**{n: x[i : i + 1] for n, x in inputs.items()}), together[i : i + 1])


@every_level
def test_rows_at_different_positions_go_on_as_they_would_alone(name: str) -> None:
    """A marked start begins one row anew; the other goes on: counters are per row."""
    ref, inputs = made(name), streams()
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[1, 3] = True
    y, _ = ref.run(None, inputs, starts)
    close(y[:1], ref(**{n: x[:1] for n, x in inputs.items()}))
    second = {n: x[1:] for n, x in inputs.items()}
    close(y[1:, :3], ref(**cut(second, 0, 3)))
    close(y[1:, 3:], ref(**cut(second, 3, T)))


@every_level
def test_no_output_depends_on_a_later_tick(name: str) -> None:
    ref, inputs = made(name), streams()
    grads = torch.autograd.grad(ref(**inputs)[:, 3].sum(), list(inputs.values()), allow_unused=True)
    assert any(g is not None and g[:, :4].abs().max() > 0 for g in grads)
    assert all(g is None or g[:, 4:].abs().max() == 0 for g in grads)


@pytest.mark.parametrize(("every", "chunk"), [(1, 1), (2, 4), (3, 3), (1, 4)])
def test_a_state_changes_at_its_ticks_and_at_no_other(every: int, chunk: int) -> None:
    tokens = f"{every} tokens" if every > 1 else "1 token"
    ref = reference(
        bare(
            f"chunk {chunk}; memory mlp(depth = 2, expand = 1); {SPLIT}; objective l2; update momentum(0.1, 0.5)",
            every=tokens,
        )
    )
    memory = [s for i in ref.graph.root.walk() for s in state_slots(i) if s.role in ("memory", "rule", "anchor")]
    before = ref.initial_state(B, torch.float64)
    for t, after in enumerate(ref.trace(**streams()), 1):
        assert after["@t"].tolist() == [t] * B
        for s in memory:
            moved = not torch.equal(before[s.path], after[s.path])
            # the anchor becomes the present state where a chunk begins: that differs from the second chunk on
            due = (t > 1 and (t - 1) % chunk == 0) if s.role == "anchor" else t % every == 0
            assert moved == due, f"{s.path} at tick {t}"
        before = after


def test_the_state_has_the_paths_and_shapes_of_the_schema() -> None:
    for name in LEVELS:
        ref = made(name)
        state = ref.initial_state(B, torch.float64)
        slots = {s.path: s for i in ref.graph.root.walk() for s in state_slots(i)}
        assert set(state) == {*slots, "@t"}
        assert {s.path for s in ref.graph.state} == set(slots)
        for path, s in slots.items():
            assert tuple(state[path].shape) == (B, *((s.heads,) if s.heads else ()), *s.shape)


def test_no_gradient_crosses_a_call_but_the_first_reaches_the_start() -> None:
    ref, inputs = made("momentum in chunks"), streams()
    _, state = ref.run(None, cut(inputs, 0, 3))
    y, _ = ref.run(state, cut(inputs, 3, T))
    later = torch.autograd.grad(
        y.sum(), [inputs["k"], *ref.weights.values()], allow_unused=True, materialize_grads=True
    )
    assert later[0][:, :3].abs().max() == 0 and later[0][:, 3:].abs().max() > 0
    assert all(g.abs().max() == 0 for g in later[1:])
    whole = torch.autograd.grad(ref(**inputs).sum(), list(ref.weights.values()))
    assert all(g.abs().max() > 0 for g in whole)


def test_without_gradients_the_numbers_are_the_same() -> None:
    ref, inputs = made("momentum in chunks"), streams()
    with torch.no_grad():
        y, state = ref.run(None, inputs)
    close(y, ref(**inputs))
    assert not y.requires_grad and not any(x.requires_grad for x in state.values())


def test_tails_keep_the_last_inputs_oldest_first() -> None:
    ref, inputs = made("look-back"), streams()
    _, state = ref.run(None, inputs)
    kept: Any = {s.path: state[s.path] for s in ref.graph.state if s.role == "tail"}
    for path, x in kept.items():
        source = inputs["k" if "key" in path else "v"].detach()
        assert x.shape == (B, H, 2, D)
        close(x, source[:, T - 2 :].unflatten(-1, (H, D)).transpose(1, 2))


def test_a_start_counts_positions_anew() -> None:
    """rope turns by the position in the sequence, not in the call."""
    ref = made("attention with rope")
    inputs = {n: draw(1, 1, H * D, seed=i).repeat(1, 4, 1) for i, n in enumerate("kvq")}
    starts = torch.tensor([[False, False, True, False]])
    y, state = ref.run(None, inputs, starts)
    close(y[:, 2:], y[:, :2])
    assert state["@t"].tolist() == [2]
