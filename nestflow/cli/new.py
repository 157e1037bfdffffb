"""`nestflow new`: a spec of one's own, from a shipped one."""

from __future__ import annotations

from pathlib import Path

import click

from nestflow.cli.common import write
from nestflow.diagnostics.core import fail


@click.command("new", epilog="Example: nestflow new my.nl --from titans")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "name", default="linear_attention", show_default=True, metavar="NAME", help="A shipped spec.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def command(file: Path, name: str, force: bool) -> None:
    """Copy a shipped spec to FILE (.nl, .yaml or .yml), to be changed as you like."""
    from nestflow.language.shipped import find_shipped

    if file.suffix not in (".nl", ".yaml", ".yml"):
        raise fail("NF008", f"`{file}` is no spec by its name", help="a spec's file ends in .nl, .yaml or .yml")
    _, source = find_shipped(name)
    text = source.read_text(encoding="utf-8")
    if (source.suffix == ".nl") != (file.suffix == ".nl"):
        from nestflow.language.fmt import convert_text

        text = convert_text(text, source.name)
    write(file, text, force)
    click.echo(f"{file} is a copy of {name}; next: nestflow check {file}, nestflow view {file}")
