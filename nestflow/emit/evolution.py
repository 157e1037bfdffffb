"""Objectives whose gradient is estimated (`es`): a function for what is estimated, and the call that estimates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nestflow.emit.writer import Writer
from nestflow.graph.model import LevelGraph
from nestflow.ir import ops
from nestflow.ir.node import Node, rebuild, walk


def valued(node: Node) -> Node:
    """The expression without what stands inside an `es`: that is computed in a function of its own."""
    return rebuild(node, lambda n, _: ops.const(0.0) if n.op == "es" else None)


def emit_estimates(
    graph: LevelGraph,
    writer: Writer,
    emitter: Callable[..., Any],
    variables: Mapping[str, str],
    objectives: Mapping[str, Node | None],
    opening: Callable[[Node], None],
) -> dict[Node, str]:
    """Write a function for each `es` of the objectives; the calls that stand for their nodes. opening(node): writes
    what must run before an expression."""
    calls: dict[Node, str] = {}
    for name, objective in objectives.items():
        for node in walk(objective) if objective is not None else ():
            if node.op != "es" or node in calls:
                continue
            (e,) = node.args
            read = graph.read_by(e)
            inputs = [v for n, v in variables.items() if n in read]
            function = writer.function_name(f"es_{name}")
            writer.line(f"# what {function} is disturbed in")
            writer.line(f"{function.upper()} = [")
            for path in node["weights"]:
                writer.line(f'    "{path}",')
            writer.line("]")
            writer.line()
            writer.line()
            with writer.block(f"def {function}({', '.join(['c', *inputs])}):"):
                writer.line(f"# what {name} learns from: its values alone")
                opening(e)
                writer.line(f"return {emitter(e).value(e)}")
            writer.line()
            writer.line()
            writer.use("nestflow.ops.evolution", "estimated")
            writer.use("nestflow.ops.runtime", "fresh_state")
            given = f"[{', '.join(inputs)}], STATE, {node['sigma']!r}, {node['pairs']}, {function.upper()}"
            calls[node] = f"estimated(c, {function}, {given})"
    return calls


__all__ = ["emit_estimates", "valued"]
