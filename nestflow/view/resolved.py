"""Every value of a spec with every default, and where each comes from: what `nestflow show --resolved` prints.

A row is one value: as it is written or by default, what it comes to where that is known when compiling, its origin (a
file and line, `--set`, or the default of a word), and what it replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nestflow.graph.model import Instance, LevelGraph, Memory
from nestflow.language import tree as T
from nestflow.language.expressions import expression
from nestflow.language.merge import walk
from nestflow.language.resolve import Program
from nestflow.view.calls import Callees, calls_in, constant, place

# The fields of a level in the order of the language's questions, for those that have a default.
_ORDER = (
    "every", "chunk", "heads", "read", "gradient", "memory", "key", "value", "query", "weight", "objective", "update",
    "retain", "project", "init",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One value. text: as written, or the default; value: what it comes to; origin: where it is from; given: whether it
    is written anywhere; instead: what it replaced. depth: 1 for a slot of a call in the row above."""

    name: str
    text: str
    origin: str
    value: str | None = None
    given: bool = True
    instead: str | None = None
    depth: int = 0


@dataclass(frozen=True)
class Section:
    """The values of one thing: the params, a level, a flow, an optimizer, a memory of one."""

    title: str
    origin: str
    rows: tuple[Row, ...]


def resolved(program: Program, graph: LevelGraph) -> list[Section]:
    """All sections of a program whose graph was built."""
    params = {p.name: p.value for p in graph.params}
    callees = Callees(program)
    sections = [Section("params", "", _params(program, graph)), Section("inputs", "", _inputs(program))]
    done: list[T.Template] = []
    sections.append(Section("names and output", "", tuple(_body_rows(program.body, params, callees))))
    for template in _statements(program.body):
        if isinstance(template, T.Template):
            done.append(template)
            sections.append(_template(template, graph, params, callees))
    while callees.reached:  # shipped words that are used without `use`, and what those use
        template = callees.reached.pop(0)
        if not any(template is t for t in done):
            done.append(template)
            sections.append(_template(template, graph, params, callees))
    sections.append(Section("replaced", "", tuple(_replaced(program))))
    return [s for s in sections if s.rows]


def _statements(body: tuple[T.Statement, ...]) -> Iterator[T.Statement]:
    """Those of the top, those inside a `for` or `if` there too."""
    for s in body:
        yield s
        if isinstance(s, (T.For, T.If)):
            yield from _statements(s.body + (s.otherwise if isinstance(s, T.If) else ()))


# --- params, inputs, replacements -------------------------------------------------------------------


def _params(program: Program, graph: LevelGraph) -> tuple[Row, ...]:
    written = {s.name: s for s in _statements(program.body) if isinstance(s, T.Param)}
    given = dict(program.overrides)
    before = {r.name: r for r in program.replaced if isinstance(r.used, T.Param)}
    rows: list[Row] = []
    for p in graph.params:
        s, now = written.get(p.name), given.get(p.name)
        where = place(s.span if s else None)
        default = expression(s.default) if s else str(p.default)
        if now is not None:
            text = expression(now)
            origin = f"--set {p.name}={text}"
            rows.append(Row(p.name, text, origin, _shown(p.value, now), True, f"{default} at {where}"))
            continue
        old = before.get(p.name)
        instead = f"{_brief(old.used)} at {place(old.used.span)}" if old else None
        rows.append(Row(p.name, default, where, _shown(p.value, s.default if s else None), True, instead))
    return tuple(rows)


def _inputs(program: Program) -> tuple[Row, ...]:
    found = (s for s in _statements(program.body) if isinstance(s, T.Input))
    return tuple(Row(s.name, s.type.span.text if s.type.span else s.type.name, place(s.span)) for s in found)


def _replaced(program: Program) -> Iterator[Row]:
    """What definitions replaced, by `use` and by `extends`."""
    for r in program.replaced:
        name = r.name.removeprefix("field ")
        yield Row(name, _brief(r.own), place(r.own.span), None, True, f"{_brief(r.used)} at {place(r.used.span)}")


