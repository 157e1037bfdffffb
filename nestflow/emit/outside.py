"""What lies outside the language in generated code: networks of the caller, and Python functions of the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.layout import axes
from nestflow.emit.operand import ATOM, Expr, as_tensor, expr_of, is_python, tensor
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter


def network(em: Emitter, node: Node) -> Expr:
    """A call of a network of the caller: what it gives, as it gives it."""
    use = em.writer.use("nestflow.ops.networks", "network")
    parts = [em.done[a] if a.type.dtype != "bool" or not is_python(a) else as_tensor(em, a) for a in node.args]
    inputs = ", ".join(f"{n!r}: {p.text}" for n, p in zip(node["names"], parts, strict=True))
    constants = ", ".join(f"{n!r}: {v!r}" for n, v in node["constants"])
    path = f"{em.prefix} + " if em.prefix else ""
    tails = ", ".join(f"{n!r}: {path}{t!r}" for n, t in zip(node["names"], node["tails"], strict=True) if t)
    e = expr_of(f"{use}(c, {node['network']!r}, {{{inputs}}}, {{{constants}}}, {{{tails}}})", ATOM, *parts)
    em.assign(node, e, "given")
    return e


def network_result(em: Emitter, node: Node) -> Expr:
    """The tensor in what a network gave."""
    use = em.writer.use("nestflow.ops.networks", "network_result")
    raw, t = node.args[0], node.type
    ticks = em.ticks if t.clock else "None"
    text = f"{em.done[raw].text}, {raw['network']!r}, {node['field']!r}, {t.shape!r}, {t.dtype!r}"
    return expr_of(f"{use}({text}, {em.batch}, {ticks}, {em.t0})", ATOM, em.done[raw])


def python(em: Emitter, node: Node) -> Expr:
    """A Python function of the user at every row, tick and head."""
    use, t = em.writer.use("nestflow.ops.python", "python_call"), node.type
    parts: list[Expr] = []
    for a in node.args:
        target = a.type.with_(batch=t.batch, clock=t.clock, heads=t.heads, short=t.short)
        parts.append(as_tensor(em, a) if is_python(a) else tensor(em, a, target, len(a.type.shape)))
    given = [repr(node["target"]), repr(node["form"]), str(len(axes(t))), repr(t.shape), *(p.text for p in parts)]
    return expr_of(f"{use}({', '.join(given)}{', rule=True' if node['rule'] else ''})", ATOM, *parts)


OPERATIONS = {"network": network, "network_result": network_result, "py": python}
