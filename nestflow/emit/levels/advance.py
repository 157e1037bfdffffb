"""The state of a memory after a piece, by its rule in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.levels.nodes import per_tick
from nestflow.emit.levels.rows import starts_of
from nestflow.emit.levels.rule import RuleCode
from nestflow.emit.ops import tensor as as_tensor
from nestflow.graph.state import UPDATES, state_tensors
from nestflow.lowering.linear_rule import AS_CHUNK_BEGAN
from nestflow.lowering.plan import MemoryPlan

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode


def advance(code: LevelCode, p: MemoryPlan, *, wait: bool = False) -> list[str]:
    """X' = Σ P X + Σ L G from the last row of each state.

    wait: recalls that are still to come start from the old states. These keep their names until then; the lines that
    give them up are returned."""
    m = p.memory
    places = {t.path: code.abreast.twin_of(m.name, t.path) for t in state_tensors(m)}
    own = [t for t in state_tensors(m) if (place := places[t.path]) is None or place[1] == 0]
    if own or not places:
        names = ", ".join(f"`{name}`" for name in code.abreast.beside(m.name))
        code.comment(f"the state of {names} after the piece")
    if m.when is not None:
        updates = code.state.names[RuleCode.counter(m, UPDATES)]
        brings = as_tensor(code.inner, code.nodes.rate(m, m.when), per_tick(m).with_(dtype="bool")).atom
        times = f"{m.turns} * " if m.turns > 1 else ""
        code.writer.line(f"{updates} = {updates} + {times}{brings}.sum(-1)")
    waiting: list[str] = []
    for t in own:
        if m.retain_on == "key":
            (name,) = code.state.starts(p, t)
            text = code.special.by_channels("channels_after", name, code.nodes.leaves(p, t.path))
            target = code.variable(f"new_{name}") if wait else name
            waiting += [f"{name} = {target}"] if wait else []
            code.writer.line(f"{target} = {text}")
            continue
        if (m.name, t.path) in code.stacks.of:
            name, text = code.stacks.of[m.name, t.path], code.stacks.advance(p, t)
            target = code.variable(f"new_{name}") if wait else name
            waiting += [f"{name} = {target}"] if wait else []
            code.writer.line(f"{target} = {text}")
            continue
        rule = p.rules[t.path]
        rows = code.rows.names[code.rows.key(p, t.path)]
        names = code.state.starts(p, t)
        errors, g = code.nodes.errors[m.name].get(t.path, ()), code.nodes.dense[m.name].get(t.path)
        pairs = [f"({code.inner.value(h)}, {code.inner.value(e)})" for h, e in errors]
        extra = [f"gradient={code.inner.value(g)}"] if g is not None else []
        extra += [f"rank={len(t.shape)}"] if len(t.shape) != 2 else []
        order, kernel = starts_of(rule, m.every), code.writer.use("nestflow.ops.chunk", "advance")
        news, moving = [], []
        for slot, own in zip(order, names):
            if slot == AS_CHUNK_BEGAN:  # it stays
                continue
            moving.append(own)
            support = rule.support(slot, m.every > 1)
            starts = [name if other in support else "None" for name, other in zip(names, order)]
            text = f"({starts[0]},)" if len(starts) == 1 else f"({', '.join(starts)})"
            news.append(f"{kernel}({', '.join([rows.of[slot], text, *pairs, *extra])})")
        targets = [code.variable(f"new_{name}") for name in moving] if wait else moving
        if wait:
            waiting += [f"{name} = {new}" for name, new in zip(moving, targets)]
        if len(news) == 1:
            code.writer.line(f"{targets[0]} = {news[0]}")
        else:
            code.writer.line(f"{', '.join(targets)} = (")
            for new in news:
                code.writer.line(f"    {new},")
            code.writer.line(")")
    return waiting
