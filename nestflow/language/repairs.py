"""What one token more, less, other, or two changed about would make of a statement that does not parse.

The parser's own tables are asked, so no list of wrong texts is kept: whatever one slip of the pen did to a statement,
the change that mends it is found and said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nestflow.diagnostics.core import Diagnostic, Edit, Span
from nestflow.diagnostics.suggest import distance
from nestflow.language.lexer import Token

Parses = Callable[[Sequence[str]], int]
"""How many tokens of these types the parser takes where the statement begins."""

MOST = 400  # longer statements are not tried
_ENDS = frozenset(("_SEP", "RBRACE", "$END"))
_VALUES = frozenset(["NAME", "NUMBER", "STRING", "BOOL"])
_OPEN = {"LPAR": "RPAR", "LSQB": "RSQB", "LRECORD": "RRECORD"}
# What may be missing: its text, and what it is called where the text would say nothing.
_MISSING = {
    "ASSIGN": "=", "COLON": ":", "PIPE": "|>", "COMMA": ",", "IN": "in", "OF": "of", "AS": "as", "IF": "if",
    "LBRACE": "{", "NUMBER": "a value", "NAME": "a name",
}  # fmt: skip
_INSTEAD = {
    "ASSIGN": "=", "COLON": ":", "COMMA": ",", "PIPE": "|>", "DOT": ".", "IN": "in", "OF": "of", "AS": "as",
    "PLUS": "+", "STRING": "a text in quotes", "NAME": "a name", "NUMBER": "a value",
}  # fmt: skip
_WORDS = frozenset(["IN", "OF", "AS"])


def parses(states: Any, stack: Sequence[int]) -> Parses:
    """Asks lark's LALR tables, from a parser's state stack; values are not built."""

    def taken(types: Sequence[str]) -> int:
        here = list(stack)
        for n, type in enumerate(types):
            while True:
                step = states[here[-1]].get(type)
                if step is None:
                    return n
                action, arg = step
                if action.name == "Shift":
                    here.append(arg)
                    break
                if len(arg.expansion):
                    del here[-len(arg.expansion) :]
                here.append(states[here[-1]][arg.origin.name][1])
        return len(types)

    return taken


@dataclass(frozen=True)
class Repair:
    """A change of the tokens from `at` on: `kind` insert, replace, swap, twice or delete; `type`, `text`: what is put
    there."""

    kind: str
    at: int
    type: str = ""
    text: str = ""


def repair(tokens: Sequence[Token], i: int, start: int, taken: Parses) -> Repair | None:
    """The change near token i that lets the statement from `start` parse to its end, or None. Its `at` counts from
    `start`. What a line's last word carries over to the next line is tried without it too."""
    body = tokens[i].type == "LRECORD"  # after `as` a brace begins a record, and may be meant to begin the body
    end = i + 1 if body else _statement_end(tokens, i)
    found = _repair(tokens, i, start, end, body, taken)
    line = _line_end(tokens, i, end)
    return found if found is not None or line == end else _repair(tokens, i, start, line, False, taken)


def semicolon(tokens: Sequence[Token], i: int, start: int, taken: Parses) -> Repair | None:
    """The change of the `;` at token i that makes one statement of the two around it, or None."""
    end = _statement_end(tokens, i + 1)
    if end - start > MOST:
        return None
    types = ["_SEP" if t.type == "$END" else t.type for t in tokens[start:end]]
    for type, text in _INSTEAD.items():
        if (";", text) in _CONFUSED:
            changed = _changed(types, Repair("replace", i - start, type, text))
            if taken(changed) == len(changed):
                return Repair("replace", i - start, type, text)
    return None


def _line_end(tokens: Sequence[Token], i: int, end: int) -> int:
    """After the last token of the line of token i."""
    for j in range(i + 1, end):
        if "\n" in tokens[j].source.text[tokens[j - 1].end : tokens[j].start]:
            return j
    return end


def _repair(tokens: Sequence[Token], i: int, start: int, end: int, body: bool, taken: Parses) -> Repair | None:
    if end - start > MOST:
        return None
    types = ["_SEP" if t.type == "$END" else t.type for t in tokens[start:end]]
    types[-1] = "LBRACE" if body else types[-1]
    if types[-1] not in ("_SEP", "RBRACE", "LBRACE"):  # the text ends with the statement
        types.append("_SEP")
    i -= start
    for r in _candidates(tokens[start:end], i, len(types) - 1):
        changed = _changed(types, r)
        if taken(changed) == len(changed):
            return r
    return None


def _statement_end(tokens: Sequence[Token], i: int) -> int:
    """After what ends the statement, or opens its body."""
    for j in range(i, len(tokens)):
        if tokens[j].type in _ENDS or tokens[j].type == "LBRACE":
            return j + 1
    return len(tokens)


def _changed(types: list[str], r: Repair) -> list[str]:
    k = r.at
    if r.kind == "insert":
        return [*types[:k], r.type, *types[k:]]
    if r.kind == "replace":
        return [*types[:k], r.type, *types[k + 1 :]]
    if r.kind == "swap":
        return [*types[:k], types[k + 1], types[k], *types[k + 2 :]]
    return types[:k] + types[k + 1 :]


