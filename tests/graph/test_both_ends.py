"""A clash shows both its ends; a shape that does not fit is drawn under each part."""

from __future__ import annotations

import pytest

from nestflow.diagnostics.render import render
from tests.graph.building import flow, graph, level, mistake


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({"every": "3 tokens", "chunk": "4"}, ("chunk 4", "every 3 tokens")),
        ({"query": "x |> linear(5)"}, ("query x |> linear(5)", "key ")),
        ({"memory": "matrix(3, 8)"}, ("l2", "value ")),
        ({"every": "2 steps"}, ("steps", "(x)")),
    ],
)
def test_both_ends(fields: dict[str, str], ends: tuple[str, str]) -> None:
    d = mistake(lambda: level(**fields))
    assert d.span is not None and ends[0] in d.span.text
    assert [r.span.text.startswith(ends[1]) or ends[1] in r.span.text for r in d.related] == [True]
    assert d.related[0].span.text in render(d)


def test_shapes_are_drawn_under_the_parts() -> None:
    d = mistake(lambda: flow("return x + linear(x, 7) * 2"))
    lines = render(d).splitlines()
    at = next(i for i, line in enumerate(lines) if "^" in line)
    column = lines[at].index("^")
    assert lines[at + 1][column:] == "-   ---------------- float[T, 7]"
    assert lines[at + 2][column:] == "float[T, 8]"


def test_three_parts() -> None:
    d = mistake(lambda: flow("return concat(x, outer_product(x, x), x)"))
    lines = render(d).splitlines()
    at = next(i for i, line in enumerate(lines) if "^" in line)
    assert [line.split("|", 1)[1].strip() for line in lines[at + 1 : at + 4]] == [
        "-  -------------------  - float[T, 8]",
        "|  float[T, 8, 8]",
        "float[T, 8]",
    ]


def test_parts_on_several_lines_have_pictures_of_their_own() -> None:
    d = mistake(lambda: graph("input x : float[T, 8]\noutput f(x)\nflow f(x) {\n  return x +\n    linear(x, 7)\n}\n"))
    shown = render(d)
    assert "= note: float[T, 8]" in shown and "= note: float[T, 7]" in shown
