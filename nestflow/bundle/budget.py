"""Nothing large is allocated unasked: a typo in a size is told before memory is taken."""

from __future__ import annotations

import math

from nestflow.diagnostics.core import fail
from nestflow.graph.model import LevelGraph

MOST_BYTES = 10**9
"""What `compile` makes without `allow_large`: parameters, and the state of one sequence."""


def check_size(graph: LevelGraph, item_bytes: int) -> None:
    """Raises NestflowError NF539 where a graph's weights and the state of one sequence are over `MOST_BYTES`.

    item_bytes: of one number of the weights' type."""
    parts = [
        (math.prod(w.shape) * (w.heads or 1), f"the weight `{w.path}`", w.shape, w.span)
        for w in graph.weights
        if w.role != "network"
    ]
    parts += [
        (math.prod(s.shape) * (s.heads or 1), f"the state `{s.path}`", s.shape, None)
        for s in graph.state
        if not s.grows
    ]
    total = sum(n for n, *_ in parts) * item_bytes
    if total <= MOST_BYTES:
        return
    n, what, shape, span = max(parts, key=lambda p: p[0])
    message = (
        f"`{graph.name}` asks for {sized(total)} of weights and state; {sized(MOST_BYTES)} are made without asking"
    )
    help = (
        f"{what} alone, {list(shape)}, is {sized(n * item_bytes)}: is a size a typo? "
        "`allow_large=True` (`--yes` on the command line) makes it all the same"
    )
    raise fail("NF539", message, span, help)


def sized(n: int) -> str:
    """`1.5 GB`: three digits and a unit of thousands."""
    value, unit = float(n), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB", "EB"):
        if value < 1000 or unit == "EB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"
