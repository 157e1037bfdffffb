"""Files of execution settings, as `nestflow tune` writes them: YAML, one setting a line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nestflow.diagnostics.core import fail
from nestflow.graph.execution import problem


def told(execution: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any]:
    """Settings of `execution` from Python or a file, checked. Raises NestflowError NF325, NF001 (no such file)."""
    from_file = isinstance(execution, (str, os.PathLike))
    given = read(execution) if isinstance(execution, (str, os.PathLike)) else execution or {}
    if not isinstance(given, Mapping):
        raise fail("NF325", f"`execution` is a mapping from settings to values, not {given!r:.60}")
    wrong = problem(given)
    if wrong is not None:
        raise fail("NF325", wrong[0] + (f", in `{execution}`" if from_file else ""), help=wrong[1])
    return dict(given)


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
        twice = _twice(yaml.compose(text))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        why = getattr(e, "problem", None) or str(e).splitlines()[0]
        raise fail("NF325", f"`{path}` is no YAML{where}: {why}", help="one setting a line: `compile: true`") from None
    if twice is not None:
        raise fail("NF325", f"`{twice}` stands twice in `{path}`", help="delete one of the two")
    if isinstance(found, dict) and set(found) == {"execution"}:
        found = found["execution"] or {}
    if not isinstance(found, dict) or not all(isinstance(n, str) for n in found):
        raise fail("NF325", f"`{path}` holds no settings of `execution`", help="one a line: `compile: true`")
    return found


def _twice(node: yaml.Node | None) -> str | None:
    """A key that one mapping has two times, of which YAML would take the last without a word."""
    if not isinstance(node, yaml.MappingNode):
        return None
    keys = [key.value for key, _ in node.value]
    below = (_twice(value) for _, value in node.value)
    return next((k for k in keys if isinstance(k, str) and keys.count(k) > 1), None) or next(filter(None, below), None)
