"""One tick, by language.md §3: the expressions of an instance, and what a level of memories does with them.

Values are tensors `[B, H, *features]` (see `values`). Every look-back block and every memory is visited at every tick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nestflow.graph.model import Instance, Memory
from nestflow.graph.state import memory_path
from nestflow.ir.node import Node, walk
from nestflow.reference.chance import flat, hashes, normal
from nestflow.reference.values import align, apply, as_float, leaf, rope

if TYPE_CHECKING:
    from nestflow.reference.cache import Whole

Tensors = dict[str, Tensor]
LOOKBACK = frozenset(("short_conv", "previous", "window", "call", "network"))


def waits(node: Node) -> bool:
    """Whether a call is given what an objective recalls, which is there once the context has been evaluated."""
    return node.op == "call" and any(n.op == "recall" and n["mode"] == "objective" for n in walk(node))


@dataclass
class Tick:
    """Everything that holds during one tick. state: absolute path -> [B, H, ...], rewritten as the tick goes on.
    t: [B, 1], ticks since the row's sequence began, this one included. start: the state at a sequence's start. before:
    the state as this tick began. whole: the call's pairs, for attention that looks ahead."""

    weights: Mapping[str, Tensor]
    state: Tensors
    start: Tensors
    t: Tensor
    dtype: torch.dtype
    training: bool
    grad: bool
    before: Mapping[str, Tensor]
    whole: Whole
    begin: Callable[[Instance, Tick], Tensors]  # the state of an instance and all below it as it starts
    tails: set[str] = field(default_factory=set)
    emits: dict[str, Tensor] = field(default_factory=dict)
    age: Tensor | None = None  # [B, 1], ticks since the row's stream began, this one included
    seed: int = 0
    step: int = 0
    row: int = 0  # the number of the first of these rows, which draws are a function of
    networks: Any = None  # of the caller: see nestflow.reference.networks

    @property
    def device(self) -> torch.device:
        return self.t.device

    def clock(self, m: Memory) -> Tensor:
        """The ticks that a memory has seen: of its sequence, or of its stream."""
        return self.t if m.per == "sequence" or self.age is None else self.age

    def put(self, path: str, value: Tensor) -> None:
        """A new state, expanded to all rows; without gradients where the caller wants none."""
        value = value.expand(self.t.shape[0], *[-1] * (value.ndim - 1))
        self.state[path] = value if self.grad else value.detach()


