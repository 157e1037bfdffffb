"""`nestflow view`: the picture of a spec."""

from __future__ import annotations

from pathlib import Path

import click

from nestflow.cli.common import console, graph_of, set_option


@click.command("view", epilog="Example: nestflow view hope -o hope.html")
@click.argument("spec", metavar="FILE|NAME|BUNDLE|RUN")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file: .svg .html .png .mmd or .dot.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["terminal", "table", "svg", "html", "mermaid", "dot"]),
    default="terminal",
    show_default=True,
    help="What is printed where no file is given.",
)
@set_option
def command(spec: str, output: Path | None, format_: str, overrides: dict[str, str]) -> None:
    """Draw the level graph: lanes by update frequency, fastest on top; edges by what they carry."""
    from nestflow import view

    if Path(spec).is_dir():
        from nestflow.cli.common import bundle_of

        graph = bundle_of(spec, overrides).graph
    else:
        graph = graph_of(spec, overrides)
    if output is not None:
        click.echo(f"wrote {view.save(graph, output)}")
    elif format_ == "terminal":
        console().print(view.render(graph))
    elif format_ == "table":
        from nestflow.view.table import level_table

        console().print(level_table(graph))
    else:
        click.echo(view.render(graph, format_), nl=False)
