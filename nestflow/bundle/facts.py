"""What a module asks of its graph: how its loops are run, whether it looks ahead."""

from __future__ import annotations

from typing import Any

from nestflow.graph.model import LevelGraph
from nestflow.ops.room import Room
from nestflow.ops.runtime import How


def how(graph: LevelGraph) -> How:
    """What the spec's `execution` says of its loops."""
    said = dict(graph.execution)
    kept = said.get("checkpointing")
    segment = -1 if kept == "auto" else 0 if kept in (None, "none") else kept
    return How(segment, said.get("compile", False), Room() if kept is None else None)


def looks_ahead(graph: LevelGraph) -> Any:
    """Where the spec has attention to later tokens, or None."""
    caches = (m for i in graph.root.streamed() for m in i.memories if m.cache is not None and not m.cache.causal)
    return next((m.span for m in caches), None)
