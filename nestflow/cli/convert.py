"""`nestflow convert`: between the two front ends."""

from __future__ import annotations

from pathlib import Path

import click

from nestflow.cli.common import write
from nestflow.cli.text import read_spec_text
from nestflow.diagnostics.core import fail


@click.command("convert", epilog="Example: nestflow convert my.nl -o my.yaml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write; stdout if it is not given.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def command(file: Path, output: Path | None, force: bool) -> None:
    """Turn a .nl spec into YAML, or a YAML spec into .nl; both mean the same."""
    from nestflow.language.fmt import convert_text, format_text
    from nestflow.language.reader import looks_like_yaml

    text = read_spec_text(file)
    if output is None:
        click.echo(convert_text(text, str(file)), nl=False)
        return
    if output.suffix not in (".nl", ".yaml", ".yml"):
        raise fail("NF008", f"`{output}` is no spec by its name", help="a spec's file ends in .nl, .yaml or .yml")
    same = looks_like_yaml(text) == (output.suffix != ".nl")
    write(output, format_text(text, str(file)) if same else convert_text(text, str(file)), force)
    click.echo(f"wrote {output}")
