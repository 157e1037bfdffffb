"""The text of a spec's file, for commands that rewrite it."""

from __future__ import annotations

import sys
from pathlib import Path


def read_spec_text(file: Path) -> str:
    """The text of a .nl or YAML file, or stdin for `-`. Raises NestflowError NF0xx as reading a spec does."""
    if str(file) == "-":
        return sys.stdin.read()
    from nestflow.language.reader import read_file

    return read_file(file).source.text