@dataclass
class Frame:
    """The expressions of one instance at one tick, each node once. In a memory's function theta has its state tensors,
    and taps collects the inputs of each linear whose weight is one of them (w_in)."""

    tick: Tick
    instance: Instance
    slots: Mapping[str, Tensor]
    theta: Mapping[str, Tensor] = field(default_factory=dict)
    taps: dict[str, list[Tensor]] = field(default_factory=dict)
    # memory -> recall mode -> its tensors (a level fills this as its tick goes on); see nestflow.reference.level
    states: dict[tuple[str, str], Tensors] = field(default_factory=dict)
    # memory -> tensor -> its inputs in the objective, and the recall of each
    inputs_of: dict[str, dict[str, list[tuple[Tensor, Node]]]] = field(default_factory=dict)
    learning: dict[str, Any] = field(default_factory=dict)  # memory -> what it is about in this tick
    memo: dict[int, Tensor] = field(default_factory=dict)
    published: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # call -> what it emitted
    raw: dict[int, Any] = field(default_factory=dict)  # what networks of the caller gave
    learner: str | None = None  # only read: the path of the level whose memories it recalls

    def result(self) -> Tensor:
        """What the instance returns at this tick; a level learns first."""
        from nestflow.reference.cache import forget
        from nestflow.reference.level import learn

        if self.instance.memories:
            learn(self)
        if self.instance.result is None:
            raise LookupError(f"`{self.instance.path}` returns nothing")
        value = self.eval(self.instance.result)
        forget(self)
        return value

    def eval(self, root: Node) -> Tensor:
        for node in walk(root):
            if id(node) not in self.memo:
                self.memo[id(node)] = self.compute(node, [self.memo[id(a)] for a in node.args])
        return self.memo[id(root)]

    def look_back(self, *roots: Node | None) -> None:
        """Evaluate the blocks below the roots that keep a state: they take their input at every tick (§3.2)."""
        for node in walk(*(r for r in roots if r is not None)):
            if node.op in LOOKBACK and not waits(node):
                self.eval(node)

    def compute(self, node: Node, xs: list[Tensor]) -> Tensor:
        op, tick = node.op, self.tick
        if op == "slot":
            return self.slots[node["name"]]
        if op == "weight":
            w = tick.weights[memory_path(self.instance.weights_path, "", node["path"])]
            return w[None] if node.type.heads else w[None, None]
        if op == "theta":
            return self.theta[node["tensor"]]
        if op == "position":  # of a level that goes on beyond its sequence: the stream's ticks
            return tick.clock(self.instance.memories[0]) if self.instance.memories else tick.t
        if op == "head":
            return torch.arange(node.type.heads or 1, device=tick.device)[None]
        if op == "training":
            return torch.full((1, 1), tick.training, device=tick.device)
        if op == "rope":
            return rope(as_float(xs[0], tick.dtype), tick.t, node["base"], node["reset"])
        if op == "window":
            seen = self.window(node, xs[0], node["n"] - 1)
            return seen if node.get("oldest") else seen.flip(2)
        if op in ("short_conv", "previous"):
            return self.short_conv(node, *xs) if op == "short_conv" else self.window(node, xs[0], node["n"])[:, :, 0]
        if op == "call":
            return self.call(node, xs)
        if op == "beside":
            return xs[0]
        if op == "emit":  # the sum over the instances; of a value per head, over the heads too
            for name, x in zip(node["names"], xs[1:]):
                x = x.sum(1, keepdim=True)
                tick.emits[name] = torch.add(*align(tick.emits[name], x)) if name in tick.emits else x
            return xs[0]
        if op == "emitted":
            values = [self.published[id(a)][node["name"]] for a in node.args]
            return torch.stack(torch.broadcast_tensors(*align(*values))).sum(0)
        if op == "recall":
            return self.recall(node, xs)
        if op == "network":
            return tick.networks.tick(self, node, xs)
        if op == "network_result":
            return tick.networks.tick_result(self, node)
        if op in ("uniform", "noise", "dropout"):
            return self.draw(node, xs)
        self.tap(node, xs)
        known = leaf(node, tick.dtype, tick.device)
        return known if known is not None else apply(node, xs, tick.dtype)

    def call(self, node: Node, xs: list[Tensor]) -> Tensor:
        """The result of a child, and apart from others' what it emitted."""
        child, of = self.instance.child(node["child"]), node.get("of")
        inputs = dict(zip(node["names"], xs))
        if child.ticks is not None:
            return self.along(child, node, inputs)
        outside, self.tick.emits = self.tick.emits, {}
        learner = None if of is None else self.instance.child(of).path
        value = Frame(self.tick, child, inputs, learner=learner).result()
        self.published[id(node)], own = dict(self.tick.emits), self.tick.emits
        for name, x in own.items():
            outside[name] = torch.add(*align(outside[name], x)) if name in outside else x
        self.tick.emits = outside
        return value

    def along(self, child: Instance, node: Node, inputs: Mapping[str, Tensor]) -> Tensor:
        """An instance that runs along feature axis 0 of some of its inputs, each example a sequence of its own."""
        from nestflow.reference.cache import Whole

        outer, length = self.tick, child.ticks or 0
        unrolled = [n for n, a in zip(node["names"], node.args) if a.type.unrolled]
        start = outer.begin(child, outer)
        results: list[Tensor] = []
        whole = Whole(outer.t.new_zeros(outer.t.shape[0], length))
        ahead = [m for i in child.walk() for m in i.memories if m.cache is not None and not m.cache.causal]
        for turn in range(len(ahead) + 1):  # once more for each cache that looks ahead
            whole, results, state = whole.again() if turn else whole, [], dict(start)
            for i in range(length):
                whole.now = i
                tick = replace(outer, state=dict(state), start=start, t=torch.full_like(outer.t, i + 1), before=state)
                tick.whole, tick.tails, tick.emits = whole, set(), {}
                at = {n: x[:, :, i] if n in unrolled else x for n, x in inputs.items()}
                results.append(Frame(tick, child, at).result())
                state = tick.state
        return torch.stack([y.expand(outer.t.shape[0], *y.shape[1:]) for y in results], 2)

    def draw(self, node: Node, xs: list[Tensor]) -> Tensor:
        """A draw by counter (§3.10); what has no token axis is drawn once."""
        tick = self.tick
        if node.op == "dropout" and not tick.training:
            return as_float(xs[0], tick.dtype)
        t = tick.t if node.type.clock else torch.ones_like(tick.t)
        path = memory_path(self.instance.path, "", node["path"])
        h = hashes(tick.seed, path, tick.step, t, node.type.heads or 1, node.type.shape, tick.row)
        if node.op != "dropout":
            return flat(h) if node.op == "uniform" else normal(h).to(tick.dtype)
        return torch.where(flat(h) < node["p"], 0.0, as_float(xs[0], tick.dtype) / (1 - node["p"]))

    # look-back (§3.11) -----------------------------------------------------------------------------

    def window(self, node: Node, x: Tensor, kept: int) -> Tensor:
        """The `kept` inputs before this tick and this one, oldest first: [B, H, kept + 1, *features]."""
        x = x.expand(self.tick.t.shape[0], node.type.heads or x.shape[1], *x.shape[2:]).unsqueeze(2)
        if not kept:
            return x
        path = memory_path(self.instance.path, "", node["tail"])
        if path in self.tick.tails:
            raise LookupError(f"`{path}` looks back twice in a tick")
        self.tick.tails.add(path)
        seen = torch.cat([self.tick.state[path].to(x.dtype), x], 2)
        self.tick.put(path, seen[:, :, 1:])
        return seen

    def short_conv(self, node: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Σ_{j<n} w[:, j] ⊙ x_{t−j}, zeros before the sequence's start."""
        n = node["n"]
        seen = self.window(node, x, n - 1)
        y = torch.stack([torch.mul(*align(w[..., j], seen[:, :, n - 1 - j])) for j in range(n)]).sum(0)
        return y if bias is None else torch.add(*align(y, bias))

    # memories --------------------------------------------------------------------------------------

    def recall(self, node: Node, xs: list[Tensor]) -> Tensor:
        """M(x; θ), θ by the mode of the recall; without a key the state itself (§3.2, 3.3, 3.5)."""
        from nestflow.reference.cache import attend
        from nestflow.reference.level import chunk_began, gradient_of

        if node["mode"] == "gradient":
            return gradient_of(self, node["memory"], node["tensor"])
        memory = next(m for m in (*self.instance.memories, *self.instance.seen) if m.name == node["memory"])
        if self.learner is not None and (memory.name, node["mode"]) not in self.states:
            self.states[memory.name, node["mode"]] = chunk_began(self, memory)
        if memory.cache is not None:
            return attend(self, memory, xs[0])
        theta = self.states[memory.name, node["mode"]]
        if node.get("tensor") is not None:
            return theta[node["tensor"]]
        if memory.function is None:
            return next(iter(theta.values()))
        body = Frame(self.tick, self.instance, {"key": xs[0]} if xs else {}, theta)
        y = body.eval(memory.function.result)
        if node["mode"] == "objective":
            for tensor, inputs in body.taps.items():
                self.inputs_of.setdefault(memory.name, {}).setdefault(tensor, []).extend((x, node) for x in inputs)
        return y

    def tap(self, node: Node, xs: list[Tensor]) -> None:
        """The inputs of a weight of the memory: x of linear(x, θ), and of x @ transpose(θ)."""
        if node.op == "linear" and node.args[1].op == "theta":
            self.taps.setdefault(node.args[1]["tensor"], []).append(xs[0])
        elif node.op == "matmul" and node.args[1].op == "transpose" and node.args[1].args[0].op == "theta":
            self.taps.setdefault(node.args[1].args[0]["tensor"], []).append(xs[0])
