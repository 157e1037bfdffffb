"""The Triton kernels on a CPU. `test_kernels.py` runs this file by itself, with TRITON_INTERPRET=1."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import nestflow
from nestflow.ops import backends
from nestflow.ops.loop import plainly
from nestflow.ops.whole import in_pieces
from tests.kernels.memories import BY_KERNEL, GATES, compared, drawn, near
from tests.zoo.bare import CASES, Bare

CHOSEN = [c for c in CASES if c.name in BY_KERNEL]
TRITON = {"backend": "triton"}
TICKS = 37


@pytest.mark.parametrize("ticks", [1, 16, 37])
@pytest.mark.parametrize("looks", [False, True], ids=["recurrence", "delta"])
@pytest.mark.parametrize("gate", GATES)
def test_a_kernel_is_the_recurrence(gate: str, looks: bool, ticks: int) -> None:
    m = drawn(ticks, gate, looks)
    compared(m, in_pieces(m, 16, "triton"), 2e-6)


@pytest.mark.parametrize("n_in, n_out", [(16, 16), (17, 3), (3, 70), (130, 33)])
def test_sizes_of_heads(n_in: int, n_out: int) -> None:
    m = drawn(20, "number", True, n_in=n_in, n_out=n_out)
    compared(m, in_pieces(m, 64, "triton"), 5e-6)


def bundle(case: Bare, **settings: Any) -> nestflow.Bundle:
    return nestflow.compile(case.text, **{"execution": TRITON, **settings})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of a level was given to a kernel."""
    found: list[bool] = []
    real = backends.BACKENDS["triton"].computes

    def computes(*given: Any) -> Any:
        found.append(True)
        return real(*given)

    changed = backends.Backend("triton", "triton", computes, 256, interpreted=True)
    monkeypatch.setitem(backends.BACKENDS, "triton", changed)
    return found


@pytest.mark.parametrize("case", CHOSEN, ids=lambda c: c.name)
def test_a_spec_by_kernels_is_its_paper(case: Bare, asked: list[bool]) -> None:
    b = bundle(case)
    assert [level.by for level in b.plan.levels.values()] == ["triton"]
    weights = dict(b.module.named_weights())
    inputs = case.inputs(2, TICKS, seed=0)
    exactly = {n: w.detach().double().requires_grad_() for n, w in weights.items()}
    want = case.expected(inputs, exactly)
    single = {n: x.detach().float().requires_grad_() for n, x in inputs.items()}
    got = b.module(**single)
    assert asked == [True]
    near(got.double(), want, 1e-5, "output")
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad((got * probe).sum(), [*single.values(), *weights.values()])
    theirs = torch.autograd.grad((want * probe.double()).sum(), [*inputs.values(), *exactly.values()])
    for name, a, c in zip([*single, *weights], mine, theirs, strict=True):
        near(a.double(), c, 1e-5, f"gradient of {name}")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_plan_says_what_the_code_does(case: Bare) -> None:
    b = bundle(case)
    for level in b.plan.levels.values():
        assert (level.by is None) == (level.not_by is not None or not level.size)
        assert ("at_once(" in b.source) == (level.by == "triton") == (case.name in BY_KERNEL)


GATED = next(c for c in CASES if c.name == "gated_deltanet")


def test_a_stream_goes_on_where_a_kernel_ended(asked: list[bool]) -> None:
    b, inputs = bundle(GATED), GATED.inputs(2, TICKS, seed=2)
    inputs = {n: x.detach().float() for n, x in inputs.items()}
    whole, state, parts = b.module(**inputs), None, []
    for first, last in ((0, 17), (17, 18), (18, TICKS)):  # one tick alone is the loop's
        y, state = b.module.run(state, **{n: x[:, first:last] for n, x in inputs.items()})
        parts.append(y)
    assert len(asked) == 3
    near(torch.cat(parts, 1), whole, 1e-5, "in parts")


def test_what_is_not_finite_stays_with_its_tick() -> None:
    b, inputs = bundle(GATED), {n: x.detach().float() for n, x in GATED.inputs(2, TICKS, seed=3).items()}
    sound = b.module(**inputs)
    inputs["v"][0, 20] = torch.inf
    found = b.module(**inputs)
    near(found[0, :20], sound[0, :20], 1e-5, "before it")
    near(found[1], sound[1], 1e-5, "the other row")
    assert not found[0, 20:].isfinite().any()


def test_what_kernels_do_not_do_is_done_in_torch(asked: list[bool]) -> None:
    inputs = {n: x.detach().float().requires_grad_() for n, x in GATED.inputs(2, 20, seed=4).items()}
    b = bundle(GATED)

    def twice() -> torch.Tensor:
        (g,) = torch.autograd.grad(b.module(**inputs).square().sum(), [inputs["k"]], create_graph=True)
        return torch.autograd.grad(g.square().sum(), [inputs["v"]])[0]

    with plainly():
        assert twice().abs().max() > 0
    assert not asked
    with pytest.raises(RuntimeError):
        twice()
    assert asked
    del asked[:]
    double = bundle(GATED, dtype=torch.float64)
    near(double.module(**{n: x.double() for n, x in inputs.items()}), b.module(**inputs).double(), 1e-5, "float64")
    assert len(asked) == 1


def test_half_precision_keeps_its_type() -> None:
    b = bundle(GATED, dtype=torch.float16)
    inputs = {n: x.detach().half() for n, x in GATED.inputs(2, 20, seed=5).items()}
    y = b.module(**inputs)
    assert y.dtype == torch.float16
    near(y.double(), GATED.expected({n: x.double() for n, x in inputs.items()}, {}), 5e-3, "output")


def test_torch_compile_sees_one_operation(asked: list[bool]) -> None:
    inputs = {n: x.detach().float() for n, x in GATED.inputs(1, 16 * 64, seed=6).items()}
    graphs: list[Any] = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    b = bundle(GATED)
    compiled = torch.compile(b.module, backend=backend)
    near(compiled(**inputs), b.module(**inputs), 1e-6, "output")
    (graph,) = graphs
    nodes = [str(n.target) for n in graph.graph.nodes]
    assert sum("memory_pieces" in n for n in nodes) == 1
    assert len(nodes) < 150  # 32 pieces are not unrolled


def test_a_kernel_that_fails_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise RuntimeError("no driver")

    monkeypatch.setattr(backends, "_failed", set())
    changed = backends.Backend("triton", "triton", fails, 256, interpreted=True)
    monkeypatch.setitem(backends.BACKENDS, "triton", changed)
    inputs = {n: x.detach().float() for n, x in GATED.inputs(2, 20, seed=7).items()}
    b, plain = bundle(GATED), bundle(GATED, execution={"backend": "torch"})
    with pytest.warns(UserWarning, match=r"backend triton.*no driver"):
        first = b.module(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(b.module(**inputs), first)
    assert torch.equal(first, plain.module(**inputs))
