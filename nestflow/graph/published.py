"""Words outside flows that name what is inside them: `emitted(aux)`, the sum over the instances of what they `emit`."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.model import Instance
from nestflow.graph.values import Quiet
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, walk
from nestflow.language import tree


def published(instance: Instance) -> dict[str, list[Type]]:
    """What an instance and all below it `emit`: name -> the types of the values."""
    found: dict[str, list[Type]] = {}
    for i in instance.walk():
        for n in walk(i.result) if i.result is not None else ():
            if n.op == "emit":
                for name, value in zip(n["names"], n.args[1:], strict=True):
                    found.setdefault(name, []).append(value.type)
    return found


def emitted(elab: Any, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
    """`emitted(aux)`: the calls of root flows made so far that publish it, summed."""
    if piped or kwargs or len(args) != 1 or not isinstance(args[0], tree.Name):
        message = "`emitted` takes the name that an `emit` gives"
        raise elab.failure("NF214", message, site.span, "`emit aux = e` in a flow, `emitted(aux)` in an objective")
    name = args[0].name
    types: list[Type] = []
    calls: list[Node] = []
    known: set[str] = set()
    for call in elab.root_calls:
        own = published(elab.root.children[call["child"]])
        known |= set(own)
        if name in own:
            calls.append(call)
            types += own[name]
    if not calls and elab.collector.errors:  # what would publish it was wrong, and that is told
        raise Quiet
    if not calls:
        near = did_you_mean(name, known)
        help_ = near or f"write `emit {name} = e` in a flow or level that `output` or an objective calls"
        raise elab.failure("NF244", f"nothing that is called above publishes `{name}`", args[0].span, help_)
    return ops.emitted(name, tuple(calls), types, site.span)


__all__ = ["emitted", "published"]
