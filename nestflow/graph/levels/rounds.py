"""Several updates in one tick: `rounds n`, or lists of n as key, value, weight or rate; round j takes the j-th."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from nestflow.graph.expressions import integer
from nestflow.graph.model import Memory
from nestflow.ir.choices import for_round
from nestflow.ir.node import Node, walk
from nestflow.ir.rule import DgdStep, Rule, SlotUpdate, Statement
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild

MOST = 64


def turns_of(m: MemoryBuild, nodes: Iterable[Node]) -> int:
    """How many updates a tick makes: what `rounds` says, and the length of every list."""
    f = m.field("rounds")
    lists = {len(n.args): n for n in walk(*nodes) if n.op == "each" and n["by"] == "round"}
    if len(lists) > 1:
        (a, _), (b, other) = sorted(lists.items())[:2]
        message = f"a list of {a} meets a list of {b}: each has an entry for every round"
        raise m.elab.failure("NF312", message, other.span or m.node.span)
    listed = next(iter(lists), None)
    if f is None:
        return listed or 1
    n = integer(f.value, m.level.env, "`rounds`")
    if not 1 <= n <= MOST:
        raise m.elab.failure("NF304", f"`rounds` is between 1 and {MOST}, and this is {n}", f.span)
    if listed is not None and listed != n:
        message = f"`rounds {n}` meets lists of {listed}: each has an entry for every round"
        raise m.elab.failure("NF312", message, f.span, f"without `rounds` there are as many as the lists say: {listed}")
    return n


def check_rounds(m: MemoryBuild, memory: Memory, turns: int) -> None:
    """Rounds are made from state to state within a tick: chunk and every are 1."""
    if turns == 1:
        return
    f: tree.Node = m.field("rounds") or m.field("key") or m.node
    if (memory.every, memory.chunk) != (1, 1):
        message = (
            f"{turns} updates a tick need the error of each tick's own state, and this level has chunk {memory.chunk}"
        )
        raise m.elab.failure("NF417", message, f.span, "leave `chunk` and `every` at 1 token")
    rule = memory.rule
    if rule is not None and any(n.op == "w_chunk" for n in walk(*rule.nodes())):
        raise m.elab.not_yet("`w_chunk` in a tick of several rounds", f.span)


def in_rounds(memory: Memory, turns: int) -> Memory:
    """The memory as its first round sees it; `rounds` has it as the later ones do. `retain` acts in the first."""
    first, *later = (_turn(memory, j, turns) for j in range(turns))
    return replace(first, rounds=tuple(later))


def _turn(m: Memory, turn: int, turns: int) -> Memory:
    one = replace(
        m,
        key=_at(m.key, turn),
        value=_at(m.value, turn),
        weight=_at(m.weight, turn),
        objective=_at(m.objective, turn),
        retain=_at(m.retain, turn),
        ages=tuple(for_round(n, turn) for n in m.ages),
        rule=None if m.rule is None else _rule(m.rule, turn),
        turn=turn,
        turns=turns,
    )
    return one if turn == 0 else replace(one, retain=None, retain_on="number", decay_first=False)


def _at(node: Node | None, turn: int) -> Node | None:
    return None if node is None else for_round(node, turn)


def _rule(r: Rule, turn: int) -> Rule:
    def new(s: Statement) -> Statement:
        if isinstance(s, DgdStep):
            return replace(s, lr=for_round(s.lr, turn), scale=_at(s.scale, turn))
        if isinstance(s, SlotUpdate):
            return replace(s, value=for_round(s.value, turn), pending_value=_at(s.pending_value, turn))
        return replace(s, value=for_round(s.value, turn))

    return replace(
        r,
        program=tuple(new(s) for s in r.program),
        arguments=tuple((n, for_round(a, turn)) for n, a in r.arguments),
        gradient=for_round(r.gradient, turn),
        project=_at(r.project, turn),
    )


__all__ = ["check_rounds", "in_rounds", "turns_of"]
