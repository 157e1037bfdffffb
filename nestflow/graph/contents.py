"""Every expression that a graph holds: what questions about all of it go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from nestflow.graph.model import Instance, LevelGraph, Memory
from nestflow.graph.state import drawn_starts
from nestflow.ir.node import Node, walk

DRAWS = frozenset(("uniform", "noise", "dropout", "es"))


def context_of(m: Memory) -> list[Node]:
    """Every expression of the level that the memory's fields hold."""
    if m.rounds:
        return [n for r in (replace(m, rounds=()), *m.rounds) for n in context_of(r)]
    fields = (m.key, m.value, m.query, m.weight, m.when, m.reset_where, m.objective, m.retain)
    nodes = [*(n for n in fields if n is not None), *m.ages]
    return nodes + ([] if m.rule is None else list(m.rule.nodes()))


def nodes_of(i: Instance) -> Iterator[Node]:
    """All nodes of an instance's result, of its names, and of its memories' fields."""
    roots = [n for n in (i.result, *(n for _, n in i.names)) if n is not None]
    return walk(*roots, *(n for m in i.memories for n in context_of(m)))


def draws(instance: Instance) -> bool:
    """Whether an instance, or one below it, computes with what is drawn."""
    return any(drawn_starts(i) or any(n.op in DRAWS for n in nodes_of(i)) for i in instance.walk())


def called(root: Instance, nodes: Iterable[Node]) -> list[Instance]:
    """The instances that expressions of the root call."""
    names = dict.fromkeys(n["child"] for n in walk(*nodes) if n.op == "call")
    return [root.children[n] for n in names if n in root.children]


def draws_at_random(graph: LevelGraph) -> bool:
    """Whether the spec has `dropout`, `noise`, `bernoulli`, `es`, or memories whose starts are drawn."""
    objectives = walk(*(x.objective for x in graph.step_levels if x.objective is not None))
    return draws(graph.root) or any(n.op in DRAWS for n in objectives)
