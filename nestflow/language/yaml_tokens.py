"""YAML nodes to tokens of the .nl grammar, in the order of the text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from nestflow.diagnostics.core import Collector, Source, Span
from nestflow.diagnostics.suggest import nearest
from nestflow.language.layout import OPENERS
from nestflow.language.lexer import Extra, Token, tokenize
from nestflow.language.yaml_nodes import NULL, places

_USE = re.compile(r"(?:(?P<chosen>[^\s']+)\s+of\s+)?(?P<target>\S(?:.*?\S)?)(?:\s+as\s+(?P<alias>\S+))?", re.DOTALL)
_CLOSER = {"(": ")", "[": "]", "{": "}"}
TOP_KEYS = ("nestflow doc use output params inputs clocks extern execution let shared emit levels flows optimizers assert "
            "statements").split()
TEMPLATES = {"levels": "level", "flows": "flow", "optimizers": "optimizer"}
Entry = tuple[Any, Any]


class Emitter:
    """Writes tokens; every statement begins with `begin` and ends with a separator."""

    def __init__(self, source: Source, errors: Collector):
        self.source = source
        self.errors = errors
        self.tokens: list[Token] = []
        self.doc: str | None = None
        self.first_key = 0

    # --- writing -----------------------------------------------------------------------------------

    def put(self, type: str, text: str, node: Any) -> Token:
        """A token that the YAML text does not hold, at the place of a node."""
        at = node.start_mark.index
        token = Token(type, text, at, at, self.source)
        self.tokens.append(token)
        return token

    def error(self, code: str, message: str, node: Any, help: str | None = None) -> None:
        self.errors.error(code, message, Span(self.source, node.start_mark.index, node.end_mark.index), help)

    def lex(self, node: Any) -> list[Token]:
        """The tokens of a scalar, checked so that they cannot leave their place: brackets match, no `;`."""
        found = [t for t in tokenize(node.value, self.source, self.errors, places(node, self.source)) if t.type != "NL"]
        return found if self._closed(found, node) else []

    def _closed(self, tokens: list[Token], node: Any) -> bool:
        stack: list[tuple[Token, bool]] = []
        for i, t in enumerate(tokens):
            if t.type == "SEMI":
                self.errors.error("NF101", "`;` cannot stand in an entry", t.span, "write each statement as an entry of its own")
                return False
            if t.text in _CLOSER:
                stack.append((t, i > 0 and tokens[i - 1].type == "IN"))
            elif t.type in ("RPAR", "RSQB", "RBRACE"):
                opener, interval = stack.pop() if stack else (None, False)
                if opener is None or (_CLOSER[opener.text] != t.text and not (interval and "{" not in opener.text and t.text != "}")):
                    self.errors.error("NF106", f"this `{t.text}` closes nothing", t.span, self._quote(node))
                    return False
        if stack:
            opener = stack[-1][0]
            self.errors.error("NF127" if node.style is None else "NF105", f"this `{opener.text}` is never closed", opener.span,
                              self._quote(node))
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
            self.error("NF125", "this entry has no value", node, "write an expression after the `:`; a name `null` is quoted")
            self.put("BOOL", "true", node)
        else:
            tokens = self.lex(node)
            if not free:
                tokens = self._one_expression(tokens)
            self.tokens.extend(tokens)
            if not tokens:
                if not self.errors.errors:
                    self.error("NF125", "this entry is empty", node, "write an expression")
                self.put("BOOL", "true", node)

    def _one_expression(self, tokens: list[Token]) -> list[Token]:
        """What would end an expression, and begin something else, cannot stand in one entry."""
        depth = 0
        for t in tokens:
            depth += (t.text in _CLOSER) - (t.type in ("RPAR", "RSQB", "RBRACE"))
            if depth == 0 and t.type in ("COMMA", "ASSIGN", "COLON"):
                self.errors.error("NF101", f"`{t.text}` cannot stand in an expression", t.span,
                                  "a list is written in brackets; `==` compares" if t.text != ":" else "a record is written in braces")
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
            self.error("NF125", f"a mapping here is a call, with the function's name as its only key, and this has {keys or 'none'}", node,
                       "write `adam: {lr: 0.01}`, or `record: {a: 1, b: 2}`")
            self.put("BOOL", "true", node)
            return
        key, value = node.value[0]
        if key.value == "record" and isinstance(value, yaml.MappingNode):
            self._record(value)
            return
        if not isinstance(value, yaml.MappingNode):
            self.error("NF125", f"`{key.value}:` is a call, and its keywords are missing", value,
                       f"write `{key.value}: {{slot: value}}`, or the call as a string: `{key.value}(...)`")
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

    # --- the whole ---------------------------------------------------------------------------------

    def spec(self, root: Any) -> None:
        entries = self.mapping(root, "a spec")
        self.first_key = entries[0][0].start_mark.index if entries else 0
        version = next((v for k, v in entries if k.value == "nestflow"), None)
        if version is None:
            near = next((k for k, _ in entries if nearest(k.value, ["nestflow"])), None)
            where = near or (entries[0][0] if entries else root)
            self.error("NF102", "a spec in YAML has the key `nestflow: 1`", where,
                       "did you mean `nestflow`?" if near else "put `nestflow: 1` first")
            version = near
        where = version or root
        self.put("NAME", "nestflow", where)
        number = self.lex(version) if isinstance(version, yaml.ScalarNode) else []
        self.tokens.extend(number if [t.type for t in number] == ["NUMBER"] else [self._one(where, bool(self.errors.errors))])
        self._end("SEMI", ";", where)
        self.top(entries, root=True)

    def _one(self, node: Any, said: bool) -> Token:
        if not said:
            self.error("NF103", "the version of the language is a number", node, "write `nestflow: 1`")
        return Token("NUMBER", "1", node.start_mark.index, node.end_mark.index, self.source)

    def top(self, entries: list[Entry], root: bool = False) -> None:
        """The sections of a file, or of an `extends`, `for` or `if` at its top."""
        for key, value in entries:
            word = key.value.split()[0] if key.value.split() else ""
            match key.value:
                case "nestflow" | "doc" | "else" if key.value != "nestflow" or root:
                    if key.value == "doc" and root:
                        self.doc = self.text_of(value)
                case "use":
                    for item in self.sequence(value, "`use`"):
                        self.use(item)
                case "params" | "inputs" | "clocks" | "extern":
                    for k, v in self.mapping(value, f"`{key.value}`"):
                        getattr(self, key.value)(k, v)
                case "levels" | "flows" | "optimizers":
                    for k, v in self.mapping(value, f"`{key.value}`"):
                        self.template(TEMPLATES[key.value], k, k, v)
                case "execution":
                    self.block_in_mapping("execution", key, value, [])
                case _ if word == "extends" and key.value != word:
                    self.extends(key, value)
                case _ if word in ("for", "if", "repeat") and key.value != word:
                    self.block_in_mapping(word, key, value, None, self.top)
                case _:
                    if self.shared_keys(key, value):
                        continue
                    if isinstance(value, yaml.MappingNode) and len(value.value) != 1 or nearest(key.value, TOP_KEYS):
                        near = nearest(key.value, TOP_KEYS)
                        if key.value not in TOP_KEYS:
                            self.error("NF126", f"`{key.value}` is no section of a spec", key,
                                       f"did you mean `{near}`?" if near else "sections are " + ", ".join(f"`{k}`" for k in TOP_KEYS[3:]))
                            continue
                    self.field(key, value)

    def shared_keys(self, key: Any, value: Any) -> bool:
        """The keys that mean the same at the top and in a level."""
        match key.value:
            case "let":
                for k, v in self.mapping(value, "`let`"):
                    self.assign(k, v)
            case "shared" | "emit":
                for k, v in self.mapping(value, f"`{key.value}`"):
                    v, doc = self.with_doc(v)
                    at = self.begin(k, key.value)
                    self._name(k, "a value")
                    self.put("ASSIGN", "=", v)
                    self.expression(v)
                    self.finish(at, v, doc)
            case "assert":
                for item in self.sequence(value, "`assert`"):
                    item, doc = self.with_doc(item)
                    at = self.begin(item, "assert")
                    self._scalar_statement(item)
                    self.finish(at, item, doc)
            case "statements":
                self.statements(self.sequence(value, "`statements`"))
            case _:
                return False
        return True

    def _scalar_statement(self, node: Any) -> None:
        if not isinstance(node, yaml.ScalarNode):
            self.error("NF125", "this entry is a string", node, "quote it")
            self.put("BOOL", "true", node)
            return
        self.tokens.extend(self.lex(node) or [Token("BOOL", "true", node.start_mark.index, node.end_mark.index, self.source)])

    def use(self, node: Any) -> None:
        node, doc = self.with_doc(node)
        text = node.value.strip() if isinstance(node, yaml.ScalarNode) else ""
        m = _USE.fullmatch(text)
        if m is None:
            self.error("NF125", "an entry of `use` is a shipped name or a file", node, "write `optimizers.adamw`, or `attention of my.nl`")
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
                    near = nearest(k.value, ["value", "in", "type", "doc"])
                    self.error("NF126", f"`{k.value}` is no part of a param", k, f"did you mean `{near}`?" if near else
                               "its parts are `value`, `in`, `type`, `doc`")
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
        self.tokens.extend(found if found and self._closed([prefix, *found], node) else [Token("BOOL", "true", at, at, self.source)])

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

    def template(self, word: str, start: Any, key: Any, value: Any) -> None:
        """A level, flow or optimizer under its head."""
        head = self.lex(key)
        if not head or head[0].type != "NAME":
            self.error("NF125", f"`{key.value}` is no head of a {word}", key, f"write `name(x):`, as in `{word} name(x) {{ ... }}`")
            return
        self.block(word, start, head, value)

    def extends(self, key: Any, value: Any) -> None:
        at = self.begin(key, "extends")
        self._target(key.value.split(None, 1)[1].strip(), key)
        doc = self._body_of(value, self.top, "`extends`")
        self.finish(at, value, doc)

    # --- bodies ------------------------------------------------------------------------------------

    def _body_of(self, value: Any, fill: Callable[[list[Entry]], None], what: str) -> str | None:
        """A body given as a mapping; returns its doc."""
        entries = self.mapping(value, what)
        doc = next((self.text_of(v) for k, v in entries if k.value == "doc"), None)
        self.braces(value, lambda: fill([(k, v) for k, v in entries if k.value not in ("doc", "else", "as")]))
        return doc

    def block(self, word: str, start: Any, head: list[Token], value: Any) -> None:
        """A statement with a body in a section or list: `word head { body }`."""
        runs = word in ("flow", "optimizer")  # its statements run from top to bottom
        value, doc = self.with_doc(value)
        at = self.begin(start, word)
        self.tokens.extend(head)
        if isinstance(value, yaml.SequenceNode):
            items = list(value.value)
            self.braces(value, lambda: self.statements(items))
        elif runs and isinstance(value, yaml.ScalarNode) and value.tag != NULL:
            self.braces(value, lambda: self._only(word, value))
        elif runs and isinstance(value, yaml.MappingNode) and len(value.value) == 1 and value.value[0][0].value != "doc":
            self.braces(value, lambda: self._only(word, value))
        elif runs:
            self.error("NF125", f"the body of a {word} is an expression or a list of statements", value, "write `- statement` lines below it")
            self.braces(value, lambda: None)
        else:
            doc = self._body_of(value, self.level, f"the body of `{start.value}`") or doc
        self.finish(at, value, doc)

    def _only(self, word: str, value: Any) -> None:
        """A flow that is what it returns; an optimiser that is its step."""
        at = self.begin(value, "return" if word == "flow" else "step")
        self.expression(value)
        self.finish(at, value)

    def level(self, entries: list[Entry]) -> None:
        """The mapping of a level's, memory's or execution's body."""
        for key, value in entries:
            words = key.value.split()
            if self.shared_keys(key, value):
                continue
            if words and words[0] == "memory" and len(words) > 1:
                self.memory(key, value)
            elif words and words[0] in ("for", "if", "repeat") and len(words) > 1:
                self.block_in_mapping(words[0], key, value, None, self.level)
            else:
                self.field(key, value)

    def memory(self, key: Any, value: Any) -> None:
        entries = self.mapping(value, f"`{key.value}`")
        kind = next((v for k, v in entries if k.value == "as"), None)
        if kind is None:
            self.error("NF125", f"`{key.value}` says no kind", key, "add `as: matrix`, or another kind")
            return
        at = self.begin(key)
        self.tokens.extend(self.lex(key))
        self.put("COLON", ":", kind)
        self.expression(kind)
        doc = self._body_of(value, self.level, f"`{key.value}`")
        self.finish(at, value, doc)

    def block_in_mapping(self, word: str, key: Any, value: Any, head: list[Token] | None,
                         fill: Callable[[list[Entry]], None] | None = None) -> None:
        """`for ...:`, `if ...:` (with `else:` inside), `execution:` as keys with a mapping."""
        at = len(self.tokens)
        self.tokens.extend(self.lex(key))
        fill = fill or self.level
        doc = self._body_of(value, fill, f"`{key.value}`")
        other = next((v for k, v in self.mapping(value, f"`{key.value}`") if k.value == "else"), None)
        if other is not None and word == "if":
            self.put("ELSE", "else", other)
            self._body_of(other, fill, "`else`")
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

    def statements(self, items: list[Any]) -> None:
        """A list of statements: each a string in the .nl grammar, or a one-key mapping with a body."""
        for item in items:
            item, doc = self.with_doc(item)
            if isinstance(item, yaml.ScalarNode) and item.tag != NULL:
                at = len(self.tokens)
                self._scalar_statement(item)
                self.finish(at, item, doc)
            elif isinstance(item, yaml.MappingNode) and len(item.value) == 1:
                self._head_statement(*item.value[0])
            else:
                self.error("NF125", "a statement is a string, or a mapping with one key", item,
                           "for example `x = block(x)`, or `repeat depth: [x = block(x)]`")

    def _head_statement(self, key: Any, value: Any) -> None:
        words = key.value.split()
        word = words[0] if words else ""
        if word == "else":
            while self.tokens and self.tokens[-1].type == "SEMI":
                self.tokens.pop()
            self.put("ELSE", "else", key)
            items = self.sequence(value, "`else`")
            self.braces(value, lambda: self.statements(items))
            self._end("SEMI", ";", value)
        elif word == "memory" and len(words) > 1:
            self.memory(key, value)
        elif word == "extends" and len(words) > 1:
            self.extends(key, value)
        elif word in ("level", "flow", "optimizer") and len(words) > 1:
            head = self.lex(key)
            self.block(word, key, head[1:], value)
        elif word in ("for", "if", "repeat", "execution"):
            value, doc = self.with_doc(value)
            at = len(self.tokens)
            self.tokens.extend(self.lex(key))
            if isinstance(value, yaml.MappingNode):
                doc = self._body_of(value, self.level, f"`{key.value}`") or doc
            else:
                items = self.sequence(value, f"`{key.value}`")
                self.braces(value, lambda: self.statements(items))
            self.finish(at, value, doc)
        else:
            self.error("NF125", f"`{key.value}:` opens no statement with a body", key,
                       "quote the entry if its `: ` belongs to it; bodies have `repeat`, `for`, `if`, `else` and `memory m`")
