"""The reference interpreter: runs a level graph tick by tick. It defines what a spec means (language.md §3).

Slow and plain on purpose. It reads the level graph with an evaluator of its own and `torch.autograd`, and shares no
code with what compiles (`lowering`, `emit`, `ops`), so that the two check each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.diagnostics.core import fail
from nestflow.graph.model import Init, Instance, LevelGraph, Memory
from nestflow.graph.state import CHUNK, counted_by, keeps_anchor, memory_path, state_slots
from nestflow.ir.node import Node, walk
from nestflow.reference import reading
from nestflow.reference.cache import Whole
from nestflow.reference.chance import drawn_start
from nestflow.reference.level import slot_path
from nestflow.reference.loss import Records
from nestflow.reference.nested import Nested
from nestflow.reference.networks import Networks
from nestflow.reference.rule import pick, start_slots
from nestflow.reference.tick import Frame, Tensors, Tick
from nestflow.reference.values import as_float

TICKS = "@t"
"""Key of the state: ticks that each row has seen since its sequence began, [B]."""


class Reference:
    """The model of a level graph on given slow weights (path -> tensor, float64 for tight comparisons)."""

    def __init__(
        self,
        graph: LevelGraph,
        weights: Mapping[str, Tensor],
        training: bool = False,
        networks: Mapping[str, Any] | None = None,
        seed: int = 0,
        step: int = 0,
        lasting: Tensors | None = None,
    ) -> None:
        """seed, step: what the draws of `dropout`, `noise` and `bernoulli` are a function of (§3.10). lasting: what
        memories `per model` hold, path -> [(heads,) *shape], and "@age"; each call goes on from it, and rewrites it."""
        self.seed, self.step, self.given_networks = seed, step, networks
        self.chance = seed, step
        self.networks = Networks(networks or {}, weights, training)
        self.graph, self.weights, self.training = graph, weights, training
        self.heads = {s.path: s.heads for s in graph.state} | {TICKS: None, reading.AGE: None}
        self.lasting = {} if lasting is None else lasting
        self.shared = {s.path for s in graph.state if s.per == "model"}
        self.beyond = {s.path for s in graph.state if s.per != "sequence"}  # what a new sequence does not begin anew

    # running ---------------------------------------------------------------------------------------

    def __call__(self, *args: Tensor, **inputs: Tensor) -> Any:
        """The output for whole sequences from a fresh stream, [B, T, ...], by name where there are several;
        differentiable in weights and inputs."""
        given = self._inputs(args, inputs, self.graph.needed)
        nested = Nested(self.graph, self.weights, self.training, self.given_networks, None, self.chance, self.lasting)
        nodes = self._outputs()
        copied = {x.name for x in self.graph.step_levels if x.copies}
        beyond = any(
            (n.op == "slot" and n.type.clock == "N") or (n.op == "call" and n["child"] in copied) for n in walk(*nodes)
        )
        if beyond or any(nested.needed(o) for o in nodes):
            whole = [nested.value(o, given) for o in nodes]
            return self._by_name([v if o.type.clock else v[:, 0] for o, v in zip(nodes, whole)])
        return self._named([values for values, _ in self._ticks(None, given, nodes)])

    def run(
        self, state: Mapping[str, Tensor] | None, inputs: Mapping[str, Tensor], starts: Tensor | None = None
    ) -> tuple[Any, Tensors]:
        """Continue a stream: the outputs [B, T, ...], and the state after the last tick. None begins one.

        state: absolute path -> [B, (heads,) *shape], and "@t". No gradient crosses the call (§3.9). starts: [B, T]
        bool, true where a row's new sequence begins (§3.1)."""
        given, outputs = self._inputs((), inputs, self.graph.needed), []
        before = None if state is None else {p: x.detach() for p, x in state.items()}
        after: Tensors = {}
        for values, now in self._ticks(before, given, self._outputs(), starts):
            outputs.append(values)
            after = now
        return self._named(outputs), self._outside(after)

    def trace(self, *args: Tensor, **inputs: Tensor) -> Iterator[Tensors]:
        """The state after each tick of a fresh stream."""
        for _, state in self._ticks(None, self._inputs(args, inputs), self._outputs()):
            yield self._outside(state)

    def initial_state(self, batch: int, dtype: torch.dtype | None = None) -> Tensors:
        """The state of `batch` new streams. dtype: the weights' (a model without weights takes the default)."""
        known, device = self._kind({})
        return self._outside(self._start(batch, dtype or known, device))

    def loss(self, objective: Node, inputs: Mapping[str, Tensor], records: Records | None = None) -> Tensor:
        """An objective of the whole model: one number. records: the tensors of levels that it names."""
        given = self._inputs((), inputs)
        nested = Nested(
            self.graph, self.weights, self.training, self.given_networks, records, self.chance, self.lasting
        )
        return nested.value(objective, given).reshape(())

    def _ticks(
        self, state: Mapping[str, Tensor] | None, inputs: Tensors, roots: Sequence[Node], starts: Tensor | None = None
    ) -> Iterator[tuple[list[Tensor], Tensors]]:
        """Values of the roots (expressions of the root instance) and the state, tick after tick."""
        batch, (dtype, device) = self._batch(inputs), self._kind(inputs)
        start = self._start(batch, dtype, device)
        now = dict(start) if state is None else self._inside(state)
        if self.graph.reading or self.beyond:
            now.setdefault(reading.AGE, now[TICKS])
        now |= self._lasting(batch)
        if self.graph.reading:
            yield from reading.read(self, now, start, inputs, roots, starts)
            return
        length = self._length(inputs)
        first = torch.zeros(batch, length, dtype=torch.int64, device=device)
        whole = Whole(first if starts is None else starts.to(device).long().cumsum(1))
        ahead = [
            i for i in self.graph.root.streamed() for m in i.memories if m.cache is not None and not m.cache.causal
        ]
        if ahead and (now[TICKS] > 0).any():
            raise fail(
                "NF536",
                "this spec attends to later tokens (`causal = false`): a sequence comes in one call",
                ahead[0].span,
                "call it with whole sequences",
            )
        for _ in ahead:  # what one cache keeps may depend on what another one says: each time through settles one more
            for _ in self._through(dict(now), start, inputs, roots, starts, whole):
                pass
            whole = whole.again()
        for values, after in self._through(now, start, inputs, roots, starts, whole):
            if self.shared:
                kept = self._outside({p: after[p].detach() for p in (*self.shared, reading.AGE)})
                self.lasting |= {p: x[0] for p, x in kept.items()}
            yield values, after

    def _lasting(self, batch: int) -> Tensors:
        """What memories `per model` hold, seen by each row. Nothing before the first call: they begin."""
        return self._inside({p: x.expand(batch, *x.shape) for p, x in self.lasting.items()})

    def _through(
        self,
        now: Tensors,
        start: Tensors,
        inputs: Tensors,
        roots: Sequence[Node],
        starts: Tensor | None,
        whole: Whole,
    ) -> Iterator[tuple[list[Tensor], Tensors]]:
        """Once through the ticks of the call."""
        (dtype, device), clocks = self._kind(inputs), {s.name: s.type.clock == "T" for s in self.graph.inputs}
        beyond = self.beyond | ({reading.AGE} if self.beyond else set())
        for i in range(self._length(inputs)):
            whole.now = i
            if starts is not None:  # 1. reset: what was cached before is dropped by the row's count of ticks
                new = starts[:, i : i + 1].to(device)
                begun = {p: start[p] for p in now if p not in beyond}
                now |= {p: pick(new, x, now[p]) for p, x in begun.items() if x.shape == now[p].shape}
            now |= {p: now[p] + 1 for p in (TICKS, reading.AGE) if p in now}
            grad = torch.is_grad_enabled()
            tick = Tick(self.weights, dict(now), start, now[TICKS], dtype, self.training, grad, now, whole, self._begun)
            tick.networks, tick.age = self.networks, now.get(reading.AGE)
            tick.seed, tick.step = self.seed, self.step
            at = {n: (x[:, i] if clocks[n] else x).unsqueeze(1) for n, x in inputs.items()}
            frame = Frame(tick, self.graph.root, at)
            values = [frame.eval(r) for r in roots]
            now = tick.state
            yield values, now

    # state -----------------------------------------------------------------------------------------

    def _start(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensors:
        """1. Reset: A := init, and all that is kept begins again. Tensors are [B, H, *shape]."""
        state: Tensors = {TICKS: torch.zeros(batch, 1, dtype=torch.int64, device=device)}
        state |= self._begin(self.graph.root.streamed(), batch, dtype, device)
        if self.beyond:
            state[reading.AGE] = state[TICKS]
        return state | reading.start(self, state, batch, dtype, device) if self.graph.reading else state

    def _begun(self, instance: Instance, tick: Tick) -> Tensors:
        """The same of what runs along patches inside a tick, and of all below it."""
        return self._begin(instance.walk(), tick.t.shape[0], tick.dtype, tick.device)

    def _begin(self, instances: Iterable[Instance], batch: int, dtype: torch.dtype, device: torch.device) -> Tensors:
        state: Tensors = {}
        for instance in instances:
            for s in state_slots(instance):  # pending sums, tails and caches begin at zero or empty
                kind = {"int": torch.int64, "bool": torch.bool}.get(s.dtype, dtype)
                state[s.path] = torch.zeros(batch, s.heads or 1, *s.shape, dtype=kind, device=device)
            for m in instance.memories:
                if m.function is not None:
                    state |= self._memory_start(instance, m, batch, dtype, device)
        return state

    def _memory_start(
        self, instance: Instance, m: Memory, batch: int, dtype: torch.dtype, device: torch.device
    ) -> Tensors:
        path, state = memory_path(instance.path, m.name, ""), {}
        for t in m.function.tensors if m.function is not None else ():
            if t.learned is not None:
                w = self._learned(instance, t.learned, dtype, device)
                a = (w if m.heads else w.unsqueeze(0)).unsqueeze(0)
            elif t.drawn:
                first = torch.ones(batch, 1, dtype=torch.int64, device=device)
                a = drawn_start(t.init, self.chance, counted_by(instance.path, t), first, m.heads or 1, t.shape).to(
                    dtype
                )
            else:
                a = begun(t.init, t.shape).to(dtype).to(device).expand(1, m.heads or 1, *t.shape)
            a = a.expand(batch, *a.shape[1:])
            state[f"{path}.{t.path}"] = a
            if keeps_anchor(m):
                state[f"{path}.{t.path}{CHUNK}"] = a
            if m.rule is not None:
                slots = start_slots(m.rule, t.path, a)
                state |= {slot_path(m.rule, path, n, t.path): s for n, s in slots.items()}
        return state

    def _learned(self, instance: Instance, path: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What a memory starts from: a slow weight, or what is computed from them, [(heads,) *shape]."""
        found = next((s for s in instance.starts if s.path == path), None)
        if found is None:
            return self.weights[memory_path(instance.weights_path, "", path)]
        none = torch.zeros(1, 1, dtype=torch.int64, device=device)
        whole = Whole(none)
        tick = Tick(self.weights, {}, {}, none, dtype, self.training, True, {}, whole, self._begun)
        value = as_float(Frame(tick, instance, {}).eval(found.node), dtype)
        value = value.expand(1, found.heads or 1, *found.shape)[0]
        return value if found.heads else value[0]

    def _outside(self, state: Tensors) -> Tensors:
        """As the compiled module keeps it: a head axis only where there are heads."""
        return {p: x if self.heads.get(p, 1) else x[:, 0] for p, x in state.items()}

    def _inside(self, state: Mapping[str, Tensor]) -> Tensors:
        return {p: x if self.heads.get(p, 1) else x.unsqueeze(1) for p, x in state.items()}

    # inputs and outputs ------------------------------------------------------------------------------

    def _inputs(
        self, args: Sequence[Tensor], inputs: Mapping[str, Tensor], needed: Collection[str] | None = None
    ) -> Tensors:
        names = [s.name for s in self.graph.inputs]
        wanted = names if needed is None else [n for n in names if n in needed]
        given = dict(zip(wanted, args)) if len(args) == 1 == len(wanted) else dict(inputs)
        for n in given:
            if n not in names:
                known = ", ".join(f"`{x}`" for x in names)
                raise fail("NF501", f"this spec has no input `{n}`", help=f"its inputs are {known}")
        for s in self.graph.inputs:
            if s.name not in given and s.name in wanted:
                raise fail("NF502", f"the input `{s.name}` is missing", s.span)
        kind, _ = self._kind(given)  # a module takes numbers of any type, and computes in that of its weights
        return {n: x.to(kind) if x.is_floating_point() else x for n, x in given.items()}

    def _output(self) -> Node:
        if self.graph.output is None:
            raise fail("NF501", "this spec has no `output`, so there is nothing to compute", help="write `output …`")
        return self.graph.output

    def _batch(self, inputs: Tensors) -> int:
        return next(iter(inputs.values())).shape[0] if inputs else 1

    def _length(self, inputs: Tensors) -> int:
        return next((inputs[s.name].shape[1] for s in self.graph.inputs if s.type.clock == "T" and s.name in inputs), 1)

    def _kind(self, inputs: Tensors) -> tuple[torch.dtype, torch.device]:
        """dtype and device of all that is made here: the weights', else the inputs'."""
        found = [x for x in (*self.weights.values(), *inputs.values()) if x.is_floating_point()]
        anything = next(iter((*found, *inputs.values())), torch.zeros(()))
        return found[0].dtype if found else torch.get_default_dtype(), anything.device

    def _outputs(self) -> Sequence[Node]:
        """What is computed at each tick: the output, or each of those that it names."""
        output = self._output()
        return output.args if output.op == "outputs" else [output]

    def _named(self, ticks: Sequence[Sequence[Tensor]]) -> Any:
        """The values of each output over all ticks; by name where the spec names several."""
        return self._by_name([self._stacked(node, values) for node, values in zip(self._outputs(), zip(*ticks))])

    def _by_name(self, values: Sequence[Tensor]) -> Any:
        output = self._output()
        return dict(zip(output["names"], values)) if output.op == "outputs" else values[0]

    def _stacked(self, node: Node, values: Sequence[Tensor]) -> Tensor:
        """[B, T, *features] (per head: [B, T, H, *features]) of the values [B, H, *features] at each tick."""
        ys = [v if node.type.heads else v[:, 0] for v in values]
        return torch.stack(ys, 1) if node.type.clock else ys[-1]


def begun(init: Init, shape: tuple[int, ...]) -> Tensor:
    """A start that is no weight: zeros, ones, eye or a constant."""
    if init.kind == "eye":
        return torch.eye(*shape)
    constant = {"zeros": 0.0, "ones": 1.0, "constant": init.a}.get(init.kind)
    return torch.full(shape, constant or 0.0, dtype=torch.float64)
