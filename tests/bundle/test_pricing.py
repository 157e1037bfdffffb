"""`nestflow explain SPEC` counts what a spec costs: against what can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import nestflow
from nestflow.bundle.pricing import prices
from nestflow.cli.main import app

EXAMPLES = Path(__file__).parents[2] / "examples"
ATTENTION = """nestflow 1
input x : float[T, 8]
output m(x)
level m(x) { memory matrix; key x; value linear(x); query x; objective dot; update gd(0.1) }
level outer { every 1 step; memory weights(m); objective mean(square(m(x))); update gd(0.1) }
"""


def test_linear_attention_by_hand() -> None:
    """A token of 8 channels, in pieces of 64: its value (8²), and in closed form the scores of its piece (64 · 8), what
    they bring (64 · 8), the recall of the first state and what the token adds to the next one (8² each)."""
    found = prices(nestflow.compile(ATTENTION))
    assert found is not None
    (level,) = found.levels
    assert (level.name, level.size, level.count) == ("m", 64, 1)
    assert level.multiply_adds == 8 * 8 + 2 * 64 * 8 + 2 * 8 * 8
    assert found.multiply_adds == level.multiply_adds
    assert found.forward > level.launches > 0
    assert found.held >= level.held > 8 * 4


def test_repeated_levels_are_told_once() -> None:
    layer = {"dim": 16, "n_heads": 2, "chunk": 4}
    one, two = (prices(nestflow.compile("titans", depth=n, **layer)) for n in (1, 2))
    assert one is not None and two is not None
    assert (one.levels[0].count, two.levels[0].count) == (1, 2)
    assert one.levels[0].launches == two.levels[0].launches
    assert two.forward > 1.5 * one.forward


def test_what_it_takes_to_train_is_about_three_times_the_forward_pass() -> None:
    """At widths that are no smaller than a piece: below that, derivatives of products of gates are a part of it."""
    found = prices(nestflow.compile("gated_deltanet", dim=128, n_heads=2, depth=1))
    assert found is not None and 2.9 < found.training / found.multiply_adds < 3.3


@pytest.mark.parametrize("name", ["maml", "regression", "vit_titans"])
def test_what_cannot_be_counted_is_left_out(name: str) -> None:
    assert prices(nestflow.compile(EXAMPLES / f"{name}.nl")) is None


def test_a_long_chunk_is_left_out() -> None:
    text = ATTENTION.replace("objective dot", "objective l2; chunk 512; every 512 tokens")
    assert prices(nestflow.compile(text)) is None


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "a.nl"
    file.write_text(ATTENTION, encoding="utf-8")
    said = " ".join(run("explain", str(file)).split())
    assert (
        "m: " in said and "launches a piece of 64 tokens forward" in said and "1,216 multiply-adds in products" in said
    )
    found = json.loads(run("explain", str(file), "--json"))
    assert found["memories"][0]["pattern"] == "recurrence" and found["memories"][0]["half_life"] == "inf"
    assert found["counted"]["levels"][0]["size"] == 64
    assert json.loads(run("explain", str(EXAMPLES / "maml.nl"), "--json"))["counted"] is None
    assert "--json explains specs" in run("explain", "dgd", "--json", code=2)
