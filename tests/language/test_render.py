"""How diagnostics look: places under their text, nothing that a terminal would obey, no more than twenty."""

from __future__ import annotations

from nestflow.diagnostics.core import Diagnostic, NestflowError, Related, Source, Span, fail
from nestflow.diagnostics.render import as_json, render, render_all, short


def at(text: str, part: str, name: str = "a.nl") -> Span:
    start = text.index(part)
    return Span(Source(name, text), start, start + len(part))


def test_a_picture() -> None:
    text = "nestflow 1\nlevel a { evrey 1 token }\n"
    d = Diagnostic(
        "NF211",
        "no field `evrey`",
        at(text, "evrey"),
        "did you mean `every`?",
        (Related(at(text, "level a"), "in this level"),),
    )
    assert (
        render(d)
        == """error[NF211]: no field `evrey`
 --> a.nl:2:11
  |
2 | level a { evrey 1 token }
  |           ^^^^^
  = note: in this level
 --> a.nl:2:1
  |
2 | level a { evrey 1 token }
  | -------
  = help: did you mean `every`?"""
    )
    assert short(d) == "a.nl:2:11: error[NF211] no field `evrey` (did you mean `every`?)"
    assert str(NestflowError([d])) == render(d)


def test_wide_letters_and_tabs_keep_the_mark_below() -> None:
    for text, column in (("\tx = 漢字 + bad", 4 + 4 + 4 + 3), ("x = e\u0301 + bad", 8), ("α = bad", 4)):
        line, mark = render(Diagnostic("NF1", "m", at(text, "bad"))).split("\n")[3:5]
        assert len(mark) - len(mark.lstrip(" |1")) == 4 + column
        assert mark.endswith("^^^") and line.endswith("bad")


def test_nothing_is_obeyed() -> None:
    text = "x = \x1b[31mred\x07 \u202e"
    shown = render(Diagnostic("NF1", "bad \x1b[2J name", at(text, "red", "a\x1b.nl"), "\x9b help"))
    assert all(c == "\n" or c.isprintable() for c in shown)
    assert "␛[31mred␇" in shown


def test_long_lines_are_cut_around_the_place() -> None:
    text = "x = " + "a + " * 3000 + "bad" + " + b" * 100_000
    lines = render(Diagnostic("NF1", "m", at(text, "bad"))).split("\n")
    assert max(len(x) for x in lines) < 140
    assert lines[3][lines[4].index("^") :].startswith("bad")


def test_a_span_over_lines_marks_its_first() -> None:
    text = "flow f(x) {\n  return x\n"
    assert (
        render(Diagnostic("NF1", "m", Span(Source("a", text), 0, len(text)))).split("\n")[-1].endswith("| " + "^" * 11)
    )


def test_the_end_of_the_text() -> None:
    assert render(Diagnostic("NF1", "m", Span(Source("a", "ab"), 2, 2))).split("\n")[-1] == "  |   ^"


def test_twenty_and_no_more() -> None:
    shown = render_all([Diagnostic("NF1", f"mistake {i}") for i in range(33)])
    assert shown.count("error[NF1]") == 20 and shown.endswith("... and 13 more")


def test_records() -> None:
    text = "a\nbc"
    (record,) = as_json([Diagnostic("NF1", "m", at(text, "bc"), None, (Related(at(text, "a"), "r"),), "note")])
    assert (record["line"], record["column"], record["end_line"], record["end_column"]) == (2, 1, 2, 3)
    assert record["related"][0]["line"] == 1 and record["severity"] == "note" and record["help"] is None
    assert as_json(fail("NF1", "m").diagnostics)[0]["file"] is None
