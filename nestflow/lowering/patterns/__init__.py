"""The patterns, fastest first. Each is a function (memory, errors, setting) -> the linear rules of its tensors, or a
sentence that says why it does not apply. A new pattern is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nestflow.graph.model import Memory
from nestflow.lowering.errors import Errors
from nestflow.lowering.linear_rule import LinearRule
from nestflow.lowering.patterns.cache import cache
from nestflow.lowering.patterns.chunk import chunk
from nestflow.lowering.patterns.delta import delta
from nestflow.lowering.patterns.frozen import frozen
from nestflow.lowering.patterns.recurrence import recurrence
from nestflow.lowering.patterns.scan import scan
from nestflow.lowering.patterns.setting import Setting

Pattern = Callable[[Memory, Errors, Setting], "Mapping[str, LinearRule] | str"]

PATTERNS: dict[str, Pattern] = {
    "cache": cache,
    "frozen": frozen,
    "recurrence": recurrence,
    "delta": delta,
    "chunk": chunk,
    "scan": scan,
}

__all__ = ["PATTERNS", "Pattern", "Setting"]
