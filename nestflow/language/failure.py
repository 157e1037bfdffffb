"""Where the parser stopped in a statement, and how tokens and what was expected are called in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nestflow.language.lexer import Token
from nestflow.language.repairs import Parses

VALUE_ENDS = frozenset(["NAME", "NUMBER", "STRING", "BOOL", "RPAR", "RSQB", "RRECORD"])
VALUE_STARTS = frozenset(["NAME", "NUMBER", "STRING", "BOOL", "LPAR", "LSQB", "LRECORD", "NOT"])
OPERATOR_TYPES = frozenset(["PIPE", "PLUS", "MINUS", "MUL", "POW", "CMP", "AND", "OR"])
FIELDS_OF_A_LINE = frozenset(
    ["every", "chunk", "heads", "memory", "key", "value", "query", "weight", "when", "objective", "update", "retain",
     "project", "rounds", "read", "init", "gradient", "reset", "per", "step", "set", "eval", "output"]
)  # fmt: skip  # fmt: skip
ENDS = frozenset(("_SEP", "RBRACE", "$END"))
NEEDS_BODY = frozenset(["LEVEL", "FLOW", "OPTIMIZER", "EXECUTION", "EXTENDS", "FOR", "REPEAT", "IFS", "ELSES"])


@dataclass
class Failure:
    """Where the parser stopped: token i of a statement that began at token `start`."""

    tokens: Sequence[Token]
    i: int
    start: int
    expected: frozenset[str]
    stack: Sequence[Any]
    taken: Parses | None = None  # None: no repair is tried

    @property
    def token(self) -> Token:
        return self.tokens[self.i]

    @property
    def before(self) -> Token | None:
        return self.tokens[self.i - 1] if self.i > self.start else None

    @property
    def first(self) -> Token:
        return self.tokens[self.start]

    @property
    def words(self) -> list[Token]:
        return list(self.tokens[self.start : self.i])

    @property
    def in_brackets(self) -> Token | None:
        """The innermost open bracket of the statement."""
        open: list[Token] = []
        for t in self.words:
            if t.type in ("LPAR", "LSQB", "LRECORD"):
                open.append(t)
            elif t.type in ("RPAR", "RSQB", "RRECORD") and open:
                open.pop()
        return open[-1] if open else None


def show(t: Token) -> str:
    if t.type == "$END":
        return "the end of the text"
    if t.type == "_SEP":
        return "the end of the line" if t.text != ";" else "`;`"
    text = t.text if len(t.text) <= 40 else t.text[:37] + "..."
    return f"`{text}`"


def expected_words(expected: frozenset[str]) -> str:
    words: list[str] = []
    if {"NUMBER", "LPAR", "NAME"} <= expected:
        words.append("a value")
    elif expected & {"LEVEL", "FLOW", "RETURN"}:
        words.append("a statement")
    elif "NAME" in expected:
        words.append("a name")
    if expected & OPERATOR_TYPES - {"MINUS"}:
        words.append("an operator")
    for type, text in (
        ("LBRACE", "`{`"),
        ("ASSIGN", "`=`"),
        ("COLON", "`:`"),
        ("COMMA", "`,`"),
        ("RPAR", "`)`"),
        ("RSQB", "`]`"),
        ("RRECORD", "`}`"),
        ("IN", "`in`"),
        ("OF", "`of`"),
        ("AS", "`as`"),
    ):
        if type in expected:
            words.append(text)
    if "STRING" in expected and "NUMBER" not in expected:
        words.append("a string")
    if expected & {"_SEP", "$END"} and not words:
        words.append("the end of the statement")
    if len(words) > 4:
        words = words[:4]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "something else"


def source_of(f: Failure, start: int, end: int) -> str:
    return " ".join(f.token.source.text[start:end].split())
