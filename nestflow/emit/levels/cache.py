"""Attention in a level's function: the pairs of this call behind those kept, one attention for each recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.expr import ATOM, Expr
from nestflow.emit.operand import is_python, tensor
from nestflow.graph.state import SINCE
from nestflow.ir.node import Node, Type
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
        self.lives: dict[str, str] = {}

    def options(self, p: MemoryPlan) -> str:
        spec = p.memory.cache
        assert spec is not None
        parts = [f"{k}={getattr(spec, k)!r}" for k in ("window", "segment") if getattr(spec, k) is not None]
        parts += [f"sink={spec.sink}"] if spec.sink else []
        return "".join(f", {x}" for x in parts + ([f"pairs={spec.pairs}"] if spec.pairs > 1 else []))

    def before(self, p: MemoryPlan) -> str:
        """Ticks that the cache has seen: of its sequence, or of its stream."""
        return "c.t0" if p.memory.per == "sequence" else "c.age0"

    def since(self, p: MemoryPlan) -> str:
        """A variable: at each tick, those since the row's last reset."""
        m, em = p.memory, self.level.outer
        if m.name not in self.lives and m.reset_where is not None:
            node = m.reset_where
            em.value(node)
            target = Type("bool", (), True, "T", m.heads)
            reset, path = tensor(em, node, target, 0).text, f"{m.name}{SINCE}"
            reset = f"torch.tensor([{reset}], device=c.device)" if is_python(node) else reset
            name = self.lives[m.name] = em.fresh("since", target)
            em.holder[name] = None
            use = self.writer.use(ATTENTION, "since_reset")
            self.writer.line(f'{name}, c.n[p + "{path}"] = {use}({reset}, c.s[p + "{path}"], {em.ticks})')
        return self.lives.get(m.name, "")

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
            more = self.options(p) + (", resets=True" if m.reset_where is not None else "")
            held = f'c.s[p + "{path}"], {self.before(p)}'
            self.writer.line(f'{name}, c.n[p + "{path}"] = {append}({x}, {held}{more})')
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
        since = self.since(p)
        more += f", since={since}" if since else ""
        text = f"{attend}({query}, {keys}, {values}, {self.before(p)}, scale={spec.scale!r}{self.options(p)}{more})"
        return em.assign(n, Expr(text, ATOM), "y")

    def finish(self) -> None:
        """A cache that nobody recalls keeps its pairs all the same."""
        for p in self.plans.values():
            self.append(p)
            self.since(p)
