"""One slip of the pen is one mistake, told at its place: a sample of `python -m tests.language.mutate`."""

from __future__ import annotations

from collections import Counter

import pytest

from nestflow.diagnostics.fixes import apply, edits_of
from nestflow.language.nl import parse_nl
from tests.language.mutate import Mutant, Outcome, mutants, outcome, shipped, sweep
from tests.language.test_errors import said

NEVER = ("traceback", "nowhere", "slow")
SHARDS = 24


def test_mutants_are_what_they_say() -> None:
    text = "nestflow 1\nx = 3"
    assert {m.text for m in mutants("a", text) if m.word == "="} == {
        "nestflow 1\nx  3", "nestflow 1\nx = = 3", "nestflow 1\nx 3 =", "nestflow 1\nx == 3",
    }  # fmt: skip


def judge(outcomes: list[Outcome]) -> None:
    counts = Counter(o.kind for o in outcomes)
    wrong = [o for o in outcomes if o.kind in NEVER]
    assert not wrong, f"{wrong[0].kind}: {wrong[0].mutant.title}\n{wrong[0].said}"
    assert counts["told"] > 0.6 * len(outcomes), counts
    assert counts["cascade"] <= 1 + len(outcomes) // 1000, counts
    assert counts["generic"] <= 1 + len(outcomes) // 500, counts
    assert counts["elsewhere"] <= 1 + len(outcomes) // 100, counts


def test_a_sample() -> None:
    judge(list(sweep(shipped(), every=211, first=7)))


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all(shard: int) -> None:
    """Every mutant, in parts that several processes share."""
    judge(list(sweep(shipped(), every=SHARDS, first=shard)))


def test_what_is_wrong_with_an_outcome_is_seen() -> None:
    """Five unknown words for one slip are a cascade; a mistake far from the slip is elsewhere."""
    text = "nestflow 1\ninput x : float[T, 8]\noutput f(x)\n\n\n"
    text += "flow f(x) {\n  a = a1\n  b = b1\n  c = c1\n  return d1\n}\n"
    assert outcome(Mutant("a.nl", "double", "q", "", 12, 12, text)).kind == "cascade"
    text = text.replace("b1", "x").replace("c1", "x").replace("d1", "x")
    assert outcome(Mutant("a.nl", "double", "q", "", 12, 12, text)).kind == "elsewhere"


