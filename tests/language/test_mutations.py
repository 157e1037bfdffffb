"""Texts with random damage: a tree or diagnostics with places inside the text, and never anything else."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from nestflow.diagnostics.core import NestflowError
from nestflow.diagnostics.render import as_json
from nestflow.language.fmt import convert_text, format_text
from nestflow.language.nl import parse_nl
from nestflow.language.yaml import parse_yaml

CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.*"))
PIECES = list("()[]{}|>=+-*/^.,:;\"'# \n\t@%<&!?\\") + [
    "|>",
    "if ",
    "else ",
    " of ",
    " in ",
    "level ",
    "- ",
    ": ",
    "not ",
    "##",
    "}}",
    "1e",
]


def damaged(text: str, random: Random) -> str:
    """One to three small changes, as a slip of the hand makes them."""
    for _ in range(random.randint(1, 3)):
        at, length = random.randrange(len(text)), random.choice([0, 0, 1, 1, 2, 8])
        new = random.choice([*PIECES, "", ""]) if length else random.choice(PIECES)
        if random.random() < 0.1:
            new = text[at : at + 40]
        text = text[:at] + new + text[at + length :]
    return text


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.name)
def test_damage(path: Path) -> None:
    random = Random(path.name + "b")
    whole = path.read_text(encoding="utf-8")
    parse = parse_nl if path.suffix == ".nl" else parse_yaml
    wrong = 0
    for _ in range(60):
        text = damaged(whole, random)
        try:
            spec = parse(text, path.name)
        except NestflowError as e:
            wrong += 1
            assert e.diagnostics and str(e)
            for record in as_json(e.diagnostics):
                assert record["file"] == path.name and 0 <= record["start"] <= record["end"] <= len(text)
        else:
            assert parse(format_text(text, path.name), path.name) == spec
            assert convert_text(convert_text(text)) == convert_text(convert_text(convert_text(convert_text(text))))
    assert wrong > 10
