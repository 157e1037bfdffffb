"""`nestflow show`: one text that means the same; every value with every default, and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import nestflow
from nestflow.cli.main import app
from nestflow.graph.build import build
from nestflow.language import tree as T
from nestflow.language.merge import walk
from nestflow.language.resolve import load
from nestflow.language.shipped import shipped_names
from nestflow.view.resolved import Row, resolved

EXTENDED = """nestflow 1
extends architectures.titans {
  param dim = 32
  level titans { chunk 8; retain 1 }
  flow block(x) { return x + titans(x, chunk = 4) }
}
"""
USING = """nestflow 1
use architectures.titans
param dim = 2 * 16
flow block(x) { return x + titans(rmsnorm(x)) }
"""


def run(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, (args, result.output, result.exception)
    return result


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extended.nl").write_text(EXTENDED, encoding="utf-8")
    (tmp_path / "using.nl").write_text(USING, encoding="utf-8")
    return tmp_path


def rows(target: str, **params: str) -> dict[str, dict[str, Row]]:
    """The rows of each section by name, the first of a name; sections by the first two words of their title."""
    program = load(target, params)
    found: dict[str, dict[str, Row]] = {}
    for s in resolved(program, build(program)):
        mine = found.setdefault(" ".join(s.title.split("(")[0].split()[:2]), {})
        for r in s.rows:
            mine.setdefault(r.name, r)
    return found


def test_params_say_where_they_come_from_and_what_they_replaced(here: Path) -> None:
    found = rows("using.nl", lr="1e-4", depth="1 + 1")["params"]
    assert (found["dim"].origin, found["dim"].value) == ("using.nl:3", "32")
    assert (found["dim"].instead or "").startswith("128 at architectures/titans.nl:")
    assert found["lr"].origin == "--set lr=1e-4" and (found["lr"].instead or "").startswith("3e-3 at architectures/")
    assert (found["depth"].text, found["depth"].value) == ("1 + 1", "2")
    assert found["chunk"].origin.startswith("architectures/titans.nl:") and found["chunk"].instead is None


def test_lines_are_the_right_ones(here: Path) -> None:
    text = Path(load("titans").spec.source.name).read_text(encoding="utf-8").split("\n")
    for section in rows("titans").values():
        for r in section.values():
            if r.given and r.origin.startswith("architectures/titans.nl:") and not r.depth:
                line = text[int(r.origin.rsplit(":", 1)[1]) - 1]
                assert r.name.split(",")[0] in line or r.name == "memory", (r, line)


def test_defaults_are_those_of_the_graph(here: Path) -> None:
    found = rows("titans")["level titans"]
    (memory, *_) = next(i for i in build(load("titans")).root.walk() if i.kind == "level").memories
    assert not found["read"].given and found["read"].text == memory.read == "after"
    assert not found["gradient"].given and found["gradient"].text == memory.gradient
    assert (found["chunk"].text, found["chunk"].value) == ("chunk", str(memory.chunk))
    assert (found["heads"].text, found["heads"].value) == ("n_heads", "4")
    assert found["init"].text == "learned" and not found["init"].given


def test_calls_show_the_slots_left_to_their_defaults(here: Path) -> None:
    found = rows("titans")
    level, outer = found["level titans"], found["level outer"]
    assert level["mlp.bias"].text == "false" and level["mlp.bias"].origin.startswith("default of `mlp`, blocks/mlp.nl:")
    assert level["mlp.expand"].given and level["mlp.expand"].value == "2"
    assert level["short_conv.n"].text == "4" and level["short_conv.bias"].origin == "default of `short_conv`"
    assert outer["adamw.beta1"].text == "0.9" and not outer["adamw.beta1"].given
    assert outer["adamw.beta2"].text == "0.95" and outer["adamw.beta2"].given
    assert found["flow model"]["embed.vocab"].text == "vocab" and found["flow model"]["embed.dim"].text == "dim"
    assert found["optimizer adamw"]["m.update"].origin.startswith("optimizers/adamw.nl:")


def test_what_a_definition_replaced(here: Path) -> None:
    by_use, by_extends = rows("using.nl")["replaced"], rows("extended.nl")
    assert set(by_use) == {"dim", "block"} and (by_use["block"].instead or "").startswith(
        "flow block at architectures/"
    )
    assert set(by_extends["replaced"]) == {"dim", "titans.chunk", "titans.retain", "block.return"}
    assert by_extends["replaced"]["titans.chunk"].origin == "extended.nl:4"
    assert "where(" in (by_extends["replaced"]["titans.retain"].instead or "")
    chunk = by_extends["level titans"]["chunk"]
    assert (chunk.text, chunk.origin, chunk.value) == ("8", "extended.nl:4", "4 or 8, as calls set it")
    assert by_extends["flow block"]["titans.chunk"].text == "4"


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_spec_shows_every_field_it_writes(name: str) -> None:
    program = load(name)
    sections = resolved(program, build(program))
    shown = {(r.text, r.origin) for s in sections for r in s.rows}
    written: list[T.Field] = []
    walk(program.body, lambda n: written.append(n) if isinstance(n, T.Field) else None)
    from nestflow.view.calls import place

    assert {place(f.span) for f in written} <= {origin for _, origin in shown}
    assert all(r.origin and r.text for s in sections for r in s.rows)
    defaults = [r for s in sections for r in s.rows if not r.given]
    assert all(r.origin.startswith("default of `") for r in defaults)
    json.dumps([s.title for s in sections])


@pytest.mark.parametrize("name", ["architectures.titans", "architectures.hope", "optimizers.adamw"])
def test_the_one_text_means_the_same(name: str) -> None:
    text = run("show", name).stdout
    assert "\nuse " not in text and "\nextends " not in text
    one, other = build(load(name)), build(load(text))
    assert [(w.path, w.full_shape) for w in one.weights] == [(w.path, w.full_shape) for w in other.weights]
    assert one.state == other.state and one.levels == other.levels


def test_the_one_text_has_the_params_as_set(here: Path) -> None:
    text = run("show", "extended.nl", "--set", "dim=64").stdout
    assert "param dim     = 64" in text and "chunk     8" in text
    assert nestflow.check(text).params[0].value == 64


def test_text_and_json(here: Path) -> None:
    out = run("show", "using.nl", "--resolved", "--set", "lr=1e-4").stdout
    assert "--set lr=1e-4, in place of 3e-3 at architectures/titans.nl:" in out and "\x1b" not in out
    assert "level titans(x)  × 2: model.block.0.titans, model.block.1.titans" in out
    records = json.loads(run("show", "using.nl", "--resolved", "--format", "json").stdout)
    assert records[0]["title"] == "params" and records[0]["rows"][-1]["name"] == "dim"


def test_where(here: Path) -> None:
    out = run("show", "titans", "--where", "beta2").stdout
    assert "adamw.beta2  0.95" in out and "optimizers/adamw.nl:" in out and "dim" not in out
    wrong = run("show", "titans", "--where", "chnk", code=1).stderr
    assert "NF033" in wrong and "did you mean `chunk`?" in wrong
    assert "NF2" in run("show", "nestflow 1\noutput f(x)\n", "--resolved", code=1).stderr
