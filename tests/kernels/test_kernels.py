"""`execution { backend … }`: what is chosen, what is refused and why; the kernels run in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nestflow
from nestflow.bundle.settings import backend_of
from nestflow.lowering.explain import explain
from nestflow.lowering.plan import LevelPlan, lower
from nestflow.ops import backends
from nestflow.ops.whole import in_pieces
from tests.kernels.memories import BY_KERNEL, GATES, compared, drawn, near
from tests.zoo.bare import CASES, Bare

ROOT = Path(__file__).parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize("ticks", [1, 16, 37])
@pytest.mark.parametrize("looks", [False, True], ids=["recurrence", "delta"])
@pytest.mark.parametrize("gate", GATES)
def test_all_at_once_is_the_recurrence(gate: str, looks: bool, ticks: int) -> None:
    """What surrounds a kernel, and what stands in for it."""
    m = drawn(ticks, gate, looks)
    compared(m, in_pieces(m, 16, "torch"), 2e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in BY_KERNEL], ids=lambda c: c.name)
def test_a_spec_as_a_whole_is_its_paper(case: Bare) -> None:
    b = nestflow.compile(case.text, dtype=torch.float64, execution={"backend": "whole"})
    assert "at_once(" in b.source
    inputs, weights = case.inputs(2, 41, seed=0), dict(b.module.named_weights())
    got, want = b.module(**inputs), case.expected(inputs, weights)
    near(got, want, 1e-9, "output")
    leaves = {**inputs, **weights}
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pulled = [torch.autograd.grad((y * probe).sum(), list(leaves.values())) for y in (got, want)]
    for name, a, c in zip(leaves, *pulled, strict=True):
        near(a, c, 1e-9, f"gradient of {name}")
    near(b.reference()(**{n: x.detach() for n, x in inputs.items()}), got, 1e-9, "interpreted")


def test_torch_compile_of_a_module_has_one_graph() -> None:
    """The loop of 32 pieces stays out of its graph; as a whole it is one node of it."""
    x = torch.randint(0, 64, (1, 32 * 32))
    counts = {}
    for backend in ("torch", "whole"):
        graphs: list[torch.fx.GraphModule] = []

        def seen(graph: torch.fx.GraphModule, example: Any, graphs: list[Any] = graphs) -> Any:
            graphs.append(graph)
            return graph.forward

        b = nestflow.compile("gated_deltanet", dim=16, n_heads=2, depth=1, execution={"backend": backend})
        torch._dynamo.reset()
        compiled = torch.compile(b.module, backend=seen)
        near(compiled(tokens=x), b.module(tokens=x), 1e-5, backend)
        counts[backend] = len(graphs)
    assert counts["whole"] == 1 < counts["torch"]
    assert sum("memory_pieces" in str(n.target) for n in graphs[0].graph.nodes) == 1


def test_the_operation_is_one_to_torch() -> None:
    m = drawn(20, "channel", True)
    from nestflow.ops.whole import memory_pieces, prepared

    p = prepared(m, 16)
    given = [x if x is None else x.detach().requires_grad_() for x in (p.error, p.look, p.left, p.kept)]
    given += [m.start.detach().requires_grad_(), *(x.detach().requires_grad_() for x in (p.read, p.scores))]
    torch.library.opcheck(memory_pieces, (*given, "torch"))
    torch.library.opcheck(memory_pieces, (given[0], None, *given[2:], "torch"))


@needs_triton
def test_interpreted_kernels() -> None:
    """Triton reads TRITON_INTERPRET as it is imported: `interpreted.py` runs in another process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/interpreted.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-6000:]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_a_gpu(capability: int) -> None:
    """To machine code, with at most the 99 KiB of shared memory that a program has on the smaller of these GPUs."""
    command = [sys.executable, "-m", "tests.kernels.compiled", str(capability), "99"]
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-6000:]


# ---- what is chosen


def test_auto_is_torch_on_a_cpu_and_triton_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    assert (backend_of("auto", None), backend_of("auto", CPU), backend_of("auto", CUDA)) == ("torch", "torch", "triton")
    assert (backend_of("fla", CUDA), backend_of("torch", CUDA)) == ("fla", "torch")
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert backend_of("auto", CUDA) == "torch"


