"""Nodes as text, for dumps, error messages and debugging."""

from __future__ import annotations

from nestflow.ir.node import Node

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "pow": "^",
    "matmul": "@",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "and": "and",
    "or": "or",
    "mod": "%",
    "floordiv": "//",
}


def show(node: Node, depth: int = 12) -> str:
    """A node as an expression; deeper than `depth` is `…`."""
    if depth == 0:
        return "…"
    if node.op == "const":
        return str(node.value)
    args = [show(a, depth - 1) for a in node.args]
    if node.op in _INFIX and len(args) == 2:
        return f"({args[0]} {_INFIX[node.op]} {args[1]})"
    label = node.get("name") or node.get("path") or node.get("tensor")
    if not args:
        return f"{node.op}:{label}" if label else node.op
    extra = [f"{k}={v}" for k, v in node.attrs if k not in ("names",)]
    return f"{node.op}({', '.join(args + extra)})"
