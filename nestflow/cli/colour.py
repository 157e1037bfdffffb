"""When commands colour what they print: on terminals, unless NO_COLOR is set; elsewhere only where FORCE_COLOR is."""

from __future__ import annotations

import os
import sys

import click


def wanted(stderr: bool = False) -> bool:
    """Whether to colour stdout, or stderr (no-color.org: NO_COLOR counts where it is set and not empty)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    stream = sys.stderr if stderr else sys.stdout
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def echo_spec(text: str, name: str) -> None:
    """Print a spec's text, in colours where they are wanted; `name` tells YAML from .nl."""
    if not wanted():
        click.echo(text)
        return
    from nestflow.editor.terminal import highlight

    click.echo(highlight(text, name), color=True)
