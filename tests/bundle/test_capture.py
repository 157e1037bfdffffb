"""`execution { capture true }`: who may, and that a replayed step is the step. The capturing itself needs a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.bundle import capture
from nestflow.ops.loop import flattened
from tests.specs.test_architectures import SPECS

ON = {"capture": True}


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Captures and replays without a device: a replay computes again, from and into the same memory."""
    done: list[str] = []

    def record(function: Callable[[], Any], inputs: list[Tensor]) -> capture.Captured:
        outputs, form = flattened(function())
        for x in inputs:  # what a later step reads is what was copied in
            x.zero_()
        outputs = [x.detach().clone() for x in outputs]
        done.append("capture")

        def replay() -> None:
            done.append("replay")
            for mine, x in zip(outputs, flattened(function())[0], strict=True):
                mine.copy_(x.detach())

        return capture.Captured(inputs, replay, outputs, form)

    monkeypatch.setattr(capture, "record", record)
    monkeypatch.setattr("nestflow.bundle.step.captures", lambda graph, device: True)
    return done


def batches(name: str) -> list[dict[str, Tensor]]:
    source = torch.Generator().manual_seed(0)
    rows = [3, 3, 2, 3]
    return [{"tokens": torch.randint(0, 32, (n, 20), generator=source)} for n in rows]


@pytest.mark.parametrize("more", [{}, {"microbatch": 2}], ids=["whole", "parts"])
@pytest.mark.parametrize("name", ["linear_attention", "titans", "hope"])
def test_a_replayed_step_is_the_step(name: str, more: dict[str, Any], replayed: list[str]) -> None:
    b = nestflow.compile(name, **SPECS[name], execution=more)
    found = [b.step(x)["losses"] for x in batches(name)]
    assert replayed.count("capture") >= 2  # three rows and two; in parts two and one
    assert replayed.count("replay") > replayed.count("capture")
    weights = {n: w.detach().clone() for n, w in b.module.named_parameters()}
    with pytest.MonkeyPatch.context() as plainly:
        plainly.setattr("nestflow.bundle.step.captures", lambda graph, device: False)
        other = nestflow.compile(name, **SPECS[name], execution=more)
        want = [other.step(x)["losses"] for x in batches(name)]
    assert found == want
    assert all(torch.equal(weights[n], w) for n, w in other.module.named_parameters())


def test_weights_that_lie_elsewhere_are_captured_anew(replayed: list[str]) -> None:
    b = nestflow.compile("linear_attention", **SPECS["linear_attention"])
    x = batches("")[0]
    b.step(x), b.step(x)
    assert replayed.count("capture") == 1
    for w in b.module.parameters():
        w.data = w.data.clone()
    b.step(x)
    assert replayed.count("capture") == 2


def test_what_a_graph_was_captured_for(replayed: list[str]) -> None:
    """Inputs of those names, shapes and types, what else it is a function of, and every tensor of the module; what it
    gave stays as it was when it is replayed. The oldest graphs make room."""
    net = torch.nn.Linear(3, 2)
    net.register_buffer("shift", torch.zeros(2))

    def doubled(inputs: Any) -> Any:
        (x,) = (x for x in inputs.values() if x is not None)
        return {"y": 2 * x, "names": tuple(inputs)}

    def asked(what: str = "loss", **inputs: Any) -> int:
        before, (given,) = replayed.count("capture"), [x for x in inputs.values() if x is not None]
        got = capture.captured(net, what, inputs, doubled)
        assert torch.equal(got["y"], 2 * given) and got["y"].dtype == given.dtype
        assert got["names"] == tuple(inputs)
        return replayed.count("capture") - before

    one = torch.ones(2)
    assert asked(x=one) == 1 and asked(x=3 * one) == 0
    assert asked(z=one) == 1 and asked(x=one, y=None) == 1
    assert asked(x=one.double()) == 1 and asked(x=torch.ones(3)) == 1 and asked("other", x=one) == 1
    net.shift = torch.ones(2)
    assert asked(x=one) == 1 and asked(x=one) == 0
    first = capture.captured(net, "loss", {"x": one}, doubled)["y"]
    capture.captured(net, "loss", {"x": 5 * one}, doubled)
    assert torch.equal(first, 2 * one)
    for n in range(4, 4 + capture.MOST):
        asked(x=torch.ones(n))
        assert len(capture._kept[net]) <= capture.MOST


