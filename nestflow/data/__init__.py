"""Text that ships with nestflow, so that training needs no network. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def shipped() -> list[str]:
    """Names of the shipped corpora, for example `shakespeare`."""
    return sorted(p.name for p in _HERE.iterdir() if p.is_dir() and any(p.glob("*.txt")))


def files_of(name: str) -> list[Path]:
    """The text files of a shipped corpus in a fixed order; empty if there is no such corpus."""
    return sorted((_HERE / name).glob("*.txt")) if name in shipped() else []
