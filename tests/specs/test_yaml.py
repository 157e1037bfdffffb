"""The four specs of the paper's main line in YAML are the same trees as in .nl."""

from __future__ import annotations

import pytest

from nestflow.language.fmt import format_text
from nestflow.language.reader import read_file
from nestflow.language.shipped import find_shipped, specs_dir

TWINS = ["architectures/hope", "architectures/titans", "architectures/linear_attention", "optimizers/adam"]


@pytest.mark.parametrize("name", TWINS)
def test_twin_is_the_same_tree(name: str) -> None:
    nl, yaml = (read_file(specs_dir() / f"{name}.{suffix}") for suffix in ("nl", "yaml"))
    assert nl == yaml


@pytest.mark.parametrize("name", TWINS)
def test_the_name_means_the_nl(name: str) -> None:
    assert find_shipped(name.rsplit("/", 1)[-1])[1].suffix == ".nl"


def test_every_yaml_spec_is_a_twin() -> None:
    found = {p.relative_to(specs_dir()).with_suffix("").as_posix() for p in specs_dir().rglob("*.yaml")}
    assert found == set(TWINS)


def test_shipped_specs_parse_and_print_to_themselves() -> None:
    for path in sorted(specs_dir().rglob("*.nl")):
        text = path.read_text(encoding="utf-8")
        once = format_text(text, path.name)
        assert format_text(once, path.name) == once
