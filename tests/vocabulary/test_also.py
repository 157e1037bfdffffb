"""The words of other libraries lead to nestflow's: each `also` of each record, typed where a person would type it."""

from __future__ import annotations

import re

import pytest

import nestflow
from nestflow.vocabulary import WORDS, Word
from nestflow.vocabulary.fields import SYNTAX

HEAD = "nestflow 1\ninput x : float[T, 8]\noutput a(x)\n"
LEVEL = (
    "level a(x) {\n  every 1 token\n  memory matrix\n  key x\n  value x\n  query x\n  objective l2\n  update gd(0.1)\n"
)
ALL = [*SYNTAX.values(), *WORDS.values()]


def typed(w: Word, word: str) -> str:
    """A spec that says `word` where nestflow says `w`."""
    if w.kind == "field":
        return HEAD + LEVEL + f"  {word} 0.9\n}}\n"
    if w.kind == "statement":
        return HEAD + LEVEL + f"}}\n{word} zz {{ }}\n"
    if w.kind == "memory":
        return (HEAD + LEVEL + "}\n").replace("memory matrix", f"memory {word}")
    if w.kind == "objective":
        return (HEAD + LEVEL + "}\n").replace("objective l2", f"objective {word}")
    return HEAD + LEVEL + f"  zz = {word}(x)\n}}\n"


@pytest.mark.parametrize(("word", "also"), [(w, a) for w in ALL for a in w.also], ids=lambda v: getattr(v, "name", v))
def test_a_word_of_others_leads_here(word: Word, also: str) -> None:
    with pytest.raises(nestflow.NestflowError) as caught:
        nestflow.check(typed(word, also))
    said = " ".join(f"{d.message} {d.help or ''}" for d in caught.value.diagnostics)
    meant = [w.name for w in ALL if also in w.also]
    assert any(re.search(rf"`[^`]*(?<!\w){re.escape(m)}(?!\w)[^`]*`", said) for m in meant), said


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("forget 0.9", "retain"),
        ("decay 0.9", "retain"),
        ("loss l2", "objective"),
        ("optimizer adam(1e-3)", "update"),
        ("zz = detach(x)", "stop"),
        ("zz = stop_gradient(x)", "stop"),
        ("zz = sg(x)", "stop"),
        ("freeze true", "every never"),
        ("memory attention", "cache"),
        ("memory kv_cache", "cache"),
        ("inner_steps 5", "rounds"),
        ("zz = aux_loss(x)", "emit"),
        ("zz = x ** 2", "a ^ b"),
    ],
)
def test_the_words_people_type(line: str, meant: str) -> None:
    text = LEVEL.replace("  memory matrix\n", "") if line.startswith("memory") else LEVEL
    with pytest.raises(nestflow.NestflowError) as caught:
        nestflow.check(HEAD + text + f"  {line}\n}}\n")
    assert re.search(rf"`[^`]*{re.escape(meant)}[^`]*`", str(caught.value)), str(caught.value)
