"""What streams keep between calls. Rows that have seen equally many ticks share tensors and are computed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nestflow.diagnostics.core import fail

Mark = tuple[str, torch.dtype, torch.device]


@dataclass(frozen=True)
class Group:
    """Rows (indices in the batch) at one position. t: ticks seen of their sequences, age: of their streams (None: the
    same). tensors: [rows, ...] by path."""

    rows: tuple[int, ...]
    t: int
    tensors: dict[str, Tensor]
    age: int | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Rows at the same place are computed together."""
        return self.t, self.t if self.age is None else self.age

    def moved(self, ticks: int, tensors: dict[str, Tensor]) -> Group:
        """The same rows after some ticks."""
        return Group(self.rows, self.t + ticks, tensors, None if self.age is None else self.age + ticks)


@dataclass(frozen=True)
class State:
    """The state of a batch of streams: `tensors` by path, `t` ticks seen by each row. mark: the code whose state it is
    known to be, its type and device."""

    groups: tuple[Group, ...]
    mark: Mark | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(tensors: dict[str, Tensor], batch: int, t: int = 0) -> State:
        """Rows that are all at position t."""
        return State((Group(tuple(range(batch)), t, tensors),))

    @property
    def batch(self) -> int:
        return sum(len(g.rows) for g in self.groups)

    @property
    def t(self) -> tuple[int, ...]:
        """Ticks that each row has seen."""
        seen = {row: g.t for g in self.groups for row in g.rows}
        return tuple(seen[i] for i in range(self.batch))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """[batch, ...] by path. Raises NF507 where rows are at different positions (use `row`)."""
        if len(self.groups) != 1:
            raise fail(
                "NF507",
                "the rows of this state are at different positions, so its tensors do not stack",
                help="`state.row(i)` gives the tensors of one row",
            )
        return self.groups[0].tensors

    def row(self, i: int) -> dict[str, Tensor]:
        """The tensors of one row, without the batch axis."""
        for g in self.groups:
            if i in g.rows:
                return {path: x[g.rows.index(i)] for path, x in g.tensors.items()}
        raise fail("NF507", f"the state has {self.batch} rows, and no row {i}")

    def map(self, change: Callable[[Tensor], Tensor]) -> State:
        """The state with each tensor changed."""
        return State(tuple(replace(g, tensors={p: change(x) for p, x in g.tensors.items()}) for g in self.groups))

    def detach(self) -> State:
        """The same state, cut off from the gradients of earlier calls."""
        return self.map(lambda x: x.detach())

    def of_rows(self, rows: Iterable[int]) -> list[Group]:
        """The rows given, by the groups that they are in. Raises NF507."""
        wanted = set(rows)
        if any(not 0 <= r < self.batch for r in wanted):
            raise fail("NF507", f"rows {sorted(wanted)} of a state with {self.batch} rows")
        found = [(g, [i for i, r in enumerate(g.rows) if r in wanted]) for g in self.groups]
        return [_take(g, which) for g, which in found if which]

    def replaced(self, new: Iterable[Group]) -> State:
        """The state with other values in the rows of the groups given."""
        groups = tuple(new)
        rows = {r for g in groups for r in g.rows}
        found = [(g, [i for i, r in enumerate(g.rows) if r not in rows]) for g in self.groups]
        return State(_merge((*(_take(g, which) for g, which in found if which), *groups)))

    def same_kind(self, dtype: torch.dtype, device: torch.device) -> None:
        """Raises NF507 where the module has got another type or device since, which a state does not follow."""
        for g in self.groups:
            for path, x in g.tensors.items():
                found = x.dtype if x.is_floating_point() else dtype
                if (found, x.device) != (dtype, device):
                    here, there = (str(d).removeprefix("torch.") for d in (found, dtype))
                    message = f"the state is {here} on {x.device}, and the module {there} on {device}: see `{path}`"
                    raise fail("NF507", message, help="open another stream after the module has moved")

    def restart(self, rows: Iterable[int], fresh: dict[str, Tensor]) -> State:
        """The state with some rows begun anew. fresh: tensors of that many rows at their start. Raises NF507."""
        new = tuple(sorted(set(rows)))
        self.of_rows(new)
        return self.replaced([Group(new, 0, fresh)]) if new else self


def _take(g: Group, which: list[int]) -> Group:
    return g if len(which) == len(g.rows) else _ordered(g, which)


def _ordered(g: Group, which: list[int]) -> Group:
    tensors = {p: x[torch.tensor(which, device=x.device)] for p, x in g.tensors.items()}
    return Group(tuple(g.rows[i] for i in which), g.t, tensors, g.age)


def _merge(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Groups at the same position become one, its rows in order."""
    by_place: dict[tuple[int, int], list[Group]] = {}
    for g in groups:
        by_place.setdefault(g.place, []).append(g)
    merged = []
    for place in sorted(by_place, reverse=True):
        same = by_place[place]
        if len(same) == 1:
            merged.append(same[0])
            continue
        rows = tuple(r for g in same for r in g.rows)
        tensors = {p: torch.cat([g.tensors[p] for g in same]) for p in same[0].tensors}
        joined = replace(same[0], rows=rows, tensors=tensors)
        merged.append(_ordered(joined, sorted(range(len(rows)), key=rows.__getitem__)))
    return tuple(merged)
