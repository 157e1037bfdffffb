"""Every expression that a graph holds: what questions about all of it go through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nestflow.graph.model import Instance, LevelGraph, Memory
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


def draws_at_random(graph: LevelGraph) -> bool:
    """Whether the spec has `dropout`, `noise`, `bernoulli`, `es`, or memories whose starts are drawn."""
    objectives = walk(*(x.objective for x in graph.step_levels if x.objective is not None))
    nodes = (n for i in graph.root.walk() for n in nodes_of(i))
    return any(s.drawn for s in graph.state) or any(n.op in DRAWS for part in (nodes, objectives) for n in part)
