"""Brings the statements of several files together: `use`, `use b of a`, `as`, `extends`, and who replaces whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from nestflow.diagnostics.core import Collector, Related
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.language import tree as T

Body = tuple[T.Statement, ...]


@dataclass(frozen=True)
class Replacement:
    """A definition of a used file that a definition of the using one replaced."""

    name: str
    used: T.Statement
    own: T.Statement


def names_of(s: T.Statement) -> tuple[str, ...]:
    """The names that a statement at the top of a file gives; a field's is `field NAME`."""
    match s:
        case T.Assign():
            return s.names
        case T.Field():
            return ("field " + s.name,)
        case T.Execution():
            return ("field execution",)
        case T.Param() | T.Input() | T.Clock() | T.Extern() | T.Template() | T.Shared() | T.Emit():
            return (s.name,)
        case _:
            return ()


def merge_used(parts: Iterable[Body], replaced: Iterable[Replacement], errors: Collector) -> Body:
    """The statements of several used files as one body; two different ones of a name are an error (NF014)."""
    parts = list(parts)
    here = {id(s) for body in parts for s in body}
    # a definition is out of date only where the one that replaced it came along too
    outdated = {id(r.used) for r in replaced if id(r.own) in here}
    out: list[T.Statement] = []
    by_name: dict[str, T.Statement] = {}
    for body in parts:
        for s in body:
            if id(s) in outdated or any(s is o for o in out):
                continue
            names = names_of(s)
            other = next((by_name[n] for n in names if n in by_name), None)
            if other is None:
                out.append(s)
                by_name.update((n, s) for n in names)
            elif other != s and not isinstance(s, (T.Field, T.Execution)):
                related = (Related(other.span, "and here"),) if other.span else ()
                errors.error(
                    "NF014",
                    f"`{names[0]}` is defined differently by two used files",
                    s.span,
                    f"define `{names[0]}` yourself, or bring one by another name: `use {names[0]} of ... as ...`",
                    related,
                )
    return tuple(out)


def own_wins(used: Body, own: Body, errors: Collector) -> tuple[Body, list[Replacement]]:
    """Used statements first, without those that an own one of the same name replaces, then the own ones."""
    mine: dict[str, T.Statement] = {n: s for s in own for n in names_of(s)}
    kept: list[T.Statement] = []
    replaced: list[Replacement] = []
    for s in used:
        names = names_of(s)
        hits = [n for n in names if n in mine]
        if not hits:
            kept.append(s)
            continue
        if len(hits) < len(names):
            left = next(n for n in names if n not in mine)
            errors.error(
                "NF014",
                f"`{hits[0]}` is replaced, but `{left}`, given by the same statement, is not",
                mine[hits[0]].span,
                f"give `{left}` too",
                (Related(s.span, "given together here"),) if s.span else (),
            )
        for n in hits:
            _same_slots(n, s, mine[n], errors)
            replaced.append(Replacement(n, s, mine[n]))
    return (*kept, *own), replaced


def _same_slots(name: str, used: T.Statement, own: T.Statement, errors: Collector) -> None:
    if not isinstance(used, T.Template):
        return
    theirs = [s.name for s in used.slots or ()]
    ours = [s.name for s in own.slots or ()] if isinstance(own, T.Template) else []
    if theirs != ours:
        span = own.name_span or own.span if isinstance(own, T.Template) else own.span
        errors.error(
            "NF015",
            f"`{name}` replaces a used one, and its slots are not the same",
            span,
            f"write `{name}({', '.join(theirs)})`, or choose another name",
            (Related(used.name_span or used.span, "the used one"),) if used.span else (),
        )


# --- `use b of a`, `as` ----------------------------------------------------------------------------


def select(body: Body, chosen: str, use: T.Use, errors: Collector) -> Body:
    """The definition of one name and those it needs, in the order of the file."""
    by_name: dict[str, list[T.Statement]] = {}
    for s in body:
        for n in names_of(s) if not isinstance(s, T.Field) else ():
            by_name.setdefault(n, []).append(s)
    if chosen not in by_name:
        errors.error(
            "NF013",
            f"`{use.target}` defines no `{chosen}`",
            use.span,
            did_you_mean(chosen, by_name) or "it defines " + ", ".join(f"`{n}`" for n in list(by_name)[:8]),
        )
        return ()
    needed: set[int] = set()
    queue = list(by_name[chosen])
    while queue:
        s = queue.pop()
        if id(s) not in needed:
            needed.add(id(s))
            for word in words_in(s):
                queue.extend(by_name.get(word, ()))
    return tuple(s for s in body if id(s) in needed)


def words_in(node: Any) -> set[str]:
    """Every name that a piece of tree mentions, dotted inputs included."""
    found: set[str] = set()

    def visit(x: Any) -> None:
        match x:
            case T.Name(name):
                found.add(name)
            case T.Attribute(T.Name(group), name):
                found.add(f"{group}.{name}")
            case T.Field(unit=str(unit), of=of):
                # a built-in clock is no name: `every 16 tokens` needs no input called `tokens`
                clock = () if unit.removesuffix("s") in ("token", "step", "tick") else (unit, unit.removesuffix("s"))
                found.update(w for w in (*clock, of) if w)
            case _:
                pass

    walk(node, visit)
    return found


