"""Trees to YAML: declarations in their sections, fields as keys, expressions as strings; comments are kept."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable

from nestflow.language import expressions as E
from nestflow.language import tree as T

Body = tuple[T.Statement, ...]
Block = T.Template | T.MemoryPart | T.For | T.Repeat | T.If | T.Execution | T.Extends
SECTIONS: dict[str, type[T.Template]] = {"levels": T.Level, "flows": T.Flow, "optimizers": T.Optimizer}
RESERVED_KEYS = frozenset(
    [
        "let",
        "doc",
        "as",
        "is",
        "shared",
        "emit",
        "assert",
        "else",
        "statements",
        "return",
        "nestflow",
        "use",
        "params",
        "inputs",
        "clocks",
        "extern",
        "levels",
        "flows",
        "optimizers",
        "execution",
    ]
)
ONE_LINE = -1_000_000  # an indent at which everything fits in one line
_UNSAFE_START = re.compile(r"[\-?:](?:\s|\Z)|[,\[\]{}#&*!|>'\"%@`]|---|\.\.\.")
_WORDS_OF_11 = frozenset(["null", "~", "y", "n", "yes", "no", "on", "off", "true", "false"])


def scalar(text: str, flow: bool = False, word: bool = False) -> str:
    """Text as a YAML scalar, quoted where it must be (`word`: also where it looks like a number or bool)."""
    plain = (
        text
        and text == text.strip()
        and not _UNSAFE_START.match(text)
        and ": " not in text
        and " #" not in text
        and not text.endswith(":")
        and text.isprintable()
        and (text.lower() not in _WORDS_OF_11 or text in ("true", "false"))
        and not (flow and re.search(r"[,\[\]{}]|:", text))
        and not (word and re.fullmatch(r"[-+.\d_eExob:]+|true|false", text))
    )
    if plain:
        return text
    if '"' in text and text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return json.dumps(text, ensure_ascii=False)


class Item:
    """One entry of a mapping or list: a key, and a value in one line or in a block."""

    __slots__ = ("block", "key", "line", "statement")

    def __init__(
        self,
        key: str | None,
        line: str | None = None,
        block: list[str] | None = None,
        statement: T.Statement | None = None,
    ):
        self.key = key
        self.line = line
        self.block = block
        self.statement = statement


def print_yaml(spec: T.Spec) -> str:
    """The YAML text of a spec: parse_yaml(print_yaml(s)) == s."""
    lines = [_comment(c) for c in spec.header_comments]
    lines.append(f"nestflow: {spec.version}")
    if spec.doc:
        lines += _entry(Item("doc", *_doc(spec.doc)))
    lines += _top(spec.body)
    lines += [_comment(c) for c in spec.footer_comments]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return f"# {text}".rstrip()


def _indent(lines: Iterable[str]) -> list[str]:
    return ["  " + line if line else line for line in lines]


def _doc(text: str) -> tuple[str | None, list[str] | None]:
    lines = text.split("\n")
    if len(lines) == 1 or any(x != x.strip() or not x.isprintable() for x in lines) or not lines[0]:
        return scalar(text, word=True), None
    return "|-", lines


def _entry(item: Item) -> list[str]:
    """The lines of one entry of a mapping."""
    comments, trailing = _around(item.statement)
    key = scalar(item.key or "", word=True)
    if item.line == "|-":
        return [*comments, f"{key}: |-{trailing}", *_indent(item.block or [])]
    if item.block is None:
        return [*comments, f"{key}: {item.line}{trailing}" if item.line else f"{key}:{trailing}"]
    return [*comments, f"{key}:{trailing}", *_indent(item.block)]


def _element(item: Item) -> list[str]:
    """The lines of one element of a list."""
    comments, trailing = _around(item.statement)
    if item.key is not None:
        first, *rest = _entry(Item(item.key, item.line, item.block))
        return [*comments, f"- {first}{trailing}", *_indent(rest)]
    if item.block is None:
        return [*comments, f"- {item.line}{trailing}"]
    first, *rest = item.block
    return [*comments, f"- {first}{trailing}", *_indent(rest)]


def _around(s: T.Statement | None) -> tuple[list[str], str]:
    if s is None:
        return [], ""
    return [_comment(c) for c in s.comments], "  " + _comment(s.trailing) if s.trailing else ""


# --- expressions -----------------------------------------------------------------------------------


def value(e: T.Expr) -> tuple[str | None, list[str] | None]:
    """An expression as the value of a key: one line, or a block."""
    match e:
        case T.Call(T.Name(function), (), kwargs) if kwargs and function != "record":
            inner = [line for k, v in kwargs for line in _entry(Item(k, *value(v)))]
            return None, [f"{scalar(function, word=True)}:", *_indent(inner)]
        case T.Record() if e.entries:
            inner = [line for k, v in e.entries for line in _entry(Item(k, *value(v)))]
            return None, ["record:", *_indent(inner)]
        case T.ListExpr():
            items = [value(i) for i in e.items]
            if all(
                line is not None and not line.startswith(("[", "'", '"')) and scalar(line, True) == line
                for line, _ in items
            ):
                return "[" + ", ".join(line or "" for line, _ in items) + "]", None
            return None, [x for line, block in items for x in _element(Item(None, line, block))]
        case _:
            return scalar(E.expression(e)), None


# --- bodies ----------------------------------------------------------------------------------------


def _with_doc(s: T.Statement, line: str | None, block: list[str] | None) -> tuple[str | None, list[str] | None]:
    """`{is: ..., doc: ...}` where a statement has a doc and no mapping of its own."""
    if s.doc is None:
        return line, block
    return None, [*_entry(Item("is", line, block)), *_entry(Item("doc", *_doc(s.doc)))]


def _field_value(s: T.Field) -> tuple[str | None, list[str] | None]:
    if s.unit is None:
        return value(s.value)
    return scalar(f"{E.expression(s.value)} {s.unit}" + (f" of {s.of}" if s.of else "")), None


def _section(name: str, statements: list[T.Statement], item: Callable[[T.Statement], Item]) -> list[str]:
    if not statements:
        return []
    return [f"{name}:", *_indent(line for s in statements for line in _entry(item(s)))]


def _named(s: T.Statement) -> Item:
    assert isinstance(s, (T.Assign, T.Shared, T.Emit))
    key = ", ".join(s.names) if isinstance(s, T.Assign) else s.name
    return Item(key, *_with_doc(s, *value(s.value)), statement=s)


def _doubled(body: Body) -> bool:
    """Whether two statements would take the same key, or one takes a key that means something else."""
    keys = Counter(_key(s) for s in body if not isinstance(s, (T.Assert, T.Use)))
    return any(n > 1 for n in keys.values()) or any(isinstance(s, T.Field) and s.name in RESERVED_KEYS for s in body)


def _key(s: T.Statement) -> str:
    match s:
        case T.Assign():
            return "let " + ", ".join(s.names)
        case T.Shared():
            return "shared " + s.name
        case T.Emit():
            return "emit " + s.name
        case T.Field():
            return s.name
        case T.Return():
            return "return"
        case T.Param() | T.Input() | T.Clock() | T.Extern():
            return type(s).__name__ + " " + s.name
        case T.MemoryPart():
            return "memory " + s.name
        case T.Template():
            return type(s).__name__ + " " + _head_text(s)
        case _:
            return _head_text(s)


def _head_text(s: T.Statement) -> str:
    match s:
        case T.Template():
            return s.name + E.slots_text(s.slots)
        case T.MemoryPart():
            return f"memory {s.name}"
        case T.Extends():
            return f"extends {s.target}"
        case _:
            from nestflow.language.printer import head

            return head(s)


def _common(body: Body) -> list[str]:
    """`let`, `shared` and `emit` of a mapping."""
    return [
        *_section("let", [s for s in body if isinstance(s, T.Assign)], _named),
        *_section("shared", [s for s in body if isinstance(s, T.Shared)], _named),
        *_section("emit", [s for s in body if isinstance(s, T.Emit)], _named),
    ]


def _asserts(body: Body) -> list[str]:
    asserts = [s for s in body if isinstance(s, T.Assert)]
    if not asserts:
        return []
    return ["assert:", *_indent(line for s in asserts for line in _element(_listed(s, skip="assert ")))]


def _top(body: Body) -> list[str]:
    from nestflow.language.printer import in_text_order

    if _doubled(body):
        return ["statements:", *_indent(_list(in_text_order(body)))]
    lines: list[str] = []
    uses = [s for s in body if isinstance(s, T.Use)]
    if uses:
        lines += ["use:", *_indent(line for s in uses for line in _element(_listed(s, skip="use ")))]
    lines += [x for s in body if isinstance(s, T.Extends) for x in _block(s)]
    lines += [x for s in body if isinstance(s, T.Field) and s.name == "output" for x in _entry(_field(s))]
    lines += _section("params", [s for s in body if isinstance(s, T.Param)], _param)
    lines += _section("inputs", [s for s in body if isinstance(s, T.Input)], _input)
    lines += _section("clocks", [s for s in body if isinstance(s, T.Clock)], _clock)
    lines += _section("extern", [s for s in body if isinstance(s, T.Extern)], _extern)
    lines += [x for s in body if isinstance(s, T.Execution) for x in _block(s)]
    lines += _common(body)
    for name, kind in SECTIONS.items():
        found = [s for s in body if isinstance(s, kind)]
        if found:
            lines += [f"{name}:", *_indent(x for s in found for x in _block(s))]
    lines += [x for s in body if isinstance(s, (T.For, T.Repeat, T.If)) for x in _block(s, top=True)]
    rest = tuple(
        s for s in body if isinstance(s, (T.MemoryPart, T.Return)) or (isinstance(s, T.Field) and s.name != "output")
    )
    if rest:
        lines += ["statements:", *_indent(_list(rest))]
    return lines + _asserts(body)


def _field(s: T.Statement) -> Item:
    assert isinstance(s, (T.Field, T.Return))
    if isinstance(s, T.Return):
        return Item("return", *_with_doc(s, *value(s.value)), statement=s)
    return Item(s.name, *_with_doc(s, *_field_value(s)), statement=s)


def _param(s: T.Statement) -> Item:
    assert isinstance(s, T.Param)
    if s.type is None and s.domain is None and s.doc is None:
        return Item(s.name, *value(s.default), statement=s)
    block = _entry(Item("value", *value(s.default)))
    if s.type is not None:
        block += _entry(Item("type", scalar(E.type_text(s.type))))
    if s.domain is not None:
        block += _entry(Item("in", scalar(E.domain(s.domain))))
    if s.doc is not None:
        block += _entry(Item("doc", *_doc(s.doc)))
    return Item(s.name, None, block, s)


def _input(s: T.Statement) -> Item:
    assert isinstance(s, T.Input)
    return Item(s.name, *_with_doc(s, scalar(E.type_text(s.type)), None), statement=s)


def _clock(s: T.Statement) -> Item:
    assert isinstance(s, T.Clock)
    line = scalar(f"{E.expression(s.count)} {s.unit}") if s.count is not None else "null"
    return Item(s.name, *_with_doc(s, line, None), statement=s)


def _extern(s: T.Statement) -> Item:
    assert isinstance(s, T.Extern)
    line = scalar(E.type_text(s.type)) if s.type is not None else "null"
    return Item(s.name + E.slots_text(s.slots), *_with_doc(s, line, None), statement=s)


def _level(body: Body) -> list[str]:
    """The mapping of a level's, memory's or execution's body."""
    from nestflow.language.printer import in_text_order

    if _doubled(body) or any(
        not isinstance(
            s, (T.Assign, T.Shared, T.Emit, T.Assert, T.Field, T.Return, T.MemoryPart, T.For, T.Repeat, T.If)
        )
        for s in body
    ):
        return ["statements:", *_indent(_list(in_text_order(body)))]
    lines = _common(body)
    for s in in_text_order(tuple(s for s in body if not isinstance(s, (T.Assign, T.Shared, T.Emit, T.Assert)))):
        if isinstance(s, (T.Field, T.Return)):
            lines += _entry(_field(s))
        elif isinstance(s, (T.MemoryPart, T.For, T.Repeat, T.If)):
            lines += _block(s)
    return lines + _asserts(body)


