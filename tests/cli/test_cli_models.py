"""compile, explain, train and generate, from a small spec to text that a trained bundle wrote."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from test_cli_commands import ENV, SMALL

import nestflow
from nestflow.cli.main import app


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.nl").write_text(SMALL, encoding="utf-8")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200, encoding="utf-8")
    return tmp_path


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, (args, result.exit_code, result.output, result.exception)
    return result


def test_compile_writes_and_its_three_lines_run(here):
    out = run("compile", "small.nl", "--set", "dim=16", "--standalone").stdout
    for name in ("model.py", "optim.py", "small_standalone.py", "bundle/bundle.json"):
        assert (here / "out" / "small" / name).is_file()
    lines = out.rstrip().split("\n\n")[-1]
    assert len(lines.splitlines()) == 3
    code = f"import torch\ntokens = torch.arange(12).reshape(2, 6)\n{lines}\nprint(b.module(tokens=tokens).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, cwd=here)
    assert done.stdout.strip() == "torch.Size([2, 6, 256])", done.stderr
    code = (
        "import sys, torch, small_standalone as s\n"
        "print(s.Model()(torch.zeros(1, 3, dtype=torch.long)).shape, 'nestflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here / "out" / "small")
    assert done.stdout.strip() == "torch.Size([1, 3, 256]) False", done.stderr


def test_compile_again_replaces_its_own_and_spares_what_is_yours(here):
    run("compile", "small.nl", "-o", "a")
    run("compile", "small.nl", "-o", "a", "--seed", "1")
    (here / "b" / "bundle").mkdir(parents=True)
    (here / "b" / "bundle" / "mine.txt").write_text("x")
    assert "error[NF5" in run("compile", "small.nl", "-o", "b", code=1).stderr
    assert (here / "b" / "bundle" / "mine.txt").read_text() == "x"


def test_dump_of_plan_and_source(here):
    assert "pattern: 'recurrence'" in run("compile", "small.nl", "--dump", "plan").stdout
    assert "# small.nl:" in run("compile", "small.nl", "--dump", "source").stdout
    assert not (here / "out").exists()


def test_explain_a_spec_and_a_bundle(here):
    out = run("explain", "small.nl").stdout
    assert "model.mem" in out and "recurrence" in out and "half-life" in out
    run("compile", "small.nl")
    assert run("explain", "out/small/bundle").stdout == out
    assert "NF035" in run("explain", "out/small/bundle", "--set", "dim=4", code=1).stderr


def test_view_of_a_bundle_is_that_of_its_spec(here):
    run("compile", "small.nl", "--set", "dim=32")
    assert "dim = 32" in run("view", "out/small/bundle").stdout


def test_train_resume_generate(here):
    steps = ["--data", "text.txt", "--batch", "2", "--length", "16", "--eval-every", "0", "--quiet"]
    first = run("train", "small.nl", "--steps", "2", "--out", "run", *steps).stdout
    assert re.search(r"2 steps; validation \d+\.\d+ bits per byte; saved run/bundle", first)
    assert "error[NF5" in run("train", "small.nl", "--steps", "2", "--out", "run", *steps, code=1).stderr
    assert "3 steps" in run("train", "--resume", "--out", "run", "--steps", "3", "--quiet").stdout
    whole = run("train", "small.nl", "--steps", "3", "--out", "whole", *steps)
    assert "3 steps" in whole.stdout
    one, two = (
        run("generate", name, "--prompt", "the ", "--tokens", "12", "--seed", "3").stdout for name in ("run", "whole")
    )
    assert one == two and one.startswith("the ")


def test_generate_takes_a_bundle_a_run_or_a_checkpoint(here):
    from nestflow.cli.generate import find_bundle

    (here / "run" / "checkpoints" / "step-000002").mkdir(parents=True)
    assert find_bundle(Path("run")) == Path("run/checkpoints/step-000002")
    (here / "run" / "bundle").mkdir()
    assert find_bundle(Path("run")) == Path("run/bundle")
    (here / "empty").mkdir()
    assert "NF033" in run("generate", "empty", code=1).stderr
    assert "error[NF5" in run("generate", "nowhere", code=1).stderr


def test_a_run_is_not_lost_to_compile_and_can_be_looked_at(here):
    steps = ["--data", "text.txt", "--batch", "2", "--length", "16", "--steps", "1", "--quiet"]
    assert "1 step; " in run("train", "small.nl", "--out", "out/small", *steps).stdout
    trained = (here / "out/small/bundle/bundle.json").read_bytes()
    assert "NF032" in run("compile", "small.nl", code=1).stderr
    assert (here / "out/small/bundle/bundle.json").read_bytes() == trained
    assert "wrote" not in run("compile", "small.nl", "-o", "elsewhere").stderr
    assert "every token" in run("view", "out/small").stdout
    assert "mem" in run("explain", "out/small").stdout


def test_log_lines_stay_whole_in_a_pipe(here):
    out = run("train", "small.nl", "--data", "text.txt", "--batch", "2", "--length", "16", "--steps", "2").stdout
    last = next(line for line in out.splitlines() if line.startswith("step 2 "))
    assert last.endswith("[outer every step → updated (2)]")
    assert out.startswith("inside a window of 16: mem learns every token (16 times)\n")


def test_train_says_what_is_wrong(here):
    assert "error[NF5" in run("train", "small.nl", "--data", "nowhere.txt", "--steps", "1", code=1).stderr
    assert "error[NF5" in run("train", "--resume", "--out", "nowhere", code=1).stderr


def test_train_refuses_a_place_that_is_taken_before_it_trains(here):
    (here / "mine").mkdir()
    (here / "mine" / "bundle").write_text("mine", encoding="utf-8")
    told = run("train", "small.nl", "--data", "text.txt", "--steps", "1", "--out", "mine", code=1).stderr
    assert "NF511" in told and [p.name for p in (here / "mine").iterdir()] == ["bundle"]


def test_a_bundle_prints_its_level_table(here):
    import nestflow

    torch.manual_seed(0)
    lines = str(nestflow.compile("small.nl")).splitlines()
    assert len(lines) <= 20 and "lowered" in lines[1]
    assert any(line.startswith("mem ") and "recurrence" in line for line in lines)


def test_execution_comes_from_a_file_and_is_not_saved(here):
    (here / "fast.yaml").write_text("checkpointing: auto\nblock: 8\n", encoding="utf-8")
    run("compile", "small.nl", "-o", "a", "--execution", "fast.yaml")
    assert dict(nestflow.load("a/bundle").graph.execution) == {}
    plan = run("compile", "small.nl", "--dump", "plan", "--execution", "fast.yaml").stdout
    assert plan != run("compile", "small.nl", "--dump", "plan").stdout
    few = ("--data", "text.txt", "--batch", "2", "--length", "16", "--quiet", "--execution", "fast.yaml")
    run("train", "a/bundle", "--steps", "2", "--out", "r", *few)
    run("train", "--resume", "--out", "r", "--steps", "3", "--execution", "fast.yaml", "--quiet")
    written = run("generate", "r", "--tokens", "5", "--execution", "fast.yaml").stdout
    assert written == run("generate", "r", "--tokens", "5").stdout


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, "NF001", "cannot be read"),
        ("checkpointing: often", "NF325", "in `fast.yaml`"),
        ("blok: 8", "NF325", "did you mean `block`"),
        ("- 8", "NF325", "holds no settings"),
        ("compile: false\na: [", "NF325", "is no YAML in line 2"),
        ("block: 16\nblock: 32", "NF325", "`block` stands twice"),
        ("execution:\n  block: 16\n  block: 16", "NF325", "`block` stands twice"),
    ],
)
def test_a_wrong_file_of_settings_is_told(here, text, code, said):
    if text is not None:
        (here / "fast.yaml").write_text(text, encoding="utf-8")
    for command in (["compile", "small.nl"], ["train", "small.nl"], ["generate", "b"]):
        told = run(*command, "--execution", "fast.yaml", code=1).stderr
        assert f"error[{code}]" in told and said in told


def test_loading_takes_settings(here):
    nestflow.compile("small.nl", execution={"block": 8}).save("b")
    b = nestflow.load("b", execution={"checkpointing": 2, "dtype": "float64"})
    assert dict(b.graph.execution)["checkpointing"] == 2
    assert b.module.dtype == torch.float32  # the weights are as they were saved
    with pytest.raises(nestflow.NestflowError, match="NF325"):
        nestflow.load("b", execution={"block": 0})
    with pytest.raises(nestflow.NestflowError, match="NF325"):
        nestflow.compile("small.nl", execution=["block"])
