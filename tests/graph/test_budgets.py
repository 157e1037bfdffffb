"""Nothing a spec asks for is made before it is known to be reasonable; recursion and loops end."""

from __future__ import annotations

import pytest

from tests.graph.building import codes, flow, graph, level, mistake

HEAD = "input x : float[T, 8]\noutput f(x)\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("flow f(x) { repeat 1_000_000_000 { x = linear(x) }; return x }", "NF434"),
        ("flow f(x) { repeat 9999 { repeat 9999 { x = linear(x) } }; return x }", "NF434"),
        ("flow f(x) { repeat -1 { x = linear(x) }; return x }", "NF434"),
        ("flow f(x) { repeat 2.5 { x = linear(x) }; return x }", "NF303"),
        ("flow f(x) { return linear(x, 10 ^ 12) }", "NF304"),
        ("flow f(x) { return linear(linear(x, 2 ^ 30), 2 ^ 30) }", "NF430"),
        ("flow f(x) { return f(x) }", "NF433"),
        ("flow f(x) { return g1(x) }\nflow g1(x) { return f(x) }", "NF433"),
        ("flow f(x) { x = f(x); x = f(x); return f(x) }", "NF433"),
        ("flow f(x) { return linear(x, 9 ^ 9 ^ 9) }", "NF301"),
        ("flow f(x) { return mlp(x, depth = 17) }", "NF325"),
    ],
)
def test_budgets(text: str, code: str) -> None:
    assert codes(lambda: graph(HEAD + text + "\n")) == [code]


def test_flows_that_double_at_each_call_end() -> None:
    """2^40 instances are never made."""
    flows = "".join(f"flow f{i}(x, n) {{ return f{i + 1}(x, n) + f{i + 1}(x, n + {i + 1}) }}\n" for i in range(40))
    text = f"{HEAD}flow f(x) {{ return f0(x, 1) }}\n{flows}flow f40(x, n) {{ return x * n }}\n"
    assert codes(lambda: graph(text)) == ["NF431"]


def test_a_memory_that_is_a_flow_that_calls_itself() -> None:
    text = "\n}\nflow net(z) {\n  return linear(net(z))"
    assert codes(lambda: level(memory="net", extra="  a = x" + text, returns=None)) == ["NF433"]


def test_loops_inside_loops_of_a_level() -> None:
    loops = "for a in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] { " * 6 + "n{a} = 1" + " }" * 6
    found = codes(lambda: level(extra="  " + loops))
    assert set(found) == {"NF434"}


def test_loops_inside_loops_of_an_optimiser() -> None:
    text = "optimizer o(lr) { u = g; repeat 9999 { repeat 9999 { u = u + g } }; step -lr * u }\n"
    assert codes(lambda: graph("input x : float[T, 8]\noutput x\n" + text)) == ["NF434"]


def test_products_of_names_do_not_grow_without_end() -> None:
    names = "a0 = 10 ^ 10\n" + "".join(f"a{i + 1} = a{i} * a{i}\n" for i in range(60))
    d = mistake(lambda: graph(f"input x : float[T, 8]\n{names}output x * a60\n"))
    assert d.code == "NF301" and "no number" in d.message


def test_lists_of_lists_do_not_grow_without_end() -> None:
    towers = "".join(f"{n}{i + 1} = [{n}{i}, {n}{i}]\n" for n in "ab" for i in range(60))
    text = f"input x : float[T, 8]\na0 = 1\nb0 = 1\n{towers}output x if a60 == b60 else 2 * x\n"
    assert codes(lambda: graph(text)) == ["NF315"]


def test_a_long_sum_is_no_deep_tree() -> None:
    g = flow("return " + " + ".join(["x"] * 150))
    assert g.output_type is not None and g.output_type.shape == (8,)


@pytest.mark.parametrize("text", ["(" * 60 + "x" + ")" * 60, "-" * 50 + "x", "x" + " |> silu" * 400])
def test_deep_expressions_build(text: str) -> None:
    flow(f"return {text}")


@pytest.mark.parametrize("text", [" + ".join(["x"] * 20_000), "not " * 5_000 + "x"])
def test_deeper_ones_are_told(text: str) -> None:
    assert codes(lambda: flow(f"return {text}")) == ["NF110"]


def test_a_pipe_of_any_length_is_flat() -> None:
    g = flow("return x" + " |> silu" * 5_000)
    assert g.output_type is not None and g.output_type.shape == (8,)
