"""Levels: several memories, defaults, what must be written, keywords of a call, clocks."""

from __future__ import annotations

import pytest

from nestflow.graph.model import Init
from tests.graph.building import codes, graph, instance, level, memory, mistake, mistakes, shapes

SELF_MODIFYING = """
input x : float[T, 8]
output m(x)
level m(x) {
  every 1 token
  chunk 4
  heads 2
  k = keys(u) |> l2norm
  v = values(u)
  u = x |> linear |> l2norm
  for m in [keys, values, store] { memory m : mlp(depth = 2, expand = 1, residual = true) { key k; value m(v) } }
  memory rates : mlp(depth = 2, expand = 1, out = 1) { key k; value rates(v); every 2 tokens }
  objective l2
  update dgd(lr = 0.1 * sigmoid(rates(u)))
  retain sigmoid(rates(u) + 6)
  return store(u) |> merge_heads
}
"""


def test_several_memories_share_the_levels_fields() -> None:
    memories = {m.name: m for m in instance(graph(SELF_MODIFYING)).memories}
    assert list(memories) == ["keys", "values", "store", "rates"]
    assert all(m.chunk == 4 and m.heads == 2 and m.texts.objective == "l2" for m in memories.values())
    assert [m.every for m in memories.values()] == [1, 1, 1, 2], "a memory's own field comes first"
    assert memories["rates"].function is not None and memories["rates"].function.result.type.shape == (1,)


def test_for_replaces_its_variable_where_it_stands() -> None:
    memories = {m.name: m for m in instance(graph(SELF_MODIFYING)).memories}
    assert memories["store"].texts.value == "store(v)"
    value = memories["store"].value
    assert value is not None and value.op == "recall" and value["memory"] == "store" and value["mode"] == "chunk"


def test_the_order_of_names_is_free() -> None:
    """`u` stands below the names that use it."""
    graph(SELF_MODIFYING)


def test_y_of_several_memories() -> None:
    d = mistake(lambda: graph(SELF_MODIFYING.replace("return store(u) |> merge_heads", "return y")))
    assert d.code == "NF224" and d.help is not None and "`store(q)`" in d.help


def test_a_memory_without_name_beside_memories_with_names() -> None:
    assert codes(lambda: graph(SELF_MODIFYING.replace("  heads 2", "  heads 2\n  memory matrix"))) == ["NF222"]


# --- defaults ------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    m = memory(level())
    assert (m.every, m.chunk, m.read, m.gradient, m.retain, m.weight) == (1, 1, "after", "through", None, None)
    assert m.heads is None


def test_chunk_is_every_by_default() -> None:
    m = memory(level(every="4 tokens"))
    assert (m.every, m.chunk) == (4, 4)


def test_a_matrix_starts_at_zeros_and_a_network_is_learned() -> None:
    matrix = memory(level())
    assert matrix.function is not None and matrix.function.tensors[0].learned is None
    assert matrix.function.tensors[0].init == Init("zeros")
    network = memory(level(memory="mlp"))
    assert network.function is not None
    assert [t.learned for t in network.function.tensors] == ["memory.linear.weight", "memory.linear_2.weight"]


def test_a_learned_matrix_starts_at_zeros_unless_drawn() -> None:
    g = level(init="learned")
    (w,) = [w for w in g.weights if w.role == "init"]
    assert w.init == Init("zeros") and w.path == "m.memory.weight"
    g = level(init="learned(normal(0.5))")
    (w,) = [w for w in g.weights if w.role == "init"]
    assert w.init == Init("normal", 0.5)


def test_weights_start_at_fan_in() -> None:
    g = level(heads=2)
    assert {w.init for w in g.weights} == {Init("normal", 8**-0.5)}


def test_attention_has_its_own_scale() -> None:
    m = memory(
        level(memory="cache(window = 16)", objective=None, update=None, key="linear(x, 4)", query="linear(x, 4)")
    )
    assert m.kind == "cache" and m.cache is not None
    assert (m.cache.window, m.cache.scale, m.cache.causal) == (16, 0.5, True)


