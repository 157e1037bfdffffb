"""Expressions as text, with the fewest brackets that give the same tree back."""

from __future__ import annotations

import re

from nestflow.language import tree as T

WIDTH = 120
_PLAIN_KEY = re.compile(r"[^\W\d](?:\w|\{\w+\})*")
_RESERVED = frozenset(["if", "else", "and", "or", "not", "in", "of", "as", "true", "false"])

TEMPLATE_WORDS: dict[type[T.Template], str] = {T.Level: "level", T.Flow: "flow", T.Optimizer: "optimizer"}

CONDITIONAL, PIPE, OR, AND, NOT, COMPARE, SUM, TERM, UNARY, POWER, POSTFIX = range(1, 12)
_OPERATORS = {
    "or": (OR, OR, AND),
    "and": (AND, AND, NOT),
    "^": (POWER, POSTFIX, UNARY),
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), (COMPARE, SUM, SUM)),
    **dict.fromkeys(("+", "-"), (SUM, SUM, TERM)),
    **dict.fromkeys(("*", "/", "//", "%", "@"), (TERM, TERM, UNARY)),
}  # how strongly it binds, and what it asks of its left and right side


def number_text(n: T.Number) -> str:
    """A number as it was written, or, if that is not known, as short as can be."""
    digits = n.text.replace("_", "")
    try:
        if digits and (int(digits) if digits.isdigit() else float(digits)) == n.value:
            return n.text
    except ValueError:
        pass
    return repr(n.value)


def key_text(key: str) -> str:
    """A record's key: bare where it is a name."""
    return key if _PLAIN_KEY.fullmatch(key) and key not in _RESERVED else f'"{key}"'


def binds(e: T.Expr | T.Slice) -> int:
    """How strongly an expression holds together."""
    match e:
        case T.Conditional():
            return CONDITIONAL
        case T.Pipe():
            return PIPE
        case T.Binary():
            return _OPERATORS[e.op][0]
        case T.Unary():
            return NOT if e.op == "not" else UNARY
        case T.Number() if e.value < 0:
            return UNARY
        case _:
            return POSTFIX


def expression(e: T.Expr | T.Slice, least: int = CONDITIONAL) -> str:
    """The text of an expression, in brackets if it binds less than asked."""
    text = _text(e)
    return f"({text})" if binds(e) < least else text


def _text(e: T.Expr | T.Slice) -> str:
    match e:
        case T.Number():
            return number_text(e)
        case T.String():
            return f'"{e.value}"'
        case T.Name():
            return e.name
        case T.Bool():
            return "true" if e.value else "false"
        case T.Call():
            return f"{expression(e.function, POSTFIX)}({', '.join(arguments(e))})"
        case T.Pipe():
            return " |> ".join(expression(s, POSTFIX) for s in e.stages)
        case T.Unary():
            return f"not {expression(e.operand, NOT)}" if e.op == "not" else f"-{expression(e.operand, UNARY)}"
        case T.Binary():
            _, left, right = _OPERATORS[e.op]
            return f"{expression(e.left, left)} {e.op} {expression(e.right, right)}"
        case T.Conditional():
            return f"{expression(e.then, PIPE)} if {expression(e.condition, PIPE)} else {expression(e.otherwise)}"
        case T.Attribute():
            return f"{expression(e.value, POSTFIX)}.{e.name}"
        case T.Slice():
            return f"{expression(e.start) if e.start else ''}:{expression(e.stop) if e.stop else ''}"
        case T.Index():
            return f"{expression(e.value, POSTFIX)}[{', '.join(expression(i) for i in e.items)}]"
        case T.ListExpr():
            return f"[{', '.join(expression(i) for i in e.items)}]"
        case T.Record():
            return "{" + ", ".join(f"{key_text(k)}: {expression(v)}" for k, v in e.entries) + "}"


def arguments(c: T.Call) -> list[str]:
    """The arguments of a call, each as text."""
    return [expression(a) for a in c.args] + [f"{k} = {expression(v)}" for k, v in c.kwargs]


def wrapped(e: T.Expr, indent: int, used: int) -> str:
    """The text of an expression over several lines if it does not fit; `used` columns of the first are taken."""
    text = expression(e)
    if used + len(text) <= WIDTH:
        return text
    pad = "\n" + " " * (indent + 2)
    match e:
        case T.Pipe() if len(e.stages) > 2:
            first, *rest = e.stages
            lines = [_stage(first, indent, used)] + ["|> " + _stage(s, indent + 2, indent + 5) for s in rest]
            return pad.join(lines)
        case T.Call() if e.args or e.kwargs:
            items = [wrapped(a, indent + 2, indent + 2) for a in e.args]
            items += [f"{k} = {wrapped(v, indent + 2, indent + 5 + len(k))}" for k, v in e.kwargs]
            return f"{expression(e.function, POSTFIX)}({pad}" + f",{pad}".join(items) + ")"
        case T.ListExpr() if e.items:
            return f"[{pad}" + f",{pad}".join(wrapped(i, indent + 2, indent + 2) for i in e.items) + "]"
        case T.Record() if e.entries:
            items = [f"{key_text(k)}: {wrapped(v, indent + 2, indent + 4 + len(k))}" for k, v in e.entries]
            return f"{{{pad}" + f",{pad}".join(items) + "}"
        case T.Binary():
            _, left, right = _OPERATORS[e.op]
            a = wrapped(e.left, indent, used) if binds(e.left) >= left else expression(e.left, left)
            return f"{a} {e.op}{pad}{expression(e.right, right)}"
        case _:
            return text


def _stage(e: T.Expr, indent: int, used: int) -> str:
    return wrapped(e, indent, used) if binds(e) >= POSTFIX else expression(e, POSTFIX)


def domain(d: T.Domain) -> str:
    """`[1, 8]`, `[0, n)`, `{a, b}`."""
    if d.values is not None:
        return "{" + ", ".join(expression(v) for v in d.values) + "}"
    assert d.low is not None and d.high is not None
    return f"{'(' if d.low_open else '['}{expression(d.low)}, {expression(d.high)}{')' if d.high_open else ']'}"


def type_text(t: T.TypeExpr) -> str:
    """`int[T] in [0, vocab)`."""
    dims = f"[{', '.join(expression(d) for d in t.dims)}]" if t.dims else ""
    return t.name + dims + (f" in {domain(t.domain)}" if t.domain else "")


def slots_text(slots: tuple[T.Slot, ...] | None) -> str:
    """`(x, width = 64)`, or nothing where a template is written without brackets."""
    return "" if slots is None else f"({', '.join(slot(s) for s in slots)})"


def slot(s: T.Slot) -> str:
    """One slot of a template."""
    text = s.name
    if s.type is not None:
        text += f" : {type_text(s.type)}"
    if s.default is not None:
        text += f" = {expression(s.default)}"
    if s.domain is not None:
        text += f" in {domain(s.domain)}"
    return text
