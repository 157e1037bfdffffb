"""A Pygments lexer for `.nl`. It asks the language's own tokenizer and layout, so that what is a keyword to the parser
is one on the screen: `level` opens a level in `level fast(x) {`, and is a name in `level = 3`.

Pygments finds it as `nestflow` and by `*.nl` (an entry point in pyproject.toml).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pygments.lexer import Lexer
from pygments.token import (
    Comment,
    Error,
    Keyword,
    Name,
    Number,
    Operator,
    Punctuation,
    String,
    Text,
    Whitespace,
    _TokenType,
)

from nestflow.diagnostics.core import Collector, NestflowError, Source
from nestflow.editor import words
from nestflow.language.layout import Layout
from nestflow.language.lexer import Comment as SpecComment
from nestflow.language.lexer import Token, tokenize

Piece = tuple[int, _TokenType, str]
_BY_TYPE: dict[str, _TokenType] = {
    "NUMBER": Number,
    "STRING": String.Double,
    "BOOL": Keyword.Constant,
    "NESTFLOW": Keyword.Namespace,
    "AND": Operator.Word,
    "OR": Operator.Word,
    "NOT": Operator.Word,
    **dict.fromkeys(("USE", "EXTENDS"), Keyword.Namespace),
    **dict.fromkeys((w.upper() for w in words.DECLARATIONS), Keyword.Declaration),
    **dict.fromkeys(("RETURN", "EMIT", "FOR", "REPEAT", "ASSERT", "IFS", "ELSES", "IF", "ELSE"), Keyword),
    **dict.fromkeys(("IN", "OF", "AS"), Keyword),
    **dict.fromkeys(("PIPE", "PLUS", "MINUS", "MUL", "POW", "CMP", "ASSIGN"), Operator),
    **dict.fromkeys(("LPAR", "RPAR", "LSQB", "RSQB", "LBRACE", "RBRACE", "LRECORD", "RRECORD"), Punctuation),
    **dict.fromkeys(("COMMA", "COLON", "DOT", "SEMI"), Punctuation),
}
_HEADS: dict[str, _TokenType] = {
    "LEVEL": Name.Class,
    "OPTIMIZER": Name.Class,
    "FLOW": Name.Function,
    "EXTERN": Name.Function,
    **dict.fromkeys(("PARAM", "INPUT", "CLOCK", "SHARED", "EMIT", "FOR"), Name.Variable),
}


class NestflowLexer(Lexer):
    """Colours for nestflow specs."""

    name = "nestflow"
    aliases = ("nestflow", "nl")
    filenames = ("*.nl",)
    mimetypes = ("text/x-nestflow",)
    priority = 0.5  # NewLisp, which Pygments knows too, has the same suffix
    url = ""
    version_added = ""

    def get_tokens_unprocessed(self, text: str) -> Iterator[Piece]:
        """(offset, token type, text) for all of a text; what is wrong in it is Error, and the rest goes on."""
        at = 0
        for start, kind, piece in _pieces(text):
            if start < at:
                continue
            yield from _between(text, at, start)
            yield start, kind, piece
            at = start + len(piece)
        yield from _between(text, at, len(text))

    def analyse_text(text: str) -> float:  # type: ignore[override]  (Pygments makes it static itself)
        """How likely a text is a spec."""
        lines = (line.strip() for line in text.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        return 0.9 if first.startswith("nestflow 1") else 0.0


def _between(text: str, start: int, end: int) -> Iterator[Piece]:
    """What stands between two tokens: space, or what the tokenizer could not take."""
    i = start
    while i < end:
        j = i
        space = text[i].isspace()
        while j < end and text[j].isspace() == space:
            j += 1
        yield i, Whitespace if space else Error, text[i:j]
        i = j


def _pieces(text: str) -> list[Piece]:
    """The tokens and comments of a text, in order, each with its colour."""
    source, errors, comments = Source("<colour>", text), Collector(), list[SpecComment]()
    try:
        tokens = tokenize(text, source, errors, None, comments)
    except NestflowError:  # too many wrong characters, or too long: not a spec
        return [(0, Text, text)]
    layout = Layout(tokens, Collector())
    try:
        layout.run()
    except NestflowError:
        layout.tokens = tokens
    words_ = [t for t in layout.tokens if t.end > t.start and t.base not in ("NL", "END")]
    out = [(t.start, kind, text[t.start : t.end]) for t, kind in zip(words_, _colours(words_), strict=True)]
    out += [(c.start, String.Doc if c.is_doc else Comment.Single, text[c.start : c.end]) for c in comments]
    return sorted(out, key=lambda piece: piece[0])


def _colours(tokens: list[Token]) -> list[_TokenType]:
    own = {t.text for before, t in pairwise(tokens) if before.type in _HEADS}
    field: str | None = None
    found: list[_TokenType] = []
    for i, t in enumerate(tokens):
        before = tokens[i - 1] if i else None
        after = tokens[i + 1] if i + 1 < len(tokens) else None
        if t.opens:
            field = t.text if t.type == "NAME" and not (after and after.type in ("ASSIGN", "COMMA")) else None
        if t.type == "NUMBER":
            found.append(Number.Float if set(t.text) & set(".eE") else Number.Integer)
        elif t.type == "NAME":
            found.append(_name(t, before, after, field, own))
        else:
            found.append(_BY_TYPE.get(t.type, Error))
    return found


def _name(t: Token, before: Token | None, after: Token | None, field: str | None, own: set[str]) -> _TokenType:
    """The colour of a name: by where it stands, then by what it is."""
    following: Any = after.type if after else None
    if t.opens:
        if field is None:
            return Name.Variable  # `x = ...`
        return Name.Attribute if t.text in words.fields() else Name
    if before is not None and before.type in _HEADS:
        return _HEADS[before.type]
    if before is not None and before.opens and before.text == "memory" and following == "COLON":
        return Name.Variable  # `memory keys : matrix`
    if before is not None and before.type == "DOT":
        return Name.Property
    if field in ("every", "chunk") and t.text.removesuffix("s") in words.UNITS and not _is_value(before):
        return Keyword.Type
    if t.text in words.CONSTANTS:
        return Keyword.Constant
    if before is not None and before.type == "COLON" and t.text in words.TYPES:
        return Keyword.Type
    if following == "ASSIGN":
        return Name.Variable  # a slot
    if t.text in words.builtins() and t.text not in own:
        return Name.Builtin
    if following == "LPAR" or (before is not None and before.type == "PIPE"):
        return Name.Function
    return Name


def _is_value(before: Token | None) -> bool:
    """Whether a value is due after this token, so that a word there is no unit."""
    return before is None or before.opens or before.type not in ("NUMBER", "NAME", "RPAR", "RSQB")