# --- what must be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_out", "code"),
    [
        ("memory", "NF223"),
        ("key", "NF227"),
        ("value", "NF233"),
        ("query", "NF230"),
        ("objective", "NF232"),
        ("update", "NF234"),
    ],
)
def test_what_must_be_written(left_out: str, code: str) -> None:
    assert codes(lambda: level(**{left_out: None})) == [code]


def test_a_query_is_not_needed_where_the_return_recalls() -> None:
    level(query=None, returns="memory(l2norm(x))")


def test_an_objective_may_be_an_expression() -> None:
    m = memory(level(objective="sum((M(key) - value) ^ 2) / 2"))
    assert m.objective is not None and m.objective.type.is_number


def test_an_objective_that_never_recalls() -> None:
    assert codes(lambda: level(objective="sum((key - value) ^ 2)")) == ["NF407"]


def test_two_layers_from_zeros() -> None:
    d = mistake(lambda: level(memory="mlp(depth = 2)", init="zeros"))
    assert d.code == "NF404" and d.help is not None and "learned" in d.help


def test_one_layer_from_zeros_is_a_matrix() -> None:
    m = memory(level(memory="mlp(depth = 1)", init="zeros"))
    assert m.function is not None and m.function.tensors[0].learned is None


# --- clocks and units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("every", "1", "NF402"),
        ("every", "1 step", "NF401"),
        ("every", "1 fortnight", "NF401"),
        ("every", "0 tokens", "NF406"),
        ("every", "1.5 tokens", "NF303"),
        ("chunk", "x", "NF302"),
        ("chunk", "0", "NF406"),
        ("chunk", "8 steps", "NF401"),
        ("read", "sometimes", "NF231"),
        ("gradient", "maybe", "NF231"),
        ("heads", "0", "NF304"),
        ("heads", "1_000_000_000", "NF304"),
    ],
)
def test_what_a_field_cannot_be(field: str, value: str, code: str) -> None:
    assert codes(lambda: level(**{field: value})) == [code]


def test_chunk_is_a_multiple_of_every() -> None:
    d = mistake(lambda: level(every="3 tokens", chunk="8"))
    assert d.code == "NF405" and d.help is not None and "6" in d.help and "9" in d.help


def test_the_unit_of_a_memorys_own_field_is_checked() -> None:
    assert codes(lambda: graph(SELF_MODIFYING.replace("every 2 tokens", "every 2 steps"))) == ["NF401"]


def test_decay_first_needs_the_state_of_each_tick() -> None:
    assert memory(level(retain="decay_first(0.9)")).decay_first
    assert codes(lambda: level(retain="decay_first(0.9)", chunk="4")) == ["NF414"]


@pytest.mark.parametrize("field", ["key", "value", "query", "retain"])
def test_nothing_in_a_level_looks_ahead(field: str) -> None:
    ahead = {"retain": "sigmoid(linear(next(x), 1))"}.get(field, "linear(next(x))")
    assert codes(lambda: level(**{field: ahead})) == ["NF403"]


def test_an_update_and_a_return_do_not_look_ahead_either() -> None:
    assert codes(lambda: level(update="gd(sigmoid(linear(next(x), 1)))")) == ["NF403"]
    assert codes(lambda: level(returns="y + next(x)")) == ["NF403"]


# --- words in the wrong place --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("memory", "adam", "NF226"),
        ("memory", "l2", "NF226"),
        ("memory", "sigmoid", "NF228"),
        ("memory", "3", "NF226"),
        ("memory", "m", "NF226"),
        ("objective", "adam", "NF232"),
        ("objective", "matrix", "NF232"),
        ("update", "matrix", "NF323"),
        ("update", "l2", "NF323"),
        ("update", "0.1", "NF323"),
        ("retain", "adam", "NF207"),
        ("retain", '"open"', "NF315"),
        ("key", "matrix", "NF207"),
        ("value", "adam(0.1)", "NF208"),
        ("query", "y", "NF201"),
        ("key", "g", "NF201"),
    ],
)
def test_a_word_in_the_wrong_field(field: str, value: str, code: str) -> None:
    assert codes(lambda: level(**{field: value})) == [code]


