"""Shapes, heads, and what is told where they do not fit."""

from __future__ import annotations

import pytest

from tests.graph.building import codes, flow, instance, level, memory, mistake, shapes


def test_linear_keeps_the_width() -> None:
    g = flow("return linear(x)")
    assert shapes(g) == {"f.linear.weight": (8, 8)}
    assert g.output_type is not None and g.output_type.shape == (8,) and g.output_type.clock == "T"


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("return linear(x, 3)", (3,)),
        ("return concat(x, linear(x, 3))", (11,)),
        ("return stack(x, x)", (8, 2)),
        ("return outer_product(x, linear(x, 3))", (8, 3)),
        ("return transpose(outer_product(x, linear(x, 3)))", (3, 8)),
        ("return outer_product(x, x) @ x", (8,)),
        ("return x[2:6]", (4,)),
        ("return x[-3:]", (3,)),
        ("return reshape(x, 2, 4)", (2, 4)),
        ("return flatten(outer_product(x, x))", (64,)),
        ("return norm(x)", (1,)),
        ("return sum(x)", ()),
        ("return mean(reshape(x, 2, 4), axis = 0)", (4,)),
        ("return inner(x, x)", ()),
        ("return x * linear(x, 1)", (8,)),
        ("return swiglu(x)", (8,)),
        ("return mlp(x, out = 5)", (5,)),
        ("return linear(x, width(x) // 2)", (4,)),
    ],
)
def test_the_shape_of_a_result(body: str, shape: tuple[int, ...]) -> None:
    g = flow(body)
    assert g.output_type is not None and g.output_type.shape == shape


def test_under_heads_linear_divides_a_whole_width() -> None:
    g = level(heads=2)
    assert shapes(g)["m.key.linear.weight"] == (2, 4, 8)


def test_under_heads_a_width_is_per_head() -> None:
    g = level(heads=2, key="linear(x, 3)", query="linear(x, 3)")
    assert shapes(g)["m.key.linear.weight"] == (2, 3, 8)


def test_linear_of_a_per_head_value_keeps_its_width() -> None:
    g = level(heads=2, key="x |> linear |> linear")
    assert shapes(g)["m.key.linear_2.weight"] == (2, 4, 4)


def test_split_heads_gives_each_its_share() -> None:
    m = memory(level(heads=2, key="split_heads(x)", query="split_heads(x)"))
    assert m.key is not None and m.key.type.shape == (4,) and m.key.type.heads == 2


def test_after_merge_heads_all_is_whole() -> None:
    g = level(heads=2, returns="y |> merge_heads |> rmsnorm |> linear(5)")
    assert shapes(g)["m.out.linear.weight"] == (5, 8)
    assert g.output_type is not None and g.output_type.heads is None


def test_a_norm_before_merge_heads_is_per_head() -> None:
    g = level(heads=2, returns="y |> rmsnorm |> merge_heads")
    assert shapes(g)["m.out.rmsnorm.weight"] == (2, 4)


def test_without_return_the_heads_are_merged() -> None:
    g = level(heads=2)
    assert g.output_type is not None and (g.output_type.shape, g.output_type.heads) == ((8,), None)


def test_a_number_per_head_is_a_gate() -> None:
    m = memory(level(heads=2, retain="sigmoid(linear(x, 1) + 6)"))
    assert m.retain is not None and m.retain_on == "number" and m.retain.type.heads == 2


def test_a_vector_gate_acts_on_the_key_axis_and_on_value_on_the_other() -> None:
    assert memory(level(value="linear(x, 3)", retain="sigmoid(linear(x, 8))")).retain_on == "key"
    assert memory(level(value="linear(x, 3)", retain="on_value(sigmoid(linear(x, 3)))")).retain_on == "value"
    assert codes(lambda: level(value="linear(x, 3)", retain="on_value(sigmoid(linear(x, 5)))")) == ["NF322"]


def test_a_matrix_is_out_by_in() -> None:
    m = memory(level(key="linear(x, 5)", query="linear(x, 5)", value="linear(x, 3)"))
    assert m.function is not None and m.function.tensors[0].shape == (3, 5)


def test_an_mlp_answers_with_the_values_width() -> None:
    m = memory(level(memory="mlp(depth = 2, expand = 2)", value="linear(x, 3)"))
    assert m.function is not None and m.function.result.type.shape == (3,)
    assert [t.shape for t in m.function.tensors] == [(16, 8), (3, 16)]


def test_a_head_count_that_does_not_divide() -> None:
    d = mistake(lambda: level(heads=3, value="linear(x, 4)", key="linear(x, 4)"))
    assert d.code == "NF307" and "3 heads" in d.message and "8" in d.message


def test_whole_beside_per_head_prints_both_and_says_what_to_do() -> None:
    d = mistake(lambda: level(heads=2, returns="x + y"))
    assert d.code == "NF301"
    assert "float[T, 8]" in d.message and "float[T, 4] per head" in d.message
    assert d.help is not None and "split_heads" in d.help and "merge_heads" in d.help
    assert d.span is not None and d.span.text == "x + y"


def test_a_level_that_returns_per_head() -> None:
    d = mistake(lambda: level(heads=2, returns="rmsnorm(y)"))
    assert d.code == "NF319" and d.help is not None and "merge_heads" in d.help


def test_a_whole_key_under_heads() -> None:
    d = mistake(lambda: level(heads=2, key="l2norm(x)"))
    assert d.code == "NF319" and d.span is not None and d.span.text == "l2norm(x)"


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("return x + linear(x, 7)", ("[8]", "[7]", "`x` is float[T, 8]", "`linear(x, 7)` is float[T, 7]")),
        ("return x @ linear(x, 7)", ("[8]", "[7]", "`linear(x, 7)` is float[T, 7]")),
        ("return inner(x, linear(x, 7))", ("[8]", "[7]", "inner")),
        ("return concat(x, outer_product(x, x))", ("[8]", "[8, 8]", "concat")),
        ("return reshape(x, 3, 3)", ("[8]", "[3, 3]")),
        ("return x[9]", ("9", "8")),
        ("return x[4:20]", ("20", "8")),
        ("return rope(linear(x, 7))", ("7",)),
        ("return transpose(x)", ("two",)),
        ("return sum(x, axis = 3)", ("axis 3", "1 feature")),
        ("return sum(x)[0]", ("no axis",)),
        ("return sum(x)[0:1]", ("no axis",)),
    ],
)
def test_what_does_not_fit_is_printed_with_its_shapes(body: str, parts: tuple[str, ...]) -> None:
    d = mistake(lambda: flow(body))
    assert d.code == "NF301"
    text = d.message + (d.help or "")
    assert all(p in text for p in parts), text


def test_sizes_are_whole_and_positive() -> None:
    assert codes(lambda: flow("return linear(x, 8 / 3)")) == ["NF303"]
    assert codes(lambda: flow("return linear(x, 0)")) == ["NF304"]
    assert codes(lambda: flow("return linear(x, -2)")) == ["NF304"]
    assert codes(lambda: flow("return linear(x, x)")) == ["NF302"]
    assert shapes(flow("return linear(x, 8 / 2)")) == {"f.linear.weight": (4, 8)}


def test_the_slots_of_a_level_are_typed() -> None:
    g = level()
    (name, type_), *_ = instance(g).slots
    assert name == "x" and type_.shape == (8,) and type_.clock == "T"


def test_heads_reach_into_flows() -> None:
    g = level(heads=2, extra="  u = mix(split_heads(x))\n}\nflow mix(z) {\n  return linear(z)", key="u", query="u")
    assert shapes(g)["m.u.mix.linear.weight"] == (2, 4, 4)