def _list(body: Body) -> list[str]:
    """A list of statements."""
    lines: list[str] = []
    for s in body:
        lines += _element(_listed(s))
        if isinstance(s, T.If) and s.otherwise:
            lines += _element(Item("else", "[]" if not s.otherwise else None, _list(s.otherwise)))
    return lines


def _listed(s: T.Statement, skip: str = "") -> Item:
    from nestflow.language.printer import simple

    if isinstance(s, (T.Template, T.MemoryPart, T.For, T.Repeat, T.If, T.Execution, T.Extends)):
        return _block_item(s, listed=True)
    if isinstance(s, T.Use) and skip:
        text = (f"{s.chosen} of " if s.chosen else "") + s.target + (f" as {s.alias}" if s.alias else "")
    else:
        text = simple(s, ONE_LINE).removeprefix(skip)
    return Item(None, *_with_doc(s, scalar(text, word=True), None), statement=s)


def _block(s: Block, top: bool = False) -> list[str]:
    return _entry(_block_item(s, top=top))


def _block_item(s: Block, listed: bool = False, top: bool = False) -> Item:
    """A statement with a body, under its head."""
    key = _head_text(s)
    if listed and isinstance(s, T.Template):
        key = f"{E.TEMPLATE_WORDS[type(s)]} {key}"
    if isinstance(s, (T.Flow, T.Optimizer)) or (listed and isinstance(s, (T.For, T.Repeat, T.If))):
        line, below = _statements(s, s.body)
        if s.closing and below is not None:
            below = [*below, *(_comment(c) for c in s.closing)]
        return Item(key, *_with_doc(s, line, below), statement=s)
    block: list[str] = _entry(Item("doc", *_doc(s.doc))) if s.doc else []
    if isinstance(s, T.MemoryPart):
        block += _entry(Item("as", *value(s.kind)))
    mapping = _top if top or isinstance(s, T.Extends) else _level
    block += mapping(s.body)
    if isinstance(s, T.If) and s.otherwise:
        block += ["else:", *_indent(mapping(s.otherwise))]
    block += [_comment(c) for c in s.closing]
    return Item(key, None, block, s) if len(block) > len(s.closing) else Item(key, "{}", statement=s)


def _statements(s: T.Statement, body: Body) -> tuple[str | None, list[str] | None]:
    """The body of a flow or optimiser, or of a loop in one: a string where one expression says all, or a list."""
    only = body[0] if len(body) == 1 else None
    if only is not None and not (only.doc or only.comments or only.trailing):
        if isinstance(s, T.Flow) and isinstance(only, T.Return):
            return scalar(E.expression(only.value)), None
        if isinstance(s, T.Optimizer) and isinstance(only, T.Field) and only.name == "step" and not only.unit:
            return scalar(E.expression(only.value)), None
    return ("[]", None) if not body else (None, _list(body))
