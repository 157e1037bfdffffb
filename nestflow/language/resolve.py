"""From what a user names to a program: the spec, what it uses, what replaces what, and the params set from outside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nestflow.diagnostics.core import Collector, NestflowError, Source, Span, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.language import order
from nestflow.language import tree as T
from nestflow.language.merge import Replacement, extend, merge_used, names_of, own_wins, rename, select, walk
from nestflow.language.nl import parse_expression
from nestflow.language.reader import is_file_name, read_file, read_text
from nestflow.language.shipped import (
    find_shipped,
    read_shipped,
    shipped_names,
    shipped_template,
    shipped_words,
    specs_dir,
)

__all__ = ["Program", "Replacement", "load", "read_target", "shipped_names", "shipped_words", "specs_dir"]

MAX_FILES = 200
Override = str | int | float | bool


@dataclass(frozen=True)
class Program:
    """A spec with everything it uses: `body` has no `use` and no `extends` left; used definitions come first."""

    spec: T.Spec
    body: tuple[T.Statement, ...]
    overrides: tuple[tuple[str, T.Expr], ...] = ()
    replaced: tuple[Replacement, ...] = ()
    sources: tuple[Source, ...] = field(default=(), repr=False)

    def shipped(self, name: str) -> T.Template | None:
        """The level, flow or optimizer that this word names in the shipped specs, or None."""
        return shipped_template(name)


def load(
    target: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Override] | None = None,
    root: Path | None = None,
) -> Program:
    """The program that a target names.

    target: a file (ends in .nl, .yaml, .yml), a shipped name, the text of a spec, or a dict of YAML's shape.
    overrides: values for params, as `--set` gives them; a string is an expression.
    root: the folder that `use "file"` may read from, beside the shipped specs; by default the spec's own.
    Raises NestflowError: NF0xx for files and names of specs, NF1xx for syntax.
    """
    return program_of(*read_target(target), overrides, root)


def program_of(
    spec: T.Spec,
    folder: Path,
    identity: str,
    overrides: Mapping[str, Override] | None = None,
    root: Path | None = None,
) -> Program:
    """The program of a spec that was read already; the rest as in `load` and `read_target`."""
    loader = _Loader((root or folder).resolve())
    body = loader.resolve(spec, folder, identity)
    loader.errors.stop_on_errors()
    given = _overrides(dict(overrides or {}), body)
    return Program(spec, order.top(body), given, (*loader.replaced, *loader.changed), tuple(loader.sources.values()))


def read_target(target: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[T.Spec, Path, str]:
    """The spec that a target names, its folder, and what tells it from other files."""
    if isinstance(target, Mapping):
        from nestflow.language.yaml import from_dict

        return from_dict(dict(target)), Path.cwd(), "<dict>"
    if not isinstance(target, str):
        target = os.fspath(target)
        if not is_file_name(target):
            raise fail("NF008", f"`{target}` is no spec by its name", None, "a spec's file ends in .nl, .yaml or .yml")
    if is_file_name(target):
        path = Path(target)
        return read_file(path), path.parent, str(path.resolve())
    if "\n" in target or target.lstrip().startswith(("nestflow", "{", "#")) or not target.strip():
        return read_text(target), Path.cwd(), "<text>"
    _, path = find_shipped(target)
    return read_shipped(path), path.parent, str(path.resolve())


class _Loader:
    """Reads used files, each once, and keeps the way that led to the file in hand."""

    def __init__(self, root: Path):
        self.roots = (root, specs_dir().resolve())
        self.errors = Collector()
        self.replaced: list[Replacement] = []
        self.changed: list[Replacement] = []  # by `extends`, which settles for itself who comes first
        self.sources: dict[str, Source] = {}
        self.done: dict[str, tuple[T.Statement, ...]] = {}
        self.way: list[str] = []

    def resolve(self, spec: T.Spec, folder: Path, identity: str) -> tuple[T.Statement, ...]:
        """The statements of a spec with those of all it uses."""
        if identity in self.done:
            return self.done[identity]
        self.sources[identity] = spec.source
        if len(self.sources) > MAX_FILES:
            raise fail("NF012", f"more than {MAX_FILES} files are used", Span(spec.source, 0, 0))
        self.way.append(identity)
        parts = [self._bring(s, folder) for s in spec.body if isinstance(s, (T.Use, T.Extends))]
        self.way.pop()
        used = merge_used(_without_settled(parts, spec.body), self.replaced, self.errors)
        own = tuple(s for s in spec.body if not isinstance(s, (T.Use, T.Extends)))
        body, replaced = own_wins(used, own, self.errors)
        self.replaced.extend(r for r in replaced if r.used is not r.own)
        self.done[identity] = body
        return body

    def _bring(self, s: T.Use | T.Extends, folder: Path) -> tuple[T.Statement, ...]:
        try:
            spec, where, identity = self._find(s, folder)
        except NestflowError as e:
            self.errors.take(e)
            return ()
        if identity in self.way:
            names = [_short(w) for w in self.way[self.way.index(identity) :]]
            self.errors.error(
                "NF012",
                "files use each other in a circle: " + " \u2192 ".join([*names, names[0]]),
                s.span,
                "move what both need into a third file",
            )
            return ()
        body = self.resolve(spec, where, identity)
        if isinstance(s, T.Extends):
            return extend(body, s.body, self.errors, self.changed)
        chosen = s.chosen or (_stem(s) if s.alias else None)
        if s.chosen:
            body = select(body, s.chosen, s, self.errors)
        elif s.alias and not any(chosen in names_of(x) for x in body):
            self.errors.error(
                "NF013",
                f"`{s.target}` defines no `{chosen}` that could be called `{s.alias}`",
                s.span,
                f"write which one: `use NAME of {s.target} as {s.alias}`",
            )
        if s.alias and chosen:
            body = rename(body, chosen, s.alias)
        return body

    def _find(self, s: T.Use | T.Extends, folder: Path) -> tuple[T.Spec, Path, str]:
        if not s.is_file:
            _, path = find_shipped(s.target, s.span)
            return read_shipped(path), path.parent, str(path.resolve())
        path = folder / s.target
        real = path.resolve()
        if "\\" in s.target or Path(s.target).is_absolute() or not any(real.is_relative_to(r) for r in self.roots):
            raise fail(
                "NF011",
                f'"{s.target}" lies outside the folder of the spec',
                s.span,
                "a spec uses files of its own folder and below, and shipped specs",
            )
        try:
            return read_file(path), path.parent, str(real)
        except NestflowError as e:
            raise NestflowError([replace(d, span=d.span or s.span) for d in e.diagnostics]) from None


def _without_settled(
    parts: list[tuple[T.Statement, ...]], own: tuple[T.Statement, ...]
) -> list[tuple[T.Statement, ...]]:
    """Where several used files define a name and the spec does too, its own settles it: keep one for the record."""
    mine = {n for s in own for n in names_of(s)}
    seen: set[str] = set()
    out: list[tuple[T.Statement, ...]] = []
    for part in parts:
        kept: list[T.Statement] = []
        for s in part:
            names = set(names_of(s))
            if names and names <= mine and names & seen:
                continue
            seen |= names & mine
            kept.append(s)
        out.append(tuple(kept))
    return out


def _short(identity: str) -> str:
    return identity if identity.startswith("<") else Path(identity).name


def _stem(s: T.Use) -> str:
    return Path(s.target).stem if s.is_file else s.target.rsplit(".", 1)[-1]


def _overrides(given: dict[str, Override], body: tuple[T.Statement, ...]) -> tuple[tuple[str, T.Expr], ...]:
    declared: dict[str, T.Param] = {}
    walk(body, lambda n: declared.update({n.name: n}) if isinstance(n, T.Param) else None)
    params = list(declared)
    networks = {s.name for s in body if isinstance(s, T.Extern)}
    errors = Collector()
    out: list[tuple[str, T.Expr]] = []
    for name, value in given.items():
        if name in networks and name not in params:
            message = f"`{name}` is a network of yours, an `nn.Module`, and this is a {type(value).__name__}"
            errors.error("NF561", message, None, f"build it first: `{name}=MyNetwork()`")
            continue
        if name not in params:
            errors.error(
                "NF017",
                f"the spec has no param `{name}`",
                None,
                did_you_mean(name, params)
                or (
                    "its params are " + ", ".join(f"`{p}`" for p in params[:12])
                    if params
                    else "it has no params at all"
                ),
            )
            continue
        try:
            text = isinstance(declared[name].default, T.String)
            out.append((name, _value(name, value, text)))
        except NestflowError as e:
            errors.take(e)
    errors.stop_on_errors()
    return tuple(out)


def _value(name: str, value: Override, is_text: bool = False) -> T.Expr:
    """is_text: the param is a string, so that what is given needs no quotes of its own."""
    if is_text and isinstance(value, str) and not value.lstrip().startswith('"'):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    text = (
        ("true" if value else "false")
        if isinstance(value, bool)
        else str(value)
        if isinstance(value, str)
        else repr(value)
    )
    if not isinstance(value, (str, int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]  (callers have no types)
        raise fail(
            "NF018",
            f"the value set for `{name}` is a {type(value).__name__}",
            None,
            "give a number, or an expression in a string",
        )
    try:
        return parse_expression(text, f"--set {name}")
    except NestflowError as e:
        if not text.strip():
            raise fail("NF018", f"`--set {name}=` gives no value", None, f"write `--set {name}=64`") from None
        raise e
