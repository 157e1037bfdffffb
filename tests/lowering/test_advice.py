"""Advice of `nestflow explain`: each edit that it names is made in the text, and the pattern is the one it promised."""

from __future__ import annotations

import pytest

import nestflow
from nestflow.language.shipped import specs_dir
from nestflow.lowering.explain import Explanation, explain, explanations

LEVEL = """nestflow 1
input x : float[T, 4]
output m(x)
level m(x) {
  every 1 token
  memory mlp(depth = 2, expand = 2)
  key x |> l2norm
  value x |> linear
  query x
  objective l2
  update gd(0.1)
}
"""
MATRIX = LEVEL.replace("mlp(depth = 2, expand = 2)", "matrix")


def with_line(text: str, line: str) -> str:
    return text.replace("  update", f"  {line}\n  update")


def only(text: str) -> Explanation:
    (found,) = explanations(nestflow.check(text))
    return found


@pytest.mark.parametrize(
    ("text", "edit", "old", "new"),
    [
        (LEVEL, "`chunk 16`", "  update", "  chunk 16\n  update"),
        (LEVEL.replace("1 token", "4 tokens"), "`chunk 16`", "  update", "  chunk 16\n  update"),
        (LEVEL.replace("1 token", "8 tokens"), "`every 1 token; chunk 8`", "8 tokens", "1 token\n  chunk 8"),
        (with_line(MATRIX, "retain on_value(sigmoid(linear(x, 4)))"), "a `retain` of one number",
         "on_value(sigmoid(linear(x, 4)))", "sigmoid(linear(x, 1))"),
        (with_line(MATRIX, "chunk 4").replace("gd(0.1)", "muon(0.1)"), "an update that is linear in g, as `momentum`",
         "muon(0.1)", "momentum(0.1, 0.9)"),
        (with_line(MATRIX, "reset where(x[0] > 0)"), "no `reset where`", "  reset where(x[0] > 0)\n", ""),
        (MATRIX.replace("objective l2", "project 0.5 * w_chunk + 0.5 * w\n  objective l2"), "no `project`",
         "  project 0.5 * w_chunk + 0.5 * w\n", ""),
        (with_line(LEVEL, "retain decay_first(0.9)"), "`retain` without `decay_first`, and `chunk 16`",
         "decay_first(0.9)", "0.9\n  chunk 16"),
    ],
    ids=lambda v: v if isinstance(v, str) and v.count("\n") == 0 and "`" in v else "",
)  # fmt: skip
def test_the_edit_makes_the_pattern(text: str, edit: str, old: str, new: str) -> None:
    before = only(text)
    assert before.pattern == "scan"
    told = {a.edit: a.pattern for a in before.faster}
    assert edit in told, told
    assert only(text.replace(old, new)).pattern == told[edit]
    said = " ".join(explain(nestflow.check(text)).split())
    assert f"faster with {edit}: {told[edit]}" in said


def test_a_shipped_page() -> None:
    """The wide memory of TNT learns once a chunk, and is scanned; its page says `chunk 16` when it is told to."""
    text = (specs_dir() / "architectures" / "tnt.nl").read_text(encoding="utf-8")
    params = {"dim": 16, "n_heads": 2, "depth": 1, "chunk": 2, "span": 4}
    (wide,) = (e for e in explanations(nestflow.check(text, **params)) if e.pattern == "scan")
    told = {a.edit: a.pattern for a in wide.faster}
    assert told["`chunk 16`"] == "chunk"
    assert "every span tokens; read" in text
    edited = text.replace("every span tokens; read", "every span tokens; chunk 16; read")
    found = {e.row: e.pattern for e in explanations(nestflow.check(edited, **params))}
    assert found[wide.row] == "chunk"


def test_what_is_not_scanned_is_not_advised() -> None:
    assert not only(MATRIX).faster
    assert not only(LEVEL.replace("  update", "  chunk 16\n  update")).faster
