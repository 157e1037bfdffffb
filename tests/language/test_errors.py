"""All that is said about wrong texts, in one file that people review: errors.expected.

NESTFLOW_UPDATE=1 writes it anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nestflow.diagnostics.core import NestflowError
from nestflow.language.nl import parse_nl
from nestflow.language.yaml import parse_yaml

HERE = Path(__file__).parent
EXPECTED = HERE / "errors.expected"


def cases() -> dict[str, str]:
    """The wrong texts by their titles."""
    parts = re.split(r"^=== (.*)\n", (HERE / "wrong.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def said(title: str, text: str) -> NestflowError:
    """What reading a wrong text raises."""
    with pytest.raises(NestflowError) as caught:
        if title.startswith("yaml: "):
            parse_yaml(text, "wrong.yaml")
        else:
            parse_nl(text, "wrong.nl")
    return caught.value


def test_golden() -> None:
    shown = "\n".join(f"=== {title}\n{said(title, text)}\n" for title, text in cases().items())
    if os.environ.get("NESTFLOW_UPDATE") == "1":
        EXPECTED.write_text(shown, encoding="utf-8")
    assert shown == EXPECTED.read_text(encoding="utf-8")
    assert len(cases()) >= 40


@pytest.mark.parametrize("title", cases())
def test_every_mistake_has_a_code_a_place_and_a_way_out(title: str) -> None:
    text = cases()[title]
    for d in said(title, text).diagnostics:
        assert re.fullmatch(r"NF[01]\d\d", d.code)
        assert d.span is not None and 0 <= d.span.start <= d.span.end <= len(text)
        assert d.help
        assert d.message[0] in '`"' or d.message[0].islower() or d.message.startswith("U+")


ONE_EACH = [
    t
    for t in cases()
    if t
    not in (
        "reserved word as a name",
        "and of C",
        "several mistakes in one text",
        "dot without a name",
        "inside a body whose head is wrong",
        "param without a default",
        "yaml: statement smuggled into an entry",
        "yaml: mistake inside an entry",
    )
]


@pytest.mark.parametrize("title", ONE_EACH)
def test_one_mistake_is_one_error(title: str) -> None:
    assert len(said(title, cases()[title]).diagnostics) == 1


def test_several_mistakes_are_told_in_one_run() -> None:
    found = said("several", cases()["several mistakes in one text"]).diagnostics
    assert [d.span.line for d in found if d.span] == [4, 5, 6, 8, 9]
