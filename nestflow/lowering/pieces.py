"""Flows that read a level (`m.read(x)`) go through their input piece by piece: how long the pieces are."""

from __future__ import annotations

import math

from nestflow.graph.model import Instance
from nestflow.ir.node import walk


def piece_size(instance: Instance) -> int:
    """The pieces in which a flow that reads a level goes through its input: they end at multiples of it. 0: no need."""
    read = [c for _, c in instance.children if c.kind == "read"]
    chunks = [m.chunk for c in read for m in c.seen if m.rule is not None and m.name in recalled(c)]
    return math.gcd(*chunks)


def recalled(reader: Instance) -> set[str]:
    """The memories that a reading looks at."""
    return {n["memory"] for n in walk(reader.result) if n.op == "recall"} if reader.result is not None else set()


__all__ = ["piece_size", "recalled"]
