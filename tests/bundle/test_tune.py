"""`tune`: what is measured, how the best is chosen, what the file says. No test looks at a real clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import nestflow
from nestflow.bundle import tune as tuning
from nestflow.bundle.candidates import candidates
from nestflow.bundle.tune import Result, tune
from nestflow.bundle.tuned import read
from nestflow.cli.main import app
from nestflow.diagnostics.core import NestflowError

SPEC = """nestflow 1
param dim = 6
execution { EXECUTION }
input x : float[T, dim]
output m(x)
level m(x) {
  every 1 token
  CHUNK
  memory matrix
  key x |> l2norm
  value x |> linear
  query x
  objective l2
  update gd(0.1)
}
level outer { every 1 step; memory weights(m); objective mean(square(m(x) - x)); update gd(0.1) }
"""
FREE = SPEC.replace("EXECUTION", "dtype float64").replace("CHUNK", "")
DEEP = FREE.replace("memory matrix", "memory mlp(depth = 2, expand = 2); chunk 16")  # what it keeps is mostly its state


class Clock:
    """Seconds pass only while a candidate runs: as many as `costs` says of its settings, the first that fits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, costs: list[tuple[dict[str, Any], float]]) -> None:
        self.now, self.ran = 0.0, []
        plain = tuning._Run.once

        def once(run: Any) -> None:
            plain(run)
            self.ran.append(run.settings)
            self.now += next(c for want, c in costs if want.items() <= run.settings.items())

        monkeypatch.setattr(tuning._Run, "once", once)

    def __call__(self) -> float:
        return self.now


def test_blocks_are_measured_where_they_are_free() -> None:
    free = candidates(nestflow.check(FREE), 256, True, False)
    assert free[0] == {}
    assert {s.get("block") for s in free} == {None, 16, 64, 128}  # 32 is what a delta rule has by itself
    assert {"block": 128, "checkpointing": "auto"} in free
    bound = candidates(
        nestflow.check(SPEC.replace("EXECUTION", "dtype float64").replace("CHUNK", "chunk 8")), 256, True, True
    )
    assert bound == [{}, {"checkpointing": "auto"}, {"compile": True}]
    # one piece: there is no loop that could be run otherwise; and all longer blocks are the same
    assert candidates(nestflow.check(FREE), 20, True, True)[0] == {}
    assert {s.get("block") for s in candidates(nestflow.check(FREE), 20, True, True)} == {None, 16}
    assert all("checkpointing" not in s for s in candidates(nestflow.check(FREE), 256, False, False))


def test_what_the_spec_says_is_the_default() -> None:
    own = SPEC.replace("EXECUTION", "checkpointing auto; block 16").replace("CHUNK", "")
    found = candidates(nestflow.check(own), 256, True, False)
    assert {"checkpointing": "none"} in found and {"block": 32} in found and {"block": 16} not in found
    assert all("checkpointing" not in s for s in candidates(nestflow.check(own), 256, False, False))


def test_candidates_run_in_turn_and_the_fastest_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, [({"block": 16, "checkpointing": "auto"}, 1.0), ({"block": 16}, 2.0), ({}, 3.0)])
    found = tune(FREE, batch=2, length=64, rounds=3, clock=clock)
    assert found.settings == {"block": 16, "checkpointing": "auto"}
    assert found.ratio(found.best) == pytest.approx(1 / 3)
    n = len(found.results)
    rounds = [clock.ran[-n * (3 - r) :][:n] for r in range(3)]
    assert [r[0] for r in rounds] == [found.results[i].settings for i in range(3)]  # each begins with another
    assert all(sorted(map(str, r)) == sorted(str(x.settings) for x in found.results) for r in rounds)
    assert found.results[0].held > found.best.held > 0


def test_a_bound_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, [({"checkpointing": "auto"}, 5.0), ({}, 1.0)])
    assert tune(DEEP, batch=2, length=64, rounds=1, clock=clock).settings == {}
    held = {str(r.settings): r.held for r in tune(DEEP, batch=2, length=64, rounds=1, clock=clock).results}
    bound = (min(h for s, h in held.items() if "auto" in s) + 1) / 1e6
    assert all(h / 1e6 > bound for s, h in held.items() if "auto" not in s)
    assert "checkpointing" in tune(DEEP, batch=2, length=64, rounds=1, memory=bound, clock=clock).settings
    with pytest.raises(NestflowError, match="NF548"):
        tune(DEEP, batch=2, length=64, rounds=1, memory=0, clock=clock)


