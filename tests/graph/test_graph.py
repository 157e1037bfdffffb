"""The level graph as data: order by frequency, edges, the state schema, structure, determinism."""

from __future__ import annotations

import pytest

import nestflow
from nestflow.graph.model import Edge, LevelGraph
from nestflow.language.resolve import shipped_names
from tests.graph.building import graph, instance, level, shapes

NEST = """
param d = 8
input tokens : int[T] in [0, 16)
output model(tokens)
level fast(x) {
  chunk 4
  heads 2
  memory mlp(depth = 2, expand = 1)
  key x |> linear |> l2norm
  value x |> linear
  query x |> linear |> l2norm
  objective l2
  update momentum(lr = 0.1 * sigmoid(linear(x, 1)), beta = 0.9)
  retain sigmoid(linear(x, 1) + 6)
}
level sums(x) {
  every 4 tokens
  memory matrix
  key linear(x)
  value linear(x)
  query linear(x)
  objective dot
  update gd(1)
}
level attend(x) { memory cache(window = 4); key linear(x); value linear(x); query linear(x) }
flow block(x) {
  x = x + short_conv(x, 3)
  x = x + attend(x)
  x = x + fast(rmsnorm(x))
  x = x + sums(x)
  return x + mlp(x, hidden = 8)
}
flow model(tokens) {
  shared emb = embed(16, d)
  x = emb(tokens)
  repeat 2 { x = block(x) }
  return x @ transpose(emb.weight)
}
loss = cross_entropy(model(tokens), next(tokens))
level slow { every 4 steps; memory weights(model, "**.mlp.**"); objective loss; update g |> clip_norm(1) |> adam(1e-3) }
level outer { every 1 step; memory rest(model); objective loss; update adam(1e-3) }
"""


@pytest.fixture(scope="module")
def nest() -> LevelGraph:
    return graph(NEST)


def test_levels_stand_in_order_of_frequency(nest: LevelGraph) -> None:
    names = [i.name for i in nest.levels]
    assert names == [
        "model.block.*.attend",
        "model.block.*.fast.s",
        "model.block.*.fast",
        "model.block.*.sums",
        "outer.m",
        "outer.v",
        "outer",
        "slow.m",
        "slow.v",
        "slow",
    ]
    assert [i.frequency_text for i in nest.levels if "." not in i.title and i.parent is None] == [
        "∞",
        "every token, chunk 4",
        "every 4 tokens",
        "every step",
        "every 4 steps",
    ]


def test_frozen_weights_come_last() -> None:
    g = graph(
        NEST.replace(
            "every 1 step; memory rest(model); objective loss; update adam(1e-3)", "every never; memory rest(model)"
        )
    )
    assert g.levels[-1].name == "outer" and g.levels[-1].frequency_text == "never"


def test_repeated_instances_are_one_row(nest: LevelGraph) -> None:
    rows = {i.name: i for i in nest.levels}
    assert rows["model.block.*.fast"].count == 2 and rows["outer"].count == 1
    assert rows["model.block.*.fast"].state == 2 * 2 * (4 * 4 + 4 * 4)
    assert sum(rows[n].parameters for n in ("outer", "slow")) == sum(w.size for w in nest.weights)


def of_kind(g: LevelGraph, kind: str) -> list[Edge]:
    return [e for e in g.edges if e.kind == kind]


def test_context_edges_follow_the_stream(nest: LevelGraph) -> None:
    pairs = {(e.source, e.target) for e in of_kind(nest, "context")}
    block = "model.block.*."
    assert (block + "attend", block + "fast") in pairs
    assert (block + "fast", block + "sums") in pairs
    assert (block + "attend", block + "sums") not in pairs, "the level in between explains it"
    assert (block + "sums", "slow") in pairs and ("slow", block + "attend") in pairs


def test_optimises_edges_come_from_memories_of_rules(nest: LevelGraph) -> None:
    assert {(e.source, e.target) for e in of_kind(nest, "optimises")} == {
        ("model.block.*.fast.s", "model.block.*.fast"),
        ("outer.m", "outer"),
        ("outer.v", "outer"),
        ("slow.m", "slow"),
        ("slow.v", "slow"),
    }


def test_initialises_edges_come_from_the_owner_of_the_start(nest: LevelGraph) -> None:
    assert {(e.source, e.target, e.label) for e in of_kind(nest, "initialises")} == {
        ("outer", "model.block.*.fast", "start")
    }


def test_generates_edges_come_from_recalls_in_fields() -> None:
    g = graph("""
        input x : float[T, 8]
        output m(x)
        level m(x) {
          u = l2norm(x)
          memory keys : mlp(depth = 1) { key u; value u }
          e = sigmoid(sum(keys(u)))
          memory store : matrix { key keys(u); value u; update gd(0.1 * e); retain e }
          objective l2
          update gd(0.1)
          return store(u)
        }
    """)
    found = {(e.source, e.target): e.label for e in of_kind(g, "generates")}
    assert set(found[("m.keys", "m.store")].split(", ")) == {"key", "rate", "gate"}


