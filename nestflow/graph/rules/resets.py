"""Memories of an optimiser that go back to their start within a sequence, and products of gates that vary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.graph.levels.resets import HELP
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make, rebuild, walk
from nestflow.ir.rule import RuleSlot, SlotUpdate, Statement
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.rules.update import RuleBuilder


def begun_anew(rule: RuleBuilder, f: tree.Field, slot: str, new: Node, start: Node) -> Node:
    """`reset each(chunk)`: at the first update of each chunk the memory is found at its start. On the step clock a
    chunk is one update."""
    from nestflow.graph.levels.learning import clock

    call, m = f.value, rule.memory
    word = call.function.name if isinstance(call, tree.Call) and isinstance(call.function, tree.Name) else ""
    given = call.args[0] if isinstance(call, tree.Call) and len(call.args) == 1 and not call.kwargs else None
    of = given.name if isinstance(given, tree.Name) else ""
    if word != "each" or of not in ("chunk", "sequence"):
        if word == "where" or of:
            raise rule.elab.not_yet("this `reset` in a memory of an optimiser", f.span)
        raise rule.elab.failure("NF231", "`reset` says when the memory goes back to its start", f.span, HELP)
    if of == "sequence":  # it is reset with the memory that it serves
        return new
    every, chunk = clock(m) if m is not None else (1, 1)
    if m is not None and m.field("when") is not None:
        raise rule.elab.not_yet("`reset each(chunk)` in an optimiser beside `when`", f.span)
    t = ops.leaf("position", Type("int", batch=True, clock="T"))
    into = ops.binary("mod", ops.binary("sub", t, ops.const(every)), ops.const(chunk))
    begins = ops.const(True) if every == chunk else ops.binary("eq", into, ops.const(0))

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        return ops.where(begins, start, n) if n.op == "slot_old" and n["name"] == slot else None

    return rebuild(new, change)


def varies(rule: RuleBuilder, retain: Node) -> bool:
    """Whether a gate changes from update to update."""
    leaves = [n for n in walk(retain) if not n.args]
    values = [rule.arguments.get(n["name"], n) if n.op == "hyper" else n for n in leaves]
    return any(n.op != "const" for v in values for n in walk(v) if not n.args)


def debiased(rule: RuleBuilder, into: list[Statement], slot: str, new: Node, retain: Node) -> Node:
    """m / (1 − the product of its retains) of a memory on the token clock whose retain varies: the product is a memory
    too."""
    kept = f"{slot}.kept"
    every = next((s.every for s in into if isinstance(s, SlotUpdate) and s.slot == slot), 1)
    one = retain.type.is_number and not any(n.op == "each" for v in gates(rule, retain) for n in walk(v))
    type_ = Type() if one else Type(like=True)
    if all(s.name != kept for s in rule.slots):
        rule.slots.append(RuleSlot(kept, "number" if one else "w", ops.const(1.0), None, rule.where))
        product = ops.binary("mul", retain, ops.leaf("slot_old", type_, name=kept))
        into.append(SlotUpdate(kept, product, every, where=rule.where))
    after = make("slot_new", (), type_, name=kept)
    return ops.binary("div", new, ops.binary("sub", ops.const(1.0), after))


def gates(rule: RuleBuilder, retain: Node) -> list[Node]:
    """The gate, and what its arguments stand for."""
    named = [n["name"] for n in walk(retain) if n.op == "hyper"]
    return [retain, *(rule.arguments[n] for n in named if n in rule.arguments)]


__all__ = ["begun_anew", "debiased", "varies"]
