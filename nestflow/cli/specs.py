"""`nestflow specs`: what is shipped."""

from __future__ import annotations

import click


@click.command("specs", epilog="Example: nestflow specs titans")
@click.argument("name", required=False)
@click.option("--path", is_flag=True, help="Print where the file is instead of its text.")
def command(name: str | None, path: bool) -> None:
    """List the shipped specs, or print one (the last part of its name suffices where it is unique)."""
    from nestflow.language import shipped

    if name is not None:
        _, file = shipped.find_shipped(name)
        click.echo(str(file) if path else file.read_text(encoding="utf-8").rstrip("\n"))
        return
    group = None
    files = shipped.shipped_files()
    for full, file in files.items():
        head, _, last = full.rpartition(".")
        if head != group:
            click.echo(("" if group is None else "\n") + click.style(head or "specs", bold=True))
            group = head
        suffix = "" if file.suffix == ".nl" else f" ({file.suffix[1:]})"
        click.echo(f"  {last + suffix:<20} {first_sentence(file.read_text(encoding='utf-8'))}".rstrip())
    click.echo("\nnestflow specs NAME prints one; nestflow view NAME draws it; nestflow new FILE --from NAME copies it")


def first_sentence(text: str, limit: int = 96) -> str:
    """What the comment at the head of a spec says first."""
    said: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#"):
            said.append(line.lstrip("#").strip())
        elif line and not line.startswith("nestflow"):
            break
        if said and (not said[-1] or said[-1].endswith(".")):
            break
    whole = " ".join(said).strip()
    sentence, stop, _ = whole.partition(". ")
    sentence = sentence.rstrip(".") if stop or whole.endswith(".") else whole
    return sentence if len(sentence) <= limit else sentence[: limit - 1].rstrip() + "…"
