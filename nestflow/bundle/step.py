"""One tick of a clock of slow levels, by language.md §3.7: the objectives in order, the levels of each together."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nestflow.bundle.capture import captured
from nestflow.bundle.capture import wanted as captures
from nestflow.bundle.curvature import curvatures, twice_differentiable
from nestflow.bundle.grams import InputGrams, terms_of
from nestflow.bundle.module import Module
from nestflow.bundle.step_optimizer import StepOptimizer
from nestflow.diagnostics.core import fail
from nestflow.emit.model import condition_name, losses_of, objectives
from nestflow.graph.model import LevelGraph, StepLevel
from nestflow.ir.node import walk
from nestflow.ops.loop import plainly


class Ticker:
    """What ticks the levels without slots of a bundle: `tick("step", batch)`, `tick("task")`."""

    def __init__(self, graph: LevelGraph, module: Module, optimizer: StepOptimizer) -> None:
        self.graph, self.module, self.optimizer = graph, module, optimizer
        groups = objectives(graph).items()
        # the faster clocks first, otherwise in the order in which the levels read each other
        self.groups = sorted(groups, key=lambda g: g[1][0].clock.count)
        self.shown = losses_of(graph)
        self.asked = {  # (level, what of it) that some objective reads
            (n["level"], n["what"])
            for x in graph.step_levels
            for n in walk(*(y for y in (x.objective, x.when) if y is not None))
            if n.op == "record" and n["what"] in ("before", "gradient")
        }
        self.beside: dict[str, Tensor] = {}
        self.captures = captures(graph, module.device)

    def tick(self, base: str, inputs: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """One tick of the clock `base`, and of those that it ticks. inputs: checked; None where the caller has none."""
        count = self.optimizer.count(base)
        self.beside = {}
        published: dict[str, Tensor] = {}
        losses: dict[str, float] = {}
        for name, levels in self.groups:
            due = [x for x in levels if x.clock.base == base and count % x.clock.count == 0]
            if not due:
                continue
            value = self.learn(name, due, inputs, published)
            if value is not None and name in self.shown:
                losses[name] = float(value.mean())
        for clock in self.graph.clocks:
            if clock.base == base and count % clock.count == 0:
                self.mark(clock.name)
        emitted = {n: float(v.detach().float().mean()) for n, v in published.items()}
        report = self.optimizer.report()
        return {"loss": next(iter(losses.values()), 0.0), "losses": losses, "levels": report, "emitted": emitted}

    def learn(
        self, name: str, levels: Sequence[StepLevel], inputs: Mapping[str, Tensor] | None, published: dict[str, Tensor]
    ) -> Tensor | None:
        """One tick of levels with one objective: their gradients at one state, then all learn."""
        for level in levels:
            if self.optimizer.restarts(level.name):
                self.module.restart(level)
                self.optimizer.restart(level.name, level.keep_rule)
        bringing = [x for x in levels if self.brings(x, inputs)]
        value = None
        if bringing or name in self.shown:
            curved = self.optimizer.wants_curvature([x.name for x in bringing])
            twice = twice_differentiable() if curved else contextlib.nullcontext()
            with self.grams(bringing, inputs or {}) as grams, twice:
                value = self.gradients(name, bringing, inputs, published, curved)
            self.optimizer.input_grams = grams() if grams else {}
        for level in levels:
            self.remember(level)
        self.optimizer._step_levels([x.name for x in levels])
        for weight in (*self.module.weights.values(), *self.module.kept.values()):
            weight.grad = None
        for level, did in self.optimizer.report().items():
            if did["updated"] and any(level == x.name for x in levels):
                self.mark(level)
        return value

    def brings(self, level: StepLevel, inputs: Mapping[str, Tensor] | None) -> bool:
        """Whether the level takes a gradient in this tick."""
        if level.moment and not self.optimizer.learns_next(level.name):
            return False
        if level.when is None:
            return True
        with torch.no_grad():
            given = self.needed(level, inputs)
            holds = self.module.objective(level.name, given, None, self.beside, condition_name(level.name))
        return bool(holds)

    def gradients(
        self,
        name: str,
        levels: Sequence[StepLevel],
        inputs: Mapping[str, Tensor] | None,
        published: dict[str, Tensor],
        curved: Collection[str] = (),
    ) -> Tensor:
        """The objective's value, of a level with copies one for each; the gradients of the levels' tensors are then in
        `.grad`. curved: levels whose rule reads the curvature now."""
        module = self.module
        given = self.needed(dict(self.groups)[name][0], inputs)
        own = {p: w.detach().requires_grad_() for x in levels for p, w in module.kept.items() if p in x.weights}
        tensors = {**module.weights, **module.kept}
        paths = [p for x in levels for p in x.weights if p in own or tensors[p].requires_grad]
        wanted = [own.get(p, tensors[p]) for p in paths]
        total: Tensor | None = None
        sums: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}
        for rows, share, part in self.parts(given):

            def taken(
                inputs: Mapping[str, Tensor], rows: Sequence[int] | None = rows, share: float = share
            ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
                """The value of the objective, its gradients by path, and what `emit` gave."""
                now: dict[str, Tensor] = {}
                value = module.objective(name, inputs, now, {**self.beside, **own}, rows=rows)
                value = value if rows is None else share * value
                if not paths or not value.requires_grad:
                    return value, {}, now
                found = torch.autograd.grad(value.sum(), wanted, allow_unused=True, create_graph=bool(curved))
                return value, {p: g for p, g in zip(paths, found, strict=True) if g is not None}, now

            if self.captures:
                what = (name, tuple(paths), None if rows is None else share)
                value, found, now = captured(module, what, part, taken)
            else:
                value, found, now = taken(part)
            for p, g in found.items():
                sums[p] = sums[p] + g if p in sums else g
            total = value.detach() if total is None else total + value.detach()
            for n, v in now.items():  # of parts, what the report shows of it: its mean
                mean = v if rows is None else share * v.detach().float().mean()
                seen[n] = seen[n] + mean if n in seen else mean
        assert total is not None
        published.update(seen)
        if sums:
            self.optimizer.curvatures = {}
            for level in levels:
                if level.name in curved:
                    at = dict(zip(paths, wanted, strict=True))
                    mine = {p: (at[p], sums[p]) for p in level.weights if p in sums}
                    steps = {p: self.optimizer.state[tensors[p]]["step"] + 1 for p in mine}
                    self.optimizer.curvatures |= curvatures(mine, steps, module.__dict__["_origin"][3])
        for p in paths:
            tensors[p].grad = sums[p].detach() if p in sums else None
        return total

    def parts(self, inputs: Mapping[str, Any]) -> Iterator[tuple[Sequence[int] | None, float, Mapping[str, Any]]]:
        """The batch, or what `microbatch` makes of it: (its rows, their share, its inputs), None for all rows."""
        count = next((x.shape[0] for x in inputs.values() if x is not None), 1)
        parts = min(dict(self.module.__dict__["_graph"].execution).get("microbatch", 1), count)
        if parts == 1:
            yield None, 1.0, inputs
            return
        ends = [i * count // parts for i in range(parts + 1)]
        for a, b in pairwise(ends):
            yield range(a, b), (b - a) / count, {n: x if x is None else x[a:b] for n, x in inputs.items()}

    def needed(self, level: StepLevel, inputs: Mapping[str, Tensor] | None) -> Mapping[str, Any]:
        """The inputs, or none where the level's objective reads none. Raises NF502 where it does."""
        if inputs is not None:
            return inputs
        nodes = [n for n in (level.objective, level.when) if n is not None]
        read = next((n for n in walk(*nodes) if n.op in ("slot", "call")), None)
        if read is not None:
            raise fail(
                "NF502",
                f"level `{level.name}` learns from the model's inputs, and this tick brought none",
                level.span,
                f'`b.tick("{level.clock.name}", batch)`',
            )
        return dict.fromkeys(s.name for s in self.graph.inputs)

    def remember(self, level: StepLevel) -> None:
        """What later levels of this tick may ask of it: its state before it learns, the gradient that it took."""
        if level.copies:  # nothing can ask for those of many copies
            return
        tensors = {**self.module.weights, **self.module.kept}
        for path, name in zip(level.weights, level.names, strict=True):
            grad = tensors[path].grad
            if (level.name, "before") in self.asked:
                self.beside[f"before({level.name}).{name}"] = tensors[path].detach().clone()
            if (level.name, "gradient") in self.asked and grad is not None:
                self.beside[f"gradient({level.name}).{name}"] = grad.clone()

    def mark(self, what: str) -> None:
        """A clock has ticked or a level has learned: levels that go by it begin anew at their next tick."""
        for level in self.graph.step_levels:
            if level.reset == what and level.inner is None:
                self.optimizer.mark_restart(level.name)

    @contextlib.contextmanager
    def grams(self, levels: Sequence[StepLevel], inputs: Mapping[str, Tensor]) -> Iterator[Any]:
        """Watches the inputs of the weights whose rule reads them (dgd)."""
        needs = self.optimizer.needs_inputs
        wanted = {p: n for p, n in needs.items() if any(p in level.weights for level in levels)}
        if not wanted:
            yield None
            return
        first = next(level for level in levels if set(level.weights) & set(wanted))
        with plainly(), InputGrams(self.module.weights, wanted, terms_of(first, inputs)) as watch:
            yield lambda: watch.grams
