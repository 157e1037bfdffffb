"""What a grammar lets through and a syntax must not: depth, doubled keywords, units on expressions."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, cast

from nestflow.diagnostics.core import Collector, Edit, NestflowError, Related, Span
from nestflow.language import tree as T
from nestflow.language.layout import MAX_DEPTH
from nestflow.language.lexer import Token
from nestflow.language.words import FOREIGN_WORDS

# Fields whose value is an expression: a word after it is a forgotten `|>`, not a unit.
EXPRESSION_FIELDS = frozenset(
    [
        "key",
        "value",
        "query",
        "weight",
        "when",
        "objective",
        "update",
        "retain",
        "gradient",
        "init",
        "project",
        "memory",
        "heads",
        "step",
        "set",
        "eval",
        "output",
    ]
)
LEVEL_FIELDS = frozenset(
    ["every", "chunk", "heads", "memory", "key", "value", "query", "objective", "update", "retain", "init", "read"]
)
_EQUALS = re.compile(r"\s*=\s*")
PLURAL_OF_CONSTANT = {"True": "true", "False": "false"}


def check_words(tokens: list[Token], errors: Collector) -> None:
    """Mistakes that are seen in the words of a statement, before it is parsed."""
    for i, t in enumerate(tokens):
        if t.type == "NAME" and t.text in PLURAL_OF_CONSTANT:
            meant = PLURAL_OF_CONSTANT[t.text]
            message = f"`{t.text}` is not a word of the language"
            errors.error("NF117", message, t.span, f"write `{meant}`", fix=(Edit(t.span, meant),))
        if (
            t.opens
            and t.type == "NAME"
            and t.text != "memory"
            and i + 2 < len(tokens)
            and tokens[i + 1].type == "NAME"
            and tokens[i + 2].type == "COLON"
        ):
            errors.error(
                "NF117",
                f"`{t.text} {tokens[i + 1].text} :` opens no statement",
                t.span,
                f"a named memory is `memory {tokens[i + 1].text} : kind {{ ... }}`",
            )


@cache
def _parts(cls: type) -> tuple[str, ...]:
    return tuple(
        f.name
        for f in fields(cls)
        if f.name not in ("span", "doc", "comments", "trailing", "closing", "blank", "name_span", "unit_span", "text")
    )


def children(node: Any) -> list[Any]:
    """The nodes right below a node, slots, types and entries included."""
    found: list[Any] = []
    queue: list[Any] = [getattr(node, name) for name in _parts(cast("type[Any]", type(node)))]
    while queue:
        x = queue.pop()
        if isinstance(x, tuple):
            queue.extend(cast("tuple[Any, ...]", x))
        elif isinstance(x, T.Node) and is_dataclass(x):
            found.append(x)
    return found


def check_tree(roots: tuple[Any, ...], errors: Collector) -> None:
    """Walk the tree without recursion; raises at once where it is too deep to be worked on."""
    queue: list[tuple[Any, int]] = [(r, 1) for r in roots]
    changed: set[int] = set()  # what `extends` changes keeps its slots, and need not say them
    while queue:
        node, depth = queue.pop()
        if depth > MAX_DEPTH:
            errors.error(
                "NF110",
                f"this is nested more than {MAX_DEPTH} deep",
                node.span,
                "give parts of it names, and write the names",
            )
            raise NestflowError(errors.errors)
        queue.extend((c, depth + 1) for c in children(node))
        if isinstance(node, T.Extends):
            changed.update(id(s) for s in node.body)
        if isinstance(node, T.Flow) and node.slots is None and id(node) not in changed:
            errors.error(
                "NF112",
                f"the flow `{node.name}` says no inputs",
                node.name_span or node.span,
                f"write `flow {node.name}(x) {{ ... }}`",
            )
        check = _CHECKS.get(cast("type[Any]", type(node)))
        if check is not None:
            check(node, errors)


def _call(c: T.Call, errors: Collector) -> None:
    seen: dict[str, T.Expr] = {}
    for name, value in c.kwargs:
        if name in seen:
            errors.error(
                "NF118",
                f"`{name}` is given twice in one call",
                value.span,
                "delete one of the two",
                _related(seen[name], "given here first"),
            )
        seen[name] = value
    if c.args and c.kwargs:
        first, last = c.kwargs[0][1].span, c.args[-1].span
        if first is not None and last is not None and last.source is first.source and last.start > first.start:
            errors.error(
                "NF119",
                "a value without a name stands after one with a name",
                last,
                "put it first, or write its slot's name: `name = value`",
            )


def _related(e: T.Expr, message: str) -> tuple[Related, ...]:
    return (Related(e.span, message),) if e.span is not None else ()


def _record(r: T.Record, errors: Collector) -> None:
    names = [k for k, _ in r.entries]
    for i, (name, value) in enumerate(r.entries):
        if name in names[:i]:
            errors.error("NF118", f"the record has two entries `{name}`", value.span, "delete one of the two")


def _pipe(p: T.Pipe, errors: Collector) -> None:
    for stage in p.stages[1:]:
        if not isinstance(stage, (T.Name, T.Call, T.Attribute, T.Index)):
            text = stage.span.text if stage.span else "this"
            errors.error(
                "NF104",
                f"a pipe goes into a function, and `{text}` is none",
                stage.span,
                f"write `|> scale({text})` for a product"
                if isinstance(stage, T.Number)
                else "write a function's name, or a call",
                fix=(Edit(stage.span, f"scale({text})"),) if isinstance(stage, T.Number) and stage.span else (),
            )


def _field(f: T.Field, errors: Collector) -> None:
    if f.name in FOREIGN_WORDS:
        span = f.name_span or f.span
        fix = (Edit(f.name_span, "objective"),) if f.name == "loss" and f.name_span else ()
        errors.error("NF117", f"`{f.name}` is not a word of the language", span, FOREIGN_WORDS[f.name], fix=fix)
    if f.unit is not None and f.name in EXPRESSION_FIELDS:
        value = f.value.span.text if f.value.span else "..."
        help = f"a pipe is `{value} |> {f.unit}`; a new statement begins on a new line or after `;`"
        if "\n" in value:
            help = "a line that ends with an operator goes on in the next one: finish it, or delete the operator"
        errors.error("NF111", f"`{f.unit}` does not belong to the value of `{f.name}`", f.unit_span or f.span, help)


def _template(t: T.Template, errors: Collector) -> None:
    seen: set[str] = set()
    for s in t.slots or ():
        if s.name in seen:
            errors.error("NF118", f"`{t.name}` has two slots `{s.name}`", s.span, "give one of them another name")
        seen.add(s.name)


def _level(level: T.Level, errors: Collector) -> None:
    """`retain = e` would give a name that nobody asks for, and leave the memory without its field."""
    _template(level, errors)
    fields_: set[str] = set()
    queue: list[Any] = list(level.body)
    while queue:
        s = queue.pop()
        if isinstance(s, T.Field):
            fields_.add(s.name)
        elif not isinstance(s, T.Assign):
            queue.extend(c for c in children(s) if isinstance(c, T.Statement))
    for s in level.body:
        if not isinstance(s, T.Assign) or len(s.names) != 1 or not s.span:
            continue
        (name,), value = s.names, s.value.span
        if name not in LEVEL_FIELDS - fields_:
            continue
        equals = _EQUALS.match(s.span.text, len(name))
        if value is None or equals is None:  # under `let:` of a YAML spec
            help, fix = f"a field stands in the level itself, a name under `let:`: `{name}: ...`", ()
        else:
            help = f"write `{name} {' '.join(value.text.split())}`"
            fix = (Edit(Span(s.span.source, s.span.start + len(name), s.span.start + equals.end()), " "),)
        errors.error("NF113", f"`{name}` is a field, and a field has no `=`", s.span, help, fix=fix)


def _assign(a: T.Assign, errors: Collector) -> None:
    if len(set(a.names)) < len(a.names):
        errors.error("NF118", "one name is given twice in this statement", a.span, "give each part a name of its own")


def _target(u: T.Use | T.Extends, errors: Collector) -> None:
    if u.is_file and not u.target.endswith((".nl", ".yaml", ".yml")):
        errors.error(
            "NF008",
            f'"{u.target}" is no spec by its name',
            u.span,
            "a file's name ends in .nl, .yaml or .yml; a shipped spec stands without quotes: `use optimizers.adam`",
        )


_CHECKS: dict[type, Any] = {
    T.Call: _call,
    T.Record: _record,
    T.Pipe: _pipe,
    T.Field: _field,
    T.Level: _level,
    T.Flow: _template,
    T.Optimizer: _template,
    T.Assign: _assign,
    T.Use: _target,
    T.Extends: _target,
}
