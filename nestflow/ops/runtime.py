"""What generated code runs with: the context of one call, and how the state of a fresh stream is made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nestflow.ops.room import Room


class How(NamedTuple):
    """How the loops of a call are run; results do not depend on it beyond rounding.

    segment: pieces that keep only their first state for the backward pass (0: all is kept, −1: about the root of their
    number). compiled: pieces run by `torch.compile`. room: what loops may keep that are not told; None: all.
    """

    segment: int = 0
    compiled: bool = False
    room: Room | None = None


class Context:
    """One call of generated code.

    w: slow weights by path. s: state of the stream before the call, by path. n: the state after it, filled by the code.
    t0: ticks the rows have seen in their sequences, age0 in their streams.
    training: whether this is the forward pass of a step that learns. networks: those of the caller, by name.
    how: how its loops are run.
    seed, step, rows: what draws are a function of (rows None: all).
    """

    def __init__(
        self,
        w: Mapping[str, Tensor],
        s: dict[str, Tensor],
        t0: int,
        training: bool,
        dtype: torch.dtype,
        device: torch.device,
        networks: Mapping[str, Any] | None = None,
        age0: int | None = None,
    ) -> None:
        self.seed, self.step = 0, 0  # what draws are a function of
        self.rows: Tensor | None = None
        self.how = How()
        self.networks = networks or {}
        self.age0 = t0 if age0 is None else age0
        self.w, self.s, self.t0, self.training, self.dtype, self.device = w, s, t0, training, dtype, device
        self.n: dict[str, Tensor] = {}
        self.now: dict[str, Tensor] = {}
        self.published: dict[str, Tensor] = {}

    def beside(self, tensors: Mapping[str, Tensor]) -> Context:
        """The same call with other tensors at some paths."""
        return self.part(w={**self.w, **tensors})

    def emit(self, name: str, value: Tensor) -> None:
        """`emit name = e`: values of one name are summed over the instances."""
        self.now[name] = self.now[name] + value if name in self.now else value

    def publish(self) -> dict[str, Tensor]:
        """What was emitted since the last call of this, by name. `published` has the sums over all of them."""
        now = dict(self.now)
        self.now.clear()
        for name, value in now.items():
            known = self.published.get(name)
            fits = known is None or known.shape == value.shape
            self.published[name] = value if known is None else known + value if fits else known.mean() + value.mean()
        return now

    def part(self, **changes: Any) -> Context:
        """The same call with other weights, state or ticks seen."""
        one = copy.copy(self)
        one.__dict__.update(changes)
        return one

    def after(self, ticks: int) -> Context:
        """The same call, that many ticks on: what has been kept so far is the state that it finds."""
        later = copy.copy(self)
        later.s, later.t0, later.now = {**self.s, **self.n}, self.t0 + ticks, {}
        later.age0 = self.age0 + ticks
        return later


def with_shared(w: Mapping[str, Tensor], shared: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Weights under the paths of further calls too: shared, (path of the call, path of the weights it uses)."""
    found = dict(w)
    for path, of in shared:
        found.update({path + name[len(of) :]: x for name, x in w.items() if name.startswith(of)})
    return found


def fresh_state(
    table: list[tuple],
    w: Mapping[str, Tensor],
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    chance: tuple[int, int, Tensor | None] = (0, 0, None),
    draw: Callable[..., Tensor] | None = None,
) -> dict[str, Tensor]:
    """The state of a stream that begins, [batch, (heads,) *shape] each, from the generated STATE table.

    A row of the table: path, shape without batch, learned start (path of a weight, or None), value, dtype.
    A learned start is one tensor seen by every row, so gradients reach it. value: a number, ("eye", scale), or
    ("draw", the place that it belongs to, whether it is per head, distribution). chance: seed, step and rows of
    draws, draw: what makes them.
    """
    state = {}
    c = Context(w, state, 0, False, dtype, device)
    c.seed, c.step, c.rows = chance
    for path, shape, learned, value, kind in table:
        full = (batch, *shape)
        if learned is not None:
            state[path] = w[learned].expand(full)
        elif isinstance(value, tuple) and value[0] == "draw" and draw is not None:
            state[path] = draw(c, value[1], full, value[2], 0, value[3])
        elif isinstance(value, tuple):
            state[path] = (value[1] * torch.eye(shape[-2], shape[-1], dtype=dtype, device=device)).expand(full)
        else:
            of = dtype if kind == "float" else torch.int64 if kind == "int" else torch.bool
            state[path] = torch.full(full, value, dtype=of, device=device)
    return state


def along(
    c: Context, function: Callable[..., Tensor], path: str, table: list[tuple], rows: int, *inputs: Tensor
) -> Tensor:
    """What an instance gives along a token axis inside each of `rows` examples: [rows, ticks, ...], all from a fresh
    state, which is dropped. table: rows of a STATE table, of which those below `path` are the instance's."""
    own = [row for row in table if row[0].startswith(path)]
    start = fresh_state(own, c.w, rows, c.dtype, c.device)
    return function(Context(c.w, start, 0, c.training, c.dtype, c.device, c.networks), path, *inputs)