def test_every_edge_joins_rows(nest: LevelGraph) -> None:
    rows = {i.name for i in nest.levels}
    assert {n for e in nest.edges for n in (e.source, e.target)} <= rows


def test_the_networkx_view(nest: LevelGraph) -> None:
    view = nest.networkx
    assert set(view.nodes) == {i.name for i in nest.levels}
    assert view.number_of_edges() == len(nest.edges)
    assert view.nodes["outer"]["level"] is nest.levels[6]


def test_the_state_schema(nest: LevelGraph) -> None:
    slots = {s.path: s for s in nest.state if s.path.startswith("model.block.0")}
    fast, sums, attend = "model.block.0.fast.", "model.block.0.sums.", "model.block.0.attend."
    assert set(slots) == {
        fast + "memory.linear.weight",
        fast + "memory.linear_2.weight",
        fast + "memory.linear.weight@chunk",
        fast + "memory.linear_2.weight@chunk",
        fast + "memory.s.linear.weight",
        fast + "memory.s.linear_2.weight",
        sums + "memory.weight",
        sums + "memory.weight@pending",
        attend + "memory.key",
        attend + "memory.value",
        "model.block.0.short_conv.tail",
    }
    first = slots[fast + "memory.linear.weight"]
    assert (first.shape, first.heads, first.role, first.init) == (
        (4, 4),
        2,
        "memory",
        "model.block.0.fast.memory.linear.weight",
    )
    assert slots[fast + "memory.linear.weight@chunk"].role == "anchor"
    assert slots[fast + "memory.s.linear.weight"].role == "rule"
    assert slots[sums + "memory.weight@pending"].role == "pending"
    assert slots[attend + "memory.key"].grows
    assert slots["model.block.0.short_conv.tail"].shape == (2, 8)


def test_no_two_states_and_no_two_weights_share_a_path(nest: LevelGraph) -> None:
    assert len({s.path for s in nest.state}) == len(nest.state)
    assert len({w.path for w in nest.weights}) == len(nest.weights)


def test_boxes_of_flows(nest: LevelGraph) -> None:
    (model,) = nest.flows
    (block,) = model.children
    assert (model.name, block.name, block.count) == ("model", "block", 2)
    assert [(b.name, b.kind, b.level) for b in block.children] == [
        ("attend", "level", "model.block.*.attend"),
        ("fast", "level", "model.block.*.fast"),
        ("sums", "level", "model.block.*.sums"),
        ("mlp", "flow", None),
    ]


def test_a_list_of_levels_is_two_boxes() -> None:
    (model,) = nestflow.check("hybrid").flows
    (lm,) = model.children
    assert [(b.level, b.count) for b in lm.children if b.kind == "level"] == [
        ("model.lm.mixers.*.titans", 2),
        ("model.lm.mixers.*.swa", 1),
    ]


def test_docs_travel() -> None:
    g = graph("## what it is\ninput x : float[T, 8]\noutput f(x)\n## does this\nflow f(x) { return x }\n")
    assert g.root.children[0][1].doc == "does this"


def test_building_twice_gives_the_same(nest: LevelGraph) -> None:
    again = graph(NEST)
    assert (again.levels, again.edges, again.state, again.weights, again.flows) == (
        nest.levels,
        nest.edges,
        nest.state,
        nest.weights,
        nest.flows,
    )
    assert again.output is nest.output, "nodes are interned"


def test_weights_know_whether_they_multiply_an_input() -> None:
    g = level(returns="y |> rmsnorm |> linear(8)")
    assert {w.path: w.multiplies for w in g.weights}["m.out.rmsnorm.weight"] is False
    assert {w.path: w.multiplies for w in g.weights}["m.out.linear.weight"] is True


def test_names_of_a_level_are_kept_for_generated_code() -> None:
    names = dict(instance(level(key="k", extra="  k = x |> linear |> l2norm")).names)
    assert "k" in names


def test_a_deep_model_is_cheap() -> None:
    """Instances of one kind are built once: a thousand blocks take no thousand times as long."""
    g = graph(NEST.replace("repeat 2", "repeat 1000"))
    assert len(shapes(g)) == 1 + 1000 * (len(shapes(graph(NEST))) - 1) // 2
    assert {i.name: i.count for i in g.levels}["model.block.*.fast"] == 1000


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_specs_build_and_every_row_is_whole(name: str) -> None:
    g = nestflow.check(name)
    rows = [i.name for i in g.levels]
    assert len(set(rows)) == len(rows)
    assert {n for e in g.edges for n in (e.source, e.target)} <= set(rows)
    assert all(w.size > 0 for w in g.weights)
    notes = [n for n in g.notes if not (g.networks and n.code == "NF460")]  # a network of the caller comes later
    assert not notes, "a shipped spec says what it means"
