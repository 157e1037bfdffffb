"""The reference is made from the records of the words."""

from __future__ import annotations

import re
from pathlib import Path

from nestflow.editor.make import picture
from nestflow.editor.reference import PAGES, pages, records
from nestflow.vocabulary import WORDS
from nestflow.vocabulary.fields import SYNTAX

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"


def test_pages_are_up_to_date() -> None:
    made = pages()
    assert {p.name for p in FOLDER.glob("*.md")} == set(made), "run python -m nestflow.editor.make"
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: run python -m nestflow.editor.make"


def test_the_readme_shows_hope_as_it_is() -> None:
    drawn = (ROOT / "docs" / "hope.svg").read_text(encoding="utf-8")
    assert drawn == picture(), "run python -m nestflow.editor.make"


def test_every_word_is_on_one_page() -> None:
    found = [w.name for kinds in PAGES.values() for w in records(kinds[1])]
    assert sorted(found) == sorted([*WORDS, *SYNTAX])


def test_links_of_the_reference_lead_somewhere() -> None:
    made = pages()
    for name, text in made.items():
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]*))?\)", text):
            assert not target or (FOLDER / target).exists(), f"{name}: {target}"
            page = made.get(target or name)
            if anchor and page:
                assert re.search(rf"^## {re.escape(anchor)}$", page, re.MULTILINE | re.IGNORECASE), f"{name}: #{anchor}"
