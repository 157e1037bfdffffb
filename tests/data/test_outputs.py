"""Several outputs by name: compiled, interpreted, streamed, saved, standalone; several losses beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.train import train
from tests.graph.building import mistake

TWO = """nestflow 1
input x : float[T, 4]
input style : float[3]
input label : int in [0, 3)
output {each: model(x), whole: judge(style), width: mean(model(x), axis = 0)}
level memory_of(x) {
  every 1 token; heads 2; memory matrix; key linear(x) |> l2norm; value linear(x); query linear(x) |> l2norm
  objective l2; update gd(0.5); retain 0.9
}
flow model(x) { return x + memory_of(x) }
flow judge(s) { return linear(s, 3) }
level outer { every 1 step; memory weights(model); objective mean(square(model(x))); update gd(0.1) }
level other { every 1 step; memory weights(judge); objective cross_entropy(judge(style), label); update gd(0.1) }
"""


def given(rows: int = 3, ticks: int = 5) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, style = (torch.randn(rows, *s, generator=g, dtype=torch.float64) for s in ((ticks, 4), (3,)))
    return {"x": x, "style": style}


def test_outputs_come_by_name_in_every_way_of_running(tmp_path: Path) -> None:
    b = nestflow.compile(TWO, dtype="float64")
    y, want = b.module(**given()), b.reference()(**given())
    assert list(y) == ["each", "whole", "width"] == list(want)
    assert [tuple(v.shape) for v in y.values()] == [(3, 5, 4), (3, 3), (3, 5)]
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(y["whole"], given()["style"] @ b.module.weights["judge.linear.weight"].T)
    stream, parts = b.stream(batch=3), []
    for low, high in ((0, 2), (2, 5)):
        parts.append(stream.feed(x=given()["x"][:, low:high], style=given()["style"]))
    torch.testing.assert_close(torch.cat([p["each"] for p in parts], 1), y["each"])
    stream.reset([1])  # rows at different ticks are computed apart, and come back in order
    again = stream.feed(x=given()["x"][:, :1], style=given()["style"])
    torch.testing.assert_close(again["each"][1], y["each"][1, :1])
    torch.testing.assert_close(nestflow.load(b.save(tmp_path / "bundle")).module(**given()), y)
    space: dict[str, object] = {}
    exec(compile(b.standalone(), "standalone", "exec"), space)
    alone = space["Model"]().double()
    alone.load_state_dict(b.module.state_dict())
    torch.testing.assert_close(alone(**given()), y)
    with torch.no_grad():
        y_slow, _ = b.reference().run(None, given())
    torch.testing.assert_close(y_slow, want)


def test_both_losses_learn_and_are_measured() -> None:
    b = nestflow.compile(TWO)
    data = {n: v.float() for n, v in given(16).items()} | {"label": torch.arange(16) % 3}
    history = train(b, data, 5, batch=4, show=False)
    assert set(history.metrics[-1][1]) == {"loss of outer", "loss of other", "accuracy"}


def test_the_same_in_yaml() -> None:
    from nestflow.language.nl import parse_nl
    from nestflow.language.printer import print_yaml

    graph = nestflow.check(print_yaml(parse_nl(TWO, "two.nl")))
    assert graph.output is nestflow.check(TWO).output


@pytest.mark.parametrize(
    ("output", "code"),
    [("{a: next(model(x))}", "NF403"), ("{a: model}", "NF207"), ("[model(x), judge(style)]", "NF315")],
)
def test_mistakes_are_told(output: str, code: str) -> None:
    text = TWO.replace("{each: model(x), whole: judge(style), width: mean(model(x), axis = 0)}", output)
    assert mistake(lambda: nestflow.check(text)).code == code


def test_text_wants_one_output() -> None:
    text = """nestflow 1
input tokens : int[T] in [0, 256)
output {a: model(tokens), b: model(tokens)}
flow model(tokens) { return tokens |> embed(256, 8) |> linear(256) }
level o { every 1 step; memory weights(model); objective cross_entropy(model(tokens), next(tokens)); update gd(0.1) }
"""
    d = mistake(lambda: train(nestflow.compile(text), b"some text " * 99, 1, length=8, show=False))
    assert d.code == "NF527" and "several outputs" in d.message


def test_a_model_that_learns_while_it_reads_has_several_outputs() -> None:
    text = """nestflow 1
input tokens : int[T] in [0, 9)
output {a: model(tokens), b: model(tokens)}
flow model(tokens) { return tokens |> embed(9, 8) |> linear(9) }
level fast { every 2 tokens; memory weights(model, "linear.**"); objective cross_entropy(model(tokens), next(tokens))
  update gd(0.1) }
level frozen { every never; memory rest(model) }
"""
    one = nestflow.compile(text.replace("{a: model(tokens), b: model(tokens)}", "model(tokens)"))
    x = torch.randint(0, 9, (2, 7), generator=torch.Generator().manual_seed(0))
    several = nestflow.compile(text).module(tokens=x)
    assert list(several) == ["a", "b"]
    for y in several.values():
        torch.testing.assert_close(y, one.module(tokens=x))
