"""The generated source: one function a body, loops for repeats, places of the spec, no folders, tracebacks."""

from __future__ import annotations

import ast
import traceback
from pathlib import Path

import pytest
import torch

import nestflow
from tests.bundle.specs import LM, MEMORY


def functions(source: str) -> dict[str, ast.FunctionDef]:
    return {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}


def test_equal_bodies_share_a_function_and_repeats_are_a_loop() -> None:
    shallow, deep = (nestflow.compile(LM.replace("repeat 2", f"repeat {n}")).source for n in (2, 9))
    assert list(functions(deep)) == ["swiglu", "block", "model", "forward", "losses", "metrics", "initial_state"]
    assert "for i in range(9):" in deep
    assert deep.split("def swiglu")[1].replace("range(9)", "range(2)") == shallow.split("def swiglu")[1]


def test_bodies_that_differ_do_not() -> None:
    spec = LM.replace("repeat 2 { x = block(x) }", "x = mlp(x); x = mlp(x, hidden = 12); x = mlp(x)")
    spec = spec.replace("**.swiglu.**", "mlp.**")
    names = [n for n in functions(nestflow.compile(spec).source) if n.startswith("mlp")]
    assert names == ["mlp", "mlp_2"]


def test_a_repeat_that_is_no_chain_is_written_out() -> None:
    spec = LM.replace("repeat 2 { x = block(x) }", "repeat 3 { x = x + block(x) }")
    b = nestflow.compile(spec, dtype="float64")
    assert "for i in range" not in b.source
    x = torch.randint(0, 11, (2, 4))
    assert b.module(x).shape == (2, 4, 11)


@pytest.mark.parametrize("spec", [LM, MEMORY, "hope", "titans", "hybrid", "linear_attention"])
def test_it_says_where_it_is_from_and_not_where_it_was_made(spec: str) -> None:
    b = nestflow.compile(spec)
    here = str(Path(nestflow.__file__).parents[1])
    for text in (b.source, b.optim_source, b.standalone()):
        assert here not in text
        ast.parse(text)
    source = "text" if "\n" in spec else spec
    assert f"{source}.nl:" in b.source or "<text>:" in b.source


def test_tracebacks_show_the_generated_line() -> None:
    b = nestflow.compile(LM)
    b.module._modules["model"]._modules["emb"]._parameters["weight"] = torch.nn.Parameter(torch.zeros(11, 3))
    with pytest.raises(RuntimeError) as e:
        b.module(torch.zeros(1, 2, dtype=torch.long))
    text = "".join(traceback.format_exception(e.value))
    assert 'rmsnorm(x_BTD, c.w[p + "rmsnorm.weight"])' in text and "in block" in text
