"""Every page of the zoo: it says its equations and its paper, it is short, and a loop of the paper holds it."""

from __future__ import annotations

import re

import pytest

from nestflow.language import tree
from nestflow.language.reader import read_file
from nestflow.language.shipped import specs_dir
from tests.zoo import test_attention, test_cms
from tests.zoo.layers import LAYERS

PAGES = sorted(p.stem for p in (specs_dir() / "architectures").glob("*.nl"))
SHARED = re.compile(r"block|model|outer|loss|cms_.*")  # declarations that pages have in common
ELSEWHERE = {
    "titans_mac": "tests/zoo/test_titans_mac.py",
    "hope": "tests/zoo/test_hope.py",
    "samba": "tests/zoo/test_attention.py",
    "hybrid": "tests/zoo/test_attention.py: titans and swa, in turn as in samba",
    "hope_attention": "tests/zoo/test_attention.py: transformer's attention; tests/specs: MLPs at their steps",
    "cms_stack": "tests/networks/test_cms_stack.py",
}


@pytest.mark.parametrize("name", PAGES)
def test_says_its_equations_and_its_paper(name: str) -> None:
    doc = read_file(specs_dir() / "architectures" / f"{name}.nl").doc or ""
    assert re.search(r"^     ?\S.*[=←]", doc, re.MULTILINE), "an equation, indented by four"
    assert re.search(r"\b(19|20)\d\d, \"[A-Z]", doc), "authors, year, title"


@pytest.mark.parametrize("name", PAGES)
def test_is_short(name: str) -> None:
    """At most 40 lines beside its comments, its params and what pages share."""
    path = specs_dir() / "architectures" / f"{name}.nl"
    lines = path.read_text(encoding="utf-8").splitlines()
    left = {i for i, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith(("#", "param "))}
    for s in statements(read_file(path).body):
        if SHARED.fullmatch(str(getattr(s, "name", ""))) and s.span is not None:
            left -= set(range(s.span.line, s.span.line + s.span.text.count("\n") + 1))
    assert len(left) <= 40, len(left)


def statements(body: object) -> list[tree.Node]:
    """Those at the top, and inside `for` and `if` at the top."""
    found: list[tree.Node] = []
    for s in body if isinstance(body, (list, tuple)) else ():
        found.append(s)
        for inner in ("body", "otherwise"):
            if type(s).__name__ in ("For", "If"):
                found += statements(getattr(s, inner, ()))
    return found


def test_each_is_held_to_its_paper() -> None:
    held = {n.partition(",")[0] for n in (*LAYERS, *test_attention.CASES, *test_cms.NAMES, *ELSEWHERE)}
    assert held == set(PAGES)
