"""What memories `per model` hold: one copy that all rows write. The module keeps it, and it is saved with its weights.

Generated code has the copy in every row, and the rows stay equal, since each learns from the sum of what all bring.
A call goes on from what the module keeps, whatever the state that it is given holds at these paths.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nestflow.graph.model import LevelGraph, StateSlot
from nestflow.graph.state import AGE, MODEL

KINDS = {"int": torch.int64, "bool": torch.bool}


def lasting_slots(graph: LevelGraph) -> tuple[StateSlot, ...]:
    """The part of the state of a stream that the module keeps."""
    return tuple(s for s in graph.state if s.per == "model")


def parameters(
    graph: LevelGraph, dtype: torch.dtype, device: torch.device | str | None
) -> list[tuple[str, nn.Parameter]]:
    """Where the module keeps it: path -> tensor without gradients, and the ticks seen. Nothing is in them before the
    first call, which begins with the starts."""
    slots = lasting_slots(graph)
    made = [
        (s.path, torch.zeros(((s.heads,) if s.heads else ()) + s.shape, dtype=KINDS.get(s.dtype, dtype), device=device))
        for s in slots
    ]
    made += [(AGE, torch.zeros((), dtype=torch.int64, device=device))] if slots else []
    return [(MODEL + path, nn.Parameter(x, requires_grad=False)) for path, x in made]


def kept_by(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is held, by the paths of the stream's state, and the ticks seen; nothing before the first call."""
    if MODEL + AGE not in tensors or int(tensors[MODEL + AGE]) == 0:
        return {}
    return {p.removeprefix(MODEL): x.detach().clone() for p, x in tensors.items() if p.startswith(MODEL)}


def beside_them(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the module keeps besides memories `per model`. Code that reads weights is given no more: those memories are
    written to after every call, which what is held for a backward pass would notice."""
    return {p: x for p, x in kept.items() if not p.startswith(MODEL)}


def enter(
    slots: tuple[StateSlot, ...], kept: Mapping[str, Tensor], w: Mapping[str, Tensor], tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """The state that a call of the module finds, and the ticks that it has seen. The first one finds the starts; in
    later ones a learned start (w, by path) has a gradient of zeros, so that its rule goes on as its clock says."""
    now = kept_by(kept)
    age = int(now.pop(AGE, 0))
    for s in slots if now else ():
        x = now[s.path]
        if s.init is not None:
            x = torch.where(torch.zeros((), dtype=torch.bool, device=x.device), w[s.init], x)
        now[s.path] = x.expand(tensors[s.path].shape[0], *x.shape)
    return {**tensors, **now}, age


@torch.no_grad()
def leave(kept: Mapping[str, Tensor], after: Mapping[str, Tensor], ticks: int) -> None:
    """Keep what a call of that many ticks leaves; no gradient crosses it."""
    for path, own in kept.items():
        if path == MODEL + AGE:
            own.add_(ticks)
        elif path.startswith(MODEL):
            own.copy_(after[path.removeprefix(MODEL)][0])
