"""Specs and diagnostics in the sixteen colours of a terminal, whatever its background."""

from __future__ import annotations

from functools import cache
from typing import Any

import click
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, String, Token, _TokenType

# Only colours that are seen on black and on white; the rest keeps the terminal's own.
STYLES: dict[_TokenType, dict[str, Any]] = {
    Keyword: {"fg": "magenta"},
    Keyword.Constant: {"fg": "cyan"},
    Keyword.Type: {"fg": "cyan"},
    Name.Attribute: {"fg": "blue"},
    Name.Tag: {"fg": "blue"},
    Name.Class: {"bold": True},
    Name.Function: {"bold": True},
    Name.Builtin: {"fg": "green"},
    Number: {"fg": "cyan"},
    String: {"fg": "yellow"},
    String.Doc: {"dim": True},
    Comment: {"dim": True},
    Operator.Word: {"fg": "magenta"},
    Error: {"fg": "red"},
}
ROLES: dict[str, dict[str, Any]] = {
    "error": {"fg": "red", "bold": True},
    "warning": {"fg": "yellow", "bold": True},
    "note": {"fg": "cyan", "bold": True},
    "help": {"fg": "green", "bold": True},
    "mark": {"fg": "blue", "bold": True},
    "place": {"fg": "blue"},
}


@cache
def _lexer(yaml: bool) -> Any:
    if yaml:
        from pygments.lexers.data import YamlLexer

        return YamlLexer(stripnl=False, ensurenl=False)
    from nestflow.editor.lexer import NestflowLexer

    return NestflowLexer(stripnl=False, ensurenl=False)


def style_of(kind: _TokenType) -> dict[str, Any]:
    """The style of a token type: its own, or that of the nearest kind above it."""
    while kind not in STYLES:
        if kind is Token or kind.parent is None:
            return {}
        kind = kind.parent
    return STYLES[kind]


def highlight(text: str, name: str = "spec.nl") -> str:
    """A spec's text in colours; without them it is the same text. `name` tells YAML from .nl."""
    lexer = _lexer(name.endswith((".yaml", ".yml")))
    parts: list[str] = []
    for _, kind, piece in lexer.get_tokens_unprocessed(text):
        style = style_of(kind)
        lines = piece.split("\n")  # an escape does not run over a line end, where a pager would lose it
        parts.append("\n".join(click.style(x, **style) if style and x else x for x in lines))
    return "".join(parts)


def paint(role: str, text: str) -> str:
    """What `render` asks for: a role's colour, or the line of a source in the colours of its language."""
    style = ROLES.get(role)
    return click.style(text, **style) if style else highlight(text, role)
