"""Files of execution settings, as `nestflow tune` writes them: YAML, one setting a line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from nestflow.diagnostics.core import fail


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a file. Raises NF001 (no such file), NF325 (no mapping of settings)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is no UTF-8 text"
        raise fail(
            "NF001", f"`{path}` cannot be read: {reason}", help="`nestflow tune SPEC` writes such a file"
        ) from None
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as e:
        raise fail("NF325", f"`{path}` is no YAML: {str(e).splitlines()[0]}") from None
    if isinstance(found, dict) and set(found) == {"execution"}:
        found = found["execution"] or {}
    if not isinstance(found, dict) or not all(isinstance(n, str) for n in found):
        raise fail("NF325", f"`{path}` holds no settings of `execution`", help="one a line: `compile: true`")
    return found
