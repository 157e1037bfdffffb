"""A chain of calls `x = block.0(x); x = block.1(x); …` of equal bodies, written as a Python loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nestflow.graph.model import Instance
from nestflow.ir.node import Node, walk

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter
    from nestflow.emit.writer import Writer


@dataclass(frozen=True)
class Chain:
    """Calls of children `before{first..last}after` with one function, each fed the result of the one before."""

    calls: tuple[Node, ...]
    before: str
    after: str
    first: int
    argument: int  # which argument is passed along


class Rolled:
    """Finds the chains of a body; `special` is asked by the Emitter and writes a loop at the last call of a chain."""

    def __init__(self, em: Emitter, instance: Instance, writer: Writer) -> None:
        self.em, self.instance, self.writer = em, instance, writer
        self.chains: dict[Node, Chain] = {}
        self.busy: set[Node] = set()
        if instance.result is not None:
            self._find(instance.result)

    def special(self, node: Node) -> str | None:
        chain = self.chains.get(node)
        if chain is None or node in self.busy:
            return None
        self.busy.add(node)
        em, first = self.em, chain.calls[0]
        others = [em.variable(a) if i != chain.argument else "" for i, a in enumerate(first.args)]
        start = em.expression(first.args[chain.argument])
        for read in start.reads:
            em.uses[read] -= 1
        name = em.fresh(em.names.get(node) or "x", node.type)
        if start.text != name:
            self.writer.line(f"{name} = {start.text}")
        function = self.writer.function(self.instance.child(first["child"]))
        arguments = ", ".join(o or name for o in others)
        count, at = len(chain.calls), f" + {chain.first}" if chain.first else ""
        with self.writer.block(f"for i in range({count}):"):
            self.writer.line(
                f'{name} = {function}(c, f"{{{em.prefix}}}{chain.before}{{i{at}}}{chain.after}.", {arguments})'
            )
        em.bind(node, name)
        return name

    def _find(self, root: Node) -> None:
        users: dict[Node, int] = {root: 1}
        calls: list[Node] = []
        for n in walk(root):
            if n.op == "call":
                calls.append(n)
            for a in n.args:
                users[a] = users.get(a, 0) + 1
        chain_of: dict[Node, Chain] = {}
        for node in calls:  # arguments come before users
            split = _numbered(node["child"])
            if split is None or node.get("ticks") is not None:
                continue
            before, number, after = split
            chain = self._grow(node, chain_of, users, before, number, after)
            chain_of[node] = chain or Chain((node,), before, after, number, -1)
        inside = {c for chain in chain_of.values() for c in chain.calls[:-1]}
        self.chains = {n: c for n, c in chain_of.items() if len(c.calls) > 1 and n not in inside}

    def _grow(
        self, node: Node, chain_of: dict[Node, Chain], users: dict[Node, int], before: str, number: int, after: str
    ) -> Chain | None:
        function = self.writer.function(self.instance.child(node["child"]))
        for i, a in enumerate(node.args):
            old = chain_of.get(a)
            if old is None or users[a] != 1 or (old.before, old.after) != (before, after) or a.type != node.type:
                continue
            same = all(x is y for j, (x, y) in enumerate(zip(node.args, a.args, strict=True)) if j != i)
            if (
                number == old.first + len(old.calls)
                and old.argument in (-1, i)
                and same
                and self.writer.function(self.instance.child(a["child"])) == function
            ):
                return Chain((*old.calls, node), before, after, old.first, i)
        return None


def _numbered(path: str) -> tuple[str, int, str] | None:
    """`block.3.inner` -> ("block.", 3, ".inner"), at the last number of the path."""
    parts = path.split(".")
    for at in range(len(parts) - 1, -1, -1):
        if parts[at].isdigit():
            before = ".".join(parts[:at]) + ("." if at else "")
            after = "".join("." + p for p in parts[at + 1 :])
            return before, int(parts[at]), after
    return None