def _brief(s: T.Statement) -> str:
    match s:
        case T.Param():
            return expression(s.default)
        case T.Assign() | T.Shared() | T.Emit() | T.Return():
            return expression(s.value)
        case T.Field():
            return _written(s)
        case T.MemoryPart():
            return expression(s.kind)
        case T.Template():
            return f"{type(s).__name__.lower()} {s.name}"
        case _:
            return f"this {type(s).__name__.lower()}"


def _written(f: T.Field) -> str:
    unit = f" {f.unit}" if f.unit else ""
    return expression(f.value) + unit + (f" of {f.of}" if f.of else "")


def _shown(value: Any, e: T.Expr | None) -> str | None:
    """A value beside its text, where it says more than a number or a word does."""
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return None if e is None or isinstance(e, (T.Number, T.Bool, T.String)) or expression(e) == text else text


# --- templates --------------------------------------------------------------------------------------


def _template(t: T.Template, graph: LevelGraph, params: dict[str, Any], callees: Callees) -> Section:
    slots = "" if t.slots is None else "(" + ", ".join(s.name for s in t.slots) + ")"
    title = f"{type(t).__name__.lower()} {t.name}{slots}"
    own = {s.name for s in t.slots or ()}
    walk(t.body, lambda n: own.update(n.names) if isinstance(n, T.Assign) else None)
    seen = {k: v for k, v in params.items() if k not in own}
    rows = [
        Row(s.name, expression(s.default), place(s.span), _known(s.default, seen))
        for s in t.slots or ()
        if s.default is not None
    ]
    instances: list[Instance] = []
    if isinstance(t, T.Level):
        instances = [i for i in graph.root.walk() if i.kind == "level" and i.name == t.name]
        rows += _level_rows(t, instances, graph, seen, callees)
    else:
        rows += _body_rows(t.body, seen, callees)
    if instances:
        paths = [i.path for i in instances]
        title += f"  × {len(paths)}: {', '.join(paths[:3])}{', …' if len(paths) > 3 else ''}"
    return Section(title, place(t.name_span or t.span), tuple(rows))


def _level_rows(
    t: T.Level, instances: list[Instance], graph: LevelGraph, params: dict[str, Any], callees: Callees
) -> Iterator[Row]:
    """The fields that are written, then the defaults of those that are not; each memory's own below its name."""
    parts = [s for s in _statements(t.body) if isinstance(s, T.MemoryPart)]
    fields = {s.name: s for s in t.body if isinstance(s, T.Field)}
    others = tuple(s for s in t.body if not isinstance(s, (T.Field, T.MemoryPart)))
    memories = [m for i in instances for m in i.memories]
    step = next((s for s in graph.step_levels if s.name == t.name), None)
    defaults = _step_defaults() if step is not None else _memory_defaults(memories, instances)
    if parts and step is None:
        defaults = {"heads": defaults["heads"]} if "heads" in defaults else {}
    yield from _fields(fields, defaults, memories, instances, params, callees)
    for part in parts:
        mine = [m for m in memories if m.name == part.name]
        own = {s.name: s for s in part.body if isinstance(s, T.Field)}
        yield Row(f"memory {part.name}", expression(part.kind), place(part.span))
        yield from _call_rows(part.kind, params, callees, memory=True)
        inherited = {k: v for k, v in _memory_defaults(mine, []).items() if k not in fields}
        for row in _fields(own, inherited, mine, [], params, callees):
            yield replace(row, name=row.name if row.depth else f"{part.name}.{row.name}")
    yield from _body_rows(others, params, callees)


