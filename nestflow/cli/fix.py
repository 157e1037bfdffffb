"""`nestflow check --fix`: the sure fixes of a file's mistakes, made in the file, and the difference."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import click

from nestflow.cli.colour import wanted
from nestflow.diagnostics.core import Diagnostic, NestflowError
from nestflow.diagnostics.fixes import Mended, mend


def fix_file(target: str, overrides: dict[str, str], write: bool, quiet: bool = False) -> list[Diagnostic]:
    """Mend a file, show the difference, and give what was mended. Raises NestflowError (NF0xx) if it cannot be read."""
    from nestflow.language.reader import is_file_name, read_source

    if not is_file_name(target):
        raise click.UsageError(f"--fix and --diff change files, and `{target}` is the name of a shipped spec")
    path = Path(target)
    old = read_source(path).text
    done = mend_text(old, path, overrides)
    if done.text != old:
        if write:
            mark = "\ufeff" if path.read_bytes().startswith(b"\xef\xbb\xbf") else ""
            path.write_bytes((mark + done.text).encode("utf-8"))
        if not quiet:
            click.echo(_difference(old, done.text, target), nl=False, color=wanted())
            click.echo(f"{target}: {_said(done.applied, write)}")
    return done.applied


def mend_text(text: str, path: Path, overrides: dict[str, str]) -> Mended:
    """A text as `check --fix` would leave it; `path` is where it stands, which files it `use`s are found by."""
    from nestflow.graph.build import build
    from nestflow.language.reader import parse_named
    from nestflow.language.resolve import program_of

    def check(new: str) -> Sequence[Diagnostic]:
        try:
            build(program_of(parse_named(new, path), path.parent, str(path.resolve()), overrides))
        except NestflowError as e:
            return e.diagnostics
        return ()

    return mend(text, str(path), check)


def _difference(old: str, new: str, name: str) -> str:
    """A unified difference, coloured where a terminal shows it."""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"{name} (before)", name, n=1
    )
    colours = {"+": "green", "-": "red", "@": "cyan"}
    out: list[str] = []
    for line in lines:
        line = line if line.endswith("\n") else line + "\n"
        head = line[:3] in ("+++", "---")
        colour = None if head else colours.get(line[0])
        out.append(click.style(line, fg=colour, bold=head) if wanted() and (colour or head) else line)
    return "".join(out)


def _said(applied: Sequence[Diagnostic], write: bool) -> str:
    codes = sorted({d.code for d in applied})
    mistakes = "1 mistake" if len(applied) == 1 else f"{len(applied)} mistakes"
    return f"{'mended' if write else '--fix would mend'} {mistakes} ({', '.join(codes)})"
