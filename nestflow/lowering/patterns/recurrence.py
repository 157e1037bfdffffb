"""Errors that do not read the state, a linear rule: a linear recurrence, a block of ticks at once, whatever the chunk.

Linear attention, RetNet, gates of heads (Mamba-2) with any momentum on top of them, gates of key channels (GLA, HGRN2:
`nestflow.ops.recurrence`).
"""

from __future__ import annotations

from nestflow.graph.model import Memory
from nestflow.lowering.errors import Errors
from nestflow.lowering.linear_rule import LinearRule
from nestflow.lowering.patterns.setting import Setting, linear_rules, reads_memories


def recurrence(m: Memory, errors: Errors, setting: Setting) -> dict[str, LinearRule] | str:
    if m.kind == "cache":
        return "a cache"
    if not errors.free:
        return "its error depends on what it has stored"
    if reads_memories(m):
        return "its context recalls memories of the level"
    rules = linear_rules(m, errors)
    if isinstance(rules, str):
        return rules
    if any(r.dgd is not None for r in rules.values()):
        return "dgd erases what it has stored"
    return rules
