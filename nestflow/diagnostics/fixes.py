"""Fixes: the edits that mend a mistake, and the loop that applies those that help."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nestflow.diagnostics.core import AGAIN, Diagnostic, Edit, Span
from nestflow.diagnostics.suggest import Suggestion

MAX_FIXES = 100


class HasSpan(Protocol):
    @property
    def span(self) -> Span | None: ...


def edits_of(d: Diagnostic) -> tuple[Edit, ...]:
    """What mends a diagnostic: its own fix, or the word that its help is sure was meant. Empty if nothing is sure."""
    if d.fix:
        return d.fix
    if d.span is None or not isinstance(d.help, Suggestion) or not d.help.sure:
        return ()
    places = [d.span, *(r.span for r in d.related if r.message == AGAIN)]
    edits = [_word(d.help, place) for place in places]
    return tuple(e for e in edits if e is not None) if all(edits) else ()


def _word(meant: Suggestion, place: Span) -> Edit | None:
    """The edit of a misspelt word that stands once in a place."""
    found = list(re.finditer(rf"(?<!\w){re.escape(meant.old)}(?!\w)", place.text))
    if len(found) > 1:  # a slot's name in a call whose values hold the same word
        found = [m for m in found if re.match(r"\s*=(?!=)", place.text[m.end() :])]
    if len(found) != 1:
        return None
    start = place.start + found[0].start()
    return Edit(Span(place.source, start, start + len(meant.old)), meant.new)


def add_after(node: HasSpan, text: str) -> tuple[Edit, ...]:
    """The fix that puts a text behind a piece of tree; none where the piece has no place."""
    if node.span is None:
        return ()
    return (Edit(Span(node.span.source, node.span.end, node.span.end), text),)


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with its edits made, the last one first so that places stay right. Edits do not overlap."""
    for e in sorted(edits, key=lambda e: e.span.start, reverse=True):
        text = text[: e.span.start] + e.replacement + text[e.span.end :]
    return text


@dataclass
class Mended:
    """A text after its fixes: what was mended, in order, and what is still wrong."""

    text: str
    applied: list[Diagnostic] = field(default_factory=list[Diagnostic])
    left: Sequence[Diagnostic] = ()


def mend(text: str, name: str, check: Callable[[str], Sequence[Diagnostic]]) -> Mended:
    """Apply the fixes of a text's mistakes one after the other, each only if the text is better for it.

    name: what the text's source is called; a fix that reaches into another file is left alone.
    check: all errors of a text. A fix of the syntax must leave fewer errors of the syntax; any other must make its own
    error go, and bring none to the place it changed.
    """
    done = Mended(text, left=check(text))
    refused: set[tuple[str, ...]] = set()
    while len(done.applied) < MAX_FIXES:
        for d in done.left:
            edits = edits_of(d)
            key = (d.code, d.message, *(e.replacement for e in edits))
            if edits and key not in refused and all(e.span.source.name == name for e in edits):
                new = apply(done.text, edits)
                after = check(new)
                if _better(d, edits, done.left, after):
                    done.text, done.left = new, after
                    done.applied.append(d)
                    break
                refused.add(key)
        else:
            break
    return done


def _better(d: Diagnostic, edits: Sequence[Edit], before: Sequence[Diagnostic], after: Sequence[Diagnostic]) -> bool:
    if _is_syntax(d) and sum(map(_is_syntax, after)) < sum(map(_is_syntax, before)):
        return True
    # A right word may open what was not read before, with mistakes of its own; other repairs may not.
    allowed = isinstance(d.help, Suggestion) if _is_syntax(d) else not any(map(_is_syntax, after))
    if not allowed or _count(d, after) >= _count(d, before):
        return False
    was = {(o.code, o.message) for o in before}
    new = [o for o in after if (o.code, o.message) not in was]
    return not any(_touches(o, edits) and not edits_of(o) for o in new)


def _touches(d: Diagnostic, edits: Sequence[Edit]) -> bool:
    """Whether a diagnostic of the mended text points at what the edits put there."""
    if d.span is None:
        return False
    shift = 0
    for e in sorted(edits, key=lambda e: e.span.start):
        start = e.span.start + shift
        if d.span.start <= start + len(e.replacement) and start <= d.span.end:
            return True
        shift += len(e.replacement) - (e.span.end - e.span.start)
    return False


def _is_syntax(d: Diagnostic) -> bool:
    return d.code[2] in "01"


def _count(d: Diagnostic, among: Sequence[Diagnostic]) -> int:
    return sum((o.code, o.message) == (d.code, d.message) for o in among)
