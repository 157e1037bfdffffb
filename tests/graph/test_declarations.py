"""Params, inputs, outputs, names of the top, and given names."""

from __future__ import annotations

from typing import Any

import pytest

from tests.graph.building import codes, graph, mistake, shapes


def widths(param: str, use: str = "n", **given: Any) -> int:
    text = f"{param}\ninput x : float[T, 8]\noutput f(x)\nflow f(x) {{ return linear(x, {use}) }}\n"
    return shapes(graph(text, **given))["f.linear.weight"][0]


def test_a_param_is_set_from_outside() -> None:
    assert widths("param n = 4") == 4
    assert widths("param n = 4", n=6) == 6
    assert widths("param n = 4", n="2 * 3") == 6
    assert widths("param m = 3\nparam n = 2 * m", m=5) == 10


def test_params_are_kept_with_where_they_came_from() -> None:
    g = graph("## width\nparam n = 4\nparam act = gelu in {gelu, silu}\ninput x : float[T, n]\noutput x\n", n=6)
    n, act = g.params
    assert (n.value, n.default, n.origin, n.doc) == (6, 4, "--set", "width")
    assert act.value == "gelu" and act.origin.endswith(":4:1")


@pytest.mark.parametrize(
    ("param", "given", "code"),
    [
        ("param n = 4", 2.5, "NF324"),
        ("param n = 4", "true", "NF324"),
        ("param n = 4", '"wide"', "NF324"),
        ("param n : int = 2.5", None, "NF324"),
        ("param n : integer = 2", None, "NF326"),
        ("param n = 4 in [1, 16]", 17, "NF325"),
        ("param n = 4 in [1, 16)", 16, "NF325"),
        ("param n = 4 in (4, 16)", None, "NF325"),
        ("param n = 4 in [16, 1]", None, "NF325"),
        ('param n = 4 in [1, "a"]', None, "NF302"),
        ("param n = 4 in {2, 4}", 3, "NF325"),
        ("param n = [1, 2]", None, "NF302"),
        ("param n = normal(1)", None, "NF302"),
        ("param n = n", None, "NF201"),
        ("param n = later\nparam later = 3", None, "NF201"),
        ("param n = 1 / 0", None, "NF301"),
    ],
)
def test_a_param_that_cannot_be(param: str, given: Any, code: str) -> None:
    assert codes(lambda: widths(param, **({} if given is None else {"n": given}))) == [code]


def test_a_param_that_is_not_there() -> None:
    d = mistake(lambda: widths("param width_in = 4", "width_in", width_inn=3))
    assert d.code == "NF017" and d.help == "did you mean `width_in`?"


def test_a_param_below_a_loop_can_be_set() -> None:
    text = "input x : float[T, 8]\nfor i in [1, 2] { c{i} = i }\nparam n = 4\noutput f(x)\n"
    text += "flow f(x) { return linear(x, n) }\n"
    assert shapes(graph(text, n=5)) == {"f.linear.weight": (5, 8)}


@pytest.mark.parametrize(
    ("declaration", "code"),
    [
        ("input x : tensor[T, 8]", "NF326"),
        ("input x : float[T, 0]", "NF303"),
        ("input x : float[8, T]", "NF303"),
        ("input x : float[T, 2.5]", "NF303"),
        ("input x : float[T, x]", "NF201"),
        ("input x : int[T] in {1, 2}", "NF490"),
        ("input x : float[T, 8]\ninput x : float[T, 8]", "NF220"),
        ("input t : float[T, 8]", "NF219"),
    ],
)
def test_an_input_that_cannot_be(declaration: str, code: str) -> None:
    assert codes(lambda: graph(f"{declaration}\noutput 1\n")) == [code]


def test_bounds_of_an_int_input_are_inclusive() -> None:
    g = graph("param v = 256\ninput i : int[T] in [0, v)\ninput f : float[T, 3]\noutput embed(i, v, 4)\n")
    assert (g.inputs[0].low, g.inputs[0].high) == (0, 255)
    assert (g.inputs[1].low, g.inputs[1].high) == (None, None)
    assert (g.inputs[0].type.shape, g.inputs[1].type.shape) == ((), (3,))


def test_inputs_with_dots_are_grouped() -> None:
    g = graph("input clean.x : float[T, 8]\ninput noisy.x : float[T, 8]\noutput clean.x - noisy.x\n")
    assert [i.name for i in g.inputs] == ["clean.x", "noisy.x"]


def test_the_output_must_be_there_once() -> None:
    assert codes(lambda: graph("input x : float[T, 8]\nflow f(x) { return x }\n")) == ["NF413"]
    assert codes(lambda: graph("input x : float[T, 8]\noutput x\noutput x + 1\n")) == ["NF222"]


def test_an_output_does_not_look_ahead() -> None:
    assert codes(lambda: graph("input x : float[T, 8]\noutput next(x)\n")) == ["NF403"]


