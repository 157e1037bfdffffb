"""Draws: functions of (seed, path, step, tick, row), so that splits, resumes and executions agree (language.md §3.10).

  uniform(; path) noise(; path)     a draw for each row, tick, head and feature: flat on [0, 1), normal
  dropout(x; p, path)               while training, 0 with probability p, else x / (1 − p)
path is relative to the enclosing instance.
"""

from __future__ import annotations

from nestflow.diagnostics.core import Span
from nestflow.ir.node import Node, Type, make
from nestflow.ir.shapes import sized


def draws(kind: str, like: Type, path: str, span: Span | None = None) -> Node:
    """uniform or noise with the axes of `like`, and always one of rows."""
    type_ = like.with_(dtype="float", shape=sized(like.shape), batch=True, like=False)
    return make(kind, (), type_, span, path=path)


def dropout(x: Node, p: float, path: str, span: Span | None = None) -> Node:
    """x, of which a share p is lost while training."""
    return make("dropout", (x,), x.type.with_(dtype="float", batch=True), span, p=p, path=path)
