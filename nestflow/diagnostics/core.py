"""Source text, spans in it, diagnostics, and the one exception a user meets.

Spans are character offsets; lines and columns are worked out late, when a diagnostic is shown.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Source:
    """One text a user gave: a file, a string, or a dict rendered as text."""

    name: str
    text: str

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for i, c in enumerate(self.text):
            if c == "\n":
                starts.append(i + 1)
        return starts

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of a character offset."""
        offset = max(0, min(offset, len(self.text)))
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of one line, without its end."""
        start = self._starts[number - 1]
        end = self._starts[number] - 1 if number < len(self._starts) else len(self.text)
        return self.text[start:end].rstrip("\r")


@dataclass(frozen=True)
class Span:
    """A half-open range of characters in a source."""

    source: Source = field(repr=False)
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    def to(self, other: Span | None) -> Span:
        """From the start of this span to the end of another."""
        return self if other is None else Span(self.source, self.start, max(self.end, other.end))

    def where(self) -> str:
        """`file:line:column`."""
        line, column = self.source.position(self.start)
        return f"{self.source.name}:{line}:{column}"


@dataclass(frozen=True)
class Related:
    """A second place that a diagnostic points at, with what is to be seen there.

    part: a piece of the diagnostic's own expression; its message stands right under it, where there is room."""

    span: Span
    message: str
    part: bool = False


AGAIN = "and here"
"""What is said of the other places of one mistake."""

ONE_A_NAME = frozenset(["NF201"])
"""Codes of which each name is one mistake, at however many places it stands."""


@dataclass(frozen=True)
class Edit:
    """What stands in a span is to be replaced by a text; an empty span is a place to insert at."""

    span: Span
    replacement: str


@dataclass(frozen=True)
class Diagnostic:
    """One mistake (or note): a stable code, a sentence, a place, and a way out.

    fix: what mends it, given only where one reading of the text exists. `nestflow.diagnostics.fixes.edits_of` also
    knows the fixes that follow from a `did you mean`.
    """

    code: str
    message: str
    span: Span | None = None
    help: str | None = None
    related: tuple[Related, ...] = ()
    severity: Severity = "error"
    fix: tuple[Edit, ...] = ()


class NestflowError(Exception):
    """What a user's mistake raises. Its text is the rendered diagnostics."""

    def __init__(self, diagnostics: list[Diagnostic] | tuple[Diagnostic, ...]):
        self.diagnostics = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        from nestflow.diagnostics.render import render_all

        return render_all(self.diagnostics)


def fail(
    code: str,
    message: str,
    span: Span | None = None,
    help: str | None = None,
    related: tuple[Related, ...] = (),
    fix: tuple[Edit, ...] = (),
) -> NestflowError:
    """A NestflowError with one diagnostic, to be raised."""
    return NestflowError([Diagnostic(code, message, span, help, related, fix=fix)])


_NAMES = re.compile(r"`[^`]*`")


class Collector:
    """Gathers the diagnostics of one phase, so that all its mistakes are told in one run."""

    def __init__(self) -> None:
        self.items: list[Diagnostic] = []

    def error(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        help: str | None = None,
        related: tuple[Related, ...] = (),
        fix: tuple[Edit, ...] = (),
    ) -> None:
        self._add(Diagnostic(code, message, span, help, related, fix=fix))

    def note(self, code: str, message: str, span: Span | None = None, help: str | None = None) -> None:
        self._add(Diagnostic(code, message, span, help, (), "note"))

    def take(self, error: NestflowError) -> None:
        for d in error.diagnostics:
            self._add(d)

    def _add(self, d: Diagnostic) -> None:
        for i, o in enumerate(self.items):
            if o.code == d.code and o.span == d.span and d.span is not None and _unnamed(o) == _unnamed(d):
                return  # one place, told of another memory or another turn of a loop: one mistake
            if o.code == d.code and o.message == d.message:
                if o.span == d.span:
                    return
                if d.code in ONE_A_NAME and d.span is not None:
                    if all(r.span != d.span for r in o.related):
                        self.items[i] = replace(o, related=(*o.related, Related(d.span, AGAIN)))
                    return
        self.items.append(d)

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.items if d.severity == "error"]

    def stop_on_errors(self) -> None:
        """Raise all that was gathered, if any of it is an error."""
        if self.errors:
            raise NestflowError(self.errors)


def _unnamed(d: Diagnostic) -> str:
    """What is said, without the names in it."""
    return _NAMES.sub("`…`", d.message)


def with_severity(d: Diagnostic, severity: Severity) -> Diagnostic:
    return replace(d, severity=severity)
