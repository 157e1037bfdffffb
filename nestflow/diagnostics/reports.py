"""Diagnostics for other programs: SARIF for code scanning, workflow commands for GitHub, pages for those who ask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nestflow._version import __version__
from nestflow.diagnostics.core import Diagnostic, Edit, Span
from nestflow.diagnostics.fixes import apply, edits_of
from nestflow.diagnostics.render import Paint, plain, render, safe

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "note": "note"}
_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


@cache
def page_of(code: str) -> str | None:
    """The text of a code's page, or None."""
    file = Path(__file__).parent / "pages" / f"{code}.md"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def title_of(code: str) -> str:
    """What a code is about, in a few words: the head of its page."""
    page = page_of(code)
    return page.split("\n", 1)[0].partition(": ")[2] if page else code


def full(diagnostics: Sequence[Diagnostic], paint: Paint = plain) -> str:
    """Every diagnostic with its picture, the line as its fix would leave it, and once what its code's page says."""
    told: set[str] = set()
    parts: list[str] = []
    for d in diagnostics:
        lines = [render(d, paint), *_fixed_line(d)]
        page = page_of(d.code)
        if page and d.code not in told:
            told.add(d.code)
            said = page.split("\n## ", 1)[0].split("\n", 1)[-1].strip()
            lines += ["", *("  " + x if x else "" for x in said.split("\n"))]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _fixed_line(d: Diagnostic) -> list[str]:
    edits = edits_of(d)
    if not edits:
        return []
    old = edits[0].span.source.text
    was = set(old.split("\n"))
    new = [line for line in apply(old, edits).split("\n") if line not in was]
    return [f"  = fix, by `check --fix`: {safe(line.strip())}" for line in new]


# --- GitHub -----------------------------------------------------------------------------------------


def github(d: Diagnostic) -> str:
    """A workflow command: GitHub shows it at the line of the file in a pull request."""
    where: dict[str, Any] = {}
    if d.span is not None:
        (line, column), (end_line, end_column) = _ends(d.span)
        where = {"file": d.span.source.name, "line": line, "endLine": end_line}
        if line == end_line:
            where |= {"col": column, "endColumn": end_column}
    where["title"] = f"nestflow {d.code}"
    said = safe(d.message) + (f"\nhelp: {safe(d.help)}" if d.help else "")
    fields = ",".join(f"{k}={_escape(str(v), ',:')}" for k, v in where.items())
    return f"::{_COMMANDS[d.severity]} {fields}::{_escape(said)}"


def _escape(text: str, more: str = "") -> str:
    """GitHub's own escapes: `%` first, line ends, and in a property the signs that end it."""
    for c in "%\r\n" + more:
        text = text.replace(c, f"%{ord(c):02X}")
    return text


# --- SARIF ------------------------------------------------------------------------------------------


def sarif(diagnostics: Sequence[Diagnostic]) -> dict[str, Any]:
    """A SARIF 2.1.0 log with one run: a rule for each code, a result for each diagnostic, fixes as replacements."""
    codes = sorted({d.code for d in diagnostics})
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "nestflow",
                        "version": __version__,
                        "rules": [_rule(c) for c in codes],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(d, codes.index(d.code)) for d in diagnostics],
            }
        ],
    }


def _rule(code: str) -> dict[str, Any]:
    page = page_of(code)
    rule: dict[str, Any] = {"id": code, "shortDescription": {"text": title_of(code)}}
    return rule | ({"help": {"text": page, "markdown": page}} if page else {})


def _result(d: Diagnostic, rule: int) -> dict[str, Any]:
    said = d.message + (f"\nhelp: {d.help}" if d.help else "")
    out: dict[str, Any] = {"ruleId": d.code, "ruleIndex": rule, "level": _LEVELS[d.severity], "message": {"text": said}}
    if d.span is not None:
        out["locations"] = [{"physicalLocation": _location(d.span)}]
    if d.related:
        out["relatedLocations"] = [
            {"id": i, "physicalLocation": _location(r.span), "message": {"text": r.message}}
            for i, r in enumerate(d.related, 1)
        ]
    edits = edits_of(d)
    if edits:
        out["fixes"] = [{"description": {"text": d.help or d.message}, "artifactChanges": _changes(edits)}]
    return out


def _changes(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """The edits by file."""
    by_file: dict[str, list[Edit]] = {}
    for e in edits:
        by_file.setdefault(e.span.source.name, []).append(e)
    return [
        {
            "artifactLocation": {"uri": _uri(name)},
            "replacements": [
                {"deletedRegion": _region(e.span), "insertedContent": {"text": e.replacement}} for e in several
            ],
        }
        for name, several in by_file.items()
    ]


def _location(span: Span) -> dict[str, Any]:
    return {"artifactLocation": {"uri": _uri(span.source.name)}, "region": _region(span)}


def _region(span: Span) -> dict[str, Any]:
    (line, column), (end_line, end_column) = _ends(span)
    return {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column}


def _ends(span: Span) -> tuple[tuple[int, int], tuple[int, int]]:
    return span.source.position(span.start), span.source.position(span.end)


def _uri(name: str) -> str:
    """A file's name as SARIF wants it: relative to where the tool ran, or a file URI."""
    path = Path(name)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
