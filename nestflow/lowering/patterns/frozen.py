"""`every never`: a memory that stays as it started."""

from __future__ import annotations

from nestflow.graph.model import Memory
from nestflow.lowering.errors import Errors
from nestflow.lowering.linear_rule import LinearRule
from nestflow.lowering.patterns.setting import Setting


def frozen(m: Memory, errors: Errors, setting: Setting) -> dict[str, LinearRule] | str:
    return {} if m.kind != "cache" and m.rule is None else "it learns"
