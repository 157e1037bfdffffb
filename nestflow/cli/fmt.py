"""`nestflow fmt`: one way to write a spec."""

from __future__ import annotations

from pathlib import Path

import click

from nestflow.cli.common import write
from nestflow.cli.failure import MISTAKE
from nestflow.cli.text import read_spec_text


@click.command("fmt", epilog="Example: nestflow fmt my.nl")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Change nothing; exit 1 and name the files that are not formatted.")
def command(files: tuple[Path, ...], check: bool) -> int:
    """Format specs in place, comments kept. `-` reads from stdin and writes to stdout."""
    from nestflow.language.fmt import format_text

    code = 0
    for file in files:
        text = read_spec_text(file)
        new = format_text(text, str(file))
        if str(file) == "-":
            click.echo(new, nl=False)
        elif new == text:
            continue
        elif check:
            click.echo(f"{file} is not formatted", err=True)
            code = MISTAKE
        else:
            write(file, new)
            click.echo(f"formatted {file}")
    return code
