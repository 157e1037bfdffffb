"""What a memory learns from at a tick: the gradient of its objective, as expressions per tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestflow.diagnostics.core import NestflowError, fail
from nestflow.graph.model import Instance, Memory
from nestflow.ir import ops
from nestflow.ir.choices import for_tensor
from nestflow.ir.construct import number, rewrite
from nestflow.ir.node import Node, depends, make, walk
from nestflow.ir.pullback import NotDifferentiable, gradient


@dataclass(frozen=True)
class Errors:
    """factors: tensor path -> pairs (h, e), the gradient of the tick is Σ e hᵀ. dense: tensor path -> the gradient
    itself. Nodes are over theta(tensor), the state at which errors are taken, and recalls of the level (mode "chunk").
    A tensor in neither never learns."""

    factors: dict[str, tuple[tuple[Node, Node], ...]]
    dense: dict[str, Node]

    def nodes(self) -> tuple[Node, ...]:
        return (*(n for pairs in self.factors.values() for pair in pairs for n in pair), *self.dense.values())

    @property
    def free(self) -> bool:
        """No error reads the state: the gradient is a function of the context alone."""
        return not any(depends(n, lambda x: x.op == "theta") for n in self.nodes())


def at_key(memory: Memory, key: tuple[Node, ...]) -> Node:
    """M(key) as an expression over theta."""
    assert memory.function is not None

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "slot" and n["name"] == "key":
            return key[0]
        if n.op == "matmul":
            return as_linear(args)
        return None

    return rewrite([memory.function.result], change)[0]


def stored(memory: Memory, tensor: str) -> Node:
    """A tensor of the memory itself."""
    assert memory.function is not None
    return next(n for n in walk(memory.function.result) if n.op == "theta" and n["tensor"] == tensor)


def without_derivative(memory: Memory, e: NotDifferentiable) -> NestflowError:
    return fail(
        "NF551",
        f"the gradient of `{memory.name}` cannot be written down: {e}",
        memory.span,
        "use functions with a derivative in a memory and its objective",
    )


def as_linear(args: tuple[Node, ...]) -> Node | None:
    """x @ transpose(W) and W @ x are the linear map of W."""
    a, b = args
    if b.op == "transpose" and b.args[0].op == "theta" and len(a.type.shape) == 1:
        return ops.linear(a, b.args[0])
    if a.op == "theta" and len(a.type.shape) == 2 and len(b.type.shape) == 1:
        return ops.linear(b, a)
    return None


def inlined(root: Node, level: Instance) -> Node:
    """The expression with the calls of flows opened that a tensor of the memory enters: reverse mode goes through
    them."""

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op != "call" or not any(depends(a, lambda x: x.op == "theta") for a in args):
            return None
        return opened(level.child(n["child"]), n["child"], dict(zip(n["names"], args)))

    return rewrite([root], change)[0]


def opened(child: Instance, path: str, slots: dict[str, Node]) -> Node:
    """What a flow returns for these inputs, its weights at their paths in the level."""
    if child.tails or child.memories or child.result is None:
        what = "looks back" if child.tails else "is a level" if child.memories else "returns nothing"
        raise NotDifferentiable(f"`{path}` {what}, and what it is given depends on the memory")

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "slot":
            return slots[n["name"]]
        if n.op == "call":
            return opened(child.child(n["child"]), f"{path}.{n['child']}", dict(zip(n["names"], args)))
        if n.get("path") is not None:  # weights, draws
            attrs: dict[str, Any] = {**dict(n.attrs), "path": f"{path}.{n['path']}"}
            return make(n.op, args, n.type, n.span, **attrs)
        return None

    return rewrite([child.result], change)[0]


def errors_of(memory: Memory, level: Instance) -> Errors:
    """Reverse mode through the objective and the memory's function. Raises NestflowError NF551 where that has no
    derivative."""
    if memory.objective is None or memory.function is None:
        return Errors({}, {})

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "recall" and n["memory"] == memory.name and n["mode"] == "objective":
            return at_key(memory, args) if n.get("tensor") is None else stored(memory, n["tensor"])
        return None

    objective = rewrite([memory.objective], change)[0]
    try:
        objective = inlined(objective, level)
    except NotDifferentiable as e:
        raise without_derivative(memory, e) from e
    thetas = [n for n in walk(objective) if n.op == "theta"]
    apart = memory.weight if memory.weight is not None and memory.weight.op == "each" else None  # one for each tensor
    seed = None if memory.weight is None or apart else number(memory.weight)
    try:
        found = gradient(number(objective), thetas, seed)
    except NotDifferentiable as e:
        raise without_derivative(memory, e) from e
    factors: dict[str, tuple[tuple[Node, Node], ...]] = {}
    dense: dict[str, Node] = {}
    for theta in thetas:
        pairs, rest = found.factors.get(theta, []), found.dense.get(theta)
        if apart is not None:
            own = number(for_tensor(apart, theta["tensor"]))
            pairs = [(h, ops.binary("mul", own, e)) for h, e in pairs]
            rest = None if rest is None else ops.binary("mul", own, rest)
        if pairs and rest is None and all(len(h.type.shape) == 1 and h.type.clock for h, _ in pairs):
            factors[theta["tensor"]] = tuple(pairs)
            continue
        for h, e in pairs:
            full = ops.outer(e, h) if len(h.type.shape) == 1 else ops.matmul(ops.transpose(e), h)
            while len(full.type.shape) > 2:
                full = ops.reduce("sum", full, 0)
            rest = full if rest is None else ops.binary("add", rest, full)
        if rest is not None:
            dense[theta["tensor"]] = rest
    return Errors(factors, dense)
