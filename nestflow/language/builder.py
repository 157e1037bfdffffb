"""What lark calls for each rule of nl.lark: tokens and parts in, tree nodes out.

Every token carries its own source, so one builder serves all parses. Children are as the grammar lists them, with None
where an optional part is missing.
"""

from __future__ import annotations

from typing import Any

from lark import Transformer

from nestflow.diagnostics.core import Span
from nestflow.language import tree as T
from nestflow.language.lexer import Token

Children = list[Any]


def span_of(c: Children) -> Span:
    """From the first child that has a place to the last."""
    first = last = None
    for x in c:
        if x is not None:
            s = x.span
            if first is None:
                first = s
            last = s
    assert first is not None and last is not None
    return first if first is last else Span(first.source, first.start, last.end)


def nodes(c: Children) -> tuple[Any, ...]:
    """The children that are no bare tokens."""
    return tuple(x for x in c if x is not None and not isinstance(x, Token))


class Body:
    """The statements between two braces."""

    __slots__ = ("closing", "span", "statements")

    def __init__(self, statements: tuple[T.Statement, ...], span: Span, closing: tuple[str, ...]):
        self.statements = statements
        self.span = span
        self.closing = closing


class Part:
    """A piece of a rule that is no node of the tree: a value with its place."""

    __slots__ = ("span", "value")

    def __init__(self, value: Any, c: Children):
        self.value = value
        self.span = span_of(c)


def _value(p: Part | None) -> Any:
    return None if p is None else p.value


def statement(c: Children, body: Body | None = None) -> dict[str, Any]:
    """The arguments that every statement has: its span, doc and comments."""
    extra = c[0].extra
    more: dict[str, Any] = {"span": span_of(c)}
    if body is not None and body.closing:
        more["closing"] = body.closing
    if extra is not None:
        doc = "\n".join(extra.doc).strip("\n").rstrip()
        more.update(
            doc=doc or None,
            comments=tuple(extra.comments),
            blank=extra.blank,
            trailing="; ".join(extra.trailing) or None,
        )
    return more


