"""A loss of the whole model on the token clock (language.md §3.6): weights that learn while the module reads.

Each row has its own copy of the weights, and is read alone. The shortest period cuts the stream in segments. Once every
term of a segment is known, the segment is run again from the state in which it began, that state constant, and the
gradient of the sum of its terms is taken in every level's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.graph.model import TokenLevel
from nestflow.graph.reading.state import SEGMENT, counts, position, rule_path, shortest
from nestflow.graph.state import PENDING, TICKS, UPDATES
from nestflow.ir.node import Node, walk
from nestflow.reference.cache import Whole
from nestflow.reference.loss import Loss
from nestflow.reference.rule import Update, Weight, start_slots, times
from nestflow.reference.tick import Frame, Tensors, Tick

if TYPE_CHECKING:
    from nestflow.reference.model import Reference

T, AGE = "@t", "@age"
"""Keys of the state: ticks of the row's sequence, and of its stream (never reset), [B, 1]."""


class Reader:
    """The stream of a row, the one of this number. now: the state, [1, H, ...] by path. start: as a sequence begins."""

    def __init__(
        self,
        model: Reference,
        now: Tensors,
        start: Tensors,
        clocks: Mapping[str, bool],
        dtype: torch.dtype,
        row: int,
    ) -> None:
        self.row = row
        self.model, self.now, self.start, self.clocks, self.dtype = model, now, start, clocks, dtype
        self.levels = model.graph.reading
        self.size = shortest(self.levels)
        self.ahead = max(x.terms.type.short for x in self.levels)
        self.calls = [n for n in walk(*(n for x in self.levels for n in x.reads)) if n.op in ("call", "emitted")]
        heads = {s.path: s.heads for s in model.graph.state}
        self.heads = {f"{x.name}.{p}": heads[f"{x.name}.{p}"] for x in self.levels for p in x.weights}
        self.snapshots = [s.path.removesuffix(SEGMENT) for s in model.graph.state if s.role == "segment"]
        self.snapshots = [p for p in self.snapshots if p in start]
        self.kept = {s.path for s in model.graph.state if s.per != "sequence"}
        self.device = now[T].device
        self.still: Tensors = {}  # inputs without ticks, as this call gives them
        self.needed = {n: c for n, c in clocks.items() if n in model.graph.needed}  # of a segment that is run again
        self.whole = Whole(torch.zeros_like(now[T]))

    # ticks ----------------------------------------------------------------------------------------

    def read(
        self, inputs: Tensors, roots: Sequence[Node], length: int, starts: Tensor | None
    ) -> Iterator[list[Tensor]]:
        """Values of the roots at each tick; the state is `self.now`."""
        for i in range(length):
            at = {n: (x[:, i] if self.clocks[n] else x).unsqueeze(1) for n, x in inputs.items()}
            if starts is not None and bool(starts[:, i].any()):
                self.begin_sequence()
            if self.open() == self.size:  # the segment is full, and its last term waited for this tick
                self.learn(at)
            if not self.seen():
                self.remember()
            m = self.seen()
            values = self.tick(self.now, self.copies(), at, roots, torch.is_grad_enabled())
            for n, x in at.items():
                if self.needed.get(n):
                    kept = self.now[n + SEGMENT].clone()
                    kept[:, :, m] = x.detach()
                    self.now[n + SEGMENT] = kept
            if not self.ahead and self.open() == 0:
                self.learn(None)
            yield values

    def tick(
        self, state: Tensors, copies: Mapping[str, Tensor], at: Mapping[str, Tensor], roots: Sequence[Node], grad: bool
    ) -> list[Tensor]:
        """One tick of the plain model on the copies' weights; changes `state`."""
        state |= {p: state[p] + 1 for p in (T, AGE)}
        weights = {**self.model.weights, **copies}
        model = self.model
        tick = Tick(
            weights,
            state,
            self.start,
            state[T],
            self.dtype,
            model.training,
            grad,
            dict(state),
            self.whole,
            model._begun,
        )
        tick.age, tick.row = state[AGE], self.row
        tick.seed, tick.step = model.seed, model.step
        frame = Frame(tick, self.model.graph.root, at)
        return [frame.eval(r) for r in roots]

    def copies(self) -> dict[str, Tensor]:
        """The weights as the module uses them now. They are the same in all rows that are read together."""
        found = {}
        for x in self.levels:
            for p in x.weights:
                a = self.now[f"{x.name}.{p}"][0]
                found[p] = a if self.heads[f"{x.name}.{p}"] else a[0]
        return found

    # segments -------------------------------------------------------------------------------------

    def open(self) -> int:
        """Ticks of the open segment: all of them where the last one's term waits for the next token."""
        age = int(self.now[AGE][0, 0])
        n = age % self.size
        return self.size if n == 0 and self.waits() else n

    def waits(self) -> bool:
        return bool(self.ahead) and int(self.now[AGE][0, 0]) > 0 and int(self.now[T][0, 0]) > 0

    def seen(self) -> int:
        """Ticks of the open segment that are of this sequence."""
        n = int(self.now[AGE][0, 0]) % self.size
        return min(n, int(self.now[T][0, 0]))

    def remember(self) -> None:
        """A segment begins: what is kept of it is the state now, and no inputs yet."""
        for p in self.snapshots:
            self.now[p + SEGMENT] = self.now[p]
        for n, clocked in self.needed.items():
            if clocked:
                self.now[n + SEGMENT] = torch.zeros_like(self.now[n + SEGMENT])

    def begin_sequence(self) -> None:
        """What is kept per sequence starts again; of the open segment the gradient so far is what a stream keeps."""
        if self.kept and self.open():  # a segment that is full and whose terms are known has been learned from
            self.learn(None)
        for p, x in self.start.items():
            if p not in self.kept and p != AGE:
                self.now[p] = x
        if not self.kept:
            self.now[AGE] = self.start[AGE]

    def learn(self, following: Mapping[str, Tensor] | None) -> None:
        """Gradients of the segment so far; at a segment's end the levels that are due learn from their sums."""
        age, t = int(self.now[AGE][0, 0]), int(self.now[T][0, 0])
        n = age % self.size or (self.size if age else 0)
        m = min(n, t)
        for path, g in self.gradients(m, following).items() if m else ():
            self.now[path + PENDING] = self.now[path + PENDING] + g
        if n == self.size:
            due = [x for x in self.levels if position(self.levels, x, age) % x.every == 0]
            due = [x for x in due if x.when is None or int(self.now[x.name + TICKS]) > 0]  # else nothing changes
            new: Tensors = {}
            for x in due:
                new |= self.update(x, age)
            self.now |= new  # all from one state
            for x in due:
                for p in x.weights:
                    self.now[f"{x.name}.{p}{PENDING}"] = torch.zeros_like(self.now[f"{x.name}.{p}{PENDING}"])
            for x in sorted(self.levels, key=lambda x: -x.every):
                if x.reset in {y.name for y in due}:
                    self.reset(x)
        self.remember()

    def gradients(self, m: int, following: Mapping[str, Tensor] | None) -> Tensors:
        """∇ Σ ℓ_t over the segment's m ticks, [B, H, *shape] by path; all state from before it is constant."""
        with torch.enable_grad():
            alias = {p: a.detach().clone().requires_grad_() for p, a in self.copies().items()}
            state = {p: self.now[p + SEGMENT].detach() for p in self.snapshots}
            state = {**{p: x.detach() for p, x in self.now.items()}, **state}
            state |= {p: self.now[p] - m for p in (T, AGE)}
            inputs = {n: self.now[n + SEGMENT] if c else None for n, c in self.needed.items()}
            per_tick = []
            for i in range(m):
                at = {n: x[:, :, i] if x is not None else self.still[n] for n, x in inputs.items()}
                per_tick.append(self.tick(state, alias, at, self.calls, True))
            rows = self.now[T].shape[0]
            known = {}
            for node, values in zip(self.calls, zip(*per_tick)):
                x = torch.cat([v.expand(rows, *v.shape[1:]) for v in values], 1)
                known[id(node)] = torch.cat([x, x[:, -1:].detach()], 1) if following else x
            ticks = {n: x[:, 0, :m] if x is not None else self.still[n][:, 0] for n, x in inputs.items()}
            if following:
                ticks = {n: torch.cat([x, following[n]], 1) if self.needed[n] else x for n, x in ticks.items()}
            loss = Loss({**self.model.weights, **alias}, ticks, known, self.dtype, self.device)
            found: Tensors = {}
            for x in self.levels:
                terms = loss.eval(x.terms)
                last = m if following else m - x.terms.type.short
                if last <= 0:
                    continue
                total = terms.expand(rows, *terms.shape[1:])[:, :last].sum()
                if x.when is not None:
                    held = loss.eval(x.when)[:, :last].sum(1, keepdim=True)
                    self.now[x.name + TICKS] = self.now[x.name + TICKS] + held
                mine = [alias[p] for p in x.weights]
                grads = torch.autograd.grad(total, mine, retain_graph=True, allow_unused=True, materialize_grads=True)
                for p, g in zip(x.weights, grads):
                    path = f"{x.name}.{p}"
                    found[path] = g.unsqueeze(0) if self.heads[path] else g[None, None]
        return found

    # learning -------------------------------------------------------------------------------------

    def update(self, x: TokenLevel, age: int) -> Tensors:
        """Δ, s = update(g, …): the steps are constants, and `retain` carries slower gradients."""
        ticks, now = position(self.levels, x, age), self.now
        known = Loss(self.model.weights, {}, {}, self.dtype, self.device)
        gate = None if x.retain is None else known.eval(x.retain)

        def keep(a: Tensor) -> Tensor:
            return a if gate is None else times(gate, a)

        ones: dict[str, Weight] = {}
        for p in x.weights:
            path = f"{x.name}.{p}"
            a, g = now[path][:1], now[path + PENDING][:1]
            kept = {s.name: rule_path(x, s.name, p) for s in x.rule.slots}
            old = {n: now[q][:1] for n, q in kept.items() if q in now}  # a weight has not all of them
            ones[p] = Weight(p, a, g, old, self.start[path][:1], a, None, keep, stop=True)
        count, n_ticks = torch.tensor([[ticks // x.every]], device=self.device), x.every
        if x.when is not None:
            count, n_ticks = now[x.name + UPDATES] + 1, int(now[x.name + TICKS])
        Update(x.rule, list(ones.values()), count, n_ticks, float(ticks), x.every, per_copy=False).run()
        rows = now[T].shape[0]
        new: Tensors = {}
        for p, one in ones.items():
            new[f"{x.name}.{p}"] = one.w.expand(rows, *one.w.shape[1:])
            for s, v in one.new.items():
                v = v.detach()
                new[rule_path(x, s, p)] = v.expand(rows, *v.shape[1:])
        if x.when is not None:
            new |= {x.name + UPDATES: count, x.name + TICKS: torch.zeros_like(count)}
        return {p: v if torch.is_grad_enabled() else v.detach() for p, v in new.items()}

    def reset(self, x: TokenLevel) -> None:
        """1. At the first tick after each update of a slower level: A := init, and all that is kept starts again."""
        slow = {p: f"{x.init}.{s}" for p, s in zip(x.weights, x.sources)} if x.init else {}
        for p in x.weights:
            path = f"{x.name}.{p}"
            a = self.now[slow[p]] if slow else self.start[path]
            self.now[path] = a
            self.now[path + PENDING] = torch.zeros_like(a)
            if not x.keep_rule:
                for s, v in start_slots(x.rule, p, a).items():
                    self.now[rule_path(x, s, p)] = v
        for count in counts(x):
            if not (x.keep_rule and count.endswith(UPDATES)):
                self.now[count] = torch.zeros_like(self.now[count])


def start(model: Reference, state: Tensors, batch: int, dtype: torch.dtype, device: torch.device) -> Tensors:
    """What streams of weights that learn while reading begin with, beside the state of the model itself."""
    new: Tensors = {AGE: torch.zeros(batch, 1, dtype=torch.int64, device=device)}
    slots = {s.path: s for s in model.graph.state}
    for x in model.graph.reading:
        for p, begin in zip(x.weights, x.starts):
            w, path = model.weights[begin], f"{x.name}.{p}"
            a = (w if slots[path].heads else w.unsqueeze(0)).unsqueeze(0)
            a = a.expand(batch, *a.shape[1:])
            new[path], new[path + PENDING] = a, torch.zeros_like(a)
            new |= {rule_path(x, n, p): s for n, s in start_slots(x.rule, p, a).items()}
        new |= {count: torch.zeros_like(new[AGE]) for count in counts(x)}
    for s in model.graph.state:
        if s.role == "segment":
            of = s.path.removesuffix(SEGMENT)
            kind = {"int": torch.int64, "bool": torch.bool}.get(s.dtype, dtype)
            inputs = torch.zeros(batch, s.heads or 1, *s.shape, dtype=kind, device=device)
            new[s.path] = state.get(of, inputs)
    return new


def read(
    model: Reference,
    state: Tensors,
    first: Tensors,
    inputs: Tensors,
    roots: Sequence[Node],
    starts: Tensor | None,
) -> Iterator[tuple[list[Tensor], Tensors]]:
    """Values of the roots and the state, tick after tick; each row with its own copy."""
    dtype, length = model._kind(inputs)[0], model._length(inputs)
    clocks = {s.name: bool(s.type.clock) for s in model.graph.inputs if s.name in inputs}
    rows = state[T].shape[0]
    parts = [slice(b, b + 1) for b in range(rows)]
    readers, streams = [], []
    for part in parts:
        own = {n: x[part] for n, x in inputs.items()}
        reader = Reader(model, _rows(state, part), _rows(first, part), clocks, dtype, part.start)
        reader.still = {n: x.unsqueeze(1) for n, x in own.items() if not clocks[n]}
        readers.append(reader)
        streams.append(reader.read(own, roots, length, None if starts is None else starts[part]))
    for values in zip(*streams):
        joined = [torch.cat([v.expand(_size(p), *v.shape[1:]) for p, v in zip(parts, vs)]) for vs in zip(*values)]
        yield joined, {p: _aligned([r.now[p] for r in readers]) for p in state}


def _rows(x: Tensors, part: slice) -> Tensors:
    return {p: v[part] for p, v in x.items()}


def _aligned(rows: list[Tensor]) -> Tensor:
    """The state of all rows. Caches of rows that began later are shorter: pairs lie at the end, and what stands before
    them is from before the row's first tick, which no query sees."""
    longest = max(x.shape[2] for x in rows) if rows[0].ndim == 4 else 0
    return torch.cat(
        [F.pad(x, (0, 0, longest - x.shape[2], 0)) if x.ndim == 4 and x.shape[2] < longest else x for x in rows]
    )


def _size(part: slice) -> int:
    return part.stop - part.start
