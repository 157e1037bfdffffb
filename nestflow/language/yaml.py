"""Reads the YAML surface: its nodes become the tokens of the same statements in .nl, and one grammar parses both.

So the two front ends cannot drift apart, and a mistake inside a YAML entry gets the same sentence, at its place in the
YAML file.
"""

from __future__ import annotations

import json
import numbers
from typing import Any, cast

from nestflow.diagnostics.core import Collector, Diagnostic, NestflowError, Source, Span
from nestflow.language import tree as T
from nestflow.language.lexer import Comment, Extra, Token
from nestflow.language.nl import check_text, parse_spec
from nestflow.language.yaml_nodes import MAX_DEPTH, compose, find_comments
from nestflow.language.yaml_sections import Emitter


def parse_yaml(text: str, name: str) -> T.Spec:
    """The tree of a spec in YAML; `name` is what diagnostics call the file.

    Raises NestflowError with every mistake found: NF120 to NF129 for YAML itself, NF1xx for what stands in it.
    """
    source = Source(name, text)
    errors = Collector()
    check_text(source, errors)
    root, scalars = compose(source)
    emitter = Emitter(source, errors)
    emitter.spec(root)
    if errors.errors and not emitter.tokens:
        errors.stop_on_errors()
    comments = find_comments(source, scalars)

    def attach(laid: list[Token]) -> tuple[list[str], list[str], list[str]]:
        return _attach(laid, comments, emitter.first_key)

    return parse_spec(emitter.tokens, source, errors, attach, emitter.doc)


def _attach(tokens: list[Token], comments: list[Comment], first_key: int) -> tuple[list[str], list[str], list[str]]:
    """Give each comment to the statement it stands above, or at the line of; returns header, docs (none), footer."""
    starts = sorted((t for t in tokens if t.opens and t.type != "NESTFLOW"), key=lambda t: t.start)
    header: list[str] = []
    footer: list[str] = []
    n = 0
    for c in comments:
        while n < len(starts) and starts[n].start < c.start:
            n += 1
        target = (starts[n] if n < len(starts) else None) if c.own_line else (starts[n - 1] if n else None)
        if (c.own_line and c.start < first_key) or (not c.own_line and target is None):
            header.append(c.text)
        elif target is None:
            footer.append(c.text)
        else:
            if target.extra is None:
                target.extra = Extra()
            (target.extra.comments if c.own_line else target.extra.trailing).append(c.text)
    return header, [], footer


def from_dict(d: dict[str, Any], name: str = "<dict>") -> T.Spec:
    """The tree of a spec given as a Python dict of YAML's shape. Places point into its YAML text.

    Raises NestflowError: NF125 for values that no spec holds, NF110 for deep or circular dicts, else as parse_yaml.
    """
    lines: list[str] = []
    _dump(d, 0, lines, "", name)
    return parse_yaml("\n".join(lines) + "\n", name)


def _dump(x: Any, depth: int, lines: list[str], lead: str, name: str) -> None:
    if depth > MAX_DEPTH:
        raise NestflowError([Diagnostic("NF110", f"the dict is nested more than {MAX_DEPTH} deep, or contains itself")])
    pad = "  " * depth
    if isinstance(x, dict) and x:
        _open(lines, lead)
        for key, value in cast("dict[Any, Any]", x).items():
            if not isinstance(key, str):
                raise _unfit(key, "a key", name)
            _dump(value, depth + 1, lines, f"{pad}{_word(key)}:", name)
    elif isinstance(x, (list, tuple)) and x:
        _open(lines, lead)
        for value in cast("list[Any]", x):
            _dump(value, depth + 1, lines, f"{pad}-", name)
    else:
        lines.append(f"{lead} {_atom(x, name)}".strip() if not lead.startswith(" ") else f"{lead} {_atom(x, name)}")


def _open(lines: list[str], lead: str) -> None:
    if lead:
        lines.append(lead)


def _word(text: str) -> str:
    return (
        text if text.isidentifier() and text not in ("null", "true", "false") else json.dumps(text, ensure_ascii=False)
    )


def _atom(x: Any, name: str) -> str:
    if x is None:
        return "null"
    if isinstance(x, bool):
        return "true" if x else "false"
    if isinstance(x, str):
        return _word(x)
    if isinstance(x, (dict, list, tuple)):
        return "{}" if isinstance(x, dict) else "[]"
    if isinstance(x, numbers.Integral):
        return str(int(x))
    if isinstance(x, numbers.Real):
        return repr(float(x))
    raise _unfit(x, "a value", name)


def _unfit(x: Any, what: str, name: str) -> NestflowError:
    source = Source(name, repr(x)[:80])
    return NestflowError(
        [
            Diagnostic(
                "NF125",
                f"a {type(x).__name__} cannot be {what} of a spec",
                Span(source, 0, len(source.text)),
                "use strings, numbers, lists and dicts",
            )
        ]
    )
