"""`m.g` in a level: the gradient that a memory takes in this tick, read by the result or by other memories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nestflow.graph.model import Memory
from nestflow.ir.node import Node, walk

if TYPE_CHECKING:
    pass


def read(*nodes: Node | None) -> list[Node]:
    """The gradients that expressions read."""
    return [n for n in walk(*(x for x in nodes if x is not None)) if n.op == "recall" and n["mode"] == "gradient"]


def needs(m: Memory) -> list[Node]:
    """The gradients that have to be there before the memory can take its own."""
    return read(m.key, m.value, m.weight, m.objective, m.when, *m.ages, m.retain if m.decay_first else None)


def check_gradients(elab: Any, memories: Sequence[Memory], result: Node) -> None:
    """Every gradient that is read can be taken before it is. Raises NF315, NF418, NF490."""
    table = {m.name: m for m in memories}
    for n in gradients_of(memories, result):
        m = table[n["memory"]]
        if m.rule is None:
            raise elab.failure(
                "NF315", f"`{m.name}` never learns, and takes no gradient", n.span, "give it an `update`"
            )
        if m.turns > 1:
            raise elab.not_yet(f"`{m.name}.g` of a memory that learns {m.turns} times a tick", n.span)
        if m.per == "model":
            raise elab.not_yet(f"`{m.name}.g` of a memory `per model`", n.span)
    done: set[str] = set()

    def visit(m: Memory, above: tuple[str, ...], span: Any) -> None:
        if m.name in above:
            circle = " → ".join([*above[above.index(m.name) :], m.name])
            message = f"the gradient of `{m.name}` depends on itself in the same tick: {circle}"
            raise elab.failure("NF418", message, span, "in `update`, `g` is a memory's own gradient")
        if m.name not in done:
            for n in needs(m):
                visit(table[n["memory"]], (*above, m.name), n.span)
            done.add(m.name)

    for m in memories:
        visit(m, (), m.span)


def gradients_of(memories: Iterable[Memory], result: Node) -> list[Node]:
    """Those that anything in the level reads, of all rounds."""
    nodes: list[Node | None] = [result]
    for m in (r for x in memories for r in (x, *x.rounds)):
        nodes += [m.key, m.value, m.query, m.weight, m.objective, m.when, m.reset_where, m.retain, *m.ages]
        nodes += m.rule.nodes() if m.rule is not None else ()
    return read(*nodes)


__all__ = ["check_gradients"]
