"""Further rounds of a tick in a level's loop: error and learning again, from the state that the last one has left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.levels.rule import RuleCode
from nestflow.ir.node import Node, walk
from nestflow.lowering.plan import MemoryPlan

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode


class RoundsCode:
    """plans: the memories as their later rounds see them (`MemoryPlan.rounds`)."""

    def __init__(self, level: LevelCode, plans: list[MemoryPlan]) -> None:
        self.level, self.plans = level, plans

    def prepare(self) -> None:
        """What these rounds use of the state that the tick began with, into variables while it is still there."""
        level = self.level
        for p in self.plans:
            m = p.memory
            mine: set[Node] = set()
            nodes = [n for pairs in level.nodes.errors[m.name].values() for pair in pairs for n in pair]
            for n in walk(*nodes, *level.nodes.dense[m.name].values()):
                if (n.op == "state" and n["memory"] == m.name) or any(a in mine for a in n.args):
                    mine.add(n)
                for a in n.args if n in mine else ():
                    if a not in mine and reads_state(a):
                        self.keep(a)
            for n in nodes:
                if n not in mine and reads_state(n):
                    self.keep(n)
            RuleCode(level.writer, level.nodes, level.inner, [p], level.state.names).prefetch()

    def keep(self, n: Node) -> None:
        """The value of an expression as it is now; a state in a variable of its own."""
        em = self.level.inner
        name = em.variable(n)
        if n.op == "state":
            copy = em.fresh("found", n.type)
            self.level.writer.line(f"{copy} = {name}")
            em.bind(n, copy)

    def write(self) -> None:
        """All of them, in order."""
        for turn in range(1, max((p.memory.turns for p in self.plans), default=1)):
            self.round([p for p in self.plans if p.memory.turn == turn])

    def round(self, plans: list[MemoryPlan]) -> None:
        """All errors are taken at one state, then all learn."""
        level, codes = self.level, []
        for group in level.groups(plans):
            m = group[0].memory
            level.comment(f"round {m.turn + 1} of {m.turns}", m.rule)
            codes.append(RuleCode(level.writer, level.nodes, level.inner, group, level.state.names))
            codes[-1].gradients()
            codes[-1].count()
        for code in codes:
            code.update()


def reads_state(n: Node) -> bool:
    return any(x.op == "state" for x in walk(n))


__all__ = ["RoundsCode"]
