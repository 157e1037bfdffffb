"""Trees to .nl text in the one canonical form; comments and docs stay with their statements."""

from __future__ import annotations

from nestflow.language import expressions as E
from nestflow.language import tree as T
from nestflow.language.yaml_printer import print_yaml

__all__ = ["head", "in_text_order", "print_nl", "print_yaml", "simple"]

LINE = 120
ONE_LINE_BODY = 115
Body = tuple[T.Statement, ...]


def print_nl(spec: T.Spec) -> str:
    """The .nl text of a spec: parse_nl(print_nl(s)) == s, and printing that again changes nothing."""
    lines = [_comment(c) for c in spec.header_comments]
    lines += [_doc(d) for d in (spec.doc or "").split("\n")] if spec.doc else []
    lines.append(f"nestflow {spec.version}")
    lines += _body(in_text_order(spec.body), 0, top=True)
    if spec.footer_comments:
        lines += ["", *(_comment(c) for c in spec.footer_comments)]
    return "\n".join(lines) + "\n"


def in_text_order(body: Body) -> Body:
    """Statements as they stood in their text; as they are if they come from several texts, or from none."""
    spans = [s.span for s in body]
    first = spans[0] if spans else None
    if first is None or any(s is None or s.source is not first.source for s in spans):
        return body
    return tuple(sorted(body, key=lambda s: s.span.start if s.span else 0))


def _comment(text: str) -> str:
    return f"# {text}".rstrip()


def _doc(text: str) -> str:
    return f"## {text}".rstrip()


def _body(body: Body, indent: int, top: bool = False) -> list[str]:
    lines: list[str] = []
    widths = _widths(body, top)
    run: list[tuple[int, str]] = []  # neighbours with something at their line's end: where they are, and what it is
    was_block = False
    for i, s in enumerate(body):
        above, main, tail = _statement(s, indent, widths[i])
        is_block = main[-1].strip() == "}"
        if (s.blank or (top and (was_block or is_block))) and (lines or top):
            lines.append("")
            _put_tails(lines, run)
        if above or len(main) > 1 or not tail:
            _put_tails(lines, run)
        lines += above + main
        if tail:
            run.append((len(lines) - 1, tail))
        was_block = is_block
    _put_tails(lines, run)
    return lines


def _put_tails(lines: list[str], run: list[tuple[int, str]]) -> None:
    """Docs and comments at the ends of neighbouring lines begin in one column, where there is room."""
    column = max((len(lines[at]) for at, _ in run), default=0)
    if any(column + 2 + len(tail) > LINE for _, tail in run):
        column = 0
    for at, tail in run:
        lines[at] = f"{lines[at]:<{column}}  {tail}"
    run.clear()


def _widths(body: Body, top: bool) -> list[int]:
    """How wide the word before each value is, so that values of neighbours stand below each other."""
    if not top:
        names = [s.name for s in body if isinstance(s, T.Field)] + ["return" for s in body if isinstance(s, T.Return)]
        width = max((len(n) for n in names if len(n) <= 12), default=0) if len(names) > 2 else 0
        return [width] * len(body)
    widths = [0] * len(body)
    start = 0
    for i in range(len(body) + 1):
        if i < len(body) and isinstance(body[i], T.Param) and not (i > start and (body[i].blank or body[i].comments)):
            continue
        group = range(start, i)
        width = max((len(s.name) for s in body[start:i] if isinstance(s, T.Param)), default=0)
        for j in group:
            widths[j] = width
        start = i if i < len(body) and isinstance(body[i], T.Param) else i + 1
    return widths


def _statement(s: T.Statement, indent: int, width: int = 0) -> tuple[list[str], list[str], str]:
    """The lines above a statement, its own, and what stands at the end of its last."""
    pad = " " * indent
    above = [pad + _comment(c) for c in s.comments]
    if _bodies(s) is not None:
        main, tail = _block(s, indent), ""
    else:
        main = (pad + simple(s, indent, width)).split("\n")
        tail = _comment(s.trailing) if s.trailing else ""
        if s.doc and "\n" not in s.doc and not tail and len(main[-1] + s.doc) + 5 <= LINE:
            return above, main, _doc(s.doc)
    if s.doc is not None:
        above += [pad + _doc(d) for d in s.doc.split("\n")]
    return above, main, tail


def _bodies(s: T.Statement) -> Body | None:
    match s:
        case T.Template() | T.MemoryPart() | T.For() | T.Repeat() | T.If() | T.Execution() | T.Extends():
            return s.body
        case _:
            return None


