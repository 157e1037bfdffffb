"""Attention in a level's function: the pairs of this call behind those kept, one attention for each recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.expr import ATOM, Expr
from nestflow.ir.node import Node
from nestflow.lowering.plan import MemoryPlan

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode

ATTENTION = "nestflow.ops.attention"


class CacheCode:
    """`special` is asked by the Emitter that writes outside the level's loop."""

    def __init__(self, level: LevelCode) -> None:
        self.level, self.writer = level, level.writer
        self.plans = {p.memory.name: p for p in level.plan.caches}
        self.pairs: dict[str, tuple[str, str]] = {}

    def options(self, p: MemoryPlan) -> str:
        spec = p.memory.cache
        assert spec is not None
        parts = [f"{k}={getattr(spec, k)!r}" for k in ("window", "segment") if getattr(spec, k) is not None]
        parts += [f"sink={spec.sink}"] if spec.sink else []
        return "".join(f", {x}" for x in parts + ([f"pairs={spec.pairs}"] if spec.pairs > 1 else []))

    def append(self, p: MemoryPlan) -> tuple[str, str]:
        """All pairs that this call sees, in variables; the state keeps what later calls can see."""
        m, em = p.memory, self.level.outer
        if m.name in self.pairs:
            return self.pairs[m.name]
        append = self.writer.use(ATTENTION, "append")
        names = []
        for role in ("key", "value"):
            node = getattr(m, role)
            x, path = em.value(node), f"{m.name}.{role}"
            name = em.fresh(f"{role}s", node.type)
            em.holder[name] = None
            self.writer.line(f'{name}, c.n[p + "{path}"] = {append}({x}, c.s[p + "{path}"], c.t0{self.options(p)})')
            names.append(name)
        self.pairs[m.name] = (names[0], names[1])
        return self.pairs[m.name]

    def special(self, n: Node) -> str | None:
        if n.op != "recall" or n["memory"] not in self.plans:
            return None
        p, em = self.plans[n["memory"]], self.level.outer
        spec = p.memory.cache
        assert spec is not None
        query = em.value(n.args[0])
        keys, values = self.append(p)
        attend = self.writer.use(ATTENTION, "attend")
        more = "" if spec.causal else ", causal=False"
        if spec.prefix:
            learned = ", ".join(f'c.w[p + "{p.memory.name}.prefix.{role}"]' for role in ("key", "value"))
            more += f", prefix=({learned})"
        text = f"{attend}({query}, {keys}, {values}, c.t0, scale={spec.scale!r}{self.options(p)}{more})"
        return em.assign(n, Expr(text, ATOM), "y")

    def finish(self) -> None:
        """A cache that nobody recalls keeps its pairs all the same."""
        for p in self.plans.values():
            self.append(p)
