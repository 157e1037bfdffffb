"""Who owns which weights: globs, `rest`, and what is told about two owners and none."""

from __future__ import annotations

import pytest

from nestflow.graph.globs import matches
from nestflow.graph.model import LevelGraph
from tests.graph.building import codes, graph, mistake, mistakes

MODEL = """
input x : float[T, 8]
output model(x)
flow block(x) { return x + mlp(x, name = "mlp_1") + linear(x) }
flow model(x) { repeat 3 { x = block(x) }; return rmsnorm(x) }
loss = mean(model(x) ^ 2)
"""


def owners(levels: str) -> dict[str, set[str]]:
    g = owned(levels)
    return {s.name: set(s.weights) for s in g.step_levels}


def owned(levels: str) -> LevelGraph:
    text = ""
    for line in levels.split("\n"):
        name, every, memory = (p.strip() for p in line.split("|"))
        learns = "" if every == "never" else "objective loss; update gd(0.1)"
        text += f"level {name} {{ every {every}; memory {memory}; {learns} }}\n"
    return graph(MODEL + text)


def test_weights_of_a_flow() -> None:
    g = owned("outer | 1 step | weights(model)")
    assert set(g.step_levels[0].weights) == {w.path for w in g.weights}


def test_globs_share_the_weights_out() -> None:
    found = owners('slow | 4 steps | weights(model, "**.mlp_1.**")\nouter | 1 step | rest(model)')
    assert found["slow"] == {f"model.block.{i}.mlp_1.{n}.weight" for i in range(3) for n in ("linear", "linear_2")}
    assert found["outer"] == {f"model.block.{i}.linear.weight" for i in range(3)} | {"model.rmsnorm.weight"}


def test_several_globs_and_except() -> None:
    found = owners(
        'a | 1 step | weights(model, "block.[0..1].**", "rmsnorm.*", except = "**.mlp_1.**")\nb | never | rest(model)'
    )
    assert found["a"] == {"model.block.0.linear.weight", "model.block.1.linear.weight", "model.rmsnorm.weight"}


def test_rest_takes_what_is_left_wherever_it_stands() -> None:
    above = owners('outer | 1 step | rest(model)\nslow | 4 steps | weights(model, "block.0.**")')
    below = owners('slow | 4 steps | weights(model, "block.0.**")\nouter | 1 step | rest(model)')
    assert above == below


def test_frozen_weights() -> None:
    g = owned("frozen | never | rest(model)")
    (level,) = g.step_levels
    assert (level.every, level.rule, level.objective) == (0, None, None)


@pytest.mark.parametrize(
    ("glob", "path", "yes"),
    [
        ("**", "a.b.c", True),
        ("**.c", "c", True),
        ("**.b.**", "a.b.c", True),
        ("**.b.**", "b", True),
        ("*.c", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("block.[0..3].*", "block.2.w", True),
        ("block.[0..3].*", "block.4.w", False),
        ("block.[8..15].*", "block.10.w", True),
        ("mlp_*.w", "mlp_16.w", True),
        ("mlp_[1..4].w", "mlp_16.w", False),
        ("mlp_[1..4].w", "mlp_4.w", True),
        ("a.b", "axb", False),
        ("**.**.**", "a", True),
    ],
)
def test_globs(glob: str, path: str, yes: bool) -> None:
    assert matches(glob, path) is yes


def test_a_glob_of_many_stars_is_no_trap() -> None:
    assert not matches("**.a." * 30 + "b", "a." * 200 + "c")


@pytest.mark.parametrize(
    ("levels", "code", "part"),
    [
        ('a | 1 step | weights(model, "**.attention.**")', "NF410", "attention"),
        ("a | 1 step | weights(model, 3)", "NF238", "string"),
        ('a | 1 step | weights(model, "block.[0-1].**")', "NF238", "two dots"),
        ('a | 1 step | weights(model, ".block")', "NF238", "glob"),
        ("a | 1 step | weights(modle)", "NF201", "modle"),
        ("a | 1 step | weights(block)", "NF409", "root"),
        ('a | 1 step | weights(model, only = "x")', "NF202", "only"),
        ('a | 1 step | rest(model, "x")', "NF238", "rest"),
        ("a | 1 step | matrix", "NF226", "matrix"),
        ("a | 1 step | model", "NF226", "model"),
        ("a | 1 | weights(model)", "NF402", "unit"),
        ("a | 1 stpe | weights(model)", "NF401", "stpe"),
        ("a | 0 steps | weights(model)", "NF406", "0"),
        ("a | x steps | weights(model)", "NF302", "known"),
    ],
)
def test_what_a_level_of_weights_cannot_be(levels: str, code: str, part: str) -> None:
    found = mistakes(lambda: owned(levels))
    assert code in [d.code for d in found]
    d = next(d for d in found if d.code == code)
    assert part in d.message and d.span is not None


def test_two_owners() -> None:
    d = mistake(lambda: owned('a | 1 step | weights(model)\nb | 2 steps | weights(model, "block.0.**")'))
    assert d.code == "NF411" and "`a` and `b`" in d.message and "and 2 more" in d.message
    assert d.related[0].message == "`a` owns it here"


def test_no_owner() -> None:
    d = mistake(lambda: owned('a | 1 step | weights(model, "block.**")'))
    assert d.code == "NF412" and "model.rmsnorm.weight" in d.message
    assert d.help is not None and "rest(model)" in d.help


def test_fields_of_a_level_of_weights() -> None:
    def of(body: str) -> list[str]:
        return codes(lambda: graph(MODEL + f"level a {{ {body} }}\n"))

    assert of("memory weights(model); objective loss") == ["NF234"]
    assert of("memory weights(model); update gd(0.1)") == ["NF232"]
    assert of("objective loss; update gd(0.1)") == ["NF223"]
    assert of("memory weights(model); objctive loss; updat gd(0.1)") == ["NF221", "NF221"]
    assert of("memory weights(model); objective l2; update gd(0.1)") == ["NF232"]
    assert of("memory weights(model); objective mean(x); update gd(0.1)") == ["NF407"]
    assert of("memory weights(model); objective loss; update gd(mean(x))") == ["NF415"]
    assert of("memory weights(model); objective loss; objective loss; update gd(0.1)") == ["NF222"]
    assert of("a = 3; memory weights(model); objective loss; update gd(0.1)") == ["NF217"]


def test_the_same_objective_is_one_node() -> None:
    g = owned('a | 1 step | weights(model, "block.**")\nb | 2 steps | rest(model)')
    assert g.step_levels[0].objective is g.step_levels[1].objective


def test_an_objective_that_is_no_number_is_averaged() -> None:
    g = graph(MODEL + "level a { every 1 step; memory weights(model); objective (model(x) - 1) ^ 2; update gd(0.1) }\n")
    objective = g.step_levels[0].objective
    assert objective is not None and objective.op == "mean_all"