# --- names ---------------------------------------------------------------------------------------------------

GIVEN = ("y", "M", "head", "t", "g", "n_ticks", "w", "w0", "w_chunk", "w_in", "age", "training")


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize(
    "text",
    [
        "param {} = 1",
        "{} = 1",
        "input {} : float[T, 8]",
        "flow {}(z) {{ return z }}",
        "flow f({}) {{ return 1 }}",
        "level f({}) {{ memory matrix }}",
        "optimizer f(lr, {} = 1) {{ step -lr * 1 }}",
        "for {} in [1, 2] {{ a = 1 }}",
    ],
)
def test_a_given_name_cannot_be_hidden(text: str, name: str) -> None:
    d = mistake(lambda: graph("input x : float[T, 8]\noutput x\n" + text.format(name) + "\n"))
    assert d.code == "NF219" and d.help is not None and d.help.startswith("choose another: `")


@pytest.mark.parametrize(
    "body", ["t = x", "shared t = linear(n = 8)", "repeat 2 as t { x = x + 1 }", "for t in [1] { x = x + t }"]
)
def test_nor_inside_a_flow(body: str) -> None:
    text = f"input x : float[T, 8]\noutput f(x)\nflow f(x) {{ {body}; return x }}\n"
    assert codes(lambda: graph(text)) == ["NF219"]


def test_nor_by_a_memory() -> None:
    text = "input x : float[T, 8]\noutput m(x)\nlevel m(x) { memory M : matrix { key x }; value x; return M(x) }\n"
    assert "NF219" in codes(lambda: graph(text))


@pytest.mark.parametrize(
    "second",
    ["param a = 2", "a = 2", "input a : float[T, 3]", "flow a(z) { return z }", "level a { every never }"],
)
def test_a_name_of_the_top_is_given_once(second: str) -> None:
    d = mistake(lambda: graph(f"input x : float[T, 8]\noutput x\nparam a = 1\n{second}\n"))
    assert d.code == "NF220" and d.related[0].message == "given here first"


def test_a_name_of_ones_own_hides_a_word() -> None:
    g = graph(
        "input x : float[T, 8]\noutput f(x)\nflow silu(z) { return linear(z, 3) }\nflow f(x) { return silu(x) }\n"
    )
    assert shapes(g) == {"f.silu.linear.weight": (3, 8)}


def test_an_assert_is_told_with_its_message() -> None:
    d = mistake(lambda: graph('param a = 3\ninput x : float[T, 8]\noutput x\nassert a % 2 == 0, "a is even"\n'))
    assert (d.code, d.message) == ("NF241", "a is even")


def test_conditions_of_the_top_choose() -> None:
    text = "param deep = false\ninput x : float[T, 8]\noutput f(x)\nif deep { n = 4 } else { n = 2 }\n"
    text += "flow f(x) { return linear(x, n) }\n"
    assert shapes(graph(text)) == {"f.linear.weight": (2, 8)}
    assert shapes(graph(text, deep=True)) == {"f.linear.weight": (4, 8)}


def test_an_unused_level_whose_memories_a_loop_names_is_right() -> None:
    loop = "for m in [one, two] { memory m : matrix { key x; value a_{m} }; a_{m} = x |> linear }"
    text = f"level a(x) {{ every 1 token; {loop}; query x; objective l2; update gd(0.1); return one(x) + two(x) }}"
    graph(f"input x : float[T, 8]\noutput x\n{text}\n")
    assert codes(lambda: graph(f"input x : float[T, 8]\noutput x\n{text.replace('two(x)', 'six(x)')}\n")) == ["NF201"]


def test_execution_is_read_and_nothing_in_it_is_ignored() -> None:
    text = "input x : float[8]\noutput f(x)\nflow f(x) { return linear(x) }\n"
    assert dict(graph(text + "execution { dtype float64; device cpu }\n").execution) == {
        "dtype": "float64",
        "device": "cpu",
    }
    for line, code in (
        ("dtype floaty", "NF325"),
        ("dtype 3", "NF325"),
        ("dtpye float32", "NF221"),
        ("dtype float32; dtype float64", "NF222"),
        ("a = 3", "NF217"),
        ("backend x", "NF325"),
        ("microbatch 0", "NF325"),
        ("compile 1", "NF325"),
        ("checkpointing 0", "NF325"),
        ("checkpointing atuo", "NF325"),
        ("block 0.5", "NF325"),
    ):
        assert codes(lambda line=line: graph(f"{text}execution {{ {line} }}\n")) == [code]


def test_execution_is_the_default_of_compile() -> None:
    import torch

    import nestflow

    text = "nestflow 1\ninput x : float[8]\noutput f(x)\nflow f(x) { return linear(x) }\nexecution { dtype float64 }\n"
    assert next(nestflow.compile(text).module.parameters()).dtype == torch.float64
    assert next(nestflow.compile(text, dtype="float32").module.parameters()).dtype == torch.float32
