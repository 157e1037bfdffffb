"""Each word of the language is documented, and its example runs."""

from __future__ import annotations

import re

import pytest
import torch

import nestflow
from nestflow.diagnostics.core import NestflowError
from nestflow.vocabulary import WORDS
from nestflow.vocabulary.examples import EXAMPLES, spec
from nestflow.vocabulary.fields import SYNTAX

# Words without an example: a network or leave to run Python is needed, or what they need is being built.
WITHOUT = {"extern", "py", "per", "w_in"}


@pytest.mark.parametrize("name", [*SYNTAX, *WORDS])
def test_a_word_says_what_it_is(name: str) -> None:
    w = SYNTAX.get(name) or WORDS[name]
    assert w.signature.startswith(name) and len(w.doc.split()) >= 1
    if w.kind == "field" and name not in ("key", "value", "query", "step", "set", "eval", "keep", "memory", "update"):
        assert "efault" in w.doc or "must be written" in w.doc, "say the default"


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
        i.name: torch.randint(16, (2, 5))
        if i.type.dtype == "int"
        else torch.randn(2, *((5,) if i.type.clock else ()), *i.type.shape)
        for i in b.graph.inputs
    }
    y = b.module(**inputs)
    assert torch.isfinite(y).all()
    if b.graph.levels and "loss" in text:
        assert torch.isfinite(torch.as_tensor(b.step(inputs)["loss"]))