@pytest.mark.parametrize("asked", ["triton", "fla"])
def test_what_cannot_be_used_is_told(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(nestflow.NestflowError, match=f"NF550.*`{asked}` is not installed"):
        backend_of(asked, CUDA)
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    with pytest.raises(nestflow.NestflowError, match=r"NF550.*run on a CUDA device, and the weights are on `cpu`"):
        nestflow.compile("gated_deltanet", dim=16, n_heads=2, execution={"backend": asked})
    with pytest.raises(nestflow.NestflowError, match=r"NF325.*one of auto, torch, whole, triton, fla"):
        nestflow.compile("gated_deltanet", execution={"backend": "cuda"})


def test_a_saved_spec_that_asks_for_more_is_run_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    text = "nestflow 1\nexecution { backend triton }\ninput k : float[T, 4]\noutput m(k)\n" + (
        "level m(k) { memory matrix; key k; value k; query k; objective dot; update gd(1) }\n"
    )
    saved = nestflow.compile(text)
    assert "at_once(" in saved.source and "at_once(" not in saved.standalone()
    saved.save(tmp_path / "b")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "at_once(" not in nestflow.load(tmp_path / "b").source
    with pytest.raises(nestflow.NestflowError, match="NF550"):
        nestflow.load(tmp_path / "b", execution={"backend": "triton"})


# ---- what is refused


def level(lines: str, by: str = "triton") -> LevelPlan:
    text = "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\ninput b : float[T]\noutput m(k, v, b)\n"
    graph = nestflow.check(f"{text}level m(k, v, b) {{ {lines} }}\n")
    plan = lower(replace(graph, execution=(("backend", by),)))
    (found,) = plan.levels.values()
    assert (found.by is None) == (found.not_by is not None)
    return found


PLAIN = "memory matrix; key k; value v; query k; objective dot; update gd(b)"
DELTA = "memory matrix; key k; value v; query k; objective l2; update gd(b)"


@pytest.mark.parametrize(
    "lines, reason",
    [
        (PLAIN, None),
        (PLAIN + "; retain b", None),
        (PLAIN + "; retain v", None),
        (DELTA, None),
        (DELTA + "; retain decay_first(b)", None),
        (DELTA + "; retain b", None),
        (PLAIN.replace("query k", "query v"), None),
        (PLAIN.replace("gd(b)", "momentum(b, 0.9)"), "its rule keeps more than the matrix"),
        (PLAIN.replace("gd(b)", "dgd(b)"), "its rule keeps more than the matrix"),
        (PLAIN.replace("matrix", "mlp(depth = 2)"), "it is computed as `scan`"),
        (PLAIN + "; every 4 tokens", "it does not learn once at every tick"),
        (DELTA + "; chunk 4", "it is computed as `chunk`"),
        (PLAIN + "; chunk 4; reset each(chunk)", "it is reset"),
        (PLAIN + "; gradient stop", "its steps are constants (`gradient stop`)"),
        (PLAIN + "; read before", "it is read before it learns"),
        (PLAIN + "; return m_(k) + m_(v)".replace("m_", "memory"), "it is not read once, at one query"),
        (PLAIN.replace("gd(b)", "muon(b)"), "it is computed as `scan`"),
    ],
)
def test_a_level_that_no_kernel_takes_says_why(lines: str, reason: str | None) -> None:
    assert level(lines).not_by == reason


def test_fla_knows_the_usual_delta_rule_alone() -> None:
    other = "its error does not look with its key at what its gate has left"
    assert level(DELTA + "; retain decay_first(b)", by="fla").not_by is None
    assert level(DELTA + "; retain decay_first(v)", by="fla").not_by is None
    assert level(DELTA + "; retain b", by="fla").not_by == other
    assert level(DELTA + "; retain v", by="fla").not_by == other


def test_a_key_too_wide_for_a_kernel() -> None:
    graph = nestflow.check("linear_attention", dim=1024, n_heads=2)
    plan = lower(replace(graph, execution=(("backend", "triton"),)))
    assert {x.not_by for x in plan.levels.values()} == {"its key has 512 numbers, and kernels take 256"}


def test_explain_says_which_kernel_and_why_none() -> None:
    def text(spec: str) -> str:
        return explain(lower(replace(nestflow.check(spec), execution=(("backend", "triton"),))))

    assert "kernel     triton, all ticks of a call at once" in text("gated_deltanet")
    assert "kernel     none: it is computed as `chunk`" in text("titans")
    assert "kernel" not in explain(lower(nestflow.check("gated_deltanet")))


# ---- on a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["whole", "triton", "fla"])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in BY_KERNEL], ids=lambda c: c.name)
def test_a_kernel_on_a_gpu_gives_the_numbers_of_the_loop(case: Bare, backend: str) -> None:
    if importlib.util.find_spec(backends.BACKENDS[backend].package) is None:
        pytest.skip(f"`{backend}` is not installed")
    plain = nestflow.compile(case.text, device="cuda", execution={"backend": "torch"})
    b = nestflow.compile(case.text, device="cuda", execution={"backend": backend})
    inputs = {n: x.detach().float().cuda().requires_grad_() for n, x in case.inputs(2, 150, seed=0).items()}
    tolerance = 2e-2 if backend == "fla" else 1e-5  # its products are in tf32
    pulled = []
    for module in (b.module, plain.module):
        y = module(**inputs)
        pulled.append([y, *torch.autograd.grad(y.square().sum(), list(inputs.values()))])
    for name, a, c in zip(["output", *inputs], *pulled, strict=True):
        near(a, c, tolerance, name)
