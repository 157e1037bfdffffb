"""Templates that nothing calls are checked as far as that goes: their names, and an optimiser's whole body."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, cast

from nestflow.diagnostics.core import NestflowError
from nestflow.graph.rules.update import RuleBuilder
from nestflow.graph.substitute import text_of
from nestflow.graph.values import Partial, Quiet
from nestflow.ir import ops
from nestflow.ir.node import Type
from nestflow.language import tree
from nestflow.vocabulary.fields import GIVEN

MOST_NAMES = 10_000  # of one template: loops in loops make no more

# fields whose words belong to the field alone
OWN_WORDS = frozenset(["every", "read", "gradient", "reset", "init", "per", "keep", "rounds"])


def check_unused(elab: Any) -> None:
    """Tell the mistakes of what the spec declares and does not use (what it only borrows is the lender's)."""
    source = elab.program.spec.source
    for t in elab.declared.values():
        own = t.span is None or t.span.source == source
        if not own or id(t) in elab.templates.called or (isinstance(t, tree.Level) and t.slots is None):
            continue
        try:
            if isinstance(t, tree.Optimizer):
                _try_optimizer(elab, t)
            else:
                _check_names(elab, t)
        except NestflowError as e:
            elab.collector.take(e)
        except Quiet:
            continue


def _try_optimizer(elab: Any, t: tree.Optimizer) -> None:
    """Build its rule with a number in every slot that has no default, and gd where an optimiser is wanted."""
    from nestflow.language.shipped import shipped_template

    gd = elab.declared.get("gd") or shipped_template("gd")
    if gd is None:
        raise LookupError("gd is a shipped optimizer")
    given: dict[str, Any] = {}
    called = {n.name for n in _names(t.body, called=True)}
    for s in t.slots or ():
        if s.default is None:
            base = s.name == "base" or s.name in called
            given[s.name] = Partial(gd, "gd", (ops.const(0.1),), shift=True) if base else ops.const(0.1)
    builder = RuleBuilder(elab, elab.top)
    if any(isinstance(v, Partial) and s == "base" for s, v in given.items()):
        given["base"] = ops.binary("mul", ops.const(-0.1), ops.leaf("g", Type(like=True)))
    into: list[Any] = []
    builder.run(t, given, ops.leaf("g", Type(like=True)), hypers=True, into=into)


def _check_names(elab: Any, t: tree.Template) -> None:
    """Every name is a slot, a name of the body, one of the top, or a word."""
    local = {*(s.name for s in t.slots or ()), *GIVEN, "memory", "key", "value", *islice(_given(t.body), MOST_NAMES)}
    for n in _names((t.slots, t.body)):
        if "{" not in n.name and n.name not in local and not _known(elab, n.name):
            elab.collector.take(elab.unknown_name(n.name, n.span, elab.top))


def _known(elab: Any, name: str) -> bool:
    if name in elab.values or name in elab.names or name in elab.declared or name in elab.inputs:
        return True
    return elab.find_top(name) is not None


def _given(body: Any) -> Iterator[str]:
    """Names that the statements make."""
    for s in cast("tuple[tree.Statement, ...]", body):
        if isinstance(s, tree.Assign):
            yield from s.names
        elif isinstance(s, (tree.Shared, tree.MemoryPart)):
            yield s.name
        elif isinstance(s, tree.For):
            yield from (s.variable, *_unrolled(s))
            continue
        elif isinstance(s, tree.Repeat) and s.variable:
            yield s.variable
        yield from _given(getattr(s, "body", ()))
        yield from _given(getattr(s, "otherwise", ()))


def _unrolled(loop: tree.For) -> Iterator[str]:
    """The names that a loop makes, once for each item that takes its variable's place."""
    marker = "{" + loop.variable + "}"
    items = loop.items.items if isinstance(loop.items, tree.ListExpr) else ()
    written = [(isinstance(i, tree.Name), text) for i in items if (text := text_of(i)) is not None]
    for name in _given(loop.body):
        yield name
        for is_name, text in written:
            yield text if name == loop.variable and is_name else name.replace(marker, text)


def names_in(n: tuple[tree.Statement, ...]) -> set[str]:
    """The names that statements read."""
    return {x.name for x in _names(n)}


def _names(n: Any, called: bool = False) -> Iterator[tree.Name]:
    """Every name that is read; with `called` only those that are called or stand in a pipe."""
    if isinstance(n, tuple):
        for x in cast("tuple[Any, ...]", n):
            yield from _names(x, called)
    elif isinstance(n, tree.Name):
        if not called:
            yield n
    elif (
        isinstance(n, tree.Attribute)
        or (isinstance(n, tree.Field) and n.name in OWN_WORDS)
        or isinstance(n, tree.TypeExpr)
    ):
        return
    elif isinstance(n, tree.Call) and called and isinstance(n.function, tree.Name):
        yield n.function
        yield from _names((n.args, n.kwargs), called)
    elif isinstance(n, tree.Pipe) and called:
        yield from (s for s in n.stages[1:] if isinstance(s, tree.Name))
        yield from _names(n.stages, called)
    elif is_dataclass(n) and isinstance(n, tree.Node):
        for f in fields(n):
            if f.name not in ("span", "name_span", "unit_span"):
                yield from _names(getattr(n, f.name), called)


__all__ = ["check_unused"]
