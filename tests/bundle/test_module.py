"""The nn.Module of a bundle: names, copies, tracing, inputs, streams."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.func import functional_call

import nestflow
from tests.bundle.specs import LM, MEMORY, TWO_OBJECTIVES

TOKENS = torch.randint(0, 11, (3, 10), generator=torch.Generator().manual_seed(0))
EVERY_SPEC = pytest.mark.parametrize("spec", [LM, MEMORY], ids=["flows", "memories"])


def test_state_dict_keys_are_paths_and_load_strictly() -> None:
    a, b = nestflow.compile(LM, seed=1), nestflow.compile(LM, seed=2)
    keys = list(a.module.state_dict())
    assert keys == [w.path for w in a.graph.weights] == list(a.module.weights)
    assert "model.block.0.short_conv.weight" in keys
    assert dict(a.module.named_parameters()).keys() == a.module.weights.keys()
    assert not torch.equal(a.module(TOKENS), b.module(TOKENS))
    b.module.load_state_dict(a.module.state_dict())
    assert torch.equal(a.module(TOKENS), b.module(TOKENS))
    with pytest.raises(RuntimeError, match="Missing key"):
        b.module.load_state_dict({})


def test_weights_depend_on_seed_and_path_alone() -> None:
    deep = nestflow.compile(LM.replace("repeat 2", "repeat 5"), seed=3)
    flat = nestflow.compile(LM, seed=3)
    for path, w in flat.module.weights.items():
        assert torch.equal(w, deep.module.weights[path])
    double = nestflow.compile(LM, seed=3, dtype="float64")
    for path, w in flat.module.weights.items():
        assert torch.equal(w.double(), double.module.weights[path])


def test_parts_of_paths_may_be_called_as_a_module_calls_its_own() -> None:
    names = ["half", "type", "eval", "training", "forward", "weights", "run"]
    chain = " |> ".join(f'linear(4, name = "{n}")' for n in names)
    b = nestflow.compile(
        f"nestflow 1\ninput x : float[T, 4]\noutput double(x)\nflow double(x) {{ return x |> {chain} }}\n"
    )
    assert list(b.module.state_dict()) == [f"double.{n}.weight" for n in names]
    x = torch.randn(2, 3, 4)
    want = x
    for w in b.module.parameters():
        want = want @ w.T
    torch.testing.assert_close(b.module(x), want)
    again = copy.deepcopy(b.module).double().eval()
    assert not again.training and b.module.training
    torch.testing.assert_close(again(x.double()).float(), want)


@EVERY_SPEC
def test_double_deepcopy_functional_call(spec: str) -> None:
    m = nestflow.compile(spec).module
    want = m(tokens=TOKENS)
    other = copy.deepcopy(m)
    torch.testing.assert_close(other.double()(tokens=TOKENS).float(), want, rtol=1e-4, atol=1e-5)
    assert m.dtype == torch.float32 and other.dtype == torch.float64
    changed = {k: v * 1.1 for k, v in m.state_dict().items()}
    got = functional_call(m, changed, (), {"tokens": TOKENS})
    assert torch.equal(m(tokens=TOKENS), want) and not torch.allclose(got, want)
    m.load_state_dict(changed)
    assert torch.equal(m(tokens=TOKENS), got)


@EVERY_SPEC
def test_torch_compile_gives_the_same_numbers(spec: str) -> None:
    m = nestflow.compile(spec).module
    traced = torch.compile(m, backend="aot_eager")
    torch.testing.assert_close(traced(tokens=TOKENS), m(tokens=TOKENS), rtol=1e-5, atol=1e-6)
    loss, want = traced(tokens=TOKENS).square().mean(), m(tokens=TOKENS).square().mean()
    grads = zip(
        torch.autograd.grad(loss, list(m.parameters())), torch.autograd.grad(want, list(m.parameters())), strict=True
    )
    for a, b in grads:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


EXPORT = """
import sys, torch, nestflow
from tests.bundle.specs import LM, MEMORY
m = nestflow.compile({"flows": LM, "memories": MEMORY}[sys.argv[1]]).module
x = torch.randint(0, 11, (3, 10))
rows = torch.export.Dim("rows")
program = torch.export.export(m, (), {"tokens": x})
torch.testing.assert_close(program.module()(tokens=x), m(tokens=x))
program = torch.export.export(m, (x,), dynamic_shapes=(({0: rows},),))
more = torch.randint(0, 11, (8, 10))
torch.testing.assert_close(program.module()(more), m(tokens=more))
"""


@pytest.mark.parametrize("name", ["flows", "memories"])
def test_torch_export(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXPORT, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("inputs", "code", "says"),
    [
        ({}, "NF502", "`tokens` is missing"),
        ({"tokans": TOKENS}, "NF501", "did you mean `tokens`?"),
        ({"tokens": TOKENS.float()}, "NF503", "is int, and this tensor is float32"),
        ({"tokens": "text"}, "NF503", "is no tensor"),
        ({"tokens": TOKENS[0]}, "NF504", "[batch, T]"),
        ({"tokens": TOKENS[..., None]}, "NF504", "[3, 10, 1]"),
        ({"tokens": TOKENS + 1}, "NF506", "at most 10"),
        ({"tokens": TOKENS - 5}, "NF506", "at least 0"),
        ({"tokens": TOKENS[:, :0]}, "NF505", "no ticks"),
        ({"tokens": TOKENS[:0]}, "NF505", "no rows"),
    ],
)
def test_wrong_inputs_are_sentences(inputs: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.compile(LM).module(**inputs)
    assert code in str(e.value) and says in str(e.value)


def test_several_inputs() -> None:
    m = nestflow.compile(TWO_OBJECTIVES).module
    x, y = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    assert m(x=x, goal=y).shape == (2, 5, 4)
    # what the output does not read may be left out; a loss needs all
    assert torch.equal(m(x), m(x=x, goal=y))
    with pytest.raises(nestflow.NestflowError, match="`goal` is missing"):
        m.losses(x=x)
    with pytest.raises(nestflow.NestflowError, match="`x` is missing"):
        m(goal=y)
    with pytest.raises(nestflow.NestflowError, match="by name"):
        m(x, y)
    with pytest.raises(nestflow.NestflowError, match="differ in their number of ticks"):
        m(x=x, goal=y[:, :3])
    with pytest.raises(nestflow.NestflowError, match="differ in their number of rows"):
        m(x=x, goal=y[:1])


@EVERY_SPEC
@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5, 6, 7, 8, 9), (4,), (3, 5), (9,)], ids=str)
def test_a_stream_is_the_whole_sequence_at_any_split(spec: str, cuts: tuple[int, ...]) -> None:
    b = nestflow.compile(spec, dtype="float64")
    want = b.module(tokens=TOKENS)
    stream = b.stream(batch=3)
    parts = [stream.feed(tokens=TOKENS[:, i:j]) for i, j in zip((0, *cuts), (*cuts, 10), strict=True)]
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=1e-10, atol=1e-11)
    assert stream.t == (10, 10, 10)


@EVERY_SPEC
def test_rows_at_different_positions(spec: str) -> None:
    b = nestflow.compile(spec, dtype="float64")
    stream = b.stream(batch=3)
    stream.feed(tokens=TOKENS[:, :3])
    stream.reset([1])
    assert stream.t == (3, 0, 3)
    got = stream.feed(tokens=TOKENS[:, 3:8])
    stream.reset([0])
    more = stream.feed(TOKENS[:, 8:])
    whole = b.module(tokens=TOKENS)
    torch.testing.assert_close(got[[0, 2]], whole[[0, 2], 3:8], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(got[1:2], b.module(tokens=TOKENS[1:2, 3:8]), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(more[0:1], b.module(tokens=TOKENS[0:1, 8:]), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(more[1:2], b.module(tokens=TOKENS[1:2, 3:])[:, 5:], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(more[2:], whole[2:, 8:], rtol=1e-10, atol=1e-11)
    assert stream.t == (2, 7, 10)
    stream.reset()
    assert stream.t == (0, 0, 0)
    torch.testing.assert_close(stream.feed(tokens=TOKENS), whole, rtol=1e-10, atol=1e-11)


def test_a_state_of_other_rows_is_refused() -> None:
    m = nestflow.compile(LM).module
    with pytest.raises(nestflow.NestflowError, match="2 rows, and the inputs have 3"):
        m.run(m.initial_state(2), tokens=TOKENS)


def test_gradients_reach_through_a_carried_state() -> None:
    m = nestflow.compile(MEMORY, dtype="float64").module
    weights = list(m.parameters())
    _, state = m.run(None, tokens=TOKENS[:, :4])
    out, _ = m.run(state, tokens=TOKENS[:, 4:])
    want = m(tokens=TOKENS)[:, 4:]
    grads = (torch.autograd.grad(y.square().sum(), weights) for y in (out, want))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_importing_nestflow_does_not_import_torch() -> None:
    code = "import nestflow, sys; nestflow.check; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
