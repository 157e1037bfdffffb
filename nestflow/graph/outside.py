"""Calls of what lies outside the language: networks of the caller, Python functions of the user."""

from __future__ import annotations

from typing import Any

from nestflow.graph import networks, python
from nestflow.graph.scope import Env
from nestflow.graph.values import Partial
from nestflow.ir.node import Node
from nestflow.language import tree
from nestflow.vocabulary.record import Word


def called(value: Any, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr) -> Any:
    """What the call of such a value gives; None where the value is another. The arguments' types must be known."""
    for a in (*args, *kwargs.values()):
        if isinstance(a, Node):
            networks.known(a, env.elab, site)
    if isinstance(value, Partial) and isinstance(value.target, Word) and value.target.name == "py":
        return python.reach(args, kwargs, env, site)
    if isinstance(value, python.PyFunction):
        return python.call(value, args, kwargs, env, site)
    return networks.call(value, args, kwargs, env, site) if isinstance(value, networks.NetworkValue) else None
