"""The reference is made from the records of the words; each word is documented, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import nestflow
from nestflow.diagnostics.core import NestflowError
from nestflow.editor.reference import PAGES, pages, records
from nestflow.vocabulary import WORDS
from nestflow.vocabulary.examples import EXAMPLES, spec
from nestflow.vocabulary.fields import SYNTAX

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"
# Words without an example yet: what they need is being built.
WITHOUT = {"per", "clock", "extern", "w_in"}


def test_pages_are_up_to_date() -> None:
    made = pages()
    assert {p.name for p in FOLDER.glob("*.md")} == set(made), "run python -m nestflow.editor.make"
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: run python -m nestflow.editor.make"


def test_every_word_is_on_one_page() -> None:
    found = [w.name for kinds in PAGES.values() for w in records(kinds[1])]
    assert sorted(found) == sorted([*WORDS, *SYNTAX])


@pytest.mark.parametrize("name", [*SYNTAX, *WORDS])
def test_a_word_says_what_it_is(name: str) -> None:
    w = SYNTAX.get(name) or WORDS[name]
    assert w.signature.startswith(name) and len(w.doc.split()) >= 1
    if w.kind == "field" and name not in ("key", "value", "query", "step", "set", "eval", "keep", "memory", "update"):
        assert "efault" in w.doc or "must be written" in w.doc, "say the default"


def test_links_of_the_reference_lead_somewhere() -> None:
    made = pages()
    for name, text in made.items():
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]*))?\)", text):
            assert not target or (FOLDER / target).exists(), f"{name}: {target}"
            page = made.get(target or name)
            if anchor and page:
                assert re.search(rf"^## {re.escape(anchor)}$", page, re.MULTILINE | re.IGNORECASE), f"{name}: #{anchor}"


def test_every_word_has_an_example() -> None:
    missing = {*WORDS, *SYNTAX} - set(EXAMPLES) - WITHOUT
    assert not missing, f"give {sorted(missing)} a line in nestflow/vocabulary/examples.py"
    assert not set(EXAMPLES) - {*WORDS, *SYNTAX}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str) -> None:
    text = spec(name)
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", EXAMPLES[name][1]), "the line does not use the word"
    try:
        b = nestflow.compile(text)
    except NestflowError as e:
        pytest.fail(f"{e}\n\n{text}")
    torch.manual_seed(0)
    inputs = {
        i.name: torch.randn(2, 5, 8) if i.type.dtype == "float" else torch.randint(16, (2, 5)) for i in b.graph.inputs
    }
    y = b.module(**inputs)
    assert torch.isfinite(y).all()
    if b.graph.levels and "loss" in text:
        assert torch.isfinite(torch.as_tensor(b.step(inputs)["loss"]))