@pytest.mark.parametrize("field", ["objective", "update", "retain"])
def test_a_cache_learns_nothing(field: str) -> None:
    fields = {"objective": None, "update": None, "retain": None, field: "l2" if field == "objective" else "gd(0.1)"}
    assert codes(lambda: level(memory="cache", **fields)) == ["NF239"]


# --- keywords of a call --------------------------------------------------------------------------------------


def called(keywords: str) -> str:
    return (
        f"input x : float[T, 8]\noutput m(x, {keywords})\nlevel m(x, size = 8) {{\n  memory mlp(depth = 1)\n  chunk 2\n"
        "  key l2norm(x)\n  value linear(x, size)\n  query l2norm(x)\n  objective l2\n"
        "  update gd(0.1)\n  retain 0.5\n}\n"
    )


def test_a_keyword_sets_a_slot_or_a_constant_field() -> None:
    m = memory(graph(called("size = 3, chunk = 6, read = before, retain = 0.9, memory = matrix, objective = dot")))
    assert (m.chunk, m.read, m.kind) == (6, "before", "matrix")
    assert m.retain is not None and m.retain.value == 0.9
    assert (m.texts.objective, m.texts.memory) == ("dot", "matrix")
    assert m.value is not None and m.value.type.shape == (3,)


@pytest.mark.parametrize(
    ("keywords", "code"),
    [
        ("chunk = x", "NF302"),
        ("key = x", "NF302"),
        ("update = gd", "NF302"),
        ("chnk = 4", "NF202"),
        ("heads = 0", "NF304"),
        ("chunk = 2.5", "NF303"),
        ("read = sometimes", "NF201"),
        ("retain = true", "NF315"),
    ],
)
def test_other_keywords_are_told(keywords: str, code: str) -> None:
    if code == "NF315":
        graph(called(keywords))  # true is the number 1
        return
    assert codes(lambda: graph(called(keywords))) == [code]


def test_a_slot_has_a_type_and_bounds() -> None:
    text = "input x : float[T, 8]\noutput m(x)\nlevel m(x : float[6]) { memory matrix }\n"
    d = mistake(lambda: graph(text))
    assert d.code == "NF301" and "float[6]" in d.message and "float[T, 8]" in d.message
    text = "input x : float[T, 8]\noutput f(x, 99)\nflow f(x, n = 2 in [1, 16]) { return linear(x, n) }\n"
    assert codes(lambda: graph(text)) == ["NF325"]


# --- several mistakes ----------------------------------------------------------------------------------------


def test_every_mistake_of_a_body_is_told() -> None:
    text = """
        input x : float[T, 8]
        output m(x)
        level m(x) {
          memory matrix
          kye linear(x)
          t = x
          objectve l2
          repeat 2 { a = x }
        }
    """
    assert codes(lambda: graph(text)) == ["NF221", "NF219", "NF221", "NF217"], "in the order of the text"


def test_every_field_of_a_memory_is_looked_at() -> None:
    found = mistakes(lambda: level(objective="l3", update="gdd(0.1)", retain="sigmod(x)", read="never"))
    assert [d.code for d in found] == ["NF201", "NF201", "NF201", "NF231"]
    assert all(d.span is not None for d in found)


def test_a_name_that_nothing_reads_is_looked_at_and_makes_no_weight() -> None:
    assert codes(lambda: level(extra="  unused = linera(x)")) == ["NF201"]
    g = level(extra="  unused = linear(x, 99)")
    assert all(99 not in s for s in shapes(g).values())


def test_circles_are_told() -> None:
    d = mistake(lambda: level(key="a", extra="  a = b + x\n  b = a + x"))
    assert d.code == "NF206" and "a → b → a" in d.message
