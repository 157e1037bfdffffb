"""The command line: what each command prints and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from nestflow.cli import main as cli
from nestflow.cli.main import COMMANDS, app

SMALL = """nestflow 1
## A matrix that learns.
param dim = 8 in [1, 64]   ## width
input tokens : int[T] in [0, 256)
output model(tokens)

level mem(x) {
  every     1 token
  memory    matrix
  key       x |> linear |> l2norm
  value     x |> linear
  query     x |> linear
  objective dot
  update    gd(0.1)
  return    y
}
flow model(tokens) {
  shared emb = embed(256, dim)
  x = emb(tokens)
  x = x + mem(rmsnorm(x))
  return rmsnorm(x) @ transpose(emb.weight)
}
loss = cross_entropy(model(tokens), next(tokens))
level outer { every 1 step; memory weights(model); objective loss; update adam(1e-3) }
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.nl").write_text(SMALL, encoding="utf-8")
    (tmp_path / "bad.nl").write_text(SMALL.replace("gd(0.1)", "gdd(0.1)"), encoding="utf-8")
    return tmp_path


def run(*args: str, code: int = 0, **options: object) -> Result:
    result = CliRunner().invoke(app, list(args), **options)
    assert result.exit_code == code, (args, result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def test_alone_it_helps_and_says_where_to_start():
    out = run().stdout
    assert "Start here:" in out and "nestflow view hope" in out
    for name in COMMANDS:
        assert f"  {name} " in out


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example(name):
    out = run(name, "--help").stdout
    assert "Example" in out and f"nestflow {name}" in out
    assert isinstance(app.get_command(click.Context(app), name), click.Command)


def test_unknown_command_is_usage_with_a_suggestion():
    result = run("chek", code=2)
    assert "did you mean `check`?" in result.stderr and result.stdout == ""
    assert "nestflow --help" in run("zzzzz", code=2).stderr
    assert "\x1b" not in run("\x1b[31m", code=2).stderr


def test_wrong_options_are_usage():
    for args in (
        ["check"],
        ["check", "hope", "--format", "xml"],
        ["view", "hope", "--set", "dim"],
        ["train"],
        ["train", "--resume"],
        ["train", "hope", "--resume", "--out", "x"],
        ["generate", "x", "--temperature", "-1"],
    ):
        assert "Usage:" in run(*args, code=2).stderr


def test_specs_lists_and_prints():
    out = run("specs").stdout
    assert "hope" in out and "titans" in out and "optimizers" in out
    assert "level self_modifying" in run("specs", "hope").stdout
    assert run("specs", "hope", "--path").stdout.strip().endswith("hope.nl")
    assert "NF009" in run("specs", "hoppe", code=1).stderr


def test_explain_alone_lists_all_words():
    out = run("explain").stdout
    for word in ("retain", "cache", "clip_norm", "adamw", "cosine", "titans"):
        assert f" {word} " in out.replace("\n", " ")


def test_explain_goes_on_below_its_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = run("explain", "titans", "--set", "dim=16").stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith(" " * 13) for line in lines)


def test_check(here):
    assert run("check", "small.nl").stdout.startswith("small: ok · ")
    bad = run("check", "small.nl", "bad.nl", code=1)
    assert "small: ok" in bad.stdout and "bad.nl:14" in bad.stderr and "gdd" in bad.stderr
    short = run("check", "bad.nl", "--format", "short", code=1).stderr
    assert short.count("\n") == 1 and short.startswith("bad.nl:14:")


def test_check_json(here):
    good = json.loads(run("check", "small.nl", "--format", "json").stdout)
    assert good == {"spec": "small.nl", "ok": True, "diagnostics": []}
    bad = run("check", "bad.nl", "--format", "json", code=1)
    record = json.loads(bad.stdout)
    assert record["ok"] is False and record["diagnostics"][0]["line"] == 14 and bad.stderr == ""
    both = json.loads(run("check", "small.nl", "bad.nl", "--format", "json", code=1).stdout)
    assert [r["ok"] for r in both] == [True, False]


