"""Expressions outside flows, and in them the levels that begin anew in every step: language.md §3.4 (rounds), §3.9.

A level of that kind is run where an expression recalls it: from its start, `rounds` updates, one copy for the batch or
one for each task (row). The examples of a task (axis N) are rows: nothing in a flow sees their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nestflow.diagnostics.core import fail
from nestflow.graph.model import LevelGraph, StepLevel, named_level
from nestflow.ir.node import Node, make, rebuild, walk
from nestflow.reference.evolution import estimate
from nestflow.reference.loss import Loss, Records
from nestflow.reference.rule import Update, Weight, start_slots

Tensors = dict[str, Tensor]


class Nested:
    """records: tensors of levels before this tick, and gradients that they took in it; the others are known here."""

    def __init__(
        self,
        graph: LevelGraph,
        tensors: Mapping[str, Tensor],
        training: bool = False,
        networks: Mapping[str, Any] | None = None,
        records: Records | None = None,
        chance: tuple[int, int] = (0, 0),
        lasting: Tensors | None = None,
    ) -> None:
        self.lasting = lasting  # what memories `per model` hold
        self.chance = chance  # seed and step
        self.graph, self.tensors, self.training, self.networks = graph, dict(tensors), training, networks
        self.outer = records
        self.levels = {x.name: x for x in graph.step_levels if x.inner is not None and x.rule is not None}

    def value(
        self,
        node: Node,
        batch: Mapping[str, Tensor],
        tensors: Tensors | None = None,
        done: frozenset[str] = frozenset(),
    ) -> Tensor:
        """[B, T, *features], T the ticks or the examples. done: levels whose tensors stand among `tensors`."""
        at = tensors = dict(self.tensors if tensors is None else tensors)
        estimated: dict[int, Tensor] = {}

        def change(n: Node, _: tuple[Node, ...]) -> Node | None:
            if n.op != "es":
                return None
            leaf = make("es", (), n.type, n.span, **dict(n.attrs), number=len(estimated))
            kept.append(leaf)  # its id is a key as long as it lives
            estimated[id(leaf)] = estimate(
                n, lambda own: self.value(n.args[0], batch, dict(own), done), at, self.chance
            )
            return leaf

        kept: list[Node] = []
        node = rebuild(node, change) if any(n.op == "es" for n in walk(node)) else node
        copies: dict[str, list[Tensors]] = {}
        for name in self.needed(node) if self.levels else ():
            level = self.levels[name]
            assert level.inner is not None
            if name in done:
                continue
            if level.inner.copies == "task":
                copies[name] = [self.run(level, row(batch, b), tensors, done) for b in range(rows(batch))]
            else:
                tensors |= self.run(level, batch, tensors, done)
                done = done | {name}
        for x in self.graph.step_levels:  # workers' copies live on; in an objective of theirs one stands for the level
            if x.copies and x.prefix + x.names[0] not in tensors and x.weights[0] in tensors:
                own = [x.prefix + n for n in x.names]
                copies[x.name] = [dict(zip(own, (tensors[p] for p in paths))) for paths in x.parted()]
        calls = [n for n in walk(node) if n.op in ("call", "emitted")]
        known = self.calls(calls, batch, tensors, copies) | estimated

        def records(level: str, what: str) -> Tensors:
            if what == "copies":
                prefix = next(y.prefix for y in self.graph.step_levels if y.name == level)
                own = [{p.removeprefix(prefix): x for p, x in c.items()} for c in copies[level]]
                return {n: torch.stack([c[n] for c in own]) for n in own[0]}
            x = next(y for y in self.graph.step_levels if y.name == level)
            now = {n: tensors[x.prefix + n] for n in x.names}
            return now if what == "now" or self.outer is None else {**now, **self.outer(level, what)}

        from nestflow.reference.model import Reference

        ref = Reference(self.graph, tensors, self.training, self.networks, *self.chance, lasting=self.lasting)
        given = {n: x for n, x in batch.items() if x is not None}
        return Loss(tensors, given, known, *ref._kind(given), ref.networks, records).eval(node)

    def needed(self, node: Node) -> list[str]:
        """The levels that an expression recalls or reads, those that they need before them."""
        found: list[str] = []

        def visit(n: Node, above: tuple[str, ...]) -> None:
            for x in walk(n):
                name = named_level(x)
                if name in self.levels and name not in above and name not in found:
                    objective = self.levels[name].objective
                    assert objective is not None
                    visit(objective, (*above, name))
                    found.append(name)

        visit(node, ())
        return found

    # calls of flows ----------------------------------------------------------------------------------

    def calls(
        self, nodes: list[Node], batch: Mapping[str, Tensor], tensors: Tensors, copies: Mapping[str, list[Tensors]]
    ) -> dict[int, Tensor]:
        """The value of each call, by its id; those of a level with copies, row by row."""
        known: dict[int, Tensor] = {}
        together: list[Node] = []
        for n in nodes:
            child = (n.args[0] if n.op == "emitted" else n)["child"]
            if child in copies:
                level = next(x for x in self.graph.step_levels if x.name == child)
                parts = [
                    self.ticks([n], part(batch, b, level), {**tensors, **own})[id(n)]
                    for b, own in enumerate(copies[child])
                ]
                known[id(n)] = torch.cat(parts)
            elif any(x.op == "slot" and x.type.clock == "N" for x in walk(n)):
                known |= self.ticks([n], batch, tensors)
            else:
                together.append(n)
        return known | (self.ticks(together, batch, tensors) if together else {})

    def ticks(self, nodes: list[Node], batch: Mapping[str, Tensor], tensors: Tensors) -> dict[int, Tensor]:
        """Calls at every tick; the examples of a task are rows of one tick."""
        from nestflow.reference.model import Reference

        ref = Reference(self.graph, tensors, self.training, self.networks, *self.chance, lasting=self.lasting)
        given = {n: x for n, x in batch.items() if x is not None}
        read = {n["name"]: n.type.clock for n in walk(*nodes) if n.op == "slot"}
        size = next((given[n].shape[1] for n, clock in read.items() if clock == "N"), None)
        if size is not None:
            given = {
                n: given[n].flatten(0, 1) if clock == "N" else given[n].repeat_interleave(size, 0)
                for n, clock in read.items()
            }
        per_tick = [values for values, _ in ref._ticks(None, given, nodes)]
        found: dict[int, Tensor] = {}
        for n, values in zip(nodes, zip(*per_tick)):
            if size is None and not n.type.batch:  # the same in all rows (a constant that is emitted)
                values = [v[:1] for v in values]
            else:
                values = [v.expand(ref._batch(given), *v.shape[1:]) for v in values]
            whole = torch.cat(values, 1) if n.type.clock or size is not None else values[-1]
            found[id(n)] = whole if size is None else whole.reshape(-1, size, *whole.shape[2:])
        return found

    # learning ----------------------------------------------------------------------------------------

    def start(self, level: StepLevel, tensors: Tensors) -> Tensors:
        table = dict(level.start)
        like = next((x for x in tensors.values() if x.is_floating_point()), torch.zeros(()))
        numbers = {"zeros": 0.0, "ones": 1.0}
        return {
            w.path: tensors[table[w.path]]
            if w.path in table
            else like.new_full(w.full_shape, numbers.get(w.init.kind, w.init.a))
            for w in level.state
        }

    def run(self, level: StepLevel, batch: Mapping[str, Tensor], tensors: Tensors, done: frozenset[str]) -> Tensors:
        """The tensors of one copy after its rounds, each from the state that the one before has left."""
        inner, rule, objective = level.inner, level.rule, level.objective
        assert inner is not None and rule is not None and objective is not None
        now, slots = self.start(level, tensors), dict[str, Tensors]()
        begun = {p: x[None, None] for p, x in now.items()}
        held = {"through": 0, "truncate": inner.rounds - inner.keep}.get(inner.gradient, inner.rounds)

        def error(own: Tensors, others: Tensors) -> Tensor:
            return self.value(objective, batch, {**others, **own}, done | {level.name}).sum()

        for t in range(1, inner.rounds + 1):
            stop = t <= held
            with torch.enable_grad():
                alias = {p: x.clone() if x.requires_grad else x.detach().requires_grad_() for p, x in now.items()}
                found = torch.autograd.grad(
                    error(alias, tensors),
                    list(alias.values()),
                    create_graph=not stop,
                    allow_unused=True,
                    materialize_grads=True,
                )
            ones: list[Weight] = []
            for (p, x), g in zip(now.items(), found):
                name, lifted = p.removeprefix(level.prefix), x[None, None]
                old = slots.get(p) or start_slots(rule, name, lifted)
                ones.append(Weight(name, lifted, g[None, None], old, begun[p], lifted, stop=stop))
            length = float(inner.rounds)  # of a schedule: its ticks are the rounds
            count = torch.tensor([[t]])
            Update(rule, ones, count, 1, t, run_length=length, per_copy=False, retain=level.retain).run()
            now = {p: o.w[0, 0] for p, o in zip(now, ones)}
            slots = {p: o.new for p, o in zip(now, ones)}
        if inner.gradient == "implicit":
            return self.implicit(error, now, tensors, inner.keep)
        return now

    @staticmethod
    def implicit(error: Callable[[Tensors, Tensors], Tensor], now: Tensors, tensors: Tensors, iters: int) -> Tensors:
        """dθ = −H⁻¹ ∂²ℓ/∂θ∂φ dφ at the state that was reached, by `iters` steps of cg on the whole Hessian."""
        others = {p: x for p, x in tensors.items() if x.requires_grad}
        reached = {p: x.detach() for p, x in now.items()}
        made = _Implicit.apply(error, list(reached), list(others), tensors, iters, *reached.values(), *others.values())
        return dict(zip(reached, made))


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, error: Any, names: Any, paths: Any, tensors: Any, iters: int, *values: Tensor) -> Any:
        ctx.setting = error, names, paths, tensors, iters
        ctx.save_for_backward(*values)
        return tuple(x.clone() for x in values[: len(names)])

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Any:
        error, names, paths, tensors, iters = ctx.setting
        values = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        own, others = values[: len(names)], values[len(names) :]
        with torch.enable_grad():
            loss = error(dict(zip(names, own)), {**tensors, **dict(zip(paths, others))})
            g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, own, create_graph=True)])
            h = torch.stack(
                [torch.cat([y.flatten() for y in torch.autograd.grad(x, own, retain_graph=True)]) for x in g]
            )
            b = torch.cat([x.flatten() for x in v])
            u, r, p = torch.zeros_like(b), b, b
            least = 1e3 * torch.finfo(b.dtype).eps ** 2 * (b @ b)  # below it the residual is rounding alone
            for _ in range(iters):
                if (p @ h @ p) == 0 or (r @ r) <= least:
                    break
                k = (r @ r) / (p @ h @ p)
                u, r, before = u + k * p, r - k * (h @ p), r
                p = r + (r @ r) / (before @ before) * p
            pulled = torch.autograd.grad(g @ u.detach(), others, allow_unused=True) if others else ()
        return (None,) * 5 + (None,) * len(own) + tuple(None if x is None else -x for x in pulled)


def rows(batch: Mapping[str, Tensor]) -> int:
    return next(x.shape[0] for x in batch.values() if x is not None)


def part(batch: Mapping[str, Tensor], i: int, level: StepLevel) -> dict[str, Tensor]:
    """What copy i of a level sees: a task its row, a worker as many rows in turn as each other one."""
    if not level.copies:
        return row(batch, i)
    n = rows(batch)
    if n % level.copies:
        what = f"the batch has {n} rows, and `{level.name}` has {level.copies} workers, each with as many"
        raise fail("NF505", what, level.span)
    size = n // level.copies
    return {name: x[i * size : (i + 1) * size] for name, x in batch.items() if x is not None}


def row(batch: Mapping[str, Tensor], b: int) -> dict[str, Tensor]:
    return {n: x[b : b + 1] for n, x in batch.items() if x is not None}
