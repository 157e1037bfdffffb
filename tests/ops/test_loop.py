"""A level's loop: however its pieces are run, outputs and gradients are those of the plain loop."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.emit.levels.turn import period_of
from nestflow.ops import loop
from nestflow.ops.causal import CARE, careful
from nestflow.ops.loop import segments
from nestflow.ops.runtime import Context, How

# a memory whose recall passes a weight inside the loop, a reset, a period, a look back at what is recalled
WEIGHT = """nestflow 1
input x : float[T, 6]
output m(x)
level m(x) {
  every 1 token
  memory s : mlp(depth = 2, expand = 2) {
    chunk 4
    key x |> l2norm
    value x |> linear
    query x |> l2norm
    objective l2
    update momentum(lr = 0.1 * sigmoid(linear(x, 1)), beta = 0.5)
  }
  memory r : matrix {
    every 2 tokens
    chunk 12
    reset each(chunk)
    key s(x) |> linear |> short_conv(3)
    value x
    query x
    objective dot
    retain 0.9
    update gd(0.1)
  }
  return r(x) + s(x)
}
"""
SPECS: list[tuple[str, dict[str, Any]]] = [
    ("titans", {"dim": 16, "n_heads": 2, "depth": 1, "chunk": 4}),
    ("gated_deltanet", {"dim": 16, "n_heads": 2, "depth": 1}),
    ("deltaproduct", {"dim": 16, "n_heads": 2, "depth": 1}),
    ("hope", {"dim": 16, "n_heads": 2, "depth": 1}),
    (WEIGHT, {}),
]
IDS = [s if "\n" not in s else "weight" for s, _ in SPECS]


def run(spec: str, params: dict[str, Any], ticks: int = 100, **execution: Any) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """Module, output and gradients after a backward pass."""
    b = nestflow.compile(spec, dtype="float64", execution={"block": 8, **execution}, **params)
    made = torch.Generator().manual_seed(0)
    (i,) = b.graph.inputs
    if i.type.dtype == "float":
        x = torch.randn(2, ticks, *i.type.shape, dtype=torch.float64, generator=made)
    else:
        x = torch.randint(0, 200, (2, ticks), generator=made)
    y = b.module(x)
    y.square().mean().backward()
    return b.module, y.detach(), {n: p.grad for n, p in b.module.named_parameters() if p.grad is not None}


def same(a: tuple[Any, Tensor, dict[str, Tensor]], b: tuple[Any, Tensor, dict[str, Tensor]], to: float) -> None:
    assert (a[1] - b[1]).abs().max() <= to
    assert a[2].keys() == b[2].keys()
    for name, g in a[2].items():
        assert (g - b[2][name]).abs().max() <= to * g.abs().max().clamp(min=1), name


@pytest.mark.parametrize(("spec", "params"), SPECS, ids=IDS)
@pytest.mark.parametrize("kept", ["auto", 1, 3])
def test_segments_that_run_again(spec: str, params: dict[str, Any], kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(spec, params)
    calls: list[int] = []
    again = loop._segment
    monkeypatch.setattr(loop, "_segment", lambda *a: (calls.append(1), again(*a))[1])
    same(plain, run(spec, params, checkpointing=kept), 1e-13)
    assert len(calls) > 1


@pytest.mark.parametrize(
    ("spec", "params"),
    [pytest.param(*x, id=n, marks=[] if n == "titans" else pytest.mark.slow) for x, n in zip(SPECS, IDS)],
)
def test_compiled_pieces(spec: str, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs that a compiler gets, forward and backward; what inductor makes of them is a slow test."""
    plain = run(spec, params)
    graphs: list[int] = []

    def counted(graph: Any, example: Any) -> Any:
        graphs.append(1)
        return graph.forward

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=lambda g, e: make_boxed_func(counted(g, e)))
    torch._dynamo.reset()
    monkeypatch.setattr(loop, "_code", {"several": torch.compile(loop.several, dynamic=False, backend=backend)})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no effect.*")
        same(plain, run(spec, params, compile=True), 1e-12)
    assert graphs


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 3], ids=["titans", "hope"])
def test_compiled_by_inductor(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of all parameters of the whole model."""
    torch._dynamo.reset()
    monkeypatch.setattr(loop, "_code", {})
    spec, params = SPECS[at]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no effect.*")
        same(run(spec, params), run(spec, params, compile=True), 1e-11)


def test_where_it_cannot_be_compiled_it_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(loop, "_code", {"several": none})
    spec, params = SPECS[0]
    with pytest.warns(UserWarning, match="has no effect: no C\\+\\+ compiler"):
        found = run(spec, params, compile=True)
    same(run(spec, params), found, 1e-13)


def test_what_runs_again_is_not_kept() -> None:
    """Numbers held for the backward pass: of all pieces, or of their first states and inputs."""

    def held(**execution: Any) -> int:
        seen: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        spec = "titans"
        b = nestflow.compile(spec, dim=32, n_heads=2, depth=1, chunk=4, execution=execution)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            b.module(torch.randint(0, 200, (1, 512), generator=torch.Generator().manual_seed(0)))
        return sum(seen.values())

    assert held(checkpointing="auto") < 0.5 * held()


@pytest.mark.parametrize("how", [{"checkpointing": 2}, {"compile": True, "checkpointing": 2}], ids=str)
def test_second_derivatives_and_a_graph_that_is_used_twice(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without segments. The weights are arguments of a segment and what its state began as; each way counts once."""
    monkeypatch.setattr(loop, "_code", {"several": loop.several})  # what a compiler makes of them is tested above

    def found(**how: Any) -> list[Tensor]:
        b = nestflow.compile("titans", dim=16, n_heads=2, depth=1, chunk=4, dtype="float64", execution=how)
        x = torch.randint(0, 200, (2, 41), generator=torch.Generator().manual_seed(0))
        loss, weights = b.loss({"tokens": x}), list(b.module.weights.values())
        again = [torch.autograd.grad(loss, weights, retain_graph=True) for _ in range(2)]
        for a, b_ in zip(*again, strict=True):
            torch.testing.assert_close(a, b_, rtol=0, atol=1e-14)
        first = torch.autograd.grad(loss, weights, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), weights)
        return [*again[0], *first, *second]

    segments_: list[int] = []
    plain, own = found(), loop._segment
    monkeypatch.setattr(loop, "_segment", lambda *a: (segments_.append(1), own(*a))[1])
    for a, b in zip(found(**how), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert segments_


def test_a_weight_that_made_the_state_counts_once_for_each_way() -> None:
    """s_t = tanh(w s_{t−1} + x_t), s_0 = 2 w: the weight is an argument of the segment, and its maker too."""

    def found(segment: int) -> list[Tensor]:
        w = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2).requires_grad_()
        c = Context({}, {}, 0, True, torch.float64, torch.device("cpu"))
        c.how = How(segment, False)

        def piece(t: int, n: int, state: Any, x_n: Tensor) -> Any:
            s = torch.tanh(w * state[0] + x_n[0])
            return (s,), (s[None],)

        (end,), (y,) = loop.in_turn(c, piece, 0, [1] * 6, (2 * w,), (x.split(1),), (0,))
        first = torch.autograd.grad(y.square().sum() + end.sum(), [w, x], create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.pow(3).sum() for g in first), [w, x])]

    for a, b in zip(found(2), found(0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_compiled_code_says_that_it_has_first_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_code", {"several": loop.several})
    b = nestflow.compile("titans", dim=16, n_heads=2, depth=1, chunk=4, execution={"compile": True})
    loss, weights = b.loss({"tokens": torch.randint(0, 200, (1, 40))}), list(b.module.weights.values())
    with pytest.raises(RuntimeError, match=r"create_graph=True.* asks for more: leave `compile` out"):
        torch.autograd.grad(loss, weights, create_graph=True)
    b.loss({"tokens": torch.randint(0, 200, (1, 40))}).backward()


TWICE = (
    WEIGHT
    + """level outer { every 1 step; memory weights(m); objective mean(square(m(x) - x)); update rule() }
optimizer rule(lr = 0.01) {
  memory h : like(w) { value curvature(hutchinson); update gd(1) }
  step -lr * g / (1 + abs(h))
}
"""
)
WATCHED = (
    WEIGHT
    + """level outer { every 1 step; memory weights(m, "**.key.**"); objective mean(square(m(x) - x)); update dgd(0.1) }
level still { every never; memory rest(m) }
"""
)
# the objective of a level inside the step is differentiated by torch.func, through m's loop
INSIDE = (
    WEIGHT
    + """flow net(x) { return linear(x) }
level task {
  every 1 step
  memory net
  init outer
  reset each(step)
  rounds 2
  objective mean(square(task(x) - m(x)))
  update gd(0.1)
}
level outer { every 1 step; memory weights(net); objective mean(square(task(x) - m(x))); update gd(0.1) }
level still { every 1 step; memory rest(m); objective mean(square(task(x) - m(x))); update gd(0.1) }
"""
)


@pytest.mark.parametrize(
    ("text", "execution"),
    [(TWICE, {"checkpointing": "auto"}), (WATCHED, {"compile": True}), (INSIDE, {"checkpointing": "auto"})],
    ids=["curvature", "dgd", "inside a step"],
)
def test_what_needs_more_than_a_gradient_is_the_same(
    text: str, execution: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise AssertionError("a loop that is watched is not compiled")

    monkeypatch.setattr(loop, "_code", {"several": none})

    def trained(**how: Any) -> dict[str, Tensor]:
        b = nestflow.compile(text, dtype="float64", execution={"block": 8, **how})
        x = torch.randn(2, 40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            b.step({"x": x})
        return {n: w.detach() for n, w in b.module.named_parameters()}

    plain = trained()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no effect.*")
        found = trained(**execution)
    assert all((found[n] - w).abs().max() <= 1e-13 for n, w in plain.items())


@pytest.mark.parametrize("sizes", [[3, 8, 8, 8, 8, 8, 2], [8] * 16, [5], [8, 8]])
@pytest.mark.parametrize(("segment", "period"), [(0, 8), (0, 32), (-1, 0), (3, 0)])
def test_segments_have_every_piece_once(sizes: list[int], segment: int, period: int) -> None:
    found = list(segments(sizes, 0, segment, period))
    assert [i for a, b in found for i in range(a, b)] == list(range(len(sizes)))
    if period:
        assert all(len(set(sizes[a:b])) == 1 for a, b in found)


def test_the_period_of_a_piece() -> None:
    assert period_of(["x = y + n", "t += n"]) == 1
    assert period_of(["if t % 4 == 0:", "    x = y", "if (t + n) % 6 == 0:", "    x = z", "t += n"]) == 12
    assert period_of(["x = rope(y, t)", "t += n", "if t % 4 == 0:", "    x = y"]) == 0
    assert period_of(["if (t + k) % 4 == 0:", "    x = y"]) == 0


@pytest.mark.slow
def test_a_whole_module_under_torch_compile_is_not_unrolled() -> None:
    b = nestflow.compile("titans", dim=16, n_heads=2, depth=1, chunk=2)
    x = torch.randint(0, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    seen: list[str] = []

    def backend(graph: Any, example: Any) -> Any:
        seen.extend(str(n.target) for n in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(b.module, backend=backend)(x)
        assert (found - b.module(x)).abs().max() < 1e-5
    assert seen and sum("gelu" in name for name in seen) < 8  # 20 pieces have 60 of them


def sums(how: How, ticks: int, t: int, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """s_t = tanh(s_{t−1} + x_t) by the loop, in pieces of `ticks`: the last state, and all."""
    c = Context({}, {}, 0, True, torch.float64, torch.device("cpu"))
    c.how = how

    def piece(t: int, n: int, state: Any, x_n: Tensor) -> Any:
        (s,), found = state, []
        for one in x_n.unbind():
            s = torch.tanh(s + one)
            found.append(s)
        return (s,), (torch.stack(found),)

    sizes = [ticks] * (len(x) // ticks)
    (end,), (y,) = loop.in_turn(c, piece, t, sizes, (state,), (x.split(sizes),), (0,), period=8)
    return end, y


def test_segments_are_one_compiled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand where they stand in the period, begin with a state of one kind, and are of full length. Neither one
    piece, nor what is computed with care, nor what is differentiated again is compiled."""
    told: list[tuple[Any, ...]] = []

    def several(piece: Any, t: int, sizes: Any, state: Any, inputs: Any) -> Any:
        told.append((t, tuple(sizes), state[0].requires_grad, state[0].is_contiguous()))
        return plain(piece, t, sizes, state, inputs)

    plain = loop.several
    monkeypatch.setattr(loop, "_code", {"several": several})
    x = torch.linspace(-1, 1, 120, dtype=torch.float64).reshape(20, 2, 3).requires_grad_()
    start = torch.zeros(3, 2, dtype=torch.float64).mT
    end, y = sums(How(0, True), 2, 12, start, x)
    assert told == [(4, (2,) * 4, True, True)] * 2
    want = sums(How(0, False), 2, 12, start, x)
    assert torch.equal(end, want[0]) and torch.equal(y, want[1])

    told.clear()
    sums(How(0, True), 20, 0, start, x)
    token = CARE.set(True)
    try:
        sums(How(0, True), 2, 0, start, x)
    finally:
        CARE.reset(token)
    assert not told

    end, _ = sums(How(-1, True), 2, 0, start, x)
    forward = len(told)
    torch.autograd.grad(end.sum(), x, create_graph=True)
    assert len(told) == forward
    torch.autograd.grad(end.sum(), x)
    assert len(told) == 2 * forward


def test_a_segment_runs_again_with_the_care_of_its_first_run() -> None:
    c = Context({}, {}, 0, True, torch.float64, torch.device("cpu"))
    c.how = How(2, False)
    care: list[bool] = []
    note = care.append  # lists around a piece are taken apart

    def piece(t: int, n: int, state: Any, x_n: Tensor) -> Any:
        note(careful())
        s = torch.tanh(state[0] + x_n[0])
        return (s,), (s[None],)

    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2).requires_grad_()
    for take in (True, False):
        care.clear()
        token = CARE.set(take)
        try:
            (end,), _ = loop.in_turn(c, piece, 0, [1] * 6, (torch.zeros(2, dtype=torch.float64),), (x.split(1),), (0,))
        finally:
            CARE.reset(token)
        end.sum().backward()
        assert care == [take] * 12


def test_segments_beside_a_memory_that_every_call_writes_to() -> None:
    """One copy for the model is written to when the call ends: nothing that runs again holds it."""
    spec = WEIGHT.replace("every 1 token\n", "every 1 token\n  per model\n  reset never\n", 1).replace(
        "update momentum(lr = 0.1 * sigmoid(linear(x, 1)), beta = 0.5)", "update dgd(0.1)"
    )
    spec = spec.replace("    reset each(chunk)\n", "")
    same(run(spec, {}), run(spec, {}, checkpointing=1), 1e-13)
