"""Paths of instances: they are state-dict keys and what globs match."""

from __future__ import annotations

from tests.graph.building import codes, flow, graph, level, paths


def test_a_call_in_a_flow_is_called_as_written() -> None:
    assert paths(flow("return linear(x)")) == ["f.linear.weight"]


def test_equal_names_get_numbers_in_text_order() -> None:
    g = flow("a = linear(x, 2)\nb = linear(x, 3)\nreturn concat(a, b, linear(x, 4))")
    assert [(w.path, w.shape[0]) for w in g.weights] == [
        ("f.linear.weight", 2),
        ("f.linear_2.weight", 3),
        ("f.linear_3.weight", 4),
    ]


def test_repeat_puts_its_index_after_the_name() -> None:
    g = flow("repeat 2 { x = x + linear(linear(x)) }\nreturn x")
    assert sorted(paths(g)) == [
        "f.linear.0.weight",
        "f.linear.1.weight",
        "f.linear_2.0.weight",
        "f.linear_2.1.weight",
    ]


def test_repeats_inside_each_other_put_both_indices() -> None:
    g = flow("repeat 2 { repeat 3 { x = linear(x) } }\nreturn x")
    assert paths(g)[-1] == "f.linear.1.2.weight"
    assert len(paths(g)) == 6


def test_a_name_given_by_hand_takes_no_index() -> None:
    g = flow('repeat 2 as i { x = linear(x, name = "up_{i}") }\nreturn x')
    assert paths(g) == ["f.up_0.weight", "f.up_1.weight"]


def test_a_name_with_a_dot_nests() -> None:
    assert paths(flow('return linear(x, name = "gate.inner")')) == ["f.gate.inner.weight"]


def test_the_variable_of_for_names_what_it_makes() -> None:
    g = flow('for n in [2, 4] { x = linear(x, 8, name = "to_{n}") }\nreturn x')
    assert paths(g) == ["f.to_2.weight", "f.to_4.weight"]


def test_each_turn_of_for_is_a_call_of_its_own() -> None:
    assert paths(flow("for n in [1, 2] { x = linear(x) }\nreturn x")) == ["f.linear.weight", "f.linear_2.weight"]


def test_flows_in_flows_nest() -> None:
    g = graph("""
        input x : float[T, 8]
        output outer_flow(x)
        flow inner_flow(z) { return linear(z) }
        flow outer_flow(x) { repeat 2 { x = inner_flow(x) }; return inner_flow(x) }
    """)
    assert paths(g) == [
        "outer_flow.inner_flow.0.linear.weight",
        "outer_flow.inner_flow.1.linear.weight",
        "outer_flow.inner_flow_2.linear.weight",
    ]


def test_shared_is_one_instance_at_its_variable() -> None:
    g = flow("shared up = linear(n = 8)\nx = up(x)\nx = up(x)\nreturn x @ transpose(up.weight)")
    assert paths(g) == ["f.up.weight"]


def test_a_slot_names_what_is_called_through_it() -> None:
    g = graph("""
        input x : float[T, 8]
        output outer_flow(x, mixers = [one, two])
        flow one(z) { return linear(z) }
        flow two(z) { return z + linear(z) }
        flow outer_flow(x, mixers) { repeat 3 as i { x = mixers[i](x) }; return x }
    """)
    assert paths(g) == [f"outer_flow.mixers.{i}.linear.weight" for i in range(3)]
    assert [c.name for _, c in g.root.children[0][1].children] == ["one", "two", "one"], "taken in turn"


def test_in_a_level_the_field_comes_first() -> None:
    g = level(heads=2, returns="y |> merge_heads |> linear(8)")
    assert paths(g) == ["m.key.linear.weight", "m.value.linear.weight", "m.query.linear.weight", "m.out.linear.weight"]


def test_in_a_level_a_name_comes_first() -> None:
    g = level(key="k", extra="  k = x |> linear |> l2norm")
    assert paths(g)[0] == "m.k.linear.weight"


def test_fields_of_a_named_memory_lie_below_it() -> None:
    g = level(
        memory=None, key=None, query=None, returns="a(x)", extra="  memory a : matrix { key linear(x); update gd(1) }"
    )
    assert paths(g) == ["m.a.key.linear.weight", "m.value.linear.weight"]


def test_a_memorys_learned_start_is_below_its_name() -> None:
    g = level(memory="mlp(depth = 2, expand = 1)")
    assert [p for p in paths(g) if p.startswith("m.memory")] == ["m.memory.linear.weight", "m.memory.linear_2.weight"]


def test_outside_flows_a_flow_is_its_one_root_instance() -> None:
    g = graph("""
        input x : float[T, 8]
        output f(x)
        flow f(x) { return linear(x) }
        loss = mean(f(x) ^ 2)
        level outer { every 1 step; memory weights(f); objective loss + mean(abs(f(x))); update gd(0.1) }
    """)
    assert paths(g) == ["f.linear.weight"]


def test_a_second_root_instance_is_a_mistake() -> None:
    text = "input x : float[T, 8]\noutput f(x, 2) + f(x, 3)\nflow f(x, n) { return linear(linear(x, n), 8) }\n"
    assert codes(lambda: graph(text)) == ["NF317"]


def test_equal_instances_have_equal_bodies() -> None:
    """Bodies are the same objects, so that generated code can share them."""
    g = graph("""
        input x : float[T, 8]
        output f(x)
        flow block(z) { return z + linear(z) }
        flow f(x) { repeat 3 { x = block(x) }; return x }
    """)
    blocks = [i for i in g.root.walk() if i.name == "block"]
    assert len(blocks) == 3 and len({id(b.result) for b in blocks}) == 1
    assert [b.path for b in blocks] == ["f.block.0", "f.block.1", "f.block.2"]
