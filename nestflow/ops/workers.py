"""Levels with a copy for each worker: every copy sees its part of the batch, as many rows in turn as each other one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from nestflow.ops.records import Record, by_prefix
from nestflow.ops.runtime import Context

Level = tuple[str, Sequence[str]]


class UnequalPartsError(ValueError):
    """The rows of a batch cannot be shared out. rows, copies: how many there are."""

    def __init__(self, rows: int, copies: int) -> None:
        super().__init__(f"{rows} rows for {copies} workers, each with as many")
        self.rows, self.copies = rows, copies


def copy_of(c: Context, level: Level, i: int) -> dict[str, Tensor]:
    """The tensors of one copy by their names."""
    prefix, names = level
    return {n: c.w[f"{prefix}{i}.{n}"] for n in names}


def copies(c: Context, level: Level, count: int) -> Record:
    """The tensors of all copies, [count, *shape] each."""
    own = [copy_of(c, level, i) for i in range(count)]
    return Record({n: torch.stack([o[n] for o in own]) for n in level[1]})


def parts(
    c: Context, level: Level, count: int, inputs: Sequence[Tensor | None]
) -> Iterator[tuple[Context, list[Tensor | None]]]:
    """For each copy the call in which it stands for the level, and its rows of the inputs (None: not given)."""
    rows = next((x.shape[0] for x in inputs if x is not None), None)
    if rows is not None and rows % count:
        raise UnequalPartsError(rows, count)
    for i in range(count):
        w, s, given = {**c.w, **by_prefix(level[0], copy_of(c, level, i))}, c.s, list(inputs)
        if rows is not None:
            own = slice(i * rows // count, (i + 1) * rows // count)
            s = {p: x[own] for p, x in c.s.items()}
            given = [None if x is None else x[own] for x in inputs]
        yield c.part(w=w, s=s, n={}), given


def each_worker(
    error: Callable[..., Tensor], c: Context, level: Level, count: int, inputs: Sequence[Tensor | None]
) -> Tensor:
    """error(c, *rows) of each copy on its part: [count]."""
    return torch.stack([error(own, *rows).reshape(()) for own, rows in parts(c, level, count, inputs)])


def by_worker(function: Callable[..., Tensor], c: Context, level: Level, count: int, *inputs: Tensor) -> Tensor:
    """function(c, prefix, rows) of each copy on its part, joined again."""
    return torch.cat([function(own, level[0], *rows) for own, rows in parts(c, level, count, inputs)])


__all__ = ["UnequalPartsError", "by_worker", "copies", "copy_of", "each_worker", "parts"]
