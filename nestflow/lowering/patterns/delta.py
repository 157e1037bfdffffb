"""A matrix whose error looks at its own state of the tick before, linearly: the delta rule in WY form.

DeltaNet and Gated DeltaNet, with any linear rule (momentum too) and dgd; KDA: the errors of a block solve one
triangular system.
"""

from __future__ import annotations

from collections.abc import Callable

from nestflow.graph.model import Memory
from nestflow.ir import ops
from nestflow.ir.construct import number
from nestflow.ir.node import Node, depends, walk
from nestflow.lowering.errors import Errors
from nestflow.lowering.linear_rule import ONE, ZERO, LinearRule
from nestflow.lowering.patterns.setting import Setting, erasing, linear_rules, reads_memories


def delta(m: Memory, errors: Errors, setting: Setting) -> dict[str, LinearRule] | str:
    if m.kind == "cache":
        return "a cache"
    if m.link is not None:
        return "it is read through a link that is not linear"
    if m.chunk > 1 or m.every > 1:
        return f"chunk {m.chunk}: its errors are not those of the tick before"
    if reads_memories(m) or m.name in setting.recalled:
        return "the level's context recalls it or other memories"
    if m.name in setting.taken:
        return "its gradient is read at each tick"
    found = looks(errors)
    if isinstance(found, str):
        return found
    rules = linear_rules(m, errors)
    if isinstance(rules, str):
        return rules
    if m.decay_first and any(r.dgd is not None for r in rules.values()):
        return "decay_first with dgd"
    return rules


def looks(errors: Errors) -> tuple[str, Node, Node, Node] | str:
    """The one tensor, its input h, and its error as a · (W h) + b: (tensor, h, a, b); or why it is not of that form."""
    if errors.dense or len(errors.factors) != 1:
        return "not one matrix"
    ((tensor, pairs),) = errors.factors.items()
    if len(pairs) != 1:
        return "several recalls in one objective"
    h, e = pairs[0]
    if depends(h, lambda n: n.op == "theta"):
        return "its input depends on what it has stored"
    found = affine(e, lambda n: n.op == "linear" and n.args[1].op == "theta" and n.args[0] is h)
    if found is None:
        return "its error is not linear in the recall"
    a, b = found
    return tensor, h, a, b


def system(m: Memory, errors: Errors, rule: LinearRule) -> tuple[str, Node, Node, Node, Node]:
    """What the triangular system is made of: (tensor, x, h, a, b), errors a · (W x) + b, written as e hᵀ. dgd is put
    into a; `decay_first` into a, or into x where the gate acts on the key axis."""
    found = looks(errors)
    assert not isinstance(found, str)
    tensor, h, a, b = found
    x = h
    if rule.dgd is not None:
        a = ops.binary("add", a, erasing(m, tensor))
    if m.decay_first and m.retain is not None:
        if m.retain_on == "key":
            x = ops.binary("mul", m.retain, h)
        else:
            a = ops.binary("mul", a, number(m.retain))
    return tensor, x, h, a, b


Part = tuple[Node, Node | None]


def affine(e: Node, is_look: Callable[[Node], bool]) -> tuple[Node, Node] | None:
    """e = a · look + b with a number a: (a, b), or None."""
    memo: dict[Node, Part | None] = {}
    for n in walk(e):
        memo[n] = _affine(n, memo, is_look)
    found = memo[e]
    if found is None:
        return None
    a, b = found
    return a, ops.binary("mul", ZERO, e) if b is None else b


def _affine(n: Node, memo: dict[Node, Part | None], is_look: Callable[[Node], bool]) -> Part | None:
    if is_look(n):
        return ONE, None
    if n.op == "theta":
        return ZERO, n  # read through `linear`, which the first test knows; else the next one refuses it
    parts = [memo[a] for a in n.args]
    if all(p is not None and ops.is_const(p[0], 0) for p in parts):
        return (ZERO, n) if not depends(n, lambda x: x.op == "theta") else None
    if any(p is None for p in parts):
        return None
    first, second = (*parts, None)[:2]
    assert first is not None
    if n.op in ("add", "sub") and second is not None:
        a = ops.binary(n.op, first[0], second[0])
        return a, _joined(n.op, first[1], second[1])
    if n.op == "neg":
        return ops.unary("neg", first[0]), None if first[1] is None else ops.unary("neg", first[1])
    if n.op == "mul" and second is not None:
        look, c = (first, n.args[1]) if ops.is_const(second[0], 0) else (second, n.args[0])
        if c.type.is_number and ops.is_const((second if look is first else first)[0], 0):
            return ops.binary("mul", look[0], number(c)), None if look[1] is None else ops.binary("mul", look[1], c)
    if n.op == "div" and second is not None and ops.is_const(second[0], 0) and n.args[1].type.is_number:
        c = n.args[1]
        return ops.binary("div", first[0], number(c)), None if first[1] is None else ops.binary("div", first[1], c)
    return None


def _joined(op: str, a: Node | None, b: Node | None) -> Node | None:
    if b is None:
        return a
    if a is None:
        return ops.unary("neg", b) if op == "sub" else b
    return ops.binary(op, a, b)
