"""A matrix whose error looks at its own state of the tick before, linearly: the delta rule in WY form.

DeltaNet and Gated DeltaNet, with any linear rule (momentum too) and dgd; KDA: the errors of a block solve one
triangular system. What the error looks with need not be what it is written with, and errors that do not look may be
beside it: RWKV-7, whose objective names what the memory has at one key and takes it away there, and writes at another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nestflow.graph.model import Memory
from nestflow.ir import ops
from nestflow.ir.construct import number, rewrite
from nestflow.ir.node import Node, depends, make, walk
from nestflow.ir.pullback import times
from nestflow.lowering.errors import Errors, at_key
from nestflow.lowering.linear_rule import ONE, ZERO, LinearRule
from nestflow.lowering.patterns.setting import Setting, erasing, linear_rules


@dataclass(frozen=True)
class Looks:
    """The errors of a tick, e hᵀ summed over pairs (h, e): one of them, of input h, is Σ a · (W x) + b over `looks`;
    the `known` ones see nothing of the memory. A look (x, a, found) sees the state that the tick has found (it is
    named in the text) or the one at which errors are taken: `decay_first` makes the difference."""

    tensor: str
    h: Node
    looks: tuple[tuple[Node, Node, bool], ...]
    b: Node
    known: tuple[tuple[Node, Node], ...]


def delta(m: Memory, errors: Errors, setting: Setting) -> dict[str, LinearRule] | str:
    if m.kind == "cache":
        return "a cache"
    if m.link is not None:
        return "it is read through a link that is not linear"
    if m.chunk > 1 or m.every > 1:
        return f"chunk {m.chunk}: its errors are not those of the tick before"
    if setting.reads_beside_errors(m):
        return "the level's context recalls it or other memories"
    if m.name in setting.taken:
        return "its gradient is read at each tick"
    found = looks(m, errors)
    if isinstance(found, str):
        return found
    rules = linear_rules(m, errors)
    if isinstance(rules, str):
        return rules
    if m.decay_first and any(r.dgd is not None for r in rules.values()):
        return "decay_first with dgd"
    return rules


def looks(m: Memory, errors: Errors) -> Looks | str:
    """What the errors of a memory that is one matrix see of it, or why they are not of that form."""
    if errors.dense or len(errors.factors) != 1:
        return "not one matrix"
    ((tensor, pairs),) = errors.factors.items()
    known: list[tuple[Node, Node]] = []
    seeing: list[tuple[Node, dict[Node, Node], Node]] = []
    for h, e in pairs:
        if depends(h, of_memory):
            return "its input depends on what it has stored"
        found = affine(as_found(m, e))
        if found is None:
            return _not_linear(m, e)
        a, b = found
        if a:
            b = ops.binary("mul", ZERO, e) if b is None else _at_full_size(b, h)
            if b.type.shape != e.type.shape:
                return "what it learns is one number for all that it recalls"
            seeing.append((h, a, b))
        else:
            known.append((h, e))
    if len(seeing) > 1:
        return "several of its errors look at what it has stored"
    if not seeing:
        h, b = known.pop(0)
        return Looks(tensor, h, (), b, tuple(known))
    ((h, a, b),) = seeing
    if m.turns > 1 and any(n.args[1].op == "found" for n in a):
        return "a round looks at the state that the tick has found"
    seen = tuple((n.args[0], k, n.args[1].op == "found") for n, k in a.items())
    return Looks(tensor, h, seen, b, tuple(known))


def _at_full_size(b: Node, h: Node) -> Node:
    """What an error adds to its look: with a feature axis, and the ticks of the input h."""
    if b.type.shape and (b.type.clock or not h.type.clock):
        return b
    return ops.binary("add", ops.binary("mul", ZERO, ops.reduce("sum", h, 0, keep=True)), b)


def _not_linear(m: Memory, e: Node) -> str:
    others = {n["memory"] for n in walk(e) if n.op == "recall" and n["mode"] != "return"} - {m.name}
    if others:
        return f"its error looks at what {' and '.join(f'`{name}`' for name in sorted(others))} has stored"
    return "its error is not linear in the recall"


@dataclass(frozen=True)
class System:
    """What the triangular system is made of: errors a · (W x) + b, written as e hᵀ, beside those that are known."""

    x: Node
    h: Node
    a: Node
    b: Node
    known: tuple[tuple[Node, Node], ...]

    def nodes(self) -> tuple[Node, ...]:
        return (self.x, self.h, self.a, self.b, *(n for pair in self.known for n in pair))


def system(m: Memory, errors: Errors, rule: LinearRule) -> System:
    """All that the error sees of the memory as one look at the state that the tick has found: what dgd erases and
    what `decay_first` leaves put in."""
    found = looks(m, errors)
    assert not isinstance(found, str)
    gate = m.retain if m.decay_first else None
    sums: dict[Node, Node] = {}
    seen = [*found.looks, *([(found.h, erasing(m, found.tensor), True)] if rule.dgd is not None else [])]
    for x, a, as_found_ in seen:
        if gate is not None and not as_found_:
            if m.retain_on == "key":
                x = ops.binary("mul", gate, x)
            else:
                a = ops.binary("mul", a, number(gate))
        sums[x] = ops.binary("add", sums[x], a) if x in sums else a
    if len(sums) > 1:
        first, *rest = (times(a, x) for x, a in sums.items())
        for x in rest:
            first = ops.binary("add", first, x)
        sums = {first: ONE}
    x, a = next(iter(sums.items()), (found.h, ZERO))
    return System(x, found.h, a, found.b, found.known)


def of_memory(n: Node) -> bool:
    """A tensor of the memory, or a recall."""
    return n.op in ("theta", "found") or (n.op == "recall" and n["mode"] != "return")


def as_found(m: Memory, e: Node) -> Node:
    """An error with recalls of its own memory opened: a name that holds one sees the state that the tick has found."""

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op != "recall" or n["memory"] != m.name or n["mode"] != "chunk" or n.get("tensor") is not None:
            return None
        return rewrite([at_key(m, args)], lambda t, _: _found(t) if t.op == "theta" else None)[0]

    return rewrite([e], change)[0]


def _found(theta: Node) -> Node:
    return make("found", (), theta.type, tensor=theta["tensor"])


Part = tuple[dict[Node, Node], Node | None]


def affine(e: Node) -> Part | None:
    """e = Σ a · look + b over maps of what the context gives by the memory's tensor, a a number: ({look: a}, b or None
    where it is zero). None if it is not of this form."""
    memo: dict[Node, Part | None] = {}
    for n in walk(e):
        memo[n] = _affine(n, memo)
    return memo[e]


def _affine(n: Node, memo: dict[Node, Part | None]) -> Part | None:
    if n.op == "linear" and n.args[1].op in ("theta", "found"):
        return None if depends(n.args[0], of_memory) else ({n: ONE}, None)
    if of_memory(n):
        return None  # read otherwise
    parts = [memo[a] for a in n.args]
    if any(p is None for p in parts):
        return None
    if all(p is not None and not p[0] for p in parts):
        return {}, n
    first, second = (*parts, None)[:2]
    assert first is not None
    if n.op in ("add", "sub") and second is not None:
        return _joined(n.op, first, second)
    if n.op == "neg":
        return _each(first, lambda x: ops.unary("neg", x))
    if n.op == "mul" and second is not None:
        look, free, c = (first, second, n.args[1]) if not second[0] else (second, first, n.args[0])
        if not free[0] and c.type.is_number:
            return _each(look, lambda x: ops.binary("mul", x, number(c)))
    if n.op == "div" and second is not None and not second[0] and n.args[1].type.is_number:
        return _each(first, lambda x: ops.binary("div", x, number(n.args[1])))
    return None


def _each(part: Part, change: Callable[[Node], Node]) -> Part:
    return {n: change(a) for n, a in part[0].items()}, None if part[1] is None else change(part[1])


def _joined(op: str, first: Part, second: Part) -> Part:
    def join(x: Node | None, y: Node | None) -> Node | None:
        if x is None or y is None:
            return x if y is None else ops.unary("neg", y) if op == "sub" else y
        return ops.binary(op, x, y)

    a: dict[Node, Node] = {}
    for n in {**first[0], **second[0]}:
        both = join(first[0].get(n), second[0].get(n))
        assert both is not None
        a[n] = both
    return a, join(first[1], second[1])