def _fields(
    fields: dict[str, T.Field],
    defaults: dict[str, str],
    memories: list[Memory],
    instances: list[Instance],
    params: dict[str, Any],
    callees: Callees,
) -> Iterator[Row]:
    names = [n for n in _ORDER if n in fields or n in defaults] + [n for n in fields if n not in _ORDER]
    for name in names:
        f = fields.get(name)
        if f is None:
            yield Row(name, defaults[name], f"default of `{name}`", None, False)
            continue
        text = _written(f)
        value = _settled(name, memories, instances) or _known(f.value, params)
        yield Row(name, text, place(f.span), None if value is None or value in (text, text.split()[0]) else value)
        yield from _call_rows(f.value, params, callees, memory=name == "memory")


def _settled(name: str, memories: list[Memory], instances: list[Instance]) -> str | None:
    """What a field came to in the graph; several where instances differ (a call may set a field)."""
    if name in ("every", "chunk", "read", "gradient"):
        found = {str(getattr(m, name)) for m in memories}
    elif name == "heads":
        found = {str(i.heads) for i in instances}
    else:
        return None
    return " or ".join(sorted(found)) + (", as calls set it" if len(found) > 1 else "") or None


def _step_defaults() -> dict[str, str]:
    return {"every": "1 step", "retain": "1"}


def _memory_defaults(memories: list[Memory], instances: list[Instance]) -> dict[str, str]:
    """What the graph took where nothing is written: read from the memories themselves."""
    if not memories or all(m.cache is not None for m in memories):
        return {}
    m = memories[0]
    starts = "learned" if m.function and any(x.learned for x in m.function.tensors) else "zeros"
    found = {
        "every": "1 token" if m.every == 1 else f"{m.every} tokens",
        "chunk": str(m.chunk),
        "read": m.read,
        "gradient": m.gradient,
        "weight": "1",
        "objective": m.texts.objective or "dot",
        "retain": "1",
        "init": starts,
    }
    return found | ({"heads": "none: one memory"} if instances else {})


# --- bodies and calls -------------------------------------------------------------------------------


def _body_rows(body: tuple[T.Statement, ...], params: dict[str, Any], callees: Callees) -> Iterator[Row]:
    """Statements that run from top to bottom, each with the slots of its calls that were left to their defaults."""
    for s in body:
        match s:
            case T.Assign(names=names, value=value):
                yield Row(", ".join(names), expression(value), place(s.span), _known(value, params))
            case T.Shared(name=name, value=value) | T.Emit(name=name, value=value):
                yield Row(name, expression(value), place(s.span))
            case T.Return(value=value):
                yield Row("return", expression(value), place(s.span))
            case T.Field(name=name, value=value):
                yield Row(name, _written(s), place(s.span), _known(value, params))
            case T.MemoryPart(name=name, kind=value):
                yield Row(f"memory {name}", expression(value), place(s.span))
            case T.Repeat(count=value):
                yield Row("repeat", expression(value), place(s.span), _known(value, params))
            case _:
                value = None
        if value is not None:  # what is shared gets its input where it is called, as a memory gets its key
            fed = isinstance(s, (T.MemoryPart, T.Shared))
            yield from _call_rows(value, params, callees, memory=fed)
        if isinstance(s, (T.MemoryPart, T.Repeat, T.For, T.If, T.Execution)):
            inner = s.body + (s.otherwise if isinstance(s, T.If) else ())
            for row in _body_rows(inner, params, callees):
                prefix = f"{s.name}." if isinstance(s, T.MemoryPart) and not row.depth else ""
                yield replace(row, name=prefix + row.name)


def _call_rows(e: T.Expr, params: dict[str, Any], callees: Callees, memory: bool = False) -> Iterator[Row]:
    for call in calls_in(e, callees, memory):
        for s in call.slots:
            yield Row(f"{call.name}.{s.name}", s.text, s.origin, _known(s.value, params), s.given, None, 1)


def _known(e: T.Expr | None, params: dict[str, Any]) -> str | None:
    """The number that an expression of params comes to, where it is more than the text says."""
    value = None if e is None else constant(e, params)
    return None if value is None else _shown(value, e)
