"""The sections and bodies of the YAML surface as tokens, in the order of the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from nestflow.diagnostics.suggest import did_you_mean, nearest
from nestflow.language.lexer import Token
from nestflow.language.yaml_declarations import Declarations
from nestflow.language.yaml_nodes import NULL
from nestflow.language.yaml_tokens import Entry

TOP_KEYS = [
    "nestflow",
    "doc",
    "use",
    "output",
    "params",
    "inputs",
    "clocks",
    "extern",
    "execution",
    "let",
    "shared",
    "emit",
    "levels",
    "flows",
    "optimizers",
    "assert",
    "statements",
]
TEMPLATES = {"levels": "level", "flows": "flow", "optimizers": "optimizer"}


class Emitter(Declarations):
    """Walks a spec's mapping; the tokens are in `tokens`, the spec's doc in `doc`."""

    # --- the whole ---------------------------------------------------------------------------------

    def spec(self, root: Any) -> None:
        entries = self.mapping(root, "a spec")
        self.first_key = entries[0][0].start_mark.index if entries else 0
        version = next((v for k, v in entries if k.value == "nestflow"), None)
        if version is None:
            near = next((k for k, _ in entries if nearest(k.value, ["nestflow"])), None)
            where = near or (entries[0][0] if entries else root)
            self.error(
                "NF102",
                "a spec in YAML has the key `nestflow: 1`",
                where,
                "did you mean `nestflow`?" if near else "put `nestflow: 1` first",
                "nestflow" if near else None,
            )
            version = self.misspelt = near
        where = version or root
        self.put("NAME", "nestflow", where)
        number = self.lex(version) if isinstance(version, yaml.ScalarNode) else []
        self.tokens.extend(
            number if [t.type for t in number] == ["NUMBER"] else [self._one(where, bool(self.errors.errors))]
        )
        self._end("SEMI", ";", where)
        self.top(entries, root=True)

    def _one(self, node: Any, said: bool) -> Token:
        if not said:
            self.error("NF103", "the version of the language is a number", node, "write `nestflow: 1`")
        return Token("NUMBER", "1", node.start_mark.index, node.end_mark.index, self.source)

    def top(self, entries: list[Entry], root: bool = False) -> None:
        """The sections of a file, or of an `extends`, `for` or `if` at its top."""
        for key, value in entries:
            if key is self.misspelt:
                continue
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
                    if (isinstance(value, yaml.MappingNode) and len(value.value) != 1) or nearest(key.value, TOP_KEYS):
                        near = did_you_mean(key.value, TOP_KEYS)
                        if key.value not in TOP_KEYS:
                            self.error(
                                "NF126",
                                f"`{key.value}` is no section of a spec",
                                key,
                                near or "sections are " + ", ".join(f"`{k}`" for k in TOP_KEYS[3:]),
                            )
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

    def template(self, word: str, start: Any, key: Any, value: Any) -> None:
        """A level, flow or optimizer under its head."""
        head = self.lex(key)
        if not head or head[0].type != "NAME":
            self.error(
                "NF125",
                f"`{key.value}` is no head of a {word}",
                key,
                f"write `name(x):`, as in `{word} name(x) {{ ... }}`",
            )
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
        elif (runs and isinstance(value, yaml.ScalarNode) and value.tag != NULL) or (
            runs and isinstance(value, yaml.MappingNode) and len(value.value) == 1 and value.value[0][0].value != "doc"
        ):
            self.braces(value, lambda: self._only(word, value))
        elif runs:
            self.error(
                "NF125",
                f"the body of a {word} is an expression or a list of statements",
                value,
                "write `- statement` lines below it",
            )
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

    def block_in_mapping(
        self,
        word: str,
        key: Any,
        value: Any,
        head: list[Token] | None,
        fill: Callable[[list[Entry]], None] | None = None,
    ) -> None:
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
                self.error(
                    "NF125",
                    "a statement is a string, or a mapping with one key",
                    item,
                    "for example `x = block(x)`, or `repeat depth: [x = block(x)]`",
                )

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
            self.error(
                "NF125",
                f"`{key.value}:` opens no statement with a body",
                key,
                "quote the entry if its `: ` belongs to it; bodies have `repeat`, `for`, `if`, `else` and `memory m`",
            )
