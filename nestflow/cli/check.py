"""`nestflow check`: every mistake of a spec, with its place and a way out; `--fix` takes the way where it is sure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from nestflow.cli.common import graph_of, set_option
from nestflow.cli.failure import MISTAKE, show
from nestflow.diagnostics.core import Diagnostic, NestflowError

if TYPE_CHECKING:
    from nestflow.graph.model import LevelGraph

FORMATS = ("text", "short", "full", "json", "sarif", "github")
RECORDS = ("json", "sarif")


@click.command(
    "check",
    epilog="Examples: nestflow check my.nl --set dim=512; nestflow check my.nl --fix; "
    "nestflow check specs/*.nl --format sarif > nestflow.sarif",
)
@click.argument("specs", nargs=-1, required=True, metavar="FILE|NAME...")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="How mistakes are told: with a picture of the place, one a line, with the page of each code; as records on "
    "stdout (json, or sarif for code scanning); or as GitHub's workflow commands.",
)
@click.option("--fix", is_flag=True, help="Mend in the files what has one sure fix, and show the difference.")
@click.option("--diff", is_flag=True, help="Show what --fix would change; write nothing.")
@click.option("--shapes", is_flag=True, help="Print the shape of every input, weight, memory and output.")
@click.option("--no-notes", is_flag=True, help="Tell mistakes only, and no notes.")
@set_option
def command(
    specs: tuple[str, ...],
    format_: str,
    fix: bool,
    diff: bool,
    shapes: bool,
    no_notes: bool,
    overrides: dict[str, str],
) -> int:
    """Check specs without compiling them: syntax, names, types, shapes, clocks, owners of weights."""
    code, told = 0, []
    for spec in specs:
        fixed: list[Diagnostic] = []
        if fix or diff:
            from nestflow.cli.fix import fix_file

            fixed = fix_file(spec, overrides, write=fix and not diff, quiet=format_ in RECORDS)
        graph, found = _check(spec, overrides)
        if no_notes:
            found = tuple(d for d in found if d.severity == "error")
        code = MISTAKE if graph is None else code
        told.append((spec, graph is not None, found, fixed))
        if format_ not in RECORDS:
            _tell(graph, found, format_)
            if graph is not None and shapes:
                from nestflow.cli.shapes import shape_lines

                click.echo("\n".join(shape_lines(graph)))
    if format_ in RECORDS:
        click.echo(json.dumps(_records(told, format_), indent=2, ensure_ascii=False))
    return code


def _check(spec: str, overrides: dict[str, str]) -> tuple[LevelGraph | None, tuple[Diagnostic, ...]]:
    """The graph of a spec with its notes, or None with its errors."""
    try:
        graph = graph_of(spec, overrides)
    except NestflowError as e:
        return None, e.diagnostics
    return graph, graph.notes


def _tell(graph: LevelGraph | None, found: tuple[Diagnostic, ...], format_: str) -> None:
    """What people and logs read: verdicts on stdout, diagnostics on stderr; GitHub reads its commands on stdout."""
    from nestflow.diagnostics import render

    if graph is not None:
        from nestflow.view import words

        click.echo(f"{render.safe(graph.name)}: ok · {words.totals(graph)}")
    if format_ == "github":
        from nestflow.diagnostics.reports import github

        for d in found:
            click.echo(github(d))
    elif found:
        show(NestflowError(found), format_)


def _records(told: list[tuple[str, bool, tuple[Diagnostic, ...], list[Diagnostic]]], format_: str) -> Any:
    from nestflow.diagnostics import render, reports

    if format_ == "sarif":
        return reports.sarif([d for _, _, found, _ in told for d in found])
    records: list[dict[str, Any]] = []
    for spec, ok, found, fixed in told:
        record = {"spec": spec, "ok": ok, "diagnostics": render.as_json(found)}
        records.append(record | ({"fixed": render.as_json(fixed)} if fixed else {}))
    return records if len(records) > 1 else records[0]
