"""The text of a spec's file, for commands that rewrite it."""

from __future__ import annotations

import sys
from pathlib import Path


def read_spec_text(file: Path) -> str:
    """The text of a .nl or YAML file, or stdin for `-`. Raises NestflowError NF0xx as reading a spec does."""
    from nestflow.language.reader import MAX_BYTES, read_file, source_of

    if str(file) == "-":
        if sys.stdin is None:
            return ""
        return source_of(sys.stdin.buffer.read(MAX_BYTES + 1), Path("-")).text

    return read_file(file).source.text
