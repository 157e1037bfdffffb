"""Shared instances: one set of weights for several calls, a state for each; and reading without learning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nestflow.graph.model import Instance
from nestflow.graph.scope import Builder, Env
from nestflow.ir.construct import rewrite
from nestflow.ir.node import Node, make, walk
from nestflow.language import tree

AGAIN, READ = "@", "@read"
"""`m@2` is the second call of the shared m, `m@read` the first time that it is only read."""


def place_shared(
    elab: Any, env: Env, rel: str, instance: Instance, site: tree.Expr
) -> tuple[str, Instance, dict[str, Any]]:
    """Where a call (or a reading) of a shared instance is put: its relative path, the instance, more about the call."""
    shared, known = env.shared, env.builder.children.get(rel)
    assert shared is not None
    path = instance.path
    shared.result = shared.result or instance.result
    if shared.result is not instance.result:
        raise elab.failure("NF317", f"the calls of `{rel}` give it inputs of different kinds", site.span)
    if env.reading:
        check_readable(elab, instance, rel, site)
        number = str(shared.reads) if shared.reads > 1 else ""
        return f"{rel}{READ}{number}", reader(instance, f"{path}{READ}{number}"), {"of": rel}
    if known is None:
        return rel, instance, {}
    if not keeps_state(known):
        return rel, known, {}
    other = replace(known, ticks=instance.ticks)  # along patches: as many as this call has
    return f"{rel}{AGAIN}{shared.calls}", again(other, f"{path}{AGAIN}{shared.calls}"), {}


def keeps_state(instance: Instance) -> bool:
    return any(i.tails or i.memories for i in instance.walk())


def check_readable(elab: Any, instance: Instance, rel: str, site: tree.Expr) -> None:
    """A reading sees the state that a chunk began with, before the level's own input is there."""
    assert instance.result is not None
    for n in walk(instance.result):
        if n.op == "recall" and n["mode"] == "gradient":
            raise elab.not_yet(f"`{rel}.read` of a level that returns a gradient of the tick", site.span)
    recalled: set[str] = {n["memory"] for n in walk(instance.result) if n.op == "recall"}
    for m in instance.memories:
        if m.name not in recalled:
            continue
        if m.cache is not None:
            message = f"`{rel}.read`: a cache has no state to be read before its own pair is there"
            raise elab.failure("NF422", message, site.span, "read a memory that learns: `matrix`, `mlp`, a flow")
        if m.per != "sequence":
            raise elab.not_yet(f"`{rel}.read` of a memory `per {m.per}`", site.span)
        if m.reset_where is not None:
            message = f"`{rel}.read`: whether `{m.name}` starts anew at a tick is known from the tick's own input"
            raise elab.failure("NF422", message, site.span, "`reset each(chunk)`, or read it in its own level")


def again(instance: Instance, path: str) -> Instance:
    """Another call of a shared instance: a state at a path of its own, the weights of the first call."""
    children = tuple((rel, again(c, f"{path}.{rel}")) for rel, c in instance.children)
    return replace(instance, path=path, children=children, weights=(), shares=instance.weights_path)


def reader(instance: Instance, path: str) -> Instance:
    """What a level returns, without its learning and what it publishes. Blocks that look back in it look back at the
    inputs it is given."""
    assert instance.result is not None
    (result,) = rewrite([instance.result], lambda n, args: args[0] if n.op == "emit" else None)
    tails, calls = ({n.get(word) for n in walk(result)} for word in ("tail", "child"))
    other = again(instance, path)
    return replace(
        other,
        kind="read",
        result=result,
        tails=tuple(t for t in instance.tails if t.path in tails),
        children=tuple((rel, c) for rel, c in other.children if rel in calls),
        memories=(),
        seen=instance.memories,
    )


def settle_reads(elab: Any, builder: Builder, result: Node) -> Node:
    """A shared level that is read learns in one call; that call is made, whether its answer is used or not."""
    for s in builder.shared:
        if s.reads and s.calls != 1 and not elab.collector.errors:  # the call may be what was wrong
            many = "never called" if not s.calls else f"called {s.calls} times"
            message = f"`{s.path}.read` reads what `{s.path}` has learned, and `{s.path}` is {many} here"
            raise elab.failure("NF423", message, s.expr.span, f"call it once: `{s.path}(x)`")
        if s.reads and s.learn is not None and s.learn not in walk(result):
            result = make("beside", (result, s.learn), result.type, result.span)
    return result


def moved(instance: Instance, path: str) -> Instance:
    """The same instance, and all below it, at another path."""
    old = instance.path

    def move(i: Instance) -> Instance:
        children = tuple((rel, move(c)) for rel, c in i.children)
        shares = i.shares
        if shares is not None and shares.startswith(old + "."):
            shares = path + shares[len(old) :]
        return replace(i, path=path + i.path[len(old) :], children=children, shares=shares)

    return move(instance)


__all__ = ["again", "keeps_state", "moved", "place_shared", "reader", "settle_reads"]
