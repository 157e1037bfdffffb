"""`project`: what a memory's tensors become after an update, in `w`, which retain and the step have made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestflow.graph.expressions import call, evaluate
from nestflow.graph.levels.last_ticks import with_ticks
from nestflow.graph.scope import Env
from nestflow.graph.values import Partial
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.language import tree
from nestflow.vocabulary.record import Word

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild

LIKE = Type(like=True)


def projection(m: MemoryBuild) -> Node | None:
    """The expression of the field, or None. `ball(r)` is short for `w |> ball(r)`."""
    f = m.field("project")
    if f is None:
        return None
    names = {name: ops.leaf(name, LIKE) for name in ("w", "w0", "w_chunk")}
    env = with_ticks(m, m.env("project").extend({**names, "t": ops.leaf("updates", Type("int"))}))
    value = named(f.value, names["w"], env)
    if value is None:
        value = evaluate(f.value, env)
    if isinstance(value, Partial):
        help_ = "`project ball(10)`, or an expression in `w`: `w / norm(w)`"
        raise m.elab.failure("NF323", f"`project` gives the new weight, and `{value.name}` is no weight", f.span, help_)
    node = m.elab.as_node(value, f.value, "`project`")
    if node.type.short:
        raise m.elab.failure("NF403", "a projection cannot look ahead", f.span, "`next` belongs to a loss")
    if not node.type.like:
        message = f"`project` gives the new weight, and this is {node.type}"
        raise m.elab.failure("NF323", message, f.span, "an expression in `w`: `w * norm(w0) / norm(w)`")
    return node


def named(expr: tree.Expr, w: Node, env: Env) -> Any:
    """A projection by its name, with w put in front; None for any other expression."""
    name = expr.function if isinstance(expr, tree.Call) else expr
    if not isinstance(name, tree.Name):
        return None
    found = env.lookup(name.name)
    if not (isinstance(found, Partial) and isinstance(found.target, Word) and found.target.kind == "projection"):
        return None
    args, kwargs = (expr.args, expr.kwargs) if isinstance(expr, tree.Call) else ((), ())
    with env.elab.at(expr):
        return call(name, [w], args, kwargs, env, expr)
