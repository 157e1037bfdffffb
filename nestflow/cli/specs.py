"""`nestflow specs`: what is shipped."""

from __future__ import annotations

import click

from nestflow.cli.colour import echo_spec
from nestflow.view import words


@click.command("specs", epilog="Example: nestflow specs titans")
@click.argument("name", required=False)
@click.option("--path", is_flag=True, help="Print where the file is instead of its text.")
def command(name: str | None, path: bool) -> None:
    """List the shipped specs, or print one, coloured on a terminal (the last part of its name suffices where it is
    unique)."""
    from nestflow.language import shipped

    if name is not None:
        _, file = shipped.find_shipped(name)
        if path:
            click.echo(str(file))
        else:
            echo_spec(file.read_text(encoding="utf-8").rstrip("\n"), file.name)
        return
    group = None
    files = shipped.shipped_files()
    for full, file in files.items():
        head, _, last = full.rpartition(".")
        if head != group:
            click.echo(("" if group is None else "\n") + click.style(head or "specs", bold=True))
            group = head
        suffix = "" if file.suffix == ".nl" else f" ({file.suffix[1:]})"
        click.echo(f"  {last + suffix:<20} {about(file.read_text(encoding='utf-8'))}".rstrip())
    click.echo("\nnestflow specs NAME prints one; nestflow view NAME draws it; nestflow new FILE --from NAME copies it")


def about(text: str) -> str:
    """The first sentence of the comment at the head of a spec."""
    said: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#"):
            said.append(line.lstrip("#").strip())
        elif line and not line.startswith("nestflow"):
            break
    return words.first_sentence(" ".join(said), 96)
