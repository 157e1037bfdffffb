"""Weights that learn while the module reads: what a generated module with such levels runs a call with.

The shortest period cuts the stream in segments. Each row has its own copies of the weights, so the generated code runs
on one row, mapped over all of them (or row by row, where an operation cannot be mapped). When all terms of the loss in
a segment are known (with `next`, on reading the token after it), their sum's gradient is taken in the copies,
everything from before the segment constant, and the levels that are due learn. A segment that earlier calls began is
run again for its gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nestflow.bundle.reading_levels import TICKS, UPDATES, Inputs, Kept, Reading
from nestflow.bundle.step_level import Level, fact_of
from nestflow.ops.runtime import Context


@contextmanager
def learning_allowed() -> Iterator[None]:
    """Out of inference mode, where nothing has a gradient. Leaving it switches gradients on: they stay as they were, or
    a stream would keep the graph of all that it has read."""
    grad = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


def read(reading: Reading, c: Context, *inputs: Tensor | None) -> list[Tensor]:
    """The values of the model at every tick of a call; the state after it is in `c.n`."""
    with learning_allowed():
        return Reader(reading, c).read([None if x is None else _usable(x) for x in inputs])


def end_sequence(reading: Reading, c: Context, *inputs: Tensor | None) -> None:
    """The rows' sequences end here: the open segment's gradient so far joins the sums that a stream keeps."""
    with learning_allowed():
        reader = Reader(reading, c, still=list(inputs))
        reader.learn(None)
        reader.finish()


def _over_rows(name: str, x: Tensor) -> Tensor:
    """The sum over the rows; what each row counts for itself stays."""
    return x if name.endswith(TICKS) else x.sum()


def _alone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {p: x.unsqueeze(0) for p, x in state.items()}


def _usable(x: Tensor) -> Tensor:
    return x.clone() if x.is_inference() else x


@dataclass
class Reader:
    """One call. s: the state as it goes on, [B, ...] by path. t, age: ticks of the sequence and of the stream."""

    reading: Reading
    c: Context
    s: dict[str, Tensor] = field(default_factory=dict)
    fresh: bool = False  # the next segment begins, and the state says so not yet
    still: Inputs = field(default_factory=list)  # inputs without ticks: as this call gives them
    full: bool = False  # a segment has all its ticks, and its last term waits for the next token

    def __post_init__(self) -> None:
        self.s = {p: _usable(x) for p, x in self.c.s.items()}
        self.t, self.age = self.c.t0, self.c.age0
        self.full = bool(self.reading.ahead and self.age and self.t and self.age % self.reading.size == 0)
        ending = "@segment"
        self.snapshots = [p.removesuffix(ending) for p in self.s if p.endswith(ending)]
        self.snapshots = [p for p in self.snapshots if p in self.s]
        self.rows = next(iter(self.s.values())).shape[0]
        self.grad = torch.is_grad_enabled()

    # the call --------------------------------------------------------------------------------------

    def read(self, inputs: Inputs) -> list[Tensor]:
        """Segment by segment."""
        self.still = self.ticked(inputs, lambda x: None)
        ticks, size, ahead = self.length(inputs), self.reading.size, self.reading.ahead
        pieces: list[list[Tensor]] = []
        at = 0
        while at < ticks:
            if self.full:  # a segment is full: its last term waited for this tick
                self.learn(self.ticked(inputs, lambda x, at=at: x[:, at : at + 1]))
            n = self.age % size
            end = min(at + size - n, ticks)
            part = self.ticked(inputs, lambda x, at=at, end=end: x[:, at:end])
            complete = n + end - at == size and (end < ticks or not ahead)
            if complete and min(n, self.t) == 0:  # the whole segment is at hand: one pass gives all
                after = self.ticked(inputs, lambda x, end=end: x[:, end : end + 1]) if ahead else None
                values, sums = self.run(part, self.s, self.t, after, True)
                self.advance(end - at)
                self.take(sums)
                self.update()
            else:
                self.note(part, end - at)
                values, _ = self.run(part, self.s, self.t, None, False)
                self.advance(end - at)
                self.full = self.age % size == 0
                if self.full and not ahead:
                    self.learn(None)
            pieces.append(values)
            at = end
        self.finish()
        values = [
            torch.cat([p[i] for p in pieces], axis) if axis is not None else pieces[-1][i]
            for i, axis in enumerate(self.reading.places)
        ]
        told = values[len(self.reading.values) :]
        self.c.published.update((name, x) for (name, _), x in zip(self.reading.told, told))
        return values[: len(self.reading.values)]

    def ticked(self, inputs: Inputs, change: Callable[[Tensor], Tensor | None]) -> Inputs:
        """The inputs, those with ticks changed."""
        return [change(x) if on and x is not None else x for x, (_, on) in zip(inputs, self.reading.inputs)]

    def length(self, inputs: Inputs) -> int:
        return next((x.shape[1] for x, (_, on) in zip(inputs, self.reading.inputs) if on and x is not None), 1)

    def advance(self, ticks: int) -> None:
        self.t, self.age = self.t + ticks, self.age + ticks

    # running the model -----------------------------------------------------------------------------

    def run(
        self, inputs: Inputs, state: dict[str, Tensor], t0: int, after: Inputs | None, learns: bool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The values at the ticks given, from this state, which goes on. after: the next tick's inputs. learns: also
        the gradient of the terms, by path, and how many ticks have one."""
        copies = {x.path(p): self.s[x.path(p)] for x in self.reading.levels for p in x.weights}
        with torch.set_grad_enabled(self.grad or learns):
            if learns:  # what this segment does with the copies, and nothing that led to them or to the state
                copies = {p: a.clone() if self.grad else a.detach().clone().requires_grad_() for p, a in copies.items()}
                copies = {p: a if a.requires_grad else a.requires_grad_() for p, a in copies.items()}
            values, tensors, totals = self.rowwise(inputs, state, copies, t0, after, learns)
            sums = self.gradients(totals, copies) if learns else {}
            sums |= {n: held for n, held in totals.items() if n.endswith(TICKS)}
        if not self.grad:
            values, tensors = [v.detach() for v in values], {p: x.detach() for p, x in tensors.items()}
        state.update(tensors)
        return values, sums

    def rowwise(
        self,
        inputs: Inputs,
        state: dict[str, Tensor],
        copies: dict[str, Tensor],
        t0: int,
        after: Inputs | None,
        learns: bool,
    ) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Every row on copies of its own: values and state joined, and Σ ℓ over rows and ticks by level (of those that
        wait also how many ticks of each row have a term)."""
        given = [i for i, x in enumerate(inputs) if x is not None]
        before = {p: state[p] for p in self.snapshots}
        x, y = ([z for z in zs if z is not None] for zs in (inputs, after or inputs))

        ids = torch.arange(self.rows, device=self.c.device) if self.c.rows is None else self.c.rows

        def row(w: dict[str, Tensor], s: dict[str, Tensor], x: list[Tensor], y: list[Tensor], i: Tensor) -> Any:
            """One row, without its batch axis."""
            c = self.c.part(
                w={**self.c.w, **w},
                s=_alone(s),
                t0=t0,
                age0=self.age - self.t + t0,
                n={},
                rows=i.unsqueeze(0),
                now={},
                published={},
            )
            here, following = self.inputs(given, x), self.inputs(given, y)
            values = list(self.reading.ticks(c, *here))
            own = values[: self.reading.own]
            values += [c.published[name] for name, _ in self.reading.told]
            sums = self.terms(c, here, own, following if after is not None else None) if learns else {}
            ended = {**c.s, **c.n}
            return [v[0] for v in values], {p: ended[p][0] for p in s}, sums

        weights = {p: copies[level.path(p)] for level in self.reading.levels for p in level.weights}
        if self.rows > 1 and self.reading.batched[0]:
            try:  # all rows at once
                with warnings.catch_warnings():  # an operation without a rule of its own is run row by row inside
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    values, ended, sums = torch.vmap(row)(weights, before, x, y, ids)
                return values, ended, {n: _over_rows(n, v) for n, v in sums.items()}
            except (RuntimeError, NotImplementedError):  # so vmap says that an operation cannot be run for all rows
                pass  # a fault of the model's own is raised again below, row by row
        found = [
            row(
                {p: w[b] for p, w in weights.items()},
                {p: z[b] for p, z in before.items()},
                [z[b] for z in x],
                last,
                ids[b],
            )
            for b, last in enumerate([[z[b] for z in y] for b in range(self.rows)])
        ]
        if self.rows > 1:  # what cannot be done at once is not tried again
            self.reading.batched[0] = False
        values = [torch.stack([f[0][i] for f in found]) for i in range(len(self.reading.places))]
        ended = {p: torch.stack([f[1][p] for f in found]) for p in before}
        return values, ended, {n: _over_rows(n, torch.stack([f[2][n] for f in found])) for n in found[0][2]}

    def inputs(self, given: list[int], x: list[Tensor]) -> Inputs:
        """The inputs of one row, with the batch axis."""
        all_of: Inputs = [None] * len(self.reading.inputs)
        for i, z in zip(given, x):
            all_of[i] = z.unsqueeze(0)
        return all_of

    def terms(self, c: Context, inputs: Inputs, values: list[Tensor], after: Inputs | None) -> dict[str, Tensor]:
        """Σ ℓ_t over the ticks given, by level."""
        ticks = self.length(inputs)
        if after is not None:  # the tick after makes `next` of the last one known; its own term is left out
            following = iter([a for a, (_, on) in zip(after, self.reading.inputs) if on and a is not None])
            inputs = self.ticked(inputs, lambda x: torch.cat([x, next(following)], 1))
            values = [
                v if axis is None else torch.cat([v, v.narrow(axis, ticks - 1, 1).detach()], axis)
                for v, axis in zip(values, self.reading.values)
            ]
        found = self.reading.terms(c, *inputs, *values)
        sums = {id(x): x[:, :ticks].sum() for x in found.values()}  # levels with one loss share its sum
        for x in self.reading.levels:
            if x.waits:  # a tick that has no term yet does not count
                there = found[x.name + TICKS]
                sums[id(there)] = there[:, : min(ticks, found[x.name].shape[1])].sum()
        return {name: sums[id(x)] for name, x in found.items()}

    def gradients(self, totals: dict[str, Tensor], copies: dict[str, Tensor]) -> dict[str, Tensor]:
        """∇ of each level's sum in its own copies; one backward pass for the levels that have the same loss."""
        groups: dict[str, list[str]] = {}
        for x in self.reading.levels:
            groups.setdefault(x.loss, []).extend(x.path(p) for p in x.weights)
        found: dict[str, Tensor] = {}
        for loss, paths in groups.items():
            mine = [copies[p] for p in paths]
            total = totals[loss]
            grads: Sequence[Tensor] = [torch.zeros_like(a) for a in mine]
            if total.requires_grad:
                grads = torch.autograd.grad(total, mine, retain_graph=True, allow_unused=True, materialize_grads=True)
            found |= dict(zip(paths, grads))
        return found

    # learning --------------------------------------------------------------------------------------

    def learn(self, after: Inputs | None) -> None:
        """Run the segment again for its gradient; at its end the levels learn. after None: no token follows."""
        m = min(self.reading.size if self.full else self.age % self.reading.size, self.t)
        if m:
            kept = [self.s[n + "@segment"][:, :m] if n + "@segment" in self.s else None for n, _ in self.reading.inputs]
            inputs = [k if on else x for k, x, (_, on) in zip(kept, self.still, self.reading.inputs)]
            state = {p: self.s[p + "@segment"].detach() for p in self.snapshots}
            grad, self.grad = self.grad, False
            _, sums = self.run(inputs, state, self.t - m, after, True)
            self.grad = grad
            self.take(sums)
        if self.full:
            self.update()

    def take(self, sums: dict[str, Tensor]) -> None:
        """The gradients join the sums since the last update."""
        for p, g in sums.items():
            path = p if p.endswith(TICKS) else p + "@pending"
            self.s[path] = self.s[path] + g.detach()

    def update(self) -> None:
        """A segment ends: every level that is due learns, all from one state; then what they reset begins anew."""
        reading, new = self.reading, {}
        due = [x for x in reading.levels if reading.position(x, self.age) % x.every == 0]
        gates = reading.gates(self.c) if any(x.gated for x in due) else {}
        for x in due:
            new |= self.learned(x, gates.get(x.name) if x.gated else None)
        self.s |= new
        for x in due:
            for p in x.weights:
                self.s[x.path(p) + "@pending"] = torch.zeros_like(self.s[x.path(p) + "@pending"])
        for x in sorted(reading.levels, key=lambda x: -x.every):
            if x.reset and any(x.reset == y.name for y in due):
                self.reset(x)
        self.fresh, self.full = True, False

    def learned(self, x: Kept, gate: Any) -> dict[str, Tensor]:
        """The copies after one update: gate · A + Δ, where Δ is a constant."""
        ticks = self.reading.position(x, self.age)
        after: dict[str, list[Tensor]] = {}
        for b in range(self.rows):
            for path, value in self.row(x, b, ticks).items():
                after.setdefault(path, []).append(value)
        new = {p: torch.stack(v) for p, v in after.items()}
        for p in (x.path(w) for w in x.weights):
            a = self.s[p]
            kept = a if gate is None else gate * a
            if gate is not None and not x.sets:
                new[p] = kept.detach() + (new[p] - a.detach())
            new[p] = new[p] + (kept - kept.detach()) if self.grad else new[p]
        if x.project is not None:
            new |= self.projected(x, x.project, new, ticks)
        return self.where_due(x, new) if x.waits else new

    def projected(self, x: Kept, project: type[Level], new: dict[str, Tensor], ticks: int) -> dict[str, Tensor]:
        """What `project` makes of the copies."""
        found = {}
        with torch.set_grad_enabled(self.grad):
            for p, start in zip(x.weights, x.starts):
                rows = new[x.path(p)]
                fact = fact_of(p, rows[0], int(p in x.rule.per_head))
                group = {**project.hypers(fact), **project.schedule(ticks, float("nan"), x.every, fact)}
                state = {"w0": self.c.w[start]}
                found[x.path(p)] = torch.stack([project.evaluate(w, state, group, fact) for w in rows])
        return found

    def where_due(self, x: Kept, new: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows without a term since the last update stay as they are, and count none."""
        learns = self.s[x.name + TICKS] > 0
        found = {p: torch.where(learns.reshape(-1, *[1] * (v.ndim - 1)), v, self.s[p]) for p, v in new.items()}
        found[x.name + UPDATES] = self.s[x.name + UPDATES] + learns
        return found | {x.name + TICKS: torch.zeros_like(self.s[x.name + TICKS])}

    @torch.no_grad()
    def row(self, x: Kept, b: int, ticks: int) -> dict[str, Tensor]:
        """One row's copies and memories of the rule after the rule alone."""
        runs, result = [], {}
        updates, n_ticks = ticks // x.every, x.every
        if x.waits:
            updates, n_ticks = int(self.s[x.name + UPDATES][b]) + 1, max(1, int(self.s[x.name + TICKS][b]))
        for p, start in zip(x.weights, x.starts):
            w = self.s[x.path(p)][b].detach().clone()
            fact = fact_of(p, w, int(p in x.rule.per_head))
            state: dict[str, Any] = {"step": updates, "w0": self.c.w[start].detach()}
            for path, key in self.memories(x, p):
                state[key] = result[path] = self.s[path][b].detach().clone()
            group = {**x.rule.hypers(fact), **x.rule.schedule(ticks, float("nan"), x.every, fact), "n_ticks": n_ticks}
            result[x.path(p)] = w
            g = self.s[x.path(p) + "@pending"][b]
            runs.append((w, x.rule.update(w, g, state, group, fact)))
        asked = [next(run) for _, run in runs] if x.rule.collective else []
        while asked:  # a rule that asks for a number over all weights of the level waits for it
            number, asked = asked[0][0]([value for _, value in asked]), []
            for _, run in runs:
                try:
                    asked.append(run.send(number))
                except StopIteration:
                    continue
        return result

    def reset(self, x: Kept) -> None:
        """At the first tick after an update of its slower level: back to that level's state, or to its own start."""
        for i, p in enumerate(x.weights):
            a = self.s[f"{x.reset}.{x.sources[i]}"] if x.sources else self.begun(x.starts[i])
            self.s[x.path(p)] = a
            self.s[x.path(p) + "@pending"] = torch.zeros_like(a)
            if not x.keep_rule:
                starts = [x.rule.slots(w, fact_of(p, w, int(p in x.rule.per_head))) for w in a.detach()]
                self.s |= {path: torch.stack([r[key] for r in starts]) for path, key in self.memories(x, p)}
        for count in (TICKS, UPDATES) if x.waits else ():
            if not (x.keep_rule and count == UPDATES):
                self.s[x.name + count] = torch.zeros_like(self.s[x.name + count])

    def memories(self, x: Kept, p: str) -> list[tuple[str, str]]:
        """Of the rule for one weight: where the state has each, and its name in the rule's code."""
        paths = [(f"{x.name}.{name}.{p}", key) for name, key in x.slots]
        return [(path, key) for path, key in paths if path in self.s]

    def begun(self, weight: str) -> Tensor:
        w = self.c.w[weight]
        return (w if self.grad else w.detach()).expand(self.rows, *w.shape)

    # what is kept of the open segment ------------------------------------------------------------------

    def note(self, inputs: Inputs, ticks: int) -> None:
        """Keep the inputs of a segment that this call does not finish in one pass, and the state it began with."""
        m = min(self.age % self.reading.size, self.t)
        if not m:
            self.remember()
        self.fresh = False
        for (name, _), x in zip(self.reading.inputs, inputs):
            if x is not None and name + "@segment" in self.s:
                kept = self.s[name + "@segment"].clone()
                kept[:, m : m + ticks] = x.detach()
                self.s[name + "@segment"] = kept

    def remember(self) -> None:
        """A segment begins with the state as it is, and no inputs yet."""
        for p in self.snapshots:
            self.s[p + "@segment"] = self.s[p]
        for name, _ in self.reading.inputs:
            if name + "@segment" in self.s:
                self.s[name + "@segment"] = torch.zeros_like(self.s[name + "@segment"])

    def finish(self) -> None:
        if self.fresh:
            self.remember()
        self.c.n.update(self.s)
