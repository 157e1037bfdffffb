"""YAML nodes to tokens of the .nl grammar: scalars, expressions, and how a statement is begun and ended."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import yaml

from nestflow.diagnostics.core import Collector, Edit, Source, Span
from nestflow.language.lexer import Extra, Token, tokenize
from nestflow.language.yaml_nodes import NULL, places

_CLOSER = {"(": ")", "[": "]", "{": "}"}
Entry = tuple[Any, Any]


class Writer:
    """Writes tokens; every statement begins with `begin` and ends with a separator."""

    def __init__(self, source: Source, errors: Collector):
        self.source = source
        self.errors = errors
        self.tokens: list[Token] = []
        self.doc: str | None = None
        self.first_key = 0
        self.misspelt: Any = None

    # --- writing -----------------------------------------------------------------------------------

    def put(self, type: str, text: str, node: Any) -> Token:
        """A token that the YAML text does not hold, at the place of a node."""
        at = node.start_mark.index
        token = Token(type, text, at, at, self.source)
        self.tokens.append(token)
        return token

    def error(self, code: str, message: str, node: Any, help: str | None = None, instead: str | None = None) -> None:
        """instead: what the node's text must be, where that is sure."""
        span = Span(self.source, node.start_mark.index, node.end_mark.index)
        self.errors.error(code, message, span, help, fix=() if instead is None else (Edit(span, instead),))

    def lex(self, node: Any) -> list[Token]:
        """The tokens of a scalar, checked so that they cannot leave their place: brackets match, no `;`."""
        found = [t for t in tokenize(node.value, self.source, self.errors, places(node, self.source)) if t.type != "NL"]
        return found if self._closed(found, node) else []

    def _closed(self, tokens: list[Token], node: Any) -> bool:
        stack: list[tuple[Token, bool]] = []
        for i, t in enumerate(tokens):
            if t.type == "SEMI":
                self.errors.error(
                    "NF101", "`;` cannot stand in an entry", t.span, "write each statement as an entry of its own"
                )
                return False
            if t.text in _CLOSER:
                stack.append((t, i > 0 and tokens[i - 1].type == "IN"))
            elif t.type in ("RPAR", "RSQB", "RBRACE"):
                opener, interval = stack.pop() if stack else (None, False)
                if opener is None or (
                    _CLOSER[opener.text] != t.text and not (interval and "{" not in opener.text and t.text != "}")
                ):
                    self.errors.error("NF106", f"this `{t.text}` closes nothing", t.span, self._quote(node))
                    return False
        if stack:
            opener = stack[-1][0]
            self.errors.error(
                "NF127" if node.style is None else "NF105",
                f"this `{opener.text}` is never closed",
                opener.span,
                self._quote(node),
            )
            return False
        return True

    def _quote(self, node: Any) -> str:
        if node.style is None and self.source.text[node.end_mark.index : node.end_mark.index + 1] in (",", "]", "}"):
            return "quote it: a comma or bracket ended this entry"
        return "brackets open and close in one entry"

    # --- expressions -------------------------------------------------------------------------------

    def expression(self, node: Any, free: bool = False) -> None:
        """A value: a scalar in the expression grammar, a list, a call with keywords, or a record."""
        if isinstance(node, yaml.SequenceNode):
            self._list(node)
        elif isinstance(node, yaml.MappingNode):
            self._call(node)
        elif node.tag == NULL and node.style is None:
            self.error(
                "NF125", "this entry has no value", node, "write an expression after the `:`; a name `null` is quoted"
            )
            self.put("BOOL", "true", node)
        else:
            tokens = self.lex(node)
            if not free:
                tokens = self._one_expression(tokens)
            self.tokens.extend(self._record_in_brackets(tokens))
            if not tokens:
                if not self.errors.errors:
                    self.error("NF125", "this entry is empty", node, "write an expression")
                self.put("BOOL", "true", node)

    def _record_in_brackets(self, tokens: list[Token]) -> list[Token]:
        """`({a: 1})` for an entry that begins with `{`, which after a field's name could be a body."""
        if not tokens or tokens[0].type != "LBRACE":
            return tokens
        depths = accumulate((t.type == "LBRACE") - (t.type == "RBRACE") for t in tokens)
        i = next((i for i, depth in enumerate(depths) if depth == 0), len(tokens) - 1)
        first, last = tokens[0], tokens[i]
        return [
            Token("LPAR", "(", first.start, first.start, self.source),
            *tokens[: i + 1],
            Token("RPAR", ")", last.end, last.end, self.source),
            *tokens[i + 1 :],
        ]

    def _one_expression(self, tokens: list[Token]) -> list[Token]:
        """What would end an expression, and begin something else, cannot stand in one entry."""
        depth = 0
        for t in tokens:
            depth += (t.text in _CLOSER) - (t.type in ("RPAR", "RSQB", "RBRACE"))
            if depth == 0 and t.type in ("COMMA", "ASSIGN", "COLON"):
                self.errors.error(
                    "NF101",
                    f"`{t.text}` cannot stand in an expression",
                    t.span,
                    "a list is written in brackets; `==` compares"
                    if t.text != ":"
                    else "a record is written in braces",
                )
                return []
        return tokens

    def _list(self, node: Any) -> None:
        self.put("LSQB", "[", node)
        for i, item in enumerate(node.value):
            if i:
                self.put("COMMA", ",", item)
            self.expression(item)
        self._end("RSQB", "]", node)

    def _end(self, type: str, text: str, node: Any) -> None:
        at = node.end_mark.index
        while at > node.start_mark.index and self.source.text[at - 1].isspace():
            at -= 1
        self.tokens.append(Token(type, text, at, at, self.source))

    def _call(self, node: Any) -> None:
        if len(node.value) != 1:
            keys = ", ".join(f"`{k.value}`" for k, _ in node.value[:3])
            self.error(
                "NF125",
                f"a mapping here is a call, with the function's name as its only key, and this has {keys or 'none'}",
                node,
                "write `adam: {lr: 0.01}`, or `record: {a: 1, b: 2}`",
            )
            self.put("BOOL", "true", node)
            return
        key, value = node.value[0]
        if key.value == "record" and isinstance(value, yaml.MappingNode):
            self._record(value)
            return
        if not isinstance(value, yaml.MappingNode):
            self.error(
                "NF125",
                f"`{key.value}:` is a call, and its keywords are missing",
                value,
                f"write `{key.value}: {{slot: value}}`, or the call as a string: `{key.value}(...)`",
            )
            self.put("BOOL", "true", node)
            return
        tokens = self.lex(key)
        if [t.type for t in tokens] != ["NAME"]:
            self.error("NF125", f"`{key.value}` is no function's name", key, "write the call as a string")
            self.put("BOOL", "true", node)
            return
        self.tokens.extend(tokens)
        self.put("LPAR", "(", value)
        for i, (k, v) in enumerate(value.value):
            if i:
                self.put("COMMA", ",", k)
            self._name(k, "a slot")
            self.put("ASSIGN", "=", v)
            self.expression(v)
        self._end("RPAR", ")", value)

    def _record(self, node: Any) -> None:
        self.put("LPAR", "(", node)
        self.put("LBRACE", "{", node)
        for i, (k, v) in enumerate(node.value):
            if i:
                self.put("COMMA", ",", k)
            token = self.put("STRING", f'"{k.value}"', k)
            token.end = k.end_mark.index
            if '"' in k.value or "\n" in k.value:
                self.error("NF125", "a key of a record cannot hold quotes or line ends", k)
            self.put("COLON", ":", v)
            self.expression(v)
        self._end("RBRACE", "}", node)
        self._end("RPAR", ")", node)

    def _name(self, node: Any, what: str) -> None:
        tokens = self.lex(node)
        if [t.type for t in tokens] != ["NAME"]:
            self.error("NF125", f"`{node.value}` is no name of {what}", node)
            tokens = [Token("NAME", "_", node.start_mark.index, node.end_mark.index, self.source)]
        self.tokens.extend(tokens)

    # --- statements --------------------------------------------------------------------------------

    def begin(self, node: Any, word: str | None = None, doc: Any = None) -> int:
        """Start a statement at a node, with a keyword; its doc and comments hang on its first token."""
        at = len(self.tokens)
        if word:
            self.put("NAME", word, node)
        return at

    def finish(self, at: int, node: Any, doc: str | None = None) -> None:
        if doc is not None and at < len(self.tokens):
            first = self.tokens[at]
            first.extra = first.extra or Extra()
            first.extra.doc.extend(doc.split("\n"))
        self._end("SEMI", ";", node)

    def with_doc(self, node: Any) -> tuple[Any, str | None]:
        """`{is: value, doc: text}` as the value and its doc."""
        if isinstance(node, yaml.MappingNode) and {k.value for k, _ in node.value} == {"is", "doc"}:
            parts = {k.value: v for k, v in node.value}
            return parts["is"], self.text_of(parts["doc"])
        return node, None

    def text_of(self, node: Any) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self.error("NF125", "a doc is a text", node)
            return None
        lines = [line.rstrip() for line in node.value.split("\n")]
        return "\n".join(lines).strip("\n") or None

    def braces(self, node: Any, fill: Callable[[], None]) -> None:
        self.put("LBRACE", "{", node)
        fill()
        self._end("RBRACE", "}", node)

    def mapping(self, node: Any, what: str) -> list[Entry]:
        """The entries of a mapping; none and an error if it is something else."""
        if isinstance(node, yaml.MappingNode):
            return list(node.value)
        if not (isinstance(node, yaml.ScalarNode) and node.tag == NULL):
            self.error("NF125", f"{what} is a mapping", node, "write `name: value` entries below it")
        return []

    def sequence(self, node: Any, what: str) -> list[Any]:
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if isinstance(node, yaml.ScalarNode) and node.tag != NULL:
            return [node]
        self.error("NF125", f"{what} is a list", node, "write `- entry` lines below it")
        return []

    def _scalar_statement(self, node: Any) -> None:
        if not isinstance(node, yaml.ScalarNode):
            self.error("NF125", "this entry is a string", node, "quote it")
            self.put("BOOL", "true", node)
            return
        self.tokens.extend(
            self.lex(node) or [Token("BOOL", "true", node.start_mark.index, node.end_mark.index, self.source)]
        )