def _candidates(tokens: Sequence[Token], i: int, last: int) -> Iterator[Repair]:
    """Likely changes first. last: the index of what ends the statement."""
    here = [k for k in (i, i - 1) if 0 <= k < last]
    steps = [k for k in (i, i - 1, i - 2) if 0 <= k < last - 1 and (k > 0 or tokens[0].type == "NAME")]
    for k in range(min(i + 1, last - 1), 0, -1):
        a, b = tokens[k - 1], tokens[k]
        if a.text == b.text and a.start < a.end and b.start < b.end:
            yield Repair("twice", k)
    for k in range(min(i, last - 1), -1, -1):
        for type, text in _INSTEAD.items():
            if type != tokens[k].type and _alike(tokens[k], type, text):
                yield Repair("replace", k, type, text)
    for k in (i, i - 1):
        if k > 0:
            for type, text in _MISSING.items():
                if type not in ("NUMBER", "NAME"):
                    yield Repair("insert", k, type, text)
    for k in steps:
        yield Repair("swap", k)
    for k in (i, i - 1):
        if k > 0:
            yield Repair("insert", k, "NUMBER", "a value")
            yield Repair("insert", k, "NAME", "a name")
    for k in here:
        if k > 0 and tokens[k].type not in _OPEN and tokens[k].type not in _OPEN.values():
            yield Repair("delete", k)
    for k in here:
        if k > 0 and tokens[k].base not in ("LPAR", "RPAR", "LSQB", "RSQB", "LBRACE", "RBRACE"):
            for type, text in _INSTEAD.items():
                if type != tokens[k].type:
                    yield Repair("replace", k, type, text)


def _alike(t: Token, type: str, text: str) -> bool:
    """Whether a token is easily typed for another."""
    if type in _WORDS:
        return t.type == "NAME" and distance(t.text, text, 1) <= 1
    return (t.text, text) in _CONFUSED


_CONFUSED = frozenset(
    [("==", "="), ("=", "=="), (".", ","), (":", "="), ("=", ":"), (";", ":"), ("|", "|>"), (",", ":"),
     (":", ",")]
)  # fmt: skip


def sentence(tokens: Sequence[Token], start: int, r: Repair, form: str | None) -> Diagnostic:
    """What is said of a slip, with the edit that mends it where that adds and takes nothing of the user's.

    form: a right line of such a statement, for the help."""
    r = replace(r, at=r.at + start)
    t = tokens[r.at]
    before = tokens[r.at - 1] if r.at > start else None
    if r.kind == "twice":
        return Diagnostic(
            "NF101", f"`{t.text}` stands here twice", t.span, "delete one of the two", fix=_cut(tokens, r.at)
        )
    if r.kind == "swap":
        other = tokens[r.at + 1]
        span = Span(t.source, t.start, other.end)
        fix = (Edit(t.span, other.text), Edit(other.span, t.text)) if _real(t) and _real(other) else ()
        said = f"`{t.text}` and `{other.text}` stand in the wrong order"
        return Diagnostic("NF101", said, span, form or f"write `{other.text} {t.text}`", fix=fix)
    if r.kind == "replace":
        if r.type in ("NUMBER", "NAME", "STRING"):
            fix = (Edit(t.span, f'"{t.text}"'),) if r.type == "STRING" and t.type == "NAME" and _real(t) else ()
            return Diagnostic("NF101", f"`{t.text}` stands where {r.text} belongs", t.span, form, fix=fix)
        fix = (Edit(t.span, r.text),) if _real(t) and (t.text, r.text) in _CONFUSED else ()
        return Diagnostic(
            "NF101", f"`{t.text}` stands where `{r.text}` belongs", t.span, form or f"write `{r.text}`", fix=fix
        )
    if r.kind == "delete":
        where = f"after `{before.text}` " if before is not None and _real(before) else ""
        return Diagnostic("NF101", f"`{t.text}` has no place {where}here", t.span, form or f"delete the `{t.text}`")
    return _insertion(tokens, start, r, form)


def _insertion(tokens: Sequence[Token], start: int, r: Repair, form: str | None) -> Diagnostic:
    t, before = tokens[r.at], tokens[r.at - 1]
    at_end = t.type in _ENDS
    span = before.span if at_end else t.span
    where = f"after `{before.text}`" if at_end else f"between `{before.text}` and `{t.text}`"
    if r.type == "NAME" and r.at == start + 1:
        return Diagnostic("NF112", f"this `{tokens[start].text}` has no name", span, form)
    if r.type in ("NAME", "NUMBER"):
        return Diagnostic("NF112", f"{r.text} is missing {where}", span, form)
    if r.type == "PIPE":
        pipe, product = f"{before.text} |> {t.text}", f"{before.text} * {t.text}"
        said = f"there is no operator between `{before.text}` and `{t.text}`"
        return Diagnostic("NF111", said, span, f"a pipe is `{pipe}`, a product `{product}`")
    gap = t.source.text[before.end : t.start]
    fix: tuple[Edit, ...] = ()
    if _real(before) and (_real(t) or at_end) and "\n" not in gap:
        text = r.text + " " if r.type == "COMMA" else f" {r.text} "
        fix = (Edit(Span(t.source, before.end, before.end if at_end else t.start), text.rstrip() if at_end else text),)
    return Diagnostic("NF101", f"`{r.text}` is missing {where}", span, form, fix=fix)


def _cut(tokens: Sequence[Token], k: int) -> tuple[Edit, ...]:
    a, b = tokens[k - 1], tokens[k]
    return (Edit(Span(b.source, a.end, b.end), ""),) if _real(a) and _real(b) and a.end <= b.start else ()


def _real(t: Token) -> bool:
    """Whether the token is in the text as it stands (YAML's sections make some that are not)."""
    return t.source.text[t.start : t.end] == t.text