def test_steps_are_captured_where_that_is_asked_for_and_can_be() -> None:
    text = TOP + FLOW + OUTER % "gd(0.1)"
    on, off = (nestflow.check(text.replace("true", x)) for x in ("true", "false"))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert capture.wanted(on, cuda) and not capture.wanted(on, cpu) and not capture.wanted(off, cuda)


def test_too_little_memory_is_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Callable[[], Any], inputs: list[Tensor]) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(capture, "record", fails)
    with pytest.raises(torch.OutOfMemoryError):
        capture.captured(torch.nn.Linear(1, 1), "loss", {"x": torch.ones(1)}, lambda inputs: inputs)


def test_a_step_that_cannot_be_captured_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Callable[[], Any], inputs: list[Tensor]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(capture, "record", fails)
    monkeypatch.setattr("nestflow.bundle.step.captures", lambda graph, device: True)
    b, plain = (nestflow.compile("linear_attention", **SPECS["linear_attention"]) for _ in range(2))
    x = batches("")[0]
    with pytest.warns(UserWarning, match=r"capture true.*not permitted when stream is capturing"):
        first = b.step(x)["loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = b.step(x)["loss"]
    monkeypatch.setattr("nestflow.bundle.step.captures", lambda graph, device: False)
    assert [first, second] == [plain.step(x)["loss"] for _ in range(2)]


def test_a_cpu_is_told() -> None:
    with pytest.raises(nestflow.NestflowError, match=r"NF552.*CUDA graphs, and the weights are on `cpu`"):
        nestflow.compile("titans", execution=ON)


@pytest.mark.parametrize(
    ("setting", "code"), [("capture true", "NF552"), ("backend fla", "NF550"), ("device cuda9", "NF518")]
)
def test_a_setting_that_cannot_be_had_is_told_where_it_stands(setting: str, code: str) -> None:
    text = TOP.replace("capture true", f"block 8; {setting}") + FLOW + OUTER % "gd(0.1)"
    name, value = setting.split()
    for execution, placed in ((None, True), ({name: value == "true" or value}, False)):
        with pytest.raises(nestflow.NestflowError) as e:
            nestflow.compile(text, execution=execution)
        (d,) = e.value.diagnostics
        assert d.code == code and (d.span.text if d.span else None) == (setting if placed else None)


TOP = "nestflow 1\nexecution { capture true }\ninput x : float[8]\noutput f(x)\n"
OUTER = "level outer { every 1 step; memory weights(f); objective mean(square(f(x))); update %s }\n"
FLOW = "flow f(x) { return linear(x) }\n"


@pytest.mark.parametrize(
    "text, said",
    [
        (TOP + "flow f(x) { return dropout(linear(x), 0.1) }\n" + OUTER % "gd(0.1)", "what it draws is a function"),
        (TOP + FLOW + OUTER % "dgd(0.1)", "watches the inputs"),
        (TOP + FLOW + OUTER % "sophia(0.1)", "reads the curvature"),
    ],
)
def test_what_cannot_be_captured_is_told(text: str, said: str) -> None:
    with pytest.raises(nestflow.NestflowError, match=f"NF552.*{said}"):
        nestflow.check(text)
    assert nestflow.check(text.replace("capture true", "capture false"))


def test_a_saved_spec_that_captures_is_loaded_on_a_cpu(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TOP + FLOW + OUTER % "gd(0.1)"
    monkeypatch.setattr("nestflow.bundle.settings.for_capture", lambda device: None)
    nestflow.compile(text).save(tmp_path / "b")
    monkeypatch.undo()
    x = torch.ones(2, 8)
    assert nestflow.load(tmp_path / "b").step({"x": x})["loss"] > 0
    with pytest.raises(nestflow.NestflowError, match="NF552"):
        nestflow.load(tmp_path / "b", execution=ON)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["linear_attention", "titans", "hope"])
def test_a_captured_step_on_a_gpu_is_the_step(name: str) -> None:
    b, plain = (nestflow.compile(name, **SPECS[name], device="cuda", execution={"capture": on}) for on in (True, False))
    for x in batches(name):
        torch.testing.assert_close(b.step(x)["loss"], plain.step(x)["loss"], rtol=1e-4, atol=1e-5)
    assert any(one is not None for one in capture._kept[b.module].values())
