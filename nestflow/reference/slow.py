"""Levels without slots, by language.md §3 on the step clock and on clocks of a spec's own: who ticks, in which order,
what each sees, and how it learns. Functional: nothing is changed in place but this object's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nestflow.graph.model import LevelGraph, StepLevel
from nestflow.ir.node import Node, walk
from nestflow.reference.model import Reference
from nestflow.reference.nested import part
from nestflow.reference.plain import init_slots, run_rule

Tensors = dict[str, Tensor]


@dataclass
class Keeps:
    """What one level keeps from tick to tick. sums: Σ G since the last update."""

    slots: dict[str, dict[str, Tensor]]
    start: Tensors
    sums: Tensors = field(default_factory=dict)
    ticks: int = 0
    updates: int = 0
    n_ticks: int = 0
    due: bool = False
    scheduled: int = 0  # ticks before the last reset, which a rule that was spared has seen


class Slow:
    """The slow clocks of a graph. tensors: slow weights and tensors of levels, by path, as they stand."""

    def __init__(
        self,
        graph: LevelGraph,
        tensors: Mapping[str, Tensor],
        run_length: float | None = None,
        seed: int = 0,
        lasting: Tensors | None = None,
    ) -> None:
        self.lasting, self.entered = {} if lasting is None else lasting, {}  # memories `per model`
        self.graph, self.run_length, self.seed = graph, run_length, seed
        self.tensors: Tensors = {p: x.detach().clone() for p, x in tensors.items()}
        self.first = dict(self.tensors)
        self.heads = {w.path for w in (*graph.weights, *graph.kept) if w.heads}
        self.levels = [x for x in graph.step_levels if x.rule is not None and x.inner is None]
        self.kept = {x.name: Keeps(self.fresh_slots(x), self.own(x)) for x in self.levels}
        self.counts: dict[str, int] = {}
        self.before: dict[str, Tensors] = {}
        self.gradients: dict[str, Tensors] = {}
        self.losses: dict[str, float] = {}

    def own(self, level: StepLevel) -> Tensors:
        return {p: self.tensors[p] for p in level.weights}

    def fresh_slots(self, level: StepLevel) -> dict[str, dict[str, Tensor]]:
        assert level.rule is not None
        return init_slots(level.rule, self.own(level), self.heads)

    # clocks ----------------------------------------------------------------------------------------

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One step. The objectives' values, by the name of the first level that has each."""
        return self.tick("step", batch)

    def tick(self, base: str, batch: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """One tick of a clock: the levels that count it or what it ticks, the faster first (§3.7)."""
        count = self.counts[base] = self.counts.get(base, 0) + 1
        self.before, self.gradients, self.losses = {}, {}, {}
        due = [x for x in self.levels if x.clock.base == base and count % x.clock.count == 0]
        done: set[str] = set()
        for level in sorted(due, key=lambda x: x.clock.count):
            if level.name not in done:
                group = [x for x in due if x.shares is level.shares]
                done |= {x.name for x in group}
                self.together(group, batch)
        for clock in self.graph.clocks:
            if clock.base == base and count % clock.count == 0:
                self.mark(clock.name)
        return self.losses

    def mark(self, what: str) -> None:
        """1. `reset each(c)`: at the level's first tick after c has ticked, or after the level c has learned."""
        for x in self.levels:
            self.kept[x.name].due |= x.reset == what

    def together(self, levels: list[StepLevel], batch: Mapping[str, Tensor] | None) -> None:
        """Levels of one objective: all gradients at one state, then all learn."""
        for x in levels:
            self.reset(x)
        gradients = [self.gradient(x, batch) for x in levels]
        for x, g in zip(levels, gradients):
            self.before[x.name] = self.named(x, self.own(x))
            self.gradients[x.name] = self.named(x, g or {p: torch.zeros_like(w) for p, w in self.own(x).items()})
        for x, g in zip(levels, gradients):
            self.learn(x, g)

    def reset(self, x: StepLevel) -> None:
        kept = self.kept[x.name]
        if not kept.due:
            return
        starts = dict(x.start)
        for path in x.weights:
            self.tensors[path] = self.tensors[starts[path]] if path in starts else self.first_of(x, path)
        fresh = Keeps(self.fresh_slots(x), self.own(x))
        if x.keep_rule:
            fresh.slots, fresh.updates = kept.slots, kept.updates
            fresh.scheduled = kept.scheduled + kept.ticks
        self.kept[x.name] = fresh

    def first_of(self, x: StepLevel, path: str) -> Tensor:
        spec = next((w for w in x.state if w.path == path), None)
        if spec is None:
            return self.first[path]
        value = {"zeros": 0.0, "ones": 1.0}.get(spec.init.kind, spec.init.a)
        return torch.full_like(self.tensors[path], value)

    # error -----------------------------------------------------------------------------------------

    def gradient(self, x: StepLevel, batch: Mapping[str, Tensor] | None) -> Tensors | None:
        """3. G of this tick: the objective's gradient in the level's own tensors; None where it takes none."""
        kept = self.kept[x.name]
        if x.moment and (kept.ticks + 1) % x.every != 0:
            return None
        if x.when is not None and not bool(self.value(x.when, self.tensors, batch)):
            return None
        if x.copies:
            return self.by_copy(x, batch)
        assert x.objective is not None
        own = {p: w.clone().requires_grad_() for p, w in self.own(x).items()}
        with torch.enable_grad():
            if x is next(y for y in self.levels if y.shares is x.shares):
                self.entered, held = dict(self.lasting), self.lasting
            else:  # levels with the same objective: one reading of the batch
                held = dict(self.entered)
            loss = self.value(x.objective, {**self.tensors, **own}, batch, held)
            if not x.texts.value and x.clock.name == "step":
                self.losses.setdefault(x.name, float(loss.detach()))
            grads = gradients(loss, list(own.values()))
        return dict(zip(own, grads))

    def by_copy(self, x: StepLevel, batch: Mapping[str, Tensor] | None) -> Tensors:
        """Each copy's gradient, of the objective over its own part of the batch, where it stands for the level."""
        found: Tensors = {}
        losses: list[float] = []
        assert x.objective is not None
        for i, paths in enumerate(x.parted()):
            own = {p: self.tensors[p].clone().requires_grad_() for p in paths}
            here = dict(zip((x.prefix + n for n in x.names), own.values()))
            with torch.enable_grad():
                rows = batch if batch is None else part(batch, i, x)
                loss = self.value(x.objective, {**self.tensors, **here}, rows)
                grads = gradients(loss, list(own.values()))
            losses.append(float(loss.detach()))
            found |= dict(zip(own, grads))
        if not x.texts.value and x.clock.name == "step":
            self.losses.setdefault(x.name, sum(losses) / len(losses))
        return found

    def value(
        self, node: Node, tensors: Tensors, batch: Mapping[str, Tensor] | None, lasting: Tensors | None = None
    ) -> Tensor:
        """An expression outside flows, with these tensors in place. lasting: what memories `per model` hold."""

        def records(level: str, what: str) -> Tensors:
            x = next(y for y in self.graph.step_levels if y.name == level)
            now = {n: tensors[x.prefix + n] for n in x.names if x.prefix + n in tensors}
            if what == "before":
                return self.before.get(level, now)
            if what == "gradient":
                return self.gradients.get(level, {n: torch.zeros_like(w) for n, w in now.items()})
            return now

        given = batch
        if given is None:  # a tick without a batch: nothing in the expression reads the model
            given = {s.name: torch.zeros(1, *([1] if s.type.clock else []), *s.type.shape) for s in self.graph.inputs}
            if any(n.op in ("call", "slot") for n in walk(node)):
                raise LookupError("this level learns from the model's inputs, and the tick brings none")
        step = self.counts.get("step", 0)
        return Reference(self.graph, tensors, training=True, seed=self.seed, step=step, lasting=lasting).loss(
            node, given, records
        )

    @staticmethod
    def named(x: StepLevel, tensors: Tensors) -> Tensors:
        return {p.removeprefix(x.prefix): w for p, w in tensors.items()}

    # learn -----------------------------------------------------------------------------------------

    def learn(self, x: StepLevel, g: Tensors | None) -> None:
        """4. At multiples of N: A = project(retain(A) + Δ), Δ from the sum of the gradients since the last update."""
        kept = self.kept[x.name]
        kept.ticks += 1
        if g is not None:
            kept.n_ticks += 1
            kept.sums = {p: kept.sums[p] + d if p in kept.sums else d for p, d in g.items()}
        if kept.ticks % x.every != 0:
            return
        sums, n_ticks = kept.sums, kept.n_ticks
        kept.sums, kept.n_ticks = {}, 0
        if not n_ticks:
            return
        kept.updates += 1
        assert x.rule is not None
        for paths in x.parted():  # an optimiser has its memories for each copy, and sees one at a time
            settings: dict[str, Any] = {"w0": kept.start, "retain": x.retain}
            new, slots = run_rule(
                x.rule,
                {p: self.tensors[p] for p in paths},
                sums,
                kept.slots,
                updates=kept.updates,
                n_ticks=n_ticks,
                ticks=kept.scheduled + kept.ticks,
                every=x.every,
                run_length=self.run_length,
                heads=self.heads,
                **settings,
            )
            self.tensors |= {p: w.detach() for p, w in new.items()}
            kept.slots = {**kept.slots, **slots}
        self.mark(x.name)


def gradients(loss: Tensor, tensors: list[Tensor]) -> Sequence[Tensor]:
    """Zeros where nothing that is learned reaches the loss: under `gradient stop` a memory's steps are constants."""
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in tensors]
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
