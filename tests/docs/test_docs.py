"""Every ```nl, ```yaml and ```python block of the README and of docs/ is checked or run, in the order of its page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import nestflow
from nestflow.language.shipped import specs_dir

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)```", re.DOTALL)
_COMMAND = re.compile(r"^nestflow (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    file: str | None
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["kind"], m["text"], m["file"], text.count("\n", 0, m.start("text")) + 1) for m in _BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        if block.kind in ("nl", "yaml"):
            nestflow.check(block.file or block.text)
        elif block.kind == "python":
            # line numbers of the page, so that a failure points into it
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, names)
        else:
            assert block.kind in ("sh", "text"), f"{page.name}:{block.line}: say what this block is"


def test_pages_have_blocks() -> None:
    assert sum(b.kind == "nl" for p in PAGES for b in blocks(p)) >= 8
    assert sum(b.kind == "python" for p in PAGES for b in blocks(p)) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page: Path) -> None:
    from nestflow.cli.main import COMMANDS

    for block in blocks(page):
        if block.kind == "sh":
            for name in _COMMAND.findall(block.text):
                assert name in COMMANDS, f"{page.name}:{block.line}: there is no `nestflow {name}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: `{target}` is not there"


def test_the_readme_names_every_architecture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (specs_dir() / "architectures").glob("*.nl"):
        assert f"`{path.stem}`" in text


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.nl")), ids=lambda p: p.name)
def test_example_checks_compiles_and_trains(path: Path) -> None:
    b = nestflow.compile(path)
    b.set_total_steps(4)
    g = torch.Generator().manual_seed(0)
    batch = {i.name: drawn(i, g, max(2, b.graph.shares)) for i in b.graph.inputs}
    losses = [b.step(batch)["loss"] for _ in range(4)]
    assert losses[-1] < losses[0]


def drawn(i: Any, g: torch.Generator, rows: int) -> torch.Tensor:
    """An input of an example, within its bounds."""
    shape = (rows, *([24] if i.type.clock else []), *i.type.shape)
    if i.type.dtype == "int":
        return torch.randint(int(i.low or 0), 1 + int(i.high or 255), shape, generator=g)
    x = torch.randn(shape, generator=g)
    return x > 0 if i.type.dtype == "bool" else x
