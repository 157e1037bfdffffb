"""`nestflow check`: every mistake of a spec, with its place and a way out."""

from __future__ import annotations

import json

import click

from nestflow.cli.common import graph_of, set_option
from nestflow.cli.failure import MISTAKE, show
from nestflow.diagnostics.core import NestflowError


@click.command("check", epilog="Example: nestflow check my.nl --set dim=512 --format json")
@click.argument("specs", nargs=-1, required=True, metavar="FILE|NAME...")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "short", "json"]),
    default="text",
    show_default=True,
    help="How mistakes are told: with a picture of the place, one a line, or as records on stdout.",
)
@click.option("--shapes", is_flag=True, help="Print the shape of every input, weight, memory and output.")
@set_option
def command(specs: tuple[str, ...], format_: str, shapes: bool, overrides: dict[str, str]) -> int:
    """Check specs without compiling them: syntax, names, types, shapes, clocks, owners of weights."""
    from nestflow.diagnostics import render

    code, records = 0, []
    for spec in specs:
        try:
            graph = graph_of(spec, overrides)
        except NestflowError as e:
            code = MISTAKE
            if format_ == "json":
                records.append({"spec": spec, "ok": False, "diagnostics": render.as_json(e.diagnostics)})
            else:
                show(e, format_)
            continue
        if format_ == "json":
            records.append({"spec": spec, "ok": True, "diagnostics": render.as_json(graph.notes)})
            continue
        from nestflow.view import words

        click.echo(f"{render.safe(graph.name)}: ok · {words.totals(graph)}")
        for note in graph.notes:
            click.echo(render.short(note) if format_ == "short" else render.render(note), err=True)
        if shapes:
            from nestflow.cli.shapes import shape_lines

            click.echo("\n".join(shape_lines(graph)))
    if format_ == "json":
        click.echo(json.dumps(records if len(records) > 1 else records[0], indent=2, ensure_ascii=False))
    return code
