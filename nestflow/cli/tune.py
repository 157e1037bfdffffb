"""`nestflow tune`: the settings of `execution` that are fastest for a spec on this machine, to a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nestflow.cli.common import console, set_option, spec_of, write, yes_option
from nestflow.cli.failure import INTERRUPTED
from nestflow.diagnostics.core import fail
from nestflow.view import words

if TYPE_CHECKING:
    from nestflow.bundle.tune import Tuning

HEAD = "# Written by nestflow tune"


@click.command("tune", epilog="Example: nestflow tune titans --set dim=256 --length 1024 -o fast.yaml")
@click.argument("spec", metavar="FILE|NAME")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file.  [default: none]")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Rows.")
@click.option("--length", type=click.IntRange(1), default=256, show_default=True, help="Ticks of each row.")
@click.option("--forward", is_flag=True, help="Measure passes without gradients.")
@click.option("--compile/--no-compile", "compiled", default=False, help="Also `compile true`; it takes minutes.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Samples of each candidate.")
@click.option(
    "--memory", type=click.FloatRange(0), metavar="MB", help="The most that may be held for the backward pass."
)
@click.option("--device", help="cpu, cuda, cuda:1, ...")
@yes_option
@set_option
def command(spec: str, output: Path | None, yes: bool, overrides: dict[str, str], **settings: Any) -> int:
    """Measure blocks, checkpointing and, if asked, compiled pieces in turn; tell the fastest.

    With -o, write it as a file that `--execution` of train, compile and generate takes. Ctrl-C writes nothing.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from nestflow.bundle.tune import LEGEND, tune

    if output is not None and not _is_ours(output):
        raise fail(
            "NF032",
            f"`{output}` exists already, and nestflow tune did not write it",
            help="choose another name: nothing of yours is overwritten",
        )
    if output is not None:
        _trial(output)
    columns = TextColumn("[bold]tune"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(what: str, done: int, of: int) -> None:
            progress.update(task, description=words.clean(what), completed=done, total=of)

        try:
            found = tune(spec_of(spec), overrides=overrides, allow_large=yes, tell=tell, **settings)
        except KeyboardInterrupt:
            progress.stop()
            click.echo("interrupted: nothing was written", err=True)
            return INTERRUPTED
    click.echo(f"{words.clean(found.spec)}: {found.size}\non {found.where}\n")
    console().print(table(found))
    click.echo("; ".join(LEGEND) + "\n")
    if found.failed:
        click.echo(f"not compiled: {found.failed}", err=True)
    unsure = not found.best.settings and any(r.median < found.best.median for r in found.results)
    why = " (nothing that fits is faster by more than the samples differ)" if unsure else ""
    click.echo(f"taken: {found.best.name}{why}")
    if output is not None:
        _put(output, str(found))
        sets = "".join(f" --set {name}={value}" for name, value in overrides.items())
        sizes = f"--batch {settings['batch']} --length {settings['length']}"
        click.echo(f"next: nestflow train {spec}{sets} {sizes} --execution {output}")
    return 0


def table(t: Tuning) -> Any:
    """What was measured, the fastest first; the chosen one is marked."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    made.add_column("settings")
    for name in ("ratio", "median", "spread", "held"):
        made.add_column(name, justify="right")
    for row in t.rows():
        made.add_row(*row, style="bold" if row[0] == t.best.name else None)
    return made


def _is_ours(file: Path) -> bool:
    if not file.exists():
        return True
    try:
        return file.read_text(encoding="utf-8", errors="replace").startswith(HEAD)
    except OSError:
        return False


def _trial(file: Path) -> None:
    """Raises OSError where the file could not be written: that is known before minutes of measuring, not after."""
    folder = next(p for p in file.absolute().parents if p.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(file)) from None


def _put(file: Path, text: str) -> None:
    """Whole or not at all."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(beside, text)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