# Each line: what was written, the sentence, and what `--fix` makes of it (none: it is left to the writer).
REPAIRS = [
    ("param dim 3", "`=` is missing between `dim` and `3`", "param dim = 3"),
    ("param dim = 3 inn [1, 4]", "`inn` stands where `in` belongs", None),
    ("param dim 3 = in [1, 4]", "`3` and `=` stand in the wrong order", "param dim = 3 in [1, 4]"),
    ("param dim dim = 3", "`dim` stands here twice", "param dim = 3"),
    ("param dim = in [1, 4]", "a value is missing between `=` and `in`", None),
    ("level { key x }", "this `level` has no name", None),
    ("input tokens int[T] in [0, 4)", "`:` is missing between `tokens` and `int`", "input tokens : int[T] in [0, 4)"),
    ("input t1 : int(T] in [0, 4)", "`]` closes this `(`", "input t1 : int[T] in [0, 4)"),
    ("level a[x) { key x }", "`)` closes this `[`", "level a(x) { key x }"),
    ("level a { key x linear |> l2norm }", "there is no operator between `x` and `linear`", None),
    ("level a { key key x |> l2norm }", "`key` stands here twice", "level a { key x |> l2norm }"),
    ("level a { gd(lr = 1) |> f }", "`gd(...)` alone is no statement", None),
    ("for m [a, b] { n = m }", "`in` is missing between `m` and `[`", "for m in [a, b] { n = m }"),
    ("shared emb embed(4, 4)", "`=` is missing between `emb` and `embed`", "shared emb = embed(4, 4)"),
    ("optimizer o(lr == 1) { step g }", "`==` stands where `=` belongs", "optimizer o(lr = 1) { step g }"),
    ("assert 1 < 2, message", "`message` stands where a text in quotes belongs", 'assert 1 < 2, "message"'),
    ("flow f(x) (\n  return x\n}", "`}` closes this `(`", "flow f(x) {\n  return x\n}"),
    ("flow f(x) {\n  return x\n)", "`)` closes the `{` of another kind", "flow f(x) {\n  return x\n}"),
    ("input tokens ; int[T] in [0, 4)", "`;` stands where `:` belongs", "input tokens : int[T] in [0, 4)"),
    ("use attention hope of\nparam a = 1", "`hope` and `of` stand in the wrong order",
     "use attention of hope\nparam a = 1"),
    ("param a true =   # a\nparam b = 3", "`true` and `=` stand in the wrong order",
     "param a = true   # a\nparam b = 3"),
    ("level a {\n  key x |> f(4) l2norm |>\n  query x |> g\n}", "`l2norm` and `|>` stand in the wrong order",
     "level a {\n  key x |> f(4) |> l2norm\n  query x |> g\n}"),
    ("level a { value f(R) t == 1 else x }", "`if` is missing between `)` and `t`",
     "level a { value f(R) if t == 1 else x }"),
    ("input a : int[T] in [0, aoutput\n) model(a)",
     "`model` stands behind the `)` that ends what line 2 began", None),
    ("flow f(x) { repeat 3 as { x = 1 } }", "a name is missing between `as` and `{`", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence", "fixed"), REPAIRS, ids=[r[0] for r in REPAIRS])
def test_the_change_that_mends_it_is_said(text: str, sentence: str, fixed: str | None) -> None:
    whole = f"nestflow 1\n{text}\n"
    (d,) = said("nl", whole).diagnostics
    assert d.message == sentence
    edits = edits_of(d)
    assert (apply(whole, edits) if edits else None) == (None if fixed is None else f"nestflow 1\n{fixed}\n")
    if fixed is not None:
        parse_nl(apply(whole, edits), "fixed.nl")


def test_a_missing_brace_is_shown_where_it_is_missing() -> None:
    text = "nestflow 1\nfor p in [1, 2] {\n  level a_{p} {\n    key x\n}\nlevel b {\n  key x\n}\n"
    (d,) = said("nl", text).diagnostics
    assert (d.code, d.span and d.span.line) == ("NF105", 3)
    assert [r.span.line for r in d.related] == [5]


def test_a_brace_too_many_is_shown_where_it_is_too_many() -> None:
    text = "nestflow 1\nlevel a {\n  memory m : matrix { key x } }\n  query x\n}\nlevel b {\n  key x\n}\n"
    (d,) = said("nl", text).diagnostics
    assert (d.code, d.span and d.span.line) == ("NF106", 3)


def test_a_body_read_as_a_record_is_one_mistake() -> None:
    text = "nestflow 1\nif 1 < 2 { x = 1; y = 2 } else else { level a { key x; value x; query x }; z = 3 }\n"
    (d,) = said("nl", text).diagnostics
    assert "holds statements" in d.message and d.span is not None and d.span.text == "{"


def test_the_rest_of_nothing_is_told() -> None:
    text = shipped()["architectures/hope.nl"]
    found = [outcome(m) for m in mutants("architectures/hope.nl", text) if "rest()" in m.text]
    assert found and all(o.kind == "told" for o in found), found[0].said


def test_one_place_is_one_mistake() -> None:
    """A rate that several memories share, and a glob in a loop: told once, of the first."""
    text = "nestflow 1\ninput x : float[T, 8]\noutput f(x)\nflow f(x) { return x + m(x) }\nlevel m(x) {\n"
    text += "  for n in [a, b, c, d] { memory n : mlp(depth = 2) { key x; value x; query x } }\n"
    text += "  objective l2\n  update gd(linear(x, 3))\n  return a(x)\n}\n"
    at = text.index("linear(x, 3)")
    o = outcome(Mutant("a.nl", "misspell", "", "3", at, at + 12, text))
    assert o.kind == "told" and o.said.count("error[") == 1, o.said
    text = text.replace("linear(x, 3)", "0.1") + "for n in [1, 4, 16, 64] {\n  level o_{n} {\n"
    text += '    every n steps; memory weights(f, "**.mlp_{n}.**"); objective mean(f(x)); update gd(0.1)\n  }\n}\n'
    at = text.index('"**.mlp')
    o = outcome(Mutant("a.nl", "misspell", "", "mlp", at, at + 15, text))
    assert o.kind == "told" and o.said.count("error[NF410]") == 1, o.said
