"""Numbers of an update rule (rates, counts, facts of a weight) as Python text, computed in double at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nestflow.ir.node import Node, walk

# how tightly Python binds, loosest first
CONDITION, OR, AND, NOT, COMPARE, SUM, PRODUCT, SIGN, POWER, ATOM = range(10)

LEAVES = frozenset({"const", "hyper", "fact", "n_ticks", "updates", "schedule"})
_INFIX = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", PRODUCT),
    "div": ("/", PRODUCT),
    "floordiv": ("//", PRODUCT),
    "mod": ("%", PRODUCT),
    "lt": ("<", COMPARE),
    "le": ("<=", COMPARE),
    "gt": (">", COMPARE),
    "ge": (">=", COMPARE),
    "eq": ("==", COMPARE),
    "ne": ("!=", COMPARE),
    "and": ("and", AND),
    "or": ("or", OR),
}
_CALLS = {
    "sqrt": "math.sqrt",
    "exp": "math.exp",
    "log": "math.log",
    "tanh": "math.tanh",
    "abs": "abs",
    "min": "min",
    "max": "max",
}
_WRITTEN = {
    "square": "{0}**2",
    "relu": "max({0}, 0)",
    "sigmoid": "1 / (1 + math.exp(-{0}))",
    "sign": "({0} > 0) - ({0} < 0)",
    "softplus": "math.log1p(math.exp({0}))",
    "inverse_softplus": "math.log(math.expm1({0}))",
    "log_sigmoid": "-math.log1p(math.exp(-{0}))",
    "silu": "{0} / (1 + math.exp(-{0}))",
}
_OPS = frozenset({*_INFIX, *_CALLS, *_WRITTEN, "neg", "not", "pow", "where"})


@dataclass(frozen=True)
class Text:
    """Python text of a value and how tightly it binds. fresh: a tensor that nobody else holds."""

    text: str
    binds: int = ATOM
    fresh: bool = False

    def at(self, binds: int) -> str:
        """The text, in brackets where it binds more loosely than asked."""
        return self.text if self.binds >= binds else f"({self.text})"


def is_number(node: Node) -> bool:
    """Whether the value is a Python number: nothing below it is a tensor."""
    return all(n.op in LEAVES or n.op in _OPS for n in walk(node)) and not any(
        n.type.like and n.op == "hyper" for n in walk(node)
    )


def literal(value: float | int | bool) -> Text:
    """A number as it would be written: 1.0 is 1."""
    if not isinstance(value, bool) and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return Text(repr(value), SIGN if value < 0 else ATOM)


def number(node: Node, leaf: Callable[[Node], Text]) -> Text:
    """The text of a number; `leaf` gives that of hypers, facts, counts and schedules."""
    if node.op == "const":
        return literal(node.value)
    if node.op in LEAVES:
        return leaf(node)
    args = [number(a, leaf) for a in node.args]
    if node.op in _INFIX:
        sign, binds = _INFIX[node.op]
        # the right side of -, / and comparisons binds one tighter
        left, right = args[0].at(binds + (binds == COMPARE)), args[1].at(binds + (node.op not in ("add", "and", "or")))
        return Text(f"{left} {sign} {right}", binds)
    if node.op == "neg":
        return Text(f"-{args[0].at(SIGN)}", SIGN)
    if node.op == "not":
        return Text(f"not {args[0].at(NOT)}", NOT)
    if node.op == "pow":
        return Text(f"{args[0].at(ATOM)}**{args[1].at(POWER)}", POWER)
    if node.op == "where":
        return Text(f"{args[1].at(OR)} if {args[0].at(OR)} else {args[2].at(CONDITION)}", CONDITION)
    if node.op in _CALLS:
        return Text(f"{_CALLS[node.op]}({', '.join(a.text for a in args)})")
    return Text(f"({_WRITTEN[node.op].format(args[0].at(ATOM))})")