class Builder(Transformer[Any, Any]):
    """One method per rule or alias of nl.lark."""

    def start(self, c: Children) -> tuple[Token, Token, tuple[T.Statement, ...]]:
        return c[0], c[1], nodes(c)

    def expression(self, c: Children) -> Any:
        return c[0]

    def quantity(self, c: Children) -> Any:
        return c[0], c[1]

    # --- declarations ------------------------------------------------------------------------------

    def body(self, c: Children) -> Body:
        extra = c[-1].extra
        return Body(nodes(c), span_of(c), tuple(extra.closing) if extra else ())

    def path(self, c: Children) -> Part:
        return Part("".join(t.text for t in c), c)

    def chosen(self, c: Children) -> Part:
        return Part(c[0].text, c)

    def alias(self, c: Children) -> Part:
        return Part(c[1].text, c)

    def target(self, c: Children) -> Part:
        text = c[0].text[1:-1] if isinstance(c[0], Token) else c[0].value
        return Part((text, isinstance(c[0], Token) or text.endswith((".nl", ".yaml", ".yml"))), c)

    def use(self, c: Children) -> T.Use:
        target, is_file = c[2].value
        return T.Use(target, _value(c[1]), _value(c[3]), is_file, **statement(c))

    def extends(self, c: Children) -> T.Extends:
        target, is_file = c[1].value
        return T.Extends(target, c[2].statements, is_file, **statement(c, c[2]))

    def param(self, c: Children) -> T.Param:
        return T.Param(c[1].text, c[4], _value(c[2]), _value(c[5]), **statement(c))

    def input(self, c: Children) -> T.Input:
        return T.Input(c[1].value, c[3], **statement(c))

    def ratio(self, c: Children) -> Part:
        return Part((c[1], c[2].text), c)

    def clock(self, c: Children) -> T.Clock:
        count, unit = _value(c[2]) or (None, None)
        return T.Clock(c[1].text, count, unit, **statement(c))

    def extern(self, c: Children) -> T.Extern:
        return T.Extern(c[1].text, _value(c[2]), _value(c[3]), **statement(c))

    def execution(self, c: Children) -> T.Execution:
        return T.Execution(c[1].statements, **statement(c, c[1]))

    def _template(self, kind: type[T.Template], c: Children) -> T.Template:
        return kind(c[1].text, _value(c[2]), c[3].statements, name_span=c[1].span, **statement(c, c[3]))

    def level(self, c: Children) -> T.Template:
        return self._template(T.Level, c)

    def flow(self, c: Children) -> T.Template:
        return self._template(T.Flow, c)

    def optimizer(self, c: Children) -> T.Template:
        return self._template(T.Optimizer, c)

    def slots(self, c: Children) -> Part:
        return Part(nodes(c), c)

    def slot(self, c: Children) -> T.Slot:
        return T.Slot(c[0].text, _value(c[2]), _value(c[1]), _value(c[3]), span=span_of(c))

    def typed(self, c: Children) -> Part:
        return Part(c[1], c)

    preset = bounds = typed

    def interval(self, c: Children) -> T.Domain:
        return T.Domain(c[1], c[3], c[0].type == "LPAR", c[4].type == "RPAR", span=span_of(c))

    def choices(self, c: Children) -> T.Domain:
        return T.Domain(values=nodes(c), span=span_of(c))

    def dims(self, c: Children) -> Part:
        return Part(nodes(c), c)

    def type(self, c: Children) -> T.TypeExpr:
        return T.TypeExpr(c[0].text, _value(c[1]) or (), _value(c[2]), span=span_of(c))

    # --- statements --------------------------------------------------------------------------------

    def assign(self, c: Children) -> T.Assign:
        return T.Assign(tuple(t.text for t in c[:-1] if t.type == "NAME"), c[-1], **statement(c))

    def shared(self, c: Children) -> T.Shared:
        return T.Shared(c[1].text, c[3], **statement(c))

    def emit(self, c: Children) -> T.Emit:
        return T.Emit(c[1].text, c[3], **statement(c))

    def part(self, c: Children) -> T.Statement:
        return T.MemoryPart(c[1].text, c[3], c[4].statements, **statement(c, c[4]))

    def of(self, c: Children) -> Part:
        return Part(c[1].value, c)

    def unit(self, c: Children) -> Part:
        return Part((c[0].text, _value(c[1]), c[0].span), c)

    def field(self, c: Children) -> T.Field:
        unit, of, unit_span = _value(c[2]) or (None, None, None)
        return T.Field(c[0].text, c[1], unit, of, c[0].span, unit_span, **statement(c))

    def return_(self, c: Children) -> T.Return:
        return T.Return(c[1], **statement(c))

    def for_(self, c: Children) -> T.For:
        return T.For(c[1].text, c[3], c[4].statements, **statement(c, c[4]))

    def repeat(self, c: Children) -> T.Repeat:
        return T.Repeat(c[1], _value(c[2]), c[3].statements, **statement(c, c[3]))

    def if_(self, c: Children) -> T.If:
        other = c[4] if len(c) > 4 else None
        otherwise = () if other is None else other.statements if isinstance(other, Body) else (other,)
        last = other if isinstance(other, Body) else c[2]
        return T.If(c[1], c[2].statements, otherwise, **statement(c, last))

    def message(self, c: Children) -> Part:
        return Part(c[1].text[1:-1], c)

    def assert_(self, c: Children) -> T.Assert:
        return T.Assert(c[1], _value(c[2]), **statement(c))

    # --- expressions -------------------------------------------------------------------------------

    def number(self, c: Children) -> T.Number:
        text = c[0].text
        digits = text.replace("_", "")
        return T.Number(int(digits) if digits.isdigit() else float(digits), text, span=c[0].span)

    def string(self, c: Children) -> T.String:
        return T.String(c[0].text[1:-1], span=c[0].span)

    def bool(self, c: Children) -> T.Bool:
        return T.Bool(c[0].text == "true", span=c[0].span)

    def name(self, c: Children) -> T.Name:
        return T.Name(c[0].text, span=c[0].span)

    def paren(self, c: Children) -> T.Node:
        # The tree has no brackets: what stands in them keeps the wider place, so that spans around it are whole.
        inner = c[1]
        object.__setattr__(inner, "span", span_of(c))
        return inner

    def conditional(self, c: Children) -> T.Conditional:
        return T.Conditional(c[0], c[2], c[4], span=span_of(c))

    def pipe(self, c: Children) -> T.Pipe:
        return T.Pipe(nodes(c), span=span_of(c))

    def binary(self, c: Children) -> T.Binary:
        return T.Binary(c[1].text, c[0], c[2], span=span_of(c))

    def unary(self, c: Children) -> T.Unary:
        return T.Unary(c[0].text, c[1], span=span_of(c))

    def named(self, c: Children) -> Part:
        return Part((c[0].text, c[2]), c)

    def call(self, c: Children) -> T.Call:
        given = [x for x in c[2:-1] if x is not None and not isinstance(x, Token)]
        args = tuple(x for x in given if not isinstance(x, Part))
        kwargs = tuple(x.value for x in given if isinstance(x, Part))
        return T.Call(c[0], args, kwargs, span=span_of(c))

    def range(self, c: Children) -> T.Slice:
        return T.Slice(c[0], c[2], span=span_of(c))

    def index(self, c: Children) -> T.Index:
        return T.Index(c[0], nodes(c[1:]), span=span_of(c))

    def attribute(self, c: Children) -> T.Attribute:
        return T.Attribute(c[0], c[2].text, span=span_of(c))

    def list(self, c: Children) -> T.ListExpr:
        return T.ListExpr(nodes(c), span=span_of(c))

    def entry(self, c: Children) -> Part:
        key = c[0].text[1:-1] if c[0].type == "STRING" else c[0].text
        return Part((key, c[2]), c)

    def record(self, c: Children) -> T.Record:
        return T.Record(tuple(p.value for p in nodes(c)), span=span_of(c))


for _word in ("return", "for", "if", "assert"):  # rules whose names are words of Python
    setattr(Builder, _word, getattr(Builder, _word + "_"))
