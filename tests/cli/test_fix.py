"""`check --fix`, and the formats in which mistakes are told to other programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import nestflow
from nestflow.cli.fix import mend_text
from nestflow.cli.main import app
from nestflow.diagnostics.core import Diagnostic, Edit, Source, Span
from nestflow.diagnostics.fixes import apply, edits_of
from nestflow.diagnostics.render import as_json
from nestflow.diagnostics.reports import page_of
from nestflow.diagnostics.suggest import did_you_mean, distance

SPEC = """nestflow 1
param dim = 8
input tokens : int[T] in [0, 256)
output model(tokens)

level mem(x) {
  every     4 tokens
  memory    matrix
  key       x |> linear |> l2norm
  value     x |> linear
  query     x |> linear |> l2norm
  objective l2
  update    momentum(lr = 0.1 ^ 2, beta = 0.5)
  return    y |> linear(dim)
}
flow model(tokens) {
  x = embed(tokens, 256, dim)
  if dim == 8 { x = x + mem(x) }
  return x |> linear(256, bias = true)
}
loss = cross_entropy(model(tokens), next(tokens))
level outer { every 1 step; memory weights(model); objective loss; update adamw(1e-3) }
"""

# A slip in the right text, and the code of what is said about it. Each is mended back to the very text.
SLIPS: dict[str, tuple[str, str, str]] = {
    "misspelt function": ("l2norm\n  value", "l2nrom\n  value", "NF201"),
    "misspelt optimizer": ("momentum", "momentun", "NF201"),
    "misspelt field": ("objective l2", "objctive l2", "NF221"),
    "field of another word": ("key       x", "keys       x", "NF221"),
    "misspelt slot": ("beta = ", "betta = ", "NF202"),
    "misspelt slot whose name stands elsewhere": ("bias = true", "bais = true", "NF202"),
    "misspelt return": ("  return x |> linear(256", "  retrun x |> linear(256", "NF217"),
    "misspelt keyword": ("level outer", "levle outer", "NF117"),
    "keyword of another language": ("flow model(tokens) {", "def model(tokens) {", "NF117"),
    "let": ("  x = embed", "  let x = embed", "NF117"),
    "loss for objective": ("  objective l2", "  loss l2", "NF117"),
    "no unit on the token clock": ("4 tokens", "4", "NF402"),
    "no unit on the step clock": ("every 1 step", "every 1", "NF402"),
    "python's power": ("0.1 ^ 2", "0.1 ** 2", "NF108"),
    "unicode minus": ("1e-3", "1e-3 \u2212 0", "NF108"),
    "one equals sign": ("if dim == 8", "if dim = 8", "NF113"),
    "python's true": ("bias = true", "bias = True", "NF117"),
    "a bracket of another kind": ("linear(dim)", "linear(dim]", "NF106"),
    "a bracket left open": ("0.5)\n", "0.5\n", "NF105"),
    "a leading zero": ("dim = 8", "dim = 08", "NF109"),
    "a unit glued on": ("4 tokens", "4tokens", "NF109"),
    "no header": ("nestflow 1\n", "", "NF102"),
    "misspelt header": ("nestflow 1", "nestlow 1", "NF102"),
    "header without version": ("nestflow 1", "nestflow", "NF103"),
    "an invisible character": ("value ", "value\u200b ", "NF115"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str, code: int = 0, **options: Any) -> Result:
    result = CliRunner().invoke(app, list(args), **options)
    assert result.exit_code == code, (args, result.exit_code, result.output, result.exception)
    return result


def test_the_spec_is_right() -> None:
    nestflow.check(SPEC)


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_mended(name: str, here: Path) -> None:
    right, slip, code = SLIPS[name]
    assert SPEC.count(right) == 1
    text = SPEC.replace(right, slip)
    (here / "a.nl").write_text(text, encoding="utf-8")
    assert code in run("check", "a.nl", "--format", "short", code=1).stderr
    out = run("check", "a.nl", "--fix").stdout
    mended = (here / "a.nl").read_text(encoding="utf-8")
    assert "mended 1 mistake" in out and code in out and "a: ok" in out
    assert mended.split() == SPEC.split() or name == "unicode minus"
    again = run("check", "a.nl", "--fix").stdout
    assert "mended" not in again and (here / "a.nl").read_text(encoding="utf-8") == mended


def test_many_slips_are_mended_in_one_run(here: Path) -> None:
    text = SPEC
    for right, slip, code in SLIPS.values():
        if code in ("NF201", "NF202", "NF113", "NF108") and right in text:
            text = text.replace(right, slip, 1)
    (here / "a.nl").write_text(text, encoding="utf-8")
    out = run("check", "a.nl", "--fix").stdout
    assert "a: ok" in out and out.count("\n-") >= 5


def test_what_has_two_readings_is_left(here: Path) -> None:
    for right, wrong in (("y |> linear(dim)", "y + y |> linear(dim)"), ("x + mem(x)", "x mem(x)")):
        text = SPEC.replace(right, wrong)
        (here / "a.nl").write_text(text, encoding="utf-8")
        out = run("check", "a.nl", "--fix", code=1)
        assert (here / "a.nl").read_text(encoding="utf-8") == text and "mended" not in out.stdout
        assert "error[NF1" in out.stderr


def test_what_is_not_sure_is_left() -> None:
    """`mse` has another factor than `l2`, and `exp1` may be `exp` or `elu1`."""
    for wrong in ("objective mse", "objective frobnicate"):
        text = SPEC.replace("objective l2", wrong)
        assert mend_text(text, Path("a.nl"), {}).text == text
    assert not did_you_mean("lo", ["log", "lp", "l2"]).sure
    assert did_you_mean("rmsnrom", ["rmsnorm", "norm"]).sure


def test_a_fix_that_does_not_help_is_not_made() -> None:
    """A slot that is misspelt and given already: the right name would be given twice."""
    text = SPEC.replace("beta = 0.5", "beta = 0.5, betta = 0.5")
    done = mend_text(text, Path("a.nl"), {})
    assert done.text == text and [d.code for d in done.left] == ["NF202"]


def test_every_word_misspelt_in_turn() -> None:
    """Two letters swapped in each long word: mending is stable, never adds mistakes, and mostly gives the text back."""
    restored = wrong = 0
    for m in re.finditer(r"[a-z_0-9]{5,}", SPEC):
        word = m.group()
        slip = word[:2] + word[3] + word[2] + word[4:]
        text = SPEC[: m.start()] + slip + SPEC[m.end() :]
        before = mend_text(text, Path("a.nl"), {})
        if before.text == text and not before.left:
            continue  # a name of one's own may be spelt as one likes, and equal letters swap to the same
        wrong += 1
        restored += before.text == SPEC
        again = mend_text(before.text, Path("a.nl"), {})
        assert again.text == before.text and not again.applied, word
        assert len(before.left) <= max(1, len(errors_of(text))), word
    assert wrong >= 25 and restored >= 0.8 * wrong, (restored, wrong)


def errors_of(text: str) -> tuple[Diagnostic, ...]:
    try:
        nestflow.check(text)
    except nestflow.NestflowError as e:
        return e.diagnostics
    return ()


def test_diff_writes_nothing(here: Path) -> None:
    text = SPEC.replace("0.1 ^ 2", "0.1 ** 2")
    (here / "a.nl").write_text(text, encoding="utf-8")
    out = run("check", "a.nl", "--diff", code=1).stdout
    assert "\n-  update    momentum(lr = 0.1 ** 2" in out and "\n+  update    momentum(lr = 0.1 ^ 2" in out
    assert "--fix would mend 1 mistake (NF108)" in out
    assert (here / "a.nl").read_text(encoding="utf-8") == text


def test_yaml_is_mended_too(here: Path) -> None:
    run("new", "a.yaml", "--from", "titans")
    right = (here / "a.yaml").read_text(encoding="utf-8")
    wrong = right.replace("params:", "parms:").replace("objective: l2", "objctive: l2").replace("1 token", "1")
    (here / "a.yaml").write_text(wrong, encoding="utf-8")
    out = run("check", "a.yaml", "--fix").stdout
    assert "mended 3 mistakes (NF126, NF221, NF402)" in out
    assert (here / "a.yaml").read_text(encoding="utf-8") == right


def test_line_ends_marks_and_other_files_stay_as_they_are(here: Path) -> None:
    text = SPEC.replace("momentum", "momentun").replace("\n", "\r\n")
    (here / "a.nl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    run("check", "a.nl", "--fix")
    assert (here / "a.nl").read_bytes() == b"\xef\xbb\xbf" + SPEC.replace("\n", "\r\n").encode()
    (here / "part.nl").write_text("nestflow 1\nflow part(x) { return x |> lineer }\n", encoding="utf-8")
    main = SPEC.replace("nestflow 1\n", 'nestflow 1\nuse "part.nl"\n').replace("x + mem(x)", "x + part(x)")
    (here / "b.nl").write_text(main, encoding="utf-8")
    left = run("check", "b.nl", "--fix", code=1)
    assert "part.nl:2" in left.stderr and (here / "b.nl").read_text(encoding="utf-8") == main
    assert "lineer" in (here / "part.nl").read_text(encoding="utf-8")


def test_only_files_are_mended(here: Path) -> None:
    assert "shipped" in run("check", "titans", "--fix", code=2).stderr
    assert "NF001" in run("check", "nowhere.nl", "--fix", code=1).stderr


def test_params_that_are_set_count(here: Path) -> None:
    (here / "a.nl").write_text(SPEC.replace("momentum", "momentun"), encoding="utf-8")
    assert "a: ok" in run("check", "a.nl", "--fix", "--set", "dim=16").stdout


def test_edits_are_found_by_their_word() -> None:
    text = "f(bta = bta, x)"
    whole = Span(Source("a", text), 0, len(text))
    (edit,) = edits_of(Diagnostic("NF202", "m", whole, did_you_mean("bta", ["beta"])))
    assert (edit.span.start, apply(text, [edit])) == (2, "f(beta = bta, x)")
    assert edits_of(Diagnostic("NF202", "m", whole, "did you mean `beta`?")) == ()
    assert edits_of(Diagnostic("NF202", "m", None, did_you_mean("bta", ["beta"]))) == ()
    given = (Edit(whole, "x"),)
    assert edits_of(Diagnostic("NF202", "m", whole, fix=given)) == given


NEAR = [
    ("", "", 0),
    ("abc", "abc", 0),
    ("evrey", "every", 1),
    ("linar", "linear", 1),
    ("abc", "cab", 2),
    ("ab", "xyz", 3),
]


@pytest.mark.parametrize(("a", "b", "d"), NEAR)
def test_distance(a: str, b: str, d: int) -> None:
    assert distance(a, b) == distance(b, a) == d
    assert distance(a, b, 0) == min(d, 1)


# --- formats ----------------------------------------------------------------------------------------


WRONG = SPEC.replace("momentum(lr", "momentun(lr").replace("x + mem(x)", "x + mem(x, 1)")


def test_json_carries_the_fix(here: Path) -> None:
    (here / "a.nl").write_text(WRONG, encoding="utf-8")
    record = json.loads(run("check", "a.nl", "--format", "json", code=1).stdout)
    fixes = [d["fix"] for d in record["diagnostics"] if d["fix"]]
    assert all({"file", "line", "column", "replacement"} <= set(f) for fix in fixes for f in fix)
    (here / "a.nl").write_text(SPEC.replace("momentum", "momentun"), encoding="utf-8")
    (d,) = json.loads(run("check", "a.nl", "--format", "json", code=1).stdout)["diagnostics"]
    assert [(f["line"], f["replacement"]) for f in d["fix"]] == [(13, "momentum")]
    fixed = json.loads(run("check", "a.nl", "--fix", "--format", "json").stdout)
    assert fixed["ok"] and [x["code"] for x in fixed["fixed"]] == ["NF201"]


def test_github(here: Path) -> None:
    (here / "a.nl").write_text(SPEC.replace("momentum", "momentun"), encoding="utf-8")
    result = run("check", "a.nl", "--format", "github", code=1)
    assert result.stdout == (
        "::error file=a.nl,line=13,endLine=13,col=13,endColumn=21,title=nestflow NF201::"
        "`momentun` is not known here%0Ahelp: did you mean `momentum`?\n"
    )
    (here / "a,b:c%.nl").write_text("nestflow 1\nx = $\n", encoding="utf-8")
    line = run("check", "a,b:c%.nl", "--format", "github", code=1).stdout
    assert "file=a%2Cb%3Ac%25.nl," in line and line.count("\n") == line.count("::error ")
    assert "file=" not in run("check", "nowhere.nl", "--format", "github", code=1).stdout


def test_sarif(here: Path) -> None:
    (here / "a.nl").write_text(SPEC.replace("momentum", "momentun"), encoding="utf-8")
    (here / "b c.nl").write_text("nestflow 1\nparam a = (1]\n", encoding="utf-8")
    (here / "good.nl").write_text(SPEC, encoding="utf-8")
    log = json.loads(run("check", "a.nl", "b c.nl", "good.nl", "--format", "sarif", code=1).stdout)
    assert log["version"] == "2.1.0" and "sarif-2.1.0" in log["$schema"]
    (one,) = log["runs"]
    rules = one["tool"]["driver"]["rules"]
    assert one["tool"]["driver"]["name"] == "nestflow" and one["tool"]["driver"]["version"] == nestflow.__version__
    assert [r["id"] for r in rules] == sorted({r["ruleId"] for r in one["results"]})
    assert {"NF106", "NF201"} == {r["ruleId"] for r in one["results"] if r["level"] == "error"}
    assert all(r["shortDescription"]["text"] and r["help"]["text"].startswith(f"# {r['id']}") for r in rules)
    for result in one["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] in ("a.nl", "b%20c.nl", "good.nl")
    known = next(r for r in one["results"] if "momentun" in r["message"]["text"])
    (change,) = known["fixes"][0]["artifactChanges"]
    (replacement,) = change["replacements"]
    assert replacement["deletedRegion"] == {"startLine": 13, "startColumn": 13, "endLine": 13, "endColumn": 21}
    assert replacement["insertedContent"] == {"text": "momentum"}
    bracket = next(r for r in one["results"] if r["ruleId"] == "NF106")
    assert [r["message"]["text"] for r in bracket["relatedLocations"]] == ["opened here"]


def test_full_says_the_page_once_and_the_fixed_line(here: Path) -> None:
    text = SPEC.replace("0.1 ^ 2", "0.1 ** 2").replace("dim == 8", "dim == 8 && true")
    (here / "a.nl").write_text(text, encoding="utf-8")
    shown = run("check", "a.nl", "--format", "full", code=1).stderr
    said = page_of("NF108").split("\n\n")[1]
    assert shown.count("error[NF108]") == 2 and shown.count(said) == 1
    assert "= fix, by `check --fix`: update    momentum(lr = 0.1 ^ 2" in shown
    assert "= fix, by `check --fix`: if dim == 8 and true {" in shown


def test_short_and_text_are_as_before(here: Path) -> None:
    (here / "a.nl").write_text(SPEC.replace("momentum", "momentun"), encoding="utf-8")
    assert run("check", "a.nl", "--format", "short", code=1).stderr.startswith("a.nl:13:13: error[NF201]")
    assert run("check", "a.nl", code=1).stderr.startswith("error[NF201]: `momentun`")


def test_colours_on_demand_only(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a.nl").write_text(SPEC.replace("momentum", "momentun"), encoding="utf-8")
    plain = run("check", "a.nl", code=1).stderr
    assert "\x1b" not in plain and "\x1b" not in run("specs", "titans").stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = run("check", "a.nl", code=1, color=True).stderr
    assert "\x1b[31m" in coloured and re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    spec = run("specs", "titans", color=True).stdout
    assert "\x1b[35mlevel\x1b[0m" in spec
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("check", "a.nl", code=1, color=True).stderr
    assert "\x1b" not in run("specs", "titans", color=True).stdout


def test_every_fix_of_the_wrong_texts_is_inside_its_text() -> None:
    """The golden texts of the language's tests: every fix is an edit of them, and says so in its record."""
    from tests.language.test_errors import cases, said

    found = 0
    for title, text in cases().items():
        for d in said(title, text).diagnostics:
            for e in edits_of(d):
                found += 1
                assert 0 <= e.span.start <= e.span.end <= len(text) and e.span.source.text == text
                assert apply(text, [e]) != text
            assert len(as_json([d])[0]["fix"]) == len(edits_of(d))
    assert found >= 15
