"""The calls in an expression with all their slots: those given, and those left to the default of the word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestflow.diagnostics.core import Span
from nestflow.language import tree as T
from nestflow.language.checks import children
from nestflow.language.expressions import expression
from nestflow.language.resolve import Program, specs_dir
from nestflow.vocabulary import REQUIRED, WORDS, Word

Callee = Word | T.Template


@dataclass(frozen=True)
class SlotValue:
    """One slot of a call: what it is given, or the default, and where that stands."""

    name: str
    text: str
    origin: str
    given: bool
    value: T.Expr | None = None


@dataclass(frozen=True)
class CallValues:
    name: str
    slots: tuple[SlotValue, ...]


class Callees:
    """What a name in a call means: a template of the program, a word, or a template of the shipped specs.

    `reached` gathers the shipped templates that a spec uses without bringing them."""

    def __init__(self, program: Program):
        self.program = program
        self.own = {s.name: s for s in program.body if isinstance(s, T.Template)}
        self.reached: list[T.Template] = []

    def find(self, name: str) -> Callee | None:
        if name in self.own:
            return self.own[name]
        if name in WORDS:
            return WORDS[name]
        shipped = self.program.shipped(name)
        if shipped is not None and not any(shipped is t for t in self.reached):
            self.reached.append(shipped)
        return shipped


def place(span: Span | None) -> str:
    """`file:line`; a shipped spec by its path among the shipped ones."""
    if span is None:
        return "given from outside"
    name = span.source.name
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(specs_dir()):
        name = path.relative_to(specs_dir()).as_posix()
    return f"{name}:{span.line}"


def calls_in(e: T.Expr, callees: Callees, memory: bool = False) -> Iterator[CallValues]:
    """Every call of an expression whose callee is known, outer ones first. memory: whether the expression is a memory's
    kind, whose function gets the key as its first slot."""
    yield from _visit(e, callees, fed=memory, called=True)


def _visit(e: T.Expr, callees: Callees, fed: bool = False, called: bool = False) -> Iterator[CallValues]:
    """fed: the first slot is given by what stands before (a pipe, a memory's key). called: a bare name is a call."""
    if isinstance(e, T.Pipe):
        yield from _visit(e.stages[0], callees)
        for stage in e.stages[1:]:
            yield from _visit(stage, callees, True, True)
        return
    if isinstance(e, T.Call) and isinstance(e.function, T.Name):
        yield from _values(e.function.name, e.args, e.kwargs, callees, fed)
        for inner in (*e.args, *(v for _, v in e.kwargs)):
            yield from _visit(inner, callees)
        return
    if isinstance(e, T.Name):
        if called:
            yield from _values(e.name, (), (), callees, fed)
        return
    for inner in children(e):
        yield from _visit(inner, callees)


def _values(
    name: str, args: tuple[T.Expr, ...], kwargs: tuple[tuple[str, T.Expr], ...], callees: Callees, fed: bool
) -> Iterator[CallValues]:
    callee = callees.find(name)
    if callee is None:
        return
    slots = list(_defaults(callee))
    first = 1 if fed and not isinstance(callee, T.Optimizer) and _takes_input(callee) else 0
    given = dict(zip([n for n, _, _ in slots[first:]], args)) | dict(kwargs)
    found = [
        SlotValue(n, expression(given[n]), place(given[n].span), True, given[n])
        if n in given
        else SlotValue(n, text or "", f"default of `{name}`" + (f", {where}" if where else ""), False)
        for n, text, where in slots
        if n in given or text is not None
    ]
    known = {n for n, _, _ in slots}
    found += [SlotValue(n, expression(v), place(v.span), True, v) for n, v in kwargs if n not in known]
    if any(not s.given for s in found) or (found and isinstance(callee, T.Level)):
        yield CallValues(name, tuple(found))


def _takes_input(callee: Callee) -> bool:
    """Whether the first slot is what flows through: a word's or a flow's; memories and objectives have none."""
    return isinstance(callee, T.Template) or callee.kind not in ("memory", "objective", "distribution")


def _defaults(callee: Callee) -> Iterator[tuple[str, str | None, str]]:
    """Name, default as text (None: required) and place of each slot."""
    if isinstance(callee, Word):
        for s in callee.slots:
            if callee.kind != "objective" or s.default is not None:  # else it is the level's own recall or value
                yield s.name, None if s.default is REQUIRED else _text(s.default), ""
    else:
        for s in callee.slots or ():
            yield s.name, None if s.default is None else expression(s.default), place(s.span)


def _text(default: Any) -> str:
    if default is None:
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


# --- constants --------------------------------------------------------------------------------------

_FOLD = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}


def constant(e: T.Expr, params: dict[str, Any]) -> Any:
    """The number or word that an expression of params and numbers comes to; None where it needs more than that."""
    match e:
        case T.Number(value=value) | T.Bool(value=value) | T.String(value=value):
            return value
        case T.Name(name=name):
            return params.get(name)
        case T.Unary(op="-", operand=operand):
            value = constant(operand, params)
            return -value if _is_number(value) else None
        case T.Binary(op=op, left=left, right=right) if op in _FOLD:
            a, b = constant(left, params), constant(right, params)
            if not (_is_number(a) and _is_number(b)) or (op in ("/", "//", "%") and b == 0):
                return None
            return _FOLD[op](a, b)
        case _:
            return None


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)
