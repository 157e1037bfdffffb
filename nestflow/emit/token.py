"""The code of a stream that is fed one token at a time: the output alone, every memory advanced on its tensors.

At one tick closed forms have nothing to gain: a scan is the same numbers with fewer calls, and there is no loop.
"""

from __future__ import annotations

from nestflow.emit.inner import inner_levels
from nestflow.emit.model import emit_model
from nestflow.graph.model import LevelGraph
from nestflow.lowering.patterns import PATTERNS
from nestflow.lowering.plan import lower

ONE_BY_ONE = ("cache", "frozen", "scan")


def has_token(graph: LevelGraph) -> bool:
    """Whether one token of the spec is computed by code of its own: not where the model learns while it reads (that
    code goes token by token as it is), nor with axes beside the tokens'."""
    if graph.output is None or graph.reading or inner_levels(graph):
        return False
    if any(i.ticks for i in graph.root.walk()) or graph.output.type.short:
        return False
    return bool(graph.inputs) and all(i.type.clock == "T" for i in graph.inputs if i.name in graph.needed)


def emit_token(graph: LevelGraph) -> str:
    """The source of a module whose `forward` takes one token. Its state is that of `emit_model`."""
    return emit_model(graph, lower(graph, {n: PATTERNS[n] for n in ONE_BY_ONE}), one_token=True)
