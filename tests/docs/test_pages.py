"""Each code has a page, and its snippets do what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nestflow

PACKAGE = Path(nestflow.__file__).parent
FOLDER = PACKAGE / "diagnostics" / "pages"
PAGES = sorted(FOLDER.glob("NF*.md"))
_CODE = re.compile(r'"(NF\d{3})"')
_PART = re.compile(r"^## (Wrong|Right)\n\n```(\w+)\n(.*?)```", re.MULTILINE | re.DOTALL)


def used_codes() -> set[str]:
    return {code for path in PACKAGE.rglob("*.py") for code in _CODE.findall(path.read_text(encoding="utf-8"))}


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    pages = {p.stem for p in PAGES}
    assert not used_codes() - pages, "codes without a page"
    assert not pages - used_codes(), "pages whose code is not used"


def parts(page: Path) -> dict[str, tuple[str, str]]:
    return {m[1]: (m[2], m[3]) for m in _PART.finditer(page.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_page_is_whole(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    title, what, why = text.split("\n\n")[:3]
    assert re.fullmatch(rf"# {page.stem}: \S.*", title)
    assert what and why and not why.startswith("#")
    found = parts(page)
    assert set(found) == {"Wrong", "Right"}
    assert found["Wrong"] != found["Right"]
    assert all(kind in ("nl", "yaml", "sh", "python", "text") for kind, _ in found.values())


def told(text: str) -> set[str]:
    """The codes of all mistakes, or else of the notes."""
    try:
        return {d.code for d in nestflow.check(text).notes}
    except nestflow.NestflowError as e:
        return {d.code for d in e.diagnostics}


@pytest.mark.parametrize("page", [p for p in PAGES if parts(p)["Wrong"][0] in ("nl", "yaml")], ids=lambda p: p.stem)
def test_wrong_raises_the_code(page: Path) -> None:
    assert page.stem in told(parts(page)["Wrong"][1])


@pytest.mark.parametrize("page", [p for p in PAGES if parts(p)["Right"][0] in ("nl", "yaml")], ids=lambda p: p.stem)
def test_right_checks(page: Path) -> None:
    graph = nestflow.check(parts(page)["Right"][1])
    assert page.stem not in {d.code for d in graph.notes}
