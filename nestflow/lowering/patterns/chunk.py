"""Any memory whose errors are taken at its chunk's first state, any linear rule: all errors of a chunk at once, then
the rule in closed form; recalls see each tick's own state without forming it. Titans, TTT, Hope."""

from __future__ import annotations

from nestflow.graph.model import Memory
from nestflow.lowering.errors import Errors
from nestflow.lowering.linear_rule import LinearRule
from nestflow.lowering.patterns.setting import Setting, linear_rules


def chunk(m: Memory, errors: Errors, setting: Setting) -> dict[str, LinearRule] | str:
    if m.kind == "cache":
        return "a cache"
    if m.chunk <= m.every:
        return (
            "chunk 1: each error is taken at the state the tick before left"
            if m.chunk == 1
            else f"chunk = every = {m.chunk}: it learns once per chunk, from the sum"
        )
    if m.decay_first:
        return "`decay_first` takes errors at a state that every tick decays"
    return linear_rules(m, errors)