def test_what_is_held_is_what_autograd_saves() -> None:
    """x |> linear, its square's mean: x is an input, w a weight, so the product alone is held."""
    text = """nestflow 1
input x : float[T, 4]
output f(x)
flow f(x) { return linear(x, 8) }
level outer { every 1 step; memory weights(f); objective mean(square(f(x))); update gd(0.1) }
"""
    (only,) = tune(text, batch=2, length=16, rounds=1).results
    assert only.held == 2 * 16 * 8 * 4


def test_the_default_stays_where_nothing_is_surely_faster() -> None:
    default, other = Result({}, (1.0, 1.2, 1.1), 9), Result({"block": 16}, (0.95, 1.15, 1.05), 9)
    assert tuning._best([default, other], None) is default
    surely = Result({"block": 16}, (0.5, 0.51, 0.52), 9)
    assert tuning._best([default, surely], None) is surely


def test_one_sample_tells_nothing_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, [({"block": 16}, 1.0), ({}, 3.0)])
    found = tune(FREE, batch=2, length=64, rounds=1, clock=clock)
    assert found.settings == {}
    assert all(row[3] == "–" for row in found.rows())
    assert ", 1 round." in str(found) and str(found).endswith("{}  # what the spec says stays\n")


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        ("examples/vit_titans.nl", {}),
        ("examples/diloco.nl", {}),
        ("examples/maml.nl", {}),
        ("linear_attention", {"forward": True, "dim": 16, "n_heads": 2, "depth": 1}),
    ],
)
def test_specs_of_all_kinds_are_measured(spec: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert tune(spec, batch=3, length=8, rounds=1, **more).results


def test_where_nothing_compiles_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from nestflow.ops import loop

    def none(*_: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(loop, "_code", {"several": none})
    found = tune(FREE, batch=1, length=80, rounds=1, compiled=True)
    assert found.failed == "no compiler" and not any("compile" in r.settings for r in found.results)


# ---- the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "free.nl").write_text(FREE, encoding="utf-8")
    return tmp_path


def run(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, (result.output, result.exception)
    return result


FEW = ("--batch", "1", "--length", "40", "--rounds", "2")


def test_the_file_is_read_again_and_says_where_it_is_from(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, [({"block": 16}, 1.0), ({}, 3.0)])
    monkeypatch.setattr(tune, "__kwdefaults__", {**tune.__kwdefaults__, "clock": clock})
    out = run("tune", "free.nl", *FEW, "--set", "dim=4", "-o", "fast.yaml").stdout
    assert "taken: block 16\n" in out and "0.33" in out
    assert "next: nestflow train free.nl --set dim=4 --batch 1 --length 40 --execution fast.yaml" in out
    assert read("fast.yaml") == {"block": 16}
    text = (here / "fast.yaml").read_text(encoding="utf-8")
    for part in (f"torch {torch.__version__}", "batch 1, length 40, float64", "as the spec says", "held"):
        assert part in text
    assert dict(nestflow.compile("free.nl", execution="fast.yaml").graph.execution)["block"] == 16
    once = run("tune", "free.nl", *FEW, "--rounds", "1", "-o", "fast.yaml").stdout  # its own is written anew
    assert "taken: as the spec says (nothing that fits is faster by more than the samples differ)" in once
    (here / "mine.yaml").write_text("block: 8\n", encoding="utf-8")
    assert "error[NF032]" in run("tune", "free.nl", *FEW, "-o", "mine.yaml", code=1).stderr
    assert (here / "mine.yaml").read_text(encoding="utf-8") == "block: 8\n"


def test_an_interrupt_writes_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "_measure", stop)
    said = run("tune", "free.nl", *FEW, "-o", "fast.yaml", code=130).stderr
    assert "nothing was written" in said
    assert sorted(p.name for p in here.iterdir()) == ["free.nl"]


def test_what_cannot_be_written_is_told_before_measuring(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_measure", None)
    said = run("tune", "free.nl", *FEW, "-o", "free.nl/fast.yaml", code=1).stderr
    assert "NF034" in said and "fast.yaml" in said


def test_a_bound_that_is_none(here: Path) -> None:
    assert "NF518" in run("tune", "free.nl", *FEW, "--memory", "nan", code=1).stderr
    assert "nothing runs" in run("tune", "free.nl", *FEW, "--device", "meta", code=1).stderr
    for wrong in (-1, "200", True):
        with pytest.raises(NestflowError, match="NF518"):
            tune(FREE, batch=1, length=40, rounds=1, memory=wrong)  # pyright: ignore[reportArgumentType]


def test_an_optimizer_has_no_passes(here: Path) -> None:
    said = run("tune", "adamw", code=1).stderr
    assert "NF518" in said and "`adamw` is an optimizer" in said and "tune the spec whose weights it moves" in said


def test_more_than_there_is_memory_for_is_a_sentence(here: Path) -> None:
    assert "NF034" in run("tune", "free.nl", "--length", "9999999999999", code=1).stderr