def walk(node: Any, visit: Callable[[Any], None]) -> None:
    """Call `visit` for a node and all below it."""
    if isinstance(node, tuple):
        for x in cast("tuple[Any, ...]", node):
            walk(x, visit)
    elif isinstance(node, T.Node):
        visit(node)
        for f in fields(node):
            if f.name not in ("span", "name_span", "unit_span"):
                walk(getattr(node, f.name), visit)


def rename(node: Any, old: str, new: str) -> Any:
    """The same piece of tree with one name changed wherever it is defined or mentioned."""
    if isinstance(node, tuple):
        before = cast("tuple[Any, ...]", node)
        after = tuple(rename(x, old, new) for x in before)
        return before if all(a is b for a, b in zip(after, before, strict=True)) else after
    if not isinstance(node, T.Node):
        return node
    changes: dict[str, Any] = {}
    for f in fields(node):
        if f.name in ("span", "name_span", "unit_span", "doc", "comments", "trailing", "closing"):
            continue
        value = getattr(node, f.name)
        if (
            f.name == "name"
            and value == old
            and isinstance(node, (T.Name, T.Param, T.Input, T.Clock, T.Extern, T.Template, T.Shared))
        ):
            changes["name"] = new
        elif f.name == "names" and old in value:
            changes["names"] = tuple(new if n == old else n for n in value)
        elif f.name == "of" and value == old:
            changes["of"] = new
        elif isinstance(value, (tuple, T.Node)):
            inner = rename(value, old, new)
            if inner is not value:
                changes[f.name] = inner
    return replace(node, **changes) if changes else node


# --- `extends` -------------------------------------------------------------------------------------


def extend(base: Body, changes: Body, errors: Collector, replaced: list[Replacement] | None = None) -> Body:
    """A derived body: a named thing must exist; its fields replace, its other statements add.

    replaced: gathers what was replaced, by names as `titans.chunk`.
    """
    replaced = [] if replaced is None else replaced
    out = list(base)
    for change in changes:
        names = names_of(change)
        at = [i for i, s in enumerate(out) if set(names) & set(names_of(s))]
        if isinstance(change, T.Template):
            old = out[at[0]] if at else None
            if not isinstance(old, T.Template):
                known = [n for s in out if isinstance(s, T.Template) for n in names_of(s)]
                errors.error(
                    "NF016",
                    f"the extended spec has no `{change.name}`",
                    change.name_span or change.span,
                    did_you_mean(change.name, known) or "define it outside `extends`",
                )
                continue
            out[at[0]] = _extend_template(old, change, errors, replaced)
        elif isinstance(change, T.Param) and not at:
            known = [s.name for s in out if isinstance(s, T.Param)]
            errors.error(
                "NF016",
                f"the extended spec has no param `{change.name}`",
                change.span,
                did_you_mean(change.name, known) or "define it outside `extends`",
            )
        elif at:
            replaced.append(Replacement(names[0], out[at[0]], change))
            out[at[0]] = change
            out = [s for i, s in enumerate(out) if i not in at[1:]]
        else:
            out.append(change)
    return tuple(out)


def _extend_template(
    base: T.Template, change: T.Template, errors: Collector, replaced: list[Replacement]
) -> T.Template:
    if change.slots is not None:
        _same_slots(change.name, base, change, errors)
    body = _extend_body(base.body, change.body, errors, replaced, base.name)
    return replace(base, body=body, doc=change.doc or base.doc, span=base.span)


def _key(s: T.Statement) -> tuple[str, ...]:
    match s:
        case T.Field():
            return ("field " + s.name,)
        case T.Return():
            return ("return",)
        case T.MemoryPart():
            return ("memory " + s.name,)
        case T.Assign():
            return s.names
        case T.Shared() | T.Emit():
            return (s.name,)
        case _:
            return ()


def _extend_body(base: Body, changes: Body, errors: Collector, replaced: list[Replacement], inside: str) -> Body:
    out = list(base)
    for change in changes:
        key = _key(change)
        at = next((i for i, s in enumerate(out) if key and _key(s) == key), None)
        if isinstance(change, T.MemoryPart):
            old = None if at is None else out[at]
            if at is None or not isinstance(old, T.MemoryPart):
                known = [s.name for s in out if isinstance(s, T.MemoryPart)]
                errors.error(
                    "NF016",
                    f"the extended level has no memory `{change.name}`",
                    change.span,
                    did_you_mean(change.name, known) or "a level derived by `extends` keeps its memories",
                )
            else:
                name = f"{inside}.{change.name}"
                body = _extend_body(old.body, change.body, errors, replaced, name)
                out[at] = replace(change, body=body)
                if old.kind != change.kind:
                    replaced.append(Replacement(name, old, change))
        elif at is not None:
            replaced.append(Replacement(f"{inside}.{key[0].removeprefix('field ')}", out[at], change))
            out[at] = change
        else:
            end = next((i for i, s in enumerate(out) if isinstance(s, T.Return)), len(out))
            out.insert(end, change)
    return tuple(out)
