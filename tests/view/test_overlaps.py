"""Pictures are clear: no text stands on a text, no label on a box or an arrowhead, no edge runs through either."""

from __future__ import annotations

from pathlib import Path

import graphs
import pytest
from overlaps import overlaps

import nestflow
from nestflow.language.shipped import shipped_names
from nestflow.view import primitives as s
from nestflow.view.scene import build

EXAMPLES = sorted(str(p) for p in (Path(__file__).parents[2] / "examples").glob("*.nl"))


@pytest.mark.parametrize("name", [*shipped_names(), *EXAMPLES], ids=lambda n: Path(n).name)
def test_a_shipped_picture_is_clear(name: str) -> None:
    assert overlaps(build(nestflow.check(name))) == []


@pytest.mark.parametrize("make", [graphs.hope, graphs.hybrid, graphs.hostile])
def test_a_picture_is_clear(make) -> None:
    assert overlaps(build(make())) == []


SEVERAL = """nestflow 1
input x : float[T, 16]
output m(x)
level m(x) {
  chunk 4
  u = x |> linear |> l2norm
  memory keys : mlp(depth = 2) { key u; value u }
  memory gates : mlp(depth = 2) { key u; value keys(u) }
  memory store : mlp(depth = 2) { key keys(u) |> l2norm; value linear(x) }
  objective l2
  update UPDATE
  return store(u) + gates(u)
}
level outer { every 1 step; memory weights(m); objective mean(square(m(x))); update adam(0.1) }
"""


@pytest.mark.parametrize("update", ["momentum(lr = 0.1, beta = 0.5)", "adam(0.01)"])
def test_memories_of_one_level_with_memories_of_their_rule(update: str) -> None:
    assert overlaps(build(nestflow.check(SEVERAL.replace("UPDATE", update)))) == []


def test_a_picture_of_a_hundred_levels_has_no_text_on_a_text() -> None:
    """Where there are hundreds of edges a label may cover an arrowhead; texts stay apart."""
    found = overlaps(build(graphs.large()))
    assert not [f for f in found if f.startswith("the text")]


def _scene(*items: s.Item) -> s.Scene:
    scene = s.Scene("a", 400, 200, list(items), dict(s.BASE))
    scene.styles["label-context"] = s.Style(size=11, bold=True)
    return scene


def _label(x: float, y: float) -> s.Group:
    return s.Group((s.Text(x, y, "value", "label-context", "middle"),), "label")


BOX = s.Group((s.Rect(100, 50, 80, 60, 9, "box"),), "box", (("level", "outer"),))
LINE = (((0.0, 80.0), (100.0, 80.0), (200.0, 80.0), (300.0, 80.0)),)
EDGE = s.Group((s.Path(LINE, "edge-context"), s.Poly(((300, 80), (292, 76), (292, 84)), "head-context")), "edge")

WRONG = {
    "two texts": (_scene(s.Text(20, 20, "one step", "sub"), s.Text(40, 24, "two steps", "sub")), "overlap"),
    "a text that leaves": (_scene(s.Text(20, 20, "word " * 60, "sub")), "leaves the picture"),
    "a label on a box": (_scene(BOX, _label(105, 80)), "covers the box outer"),
    "a label on an arrowhead": (_scene(EDGE, _label(290, 84)), "covers an arrowhead"),
    "labels like one": (_scene(_label(100, 20), _label(134, 20)), "side by side"),
    "an edge through a text": (_scene(EDGE, s.Text(40, 84, "caption", "sub")), "runs through the text `caption`"),
    "an edge through a box": (_scene(BOX, EDGE), "runs through the box outer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_overlaps_is_seen(name: str) -> None:
    scene, said = WRONG[name]
    found = overlaps(scene)
    assert len(found) == 1 and said in found[0]


def test_what_only_comes_near_is_none() -> None:
    assert overlaps(_scene(BOX, _label(140, 40), _label(140, 130), s.Text(20, 20, "one step", "sub"))) == []
