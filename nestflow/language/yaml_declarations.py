"""Declarations and lines of the YAML surface as tokens: `use`, params, inputs, clocks, names, fields."""

from __future__ import annotations

import re
from typing import Any

import yaml

from nestflow.diagnostics.suggest import did_you_mean
from nestflow.language.layout import OPENERS
from nestflow.language.lexer import RESERVED, Token, tokenize
from nestflow.language.yaml_nodes import NULL, places
from nestflow.language.yaml_tokens import Writer

_USE = re.compile(r"(?:(?P<chosen>[^\s']+)\s+of\s+)?(?P<target>\S(?:.*?\S)?)(?:\s+as\s+(?P<alias>\S+))?", re.DOTALL)


def is_name(text: str) -> bool:
    """Whether a text is one name of the language, and no reserved word."""
    return re.fullmatch(r"[^\W\d](?:\w|\{\w+\})*", text) is not None and text not in (*RESERVED, "true", "false")


class Declarations(Writer):
    """One method for each kind of statement that has no body."""

    def use(self, node: Any) -> None:
        node, doc = self.with_doc(node)
        text = node.value.strip() if isinstance(node, yaml.ScalarNode) else ""
        m = _USE.fullmatch(text)
        if m is None or '"' in m["target"].strip('"') or not all(is_name(m[k]) for k in ("chosen", "alias") if m[k]):
            self.error(
                "NF125",
                "an entry of `use` is a shipped name or a file",
                node,
                "write `optimizers.adamw`, or `attention of my.nl`",
            )
            return
        at = self.begin(node, "use")
        if m["chosen"]:
            self.put("NAME", m["chosen"], node)
            self.put("OF", "of", node)
        self._target(m["target"], node)
        if m["alias"]:
            self.put("AS", "as", node)
            self.put("NAME", m["alias"], node)
        self.finish(at, node, doc)

    def _target(self, text: str, node: Any) -> None:
        text = text.strip('"')
        if text.endswith((".nl", ".yaml", ".yml")):
            self.put("STRING", f'"{text}"', node).end = node.end_mark.index
            return
        at = node.start_mark.index + max(0, self.source.text[node.start_mark.index : node.end_mark.index].find(text))
        for t in tokenize(text, self.source, self.errors):
            self.tokens.append(Token(t.type, t.text, at + t.start, at + t.end, self.source))

    def params(self, key: Any, value: Any) -> None:
        parts: dict[str, Any] = {"value": value}
        if isinstance(value, yaml.MappingNode) and {k.value for k, _ in value.value} & {"value", "in", "type"}:
            parts = {k.value: v for k, v in value.value}
            for k, _ in value.value:
                if k.value not in ("value", "in", "type", "doc"):
                    near = did_you_mean(k.value, ["value", "in", "type", "doc"])
                    self.error(
                        "NF126",
                        f"`{k.value}` is no part of a param",
                        k,
                        near or "its parts are `value`, `in`, `type`, `doc`",
                    )
            if "value" not in parts:
                self.error("NF125", f"the param `{key.value}` has no `value`", key, "a param has a default: `value: 4`")
                return
        at = self.begin(key, "param")
        self._name(key, "a param")
        if "type" in parts:
            self.put("COLON", ":", parts["type"])
            self._scalar_statement(parts["type"])
        self.put("ASSIGN", "=", parts["value"])
        self.expression(parts["value"])
        if "in" in parts:
            self.put("IN", "in", parts["in"])
            self._domain(parts["in"])
        self.finish(at, value, self.text_of(parts["doc"]) if "doc" in parts else None)

    def _domain(self, node: Any) -> None:
        if not isinstance(node, yaml.ScalarNode):
            self.expression(node)
            return
        at = node.start_mark.index
        prefix = Token("IN", "in", at, at, self.source)
        found = [t for t in tokenize(node.value, self.source, self.errors, places(node, self.source)) if t.type != "NL"]
        self.tokens.extend(
            found if found and self._closed([prefix, *found], node) else [Token("BOOL", "true", at, at, self.source)]
        )

    def _head_and_type(self, word: str, key: Any, value: Any) -> None:
        value, doc = self.with_doc(value)
        at = self.begin(key, word)
        self.tokens.extend(self.lex(key))
        if not (isinstance(value, yaml.ScalarNode) and value.tag == NULL):
            self.put("ASSIGN" if word == "clock" else "COLON", "=" if word == "clock" else ":", value)
            self._scalar_statement(value)
        self.finish(at, value, doc)

    def inputs(self, key: Any, value: Any) -> None:
        self._head_and_type("input", key, value)

    def clocks(self, key: Any, value: Any) -> None:
        self._head_and_type("clock", key, value)

    def extern(self, key: Any, value: Any) -> None:
        self._head_and_type("extern", key, value)

    def assign(self, key: Any, value: Any) -> None:
        value, doc = self.with_doc(value)
        at = self.begin(key)
        tokens = self.lex(key)
        if not tokens or any(t.type != ("COMMA" if i % 2 else "NAME") for i, t in enumerate(tokens)):
            self.error("NF125", f"`{key.value}` is no name", key, "an entry of `let` is `name: expression`")
            return
        self.tokens.extend(tokens)
        self.put("ASSIGN", "=", value)
        self.expression(value)
        self.finish(at, value, doc)

    def field(self, key: Any, value: Any) -> None:
        value, doc = self.with_doc(value)
        tokens = self.lex(key)
        if [t.type for t in tokens] != ["NAME"] or (tokens[0].text in OPENERS and tokens[0].text != "return"):
            self.error("NF126", f"`{key.value}` is no field", key, "a field is one word: `key: x |> linear`")
            return
        at = self.begin(key)
        self.tokens.extend(tokens)
        self.expression(value)
        self.finish(at, value, doc)
