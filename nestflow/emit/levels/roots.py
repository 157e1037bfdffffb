"""What the loop of a level evaluates, and what of it is evaluated before the loop, for all ticks at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nestflow.emit.levels.facts import written
from nestflow.emit.levels.rule import RuleCode, context_parts
from nestflow.graph.state import has_dgd
from nestflow.ir.choices import for_tensor
from nestflow.ir.node import Node, walk
from nestflow.lowering.plan import MemoryPlan

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode


def early_rules(level: LevelCode, loop: set[Node]) -> list[tuple[MemoryPlan, str]]:
    """Closed rules whose rates do not depend on the state: their rows are made before the loop."""
    return [(p, t) for p in level.plan.looped if p.closed for t in p.rules if not is_late(level, p, t, loop)]


def is_late(level: LevelCode, p: MemoryPlan, tensor: str, loop: set[Node]) -> bool:
    """Whether the rows of a rule are made piece by piece. loop: what the state enters."""
    woven = p.memory.retain_on == "key" or len(p.woven) > 1
    return woven or any(n in loop for n in level.nodes.rule(p, tensor).coefficients())


def roots_of(level: LevelCode, early: Sequence[tuple[MemoryPlan, str]] = ()) -> list[Node]:
    """Everything that the loop evaluates. early: rules whose rows are made before it."""
    nodes = level.nodes
    roots, done = list(level.reads), {(p.memory.name, t) for p, t in early}
    for p in (r for q in level.plan.looped for r in (q, *q.apart)):
        m = p.memory
        if m.retain_on == "key" and p.closed:
            roots += [n for t in p.rules for pair in nodes.leaves(p, t) for n in pair]
        else:
            roots += [n for pairs in nodes.errors[m.name].values() for pair in pairs for n in pair]
        roots += nodes.dense[m.name].values()
        roots += [nodes.rate(m, n) for n in (m.when, m.reset_where) if n is not None]
        if p.closed and m.retain_on == "key":
            continue
        if p.closed:
            roots += [n for t in p.rules if (m.name, t) not in done for n in nodes.rule(p, t).coefficients()]
        elif m.rule is not None:
            roots += [nodes.rate(m, n) for n in m.ages if has_dgd(m)]
            probe = RuleCode(level.writer, nodes, level.outer, [p], {})
            for t in probe.tensors:
                for s in probe.expressions(t):
                    roots += [nodes.rate(m, n) for n in context_parts(s)]
                both = (for_tensor(n, t.path) for n in (m.retain, m.weight, m.when) if n is not None)
                roots += [nodes.rate(m, n) for n in both]
    return roots


def hoisted(roots: Sequence[Node], loop: set[Node]) -> list[Node]:
    """The largest expressions that no state enters."""
    found = dict.fromkeys(n for n in roots if n not in loop)
    for n in walk(*roots):
        if n in loop:
            found.update(dict.fromkeys(a for a in n.args if a not in loop))
    return [n for n in found if n.op != "const"]


def closed_rows(level: LevelCode, loop: set[Node]) -> list[tuple[MemoryPlan, str]]:
    """Write the rows of the rules whose rates do not depend on the state, of all pieces before the loop; the others."""
    rows, writer = level.rows, level.writer
    closed = [p for p in level.plan.looped if p.closed and p.memory.retain_on != "key"]
    for p in closed:
        if p.memory.read != "after" or p.pattern == "delta" or any(r.dgd for r in p.rules.values()):
            rows.lagged.update(rows.key(p, tensor) for tensor in p.rules)
    late: list[tuple[MemoryPlan, str]] = []
    for p in closed:
        for tensor in p.rules:
            if is_late(level, p, tensor, loop):
                late.append((p, tensor))
            elif rows.key(p, tensor) not in rows.names:
                if not rows.names:
                    length = writer.use("nestflow.ops.coefficients", "piece_length")
                    level.comment(
                        f"the rule in closed form, rows [starts | errors]: {written(p.memory)}", p.memory.rule
                    )
                    writer.line(f"K = {length}(sizes, {level.plan.size})")
                rows.write(level.outer, p, tensor, "K", level.t0, pieces=True)
    for key in list(rows.names):
        rows.split(key, level.split_rows)
    return late