def simple(s: T.Statement, indent: int = 0, width: int = 0) -> str:
    """A statement without a body, without its comments; over several lines where it is long."""
    match s:
        case T.Assign():
            start = f"{', '.join(s.names)} = "
            return start + E.wrapped(s.value, indent, indent + len(start))
        case T.Field():
            return _field(s, indent, width)
        case T.Return():
            start = f"{'return':<{width}} "
            return start + E.wrapped(s.value, indent, indent + len(start))
        case T.Shared() | T.Emit():
            start = f"{'shared' if isinstance(s, T.Shared) else 'emit'} {s.name} = "
            return start + E.wrapped(s.value, indent, indent + len(start))
        case T.Use():
            target = f'"{s.target}"' if s.is_file else s.target
            return "use " + (f"{s.chosen} of " if s.chosen else "") + target + (f" as {s.alias}" if s.alias else "")
        case T.Param():
            typed = f" : {E.type_text(s.type)}" if s.type else ""
            bounds = f" in {E.domain(s.domain)}" if s.domain else ""
            return f"param {s.name + typed:<{width}} = {E.expression(s.default)}{bounds}"
        case T.Input():
            return f"input {s.name} : {E.type_text(s.type)}"
        case T.Clock():
            return f"clock {s.name}" + (f" = {E.expression(s.count)} {s.unit}" if s.count is not None else "")
        case T.Extern():
            return f"extern {s.name}{E.slots_text(s.slots)}" + (f" : {E.type_text(s.type)}" if s.type else "")
        case T.Assert():
            return f"assert {E.expression(s.condition)}" + (f', "{s.message}"' if s.message is not None else "")
        case _:
            raise TypeError(f"{type(s).__name__} has a body")


def _field(s: T.Field, indent: int, width: int) -> str:
    start = f"{s.name:<{width}} "
    value = E.wrapped(s.value, indent, indent + len(start))
    return start + _guarded(value) + (f" {s.unit}" if s.unit else "") + (f" of {s.of}" if s.of else "")


def _guarded(text: str) -> str:
    """An empty record in brackets, where `{}` would be read as a body."""
    return "({})" + text[2:] if text.startswith("{}") else text


def head(s: T.Statement) -> str:
    """What stands before the body of a statement."""
    match s:
        case T.Template():
            return f"{E.TEMPLATE_WORDS[type(s)]} {s.name}{E.slots_text(s.slots)}"
        case T.MemoryPart():
            return f"memory {s.name} : {E.expression(s.kind)}"
        case T.For():
            return f"for {s.variable} in {E.expression(s.items)}"
        case T.Repeat():
            return f"repeat {_guarded(E.expression(s.count))}" + (f" as {s.variable}" if s.variable else "")
        case T.If():
            return f"if {_guarded(E.expression(s.condition))}"
        case T.Execution():
            return "execution"
        case T.Extends():
            return f'extends "{s.target}"' if s.is_file else f"extends {s.target}"
        case _:
            raise TypeError(f"{type(s).__name__} has no body")


def _block(s: T.Statement, indent: int) -> list[str]:
    pad = " " * indent
    trailing = "  " + _comment(s.trailing) if s.trailing else ""
    body = _bodies(s) or ()
    line = _one_line(s)
    if line is not None and len(pad + line) <= ONE_LINE_BODY:
        return [pad + line + trailing]
    lines = [f"{pad}{head(s)} {{{trailing}", *_body(in_text_order(body), indent + 2)]
    while isinstance(s, T.If) and s.otherwise:
        other = s.otherwise
        only = other[0] if len(other) == 1 else None
        if isinstance(only, T.If) and not (only.doc or only.comments or only.trailing or only.closing):
            s = only
            lines += [f"{pad}}} else {head(s)} {{", *_body(in_text_order(s.body), indent + 2)]
            continue
        lines += [f"{pad}}} else {{", *_body(in_text_order(other), indent + 2)]
        break
    lines += [f"{pad}  {_comment(c)}" for c in s.closing]
    return [*lines, pad + "}"]


def _one_line(s: T.Statement) -> str | None:
    """`flow f(x) { return x }`, where a body is short and says nothing besides."""
    if isinstance(s, (T.Execution, T.Extends)) or s.closing or (isinstance(s, T.If) and s.otherwise):
        return None
    body = in_text_order(_bodies(s) or ())
    most = 4 if isinstance(s, T.MemoryPart) else 2 if isinstance(s, T.Template) else 1
    if isinstance(s, T.Level) and body:
        return None
    if len(body) > most or any(x.doc or x.comments or x.trailing or (x.blank and i > 0) for i, x in enumerate(body)):
        return None
    parts = [_one_line(x) if _bodies(x) is not None else simple(x) for x in body]
    if any(p is None or "\n" in p for p in parts):
        return None
    return f"{head(s)} {{ {'; '.join(p for p in parts if p)} }}" if parts else f"{head(s)} {{ }}"
