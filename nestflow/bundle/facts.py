"""What a module asks of its graph: how its loops are run, whether it draws, whether it looks ahead."""

from __future__ import annotations

from typing import Any

from nestflow.graph.model import LevelGraph
from nestflow.ir.node import walk
from nestflow.lowering.patterns.setting import context_of
from nestflow.ops.runtime import How


def how(graph: LevelGraph) -> How:
    """What the spec's `execution` says of its loops."""
    said = dict(graph.execution)
    kept = said.get("checkpointing", "none")
    return How(0 if kept == "none" else -1 if kept == "auto" else kept, said.get("compile", False))


def draws_at_random(graph: LevelGraph) -> bool:
    """Whether the spec has `dropout`, `noise`, `bernoulli`, `es`, or memories whose starts are drawn."""
    roots = [n for i in graph.root.walk() for n in (i.result, *(n for _, n in i.names)) if n is not None]
    roots += [n for i in graph.root.walk() for m in i.memories for n in context_of(m)]
    roots += [x.objective for x in graph.step_levels if x.objective is not None]
    drawn = any(s.drawn for s in graph.state)
    return drawn or any(n.op in ("uniform", "noise", "dropout", "es") for n in walk(*roots))


def looks_ahead(graph: LevelGraph) -> Any:
    """Where the spec has attention to later tokens, or None."""
    caches = (m for i in graph.root.streamed() for m in i.memories if m.cache is not None and not m.cache.causal)
    return next((m.span for m in caches), None)
