"""`ticks(e)`: in `update`, `retain` and `project`, e at the N ticks since the last update, stacked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from nestflow.graph.expressions import evaluate
from nestflow.graph.model import TailSpec
from nestflow.graph.scope import Env
from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild


def with_ticks(m: MemoryBuild, env: Env) -> Env:
    """The same place, where `ticks(e)` stands."""
    return env.with_(specials={**env.specials, "ticks": partial(last_ticks, m, env)})


def last_ticks(
    m: MemoryBuild,
    env: Env,
    piped: list[Any],
    args: tuple[tree.Expr, ...],
    kwargs: tuple[tuple[str, tree.Expr], ...],
    site: tree.Expr,
) -> Node:
    """e at the last N ticks, the oldest first, along a new first axis of N; N is the memory's `every`."""
    from nestflow.graph.levels.learning import clock

    given = piped + [evaluate(a, env) for a in args]
    if len(given) != 1 or kwargs:
        raise m.elab.failure("NF214", "`ticks` takes one expression", site.span, "`mean(ticks(e), axis = 0)`")
    x, n = m.elab.as_node(given[0], site, "`ticks`"), clock(m)[0]
    if not x.type.clock or x.type.short:
        message = f"`ticks` stacks a value over the ticks of an update, and this has no tick: {x.type}"
        raise m.elab.failure("NF301", message, site.span, "an expression of the level's inputs")
    if n == 1:
        return ops.reshape(x, (1, *x.type.shape))
    path = f"{m.name}@ticks.{sum(t.path.startswith(f'{m.name}@ticks.') for t in m.level.builder.tails)}"
    m.level.builder.tails.append(TailSpec(path, x.type, n - 1))
    return ops.window(x, n, path, site.span, oldest=True)
