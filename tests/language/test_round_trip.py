"""What is printed is read again as the same tree, in both front ends; printing twice changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from nestflow.language import tree as T
from nestflow.language.expressions import expression
from nestflow.language.fmt import convert_text, format_text
from nestflow.language.nl import parse_expression, parse_nl
from nestflow.language.printer import print_nl, print_yaml
from nestflow.language.reader import looks_like_yaml, read_file
from nestflow.language.shipped import shipped_files
from nestflow.language.yaml import parse_yaml
from tests.language.trees import expressions, specs

CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.*"))
SHIPPED = sorted(shipped_files().values())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(expressions)
def test_expressions(e: T.Expr) -> None:
    assert parse_expression(expression(e)) == e


@settings(max_examples=300, deadline=None, derandomize=True)
@given(specs)
def test_nl(spec: T.Spec) -> None:
    text = print_nl(spec)
    again = parse_nl(text, "a.nl")
    assert again == spec
    assert print_nl(again) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(specs)
def test_yaml(spec: T.Spec) -> None:
    text = print_yaml(spec)
    again = parse_yaml(text, "a.yaml")
    assert again == spec
    once = print_yaml(again)
    assert print_yaml(parse_yaml(once, "a.yaml")) == once
    assert looks_like_yaml(text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(specs)
def test_there_and_back(spec: T.Spec) -> None:
    text = print_nl(spec)
    yaml = convert_text(text)
    assert parse_nl(convert_text(yaml), "b.nl") == spec
    for comment in [c for s in spec.body for c in s.comments]:
        assert f"# {comment}" in yaml


@pytest.mark.parametrize("path", CORPUS + SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    spec = read_file(path)
    assert spec.body
    formatted = format_text(text)
    assert format_text(formatted) == formatted
    assert parse_nl(print_nl(spec), "a.nl") == spec
    assert parse_yaml(print_yaml(spec), "a.yaml") == spec
    converted = convert_text(text)
    back = convert_text(converted)
    assert (parse_yaml(back, "b") if looks_like_yaml(text) else parse_nl(back, "b")) == spec


@pytest.mark.parametrize(
    "path", [p for p in CORPUS if p.suffix == ".nl"] + SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_comments_survive(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    kept = [line.split("#", 1)[1].strip("# ") for line in text.splitlines() if "#" in line and '"' not in line]
    formatted, converted = format_text(text), convert_text(text)
    for comment in kept:
        assert comment in formatted
        assert comment.replace("'", "''") in converted or comment in converted


@settings(max_examples=100, deadline=None, derandomize=True)
@given(specs)
def test_spans_are_exact(spec: T.Spec) -> None:
    """The text under each expression's span is that expression."""
    from nestflow.language.checks import children

    again = parse_nl(print_nl(spec), "a.nl")
    queue: list[T.Node] = list(again.body)
    while queue:
        node = queue.pop()
        assert node.span is not None
        queue.extend(children(node))
        if isinstance(node, T.Expr) and not isinstance(node, T.Slice):  # type: ignore[arg-type]
            assert parse_expression(node.span.text) == node