def test_check_shapes_and_params(here):
    out = run("check", "small.nl", "--shapes", "--set", "dim=16").stdout
    assert "memory memory : matrix" in out and "16 × 16" in out and "float[T, 16]" in out
    assert "256 × 16" in out and out.rstrip().endswith("float[T, 256]")
    assert "NF017" in run("check", "small.nl", "--set", "dimm=2", code=1).stderr


def test_missing_files_and_folders_are_diagnostics(here):
    assert "NF001" in run("check", "nowhere.nl", code=1).stderr
    (here / "dir.nl").mkdir()
    assert "error[NF0" in run("check", "dir.nl", code=1).stderr
    (here / "bytes.nl").write_bytes(b"\xff\xfe\x00")
    assert "error[NF0" in run("fmt", "bytes.nl", code=1).stderr


def test_view_prints_and_writes(here):
    out = run("view", "small.nl").stdout
    assert "every token" in out and "one step = the tokens of one batch" in out and "initialises" not in out
    assert run("view", "small.nl", "--format", "svg").stdout.startswith("<svg ")
    assert "objective" in run("view", "small.nl", "--format", "table").stdout
    for name in ("g.svg", "g.html", "g.mmd", "g.dot", "sub/g.html"):
        assert run("view", "small.nl", "-o", name).stdout.strip() == f"wrote {name}"
        assert (here / name).stat().st_size > 200
    assert "NF030" in run("view", "small.nl", "-o", "g.gif", code=1).stderr


def test_new_makes_a_spec_that_checks(here):
    run("new", "my.nl", "--from", "titans")
    assert run("check", "my.nl").stdout.startswith("my: ok")
    assert "NF032" in run("new", "my.nl", code=1).stderr
    assert run("new", "my.nl", "--from", "hope", "--force") and "self_modifying" in (here / "my.nl").read_text()
    run("new", "my.yaml", "--from", "linear_attention")
    assert run("check", "my.yaml").stdout.startswith("my: ok")
    assert "NF008" in run("new", "my.txt", code=1).stderr
    assert "NF009" in run("new", "other.nl", "--from", "nothing", code=1).stderr


def test_fmt(here):
    messy = here / "messy.nl"
    messy.write_text(SMALL.replace("  every     1 token", "every 1   token"), encoding="utf-8")
    assert "messy.nl is not formatted" in run("fmt", "--check", "messy.nl", code=1).stderr
    run("fmt", "messy.nl")
    assert run("fmt", "--check", "messy.nl").output == ""
    assert run("check", "messy.nl").stdout.startswith("messy: ok")
    before = (here / "bad.nl").read_text()
    (here / "broken.nl").write_text("level {", encoding="utf-8")
    assert "error[NF1" in run("fmt", "broken.nl", code=1).stderr and (here / "bad.nl").read_text() == before
    assert run("fmt", "-", input=SMALL).stdout.startswith("nestflow 1")


def test_convert_there_and_back(here):
    run("convert", "small.nl", "-o", "small.yaml")
    assert run("check", "small.yaml").stdout.startswith("small: ok")
    back = run("convert", "small.yaml").stdout
    assert "level mem(x) {" in back
    (here / "back.nl").write_text(back, encoding="utf-8")
    assert run("convert", "back.nl").stdout == (here / "small.yaml").read_text(encoding="utf-8")
    assert "NF032" in run("convert", "small.nl", "-o", "small.yaml", code=1).stderr
    assert "NF008" in run("convert", "small.nl", "-o", "small.txt", code=1).stderr


def test_explain_words_and_codes(here):
    assert "l2norm(x" in run("explain", "l2norm").stdout
    assert "(field)" in run("explain", "retain").stdout
    assert "optimizer adam(" in run("explain", "adam").stdout
    assert "nestflow calls it `l2`" in run("explain", "mse", code=1).stderr
    assert "did you mean" in run("explain", "l2nrom", code=1).stderr
    assert "argument of `cache`" in run("explain", "prefix", code=1).stderr
    assert "NF001" in run("explain", "nf001").stdout
    assert "NF033" in run("explain", "NF000", code=1).stderr


