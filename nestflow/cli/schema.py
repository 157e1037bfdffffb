"""`nestflow schema`: what an editor needs to complete and check specs in YAML."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nestflow.cli.common import write


@click.command("schema", epilog="Example: nestflow schema -o nestflow.schema.json")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="A file instead of stdout.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def command(output: Path | None, force: bool) -> None:
    """Print the JSON Schema of specs in YAML, made from the words this version knows.

    An editor with a YAML language server uses it where a spec begins with the line

        # yaml-language-server: $schema=nestflow.schema.json
    """
    from nestflow.editor.schema import schema

    text = json.dumps(schema(), indent=2, ensure_ascii=False)
    if output is None:
        click.echo(text)
        return
    write(output, text + "\n", force)
    click.echo(f"wrote {output}")
