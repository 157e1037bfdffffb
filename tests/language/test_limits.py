"""Texts made to hurt: each ends in a diagnostic or a tree, never in a traceback."""

from __future__ import annotations

import pytest

from nestflow.diagnostics.core import NestflowError
from nestflow.language.nl import parse_nl
from nestflow.language.reader import read_text
from nestflow.language.yaml import from_dict

HEAD = "nestflow 1\n"
Y = "nestflow: 1\n"
BOMB = (
    Y
    + "let:\n  a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(f"  {chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9))
)
WRONG = {
    "open brackets": (HEAD + "x = " + "(" * 10_000, "NF110"),
    "closed brackets": (HEAD + "x = " + "(" * 10_000 + "1" + ")" * 10_000, "NF110"),
    "minus": (HEAD + "x = " + "-" * 100_000 + "1", "NF004"),
    "fewer minus": (HEAD + "x = " + "-" * 5_000 + "1", "NF110"),
    "not": (HEAD + "x = " + "not " * 5_000 + "1", "NF110"),
    "powers": (HEAD + "x = " + "^".join(["1"] * 5_000), "NF110"),
    "sums": (HEAD + "x = " + "+".join(["1"] * 5_000), "NF110"),
    "choices": (HEAD + "x = " + "1 if a else " * 5_000 + "1", "NF110"),
    "else ifs": (HEAD + "if a { x = 1 }" + " else if a { x = 1 }" * 1_000, "NF110"),
    "blocks": (HEAD + "if a {\n" * 10_000, "NF110"),
    "attributes": (HEAD + "x = a" + ".a" * 5_000, "NF110"),
    "calls": (HEAD + "x = a" + "(1)" * 5_000, "NF110"),
    "stray braces": (HEAD + "}\n" * 5_000, "NF106"),
    "digits": (HEAD + "x = " + "9" * 5_000, "NF109"),
    "huge float": (HEAD + "x = 1e999", "NF109"),
    "words": (HEAD + "x = f(a, b)\n" * 60_000, "NF004"),
    "characters": ("x" * 1_000_001, "NF004"),
    "quotes": (HEAD + "x = " + "'a " * 5_001, "NF107"),
    "strange signs": (HEAD + "x = " + "$" * 50_000, "NF108"),
    "zero byte": (HEAD + "x = \0", "NF115"),
    "direction": (HEAD + "x = \u202e3", "NF115"),
    "zero width": (HEAD + "a\u200bb = 3", "NF115"),
    "old line ends": ("nestflow 1\rx = 3", "NF115"),
    "half a character": (HEAD + "x = \ud800", "NF115"),
    "yaml, open": (Y + "let: {x: " + "[" * 5_000, "NF110"),
    "yaml, closed": (Y + "let: {x: " + "[" * 5_000 + "]" * 5_000 + "}", "NF110"),
    "yaml, blocks": (Y + "let:\n" + "".join("  " * (i + 1) + "a:\n" for i in range(150)), "NF110"),
    "yaml, alias bomb": (BOMB, "NF124"),
    "yaml, alias of itself": (Y + "let: {x: &a [*a]}", "NF124"),
    "yaml, brackets in an entry": (Y + "let: {x: '" + "(" * 5_000 + ")" * 5_000 + "'}", "NF110"),
    "yaml, minus in an entry": (Y + "let: {x: " + "-" * 5_000 + "1}", "NF110"),
    "yaml, tag": (Y + "let: {x: !!python/name:os.system ls}", "NF122"),
    "yaml, two documents": (Y + "---\nnestflow: 1\n", "NF120"),
    "yaml, anchor nobody set": (Y + "let: {x: *y}", "NF120"),
}


@pytest.mark.parametrize("title", WRONG)
def test_refused(title: str) -> None:
    text, code = WRONG[title]
    with pytest.raises(NestflowError) as caught:
        read_text(text)
    assert caught.value.diagnostics[0].code == code
    shown = str(caught.value)
    assert len(shown) < 20_000 and all(len(line) < 500 for line in shown.splitlines())


def test_a_name_is_composed() -> None:
    spec = parse_nl(HEAD + "e\u0301 = 3\ny = \u00e9", "a.nl")
    assert spec.body[0].names == ("\u00e9",)  # type: ignore[attr-defined]
    assert spec.body[1].value.name == "\u00e9"  # type: ignore[attr-defined]


def test_line_ends_of_windows() -> None:
    spec = parse_nl("nestflow 1\r\nlevel a {\r\n  key x |>\r\n    f\r\n}\r\n", "a.nl")
    assert spec == parse_nl("nestflow 1\nlevel a { key x |> f }", "a.nl")


def test_many_aliases_of_small_things_are_fine() -> None:
    read_text(Y + "let:\n  a: &a f(x)\n" + "".join(f"  b{i}: *a\n" for i in range(500)))


def test_dicts() -> None:
    loop: dict[str, object] = {"nestflow": 1}
    loop["let"] = loop
    for d, code in (
        (loop, "NF110"),
        ({"nestflow": 1, "let": {"x": object()}}, "NF125"),
        ({1: 2}, "NF125"),
        ({"nestflow": 1, "let": {"x": 1j}}, "NF125"),
        ({}, "NF102"),
        ({"nestflow": 1, "let": {"x": "\u202e"}}, "NF115"),
    ):
        with pytest.raises(NestflowError) as caught:
            from_dict(d)  # type: ignore[arg-type]
        assert caught.value.diagnostics[0].code == code