def test_dumps(here):
    assert (
        "Template" in run("compile", "small.nl", "--dump", "tree").stdout
        or "Level" in run("compile", "small.nl", "--dump", "tree").stdout
    )
    out = run("compile", "small.nl", "--dump", "graph").stdout
    assert out.startswith("LevelGraph\n") and "objective:" in out and "model.mem" in out
    assert not (here / "out").exists()


def test_a_crash_is_an_internal_error_with_a_file(here, monkeypatch):
    monkeypatch.setattr("nestflow.cli.common.graph_of", None)
    monkeypatch.setattr("nestflow.cli.view.graph_of", lambda *_: 1 // 0)
    err = run("view", "small.nl", code=70).stderr
    assert "internal error: ZeroDivisionError" in err and "report" in err
    file = Path(err.split("the trace is in ")[1].split("\n")[0])
    assert "ZeroDivisionError" in file.read_text() and "1 // 0" in file.read_text()
    file.unlink()


def test_ctrl_c_is_quiet(here, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nestflow.cli.view.graph_of", interrupt)
    assert run("view", "small.nl", code=130).output.strip() == ""


def test_a_file_that_cannot_be_written_is_a_sentence(here):
    (here / "file").write_text("x")
    assert "NF034" in run("view", "small.nl", "-o", "file/g.svg", code=1).stderr


ENV = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
MAIN = "from nestflow.cli.main import main; main()"


def test_broken_pipe_is_quiet(here):
    p = subprocess.Popen([sys.executable, "-c", MAIN, "specs"], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.stdout is not None and p.stderr is not None
    p.stdout.close()
    assert p.stderr.read() == b"" and p.wait() in (0, 1)  # 1: click's own code for a reader that has gone


def test_check_loads_neither_torch_nor_rich_nor_networkx(here):
    code = (
        "import sys; sys.argv = ['nestflow', 'check', 'small.nl']\nfrom nestflow.cli.main import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "print(sorted({'torch', 'rich', 'networkx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.stdout.splitlines()[-1] == "[]", done


def test_console_script_is_this_group():
    import tomllib

    project = Path(cli.__file__).parents[2] / "pyproject.toml"
    scripts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"nestflow": "nestflow.cli.main:main"}


def test_minus_is_stdin(here):
    assert "ok" in run("check", "-", input=SMALL).stdout
    assert "mem" in run("view", "-", "--format", "table", input=SMALL).stdout
    assert "NF214" in run("check", "-", input=SMALL.replace("gd(0.1)", "gd()"), code=1).stderr
    assert "NF006" in run("check", "-", input=b"nestflow 1\n\xff\n", code=1).stderr
    assert "NF006" in run("fmt", "-", input=b"\xff", code=1).stderr
    assert "NF004" in run("fmt", "-", input=b"#" * 1_000_001, code=1).stderr


def test_python_m_nestflow():
    done = subprocess.run([sys.executable, "-m", "nestflow", "--version"], capture_output=True, text=True, check=True)
    assert "nestflow" in done.stdout


def test_names_of_files_stay_on_their_line(here):
    (here / "two\nlines.nl").write_text(SMALL, encoding="utf-8")
    assert "'two\\nlines.nl'" in run("fmt", "zzzzzzzzzz.nl", code=1).stderr


def test_compile_overwrites_no_file_that_it_did_not_write(here):
    (here / "model.py").write_text("mine = 1\n", encoding="utf-8")
    assert "NF032" in run("compile", "small.nl", "-o", ".", code=1).stderr
    assert (here / "model.py").read_text(encoding="utf-8") == "mine = 1\n" and not (here / "optim.py").exists()
    for _ in range(2):
        run("compile", "small.nl", "-o", "made")
    assert sorted(p.name for p in (here / "made").iterdir()) == ["bundle", "model.py", "optim.py"]
