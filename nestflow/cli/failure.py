"""What a command's failure looks like: diagnostics on stderr, quiet interrupts, a report file for a crash."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from nestflow.diagnostics.core import NestflowError, fail

MISTAKE, USAGE, INTERNAL, INTERRUPTED = 1, 2, 70, 130


def run(call: Callable[[], Any]) -> int:
    """Calls, and gives the exit code of the process."""
    try:
        result = call()
    except NestflowError as e:
        show(e)
        return MISTAKE
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except OSError as e:
        return _system(e)
    except Exception as e:
        if _is_memory(e):
            help_ = "a smaller batch, length or spec needs less"
            show(fail("NF034", "there is not enough memory for this", help=help_))
            return MISTAKE
        return _crash(e)  # a fault of ours: it is told as one, with where to report it, and the trace kept
    return result if isinstance(result, int) else 0


def show(error: NestflowError, format: str = "text") -> None:
    """Diagnostics on stderr, coloured where a terminal shows it."""
    from nestflow.cli.colour import wanted
    from nestflow.diagnostics import render

    if format == "short":
        for d in error.diagnostics:
            click.echo(render.short(d), err=True)
        return
    paint = render.plain
    if wanted(stderr=True):
        from nestflow.editor.terminal import paint
    if format == "full":
        from nestflow.diagnostics.reports import full

        text = full(error.diagnostics, paint)
    else:
        text = render.render_all(error.diagnostics, paint)
    click.echo(text, err=True, color=paint is not render.plain)


def _system(e: OSError) -> int:
    """The system refused a file: a sentence, not a trace."""
    what = f"`{e.filename}`" if e.filename else "a file"
    show(fail("NF034", f"the system would not let {what} be used: {e.strerror or e}"))
    return MISTAKE


def _is_memory(e: Exception) -> bool:
    """Python's, a GPU's, and what torch raises on a CPU. By name: torch may not be loaded."""
    return type(e).__name__ in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator" in str(e)


def _crash(e: Exception) -> int:
    """An internal error: the trace goes to a file that a report can carry."""
    import platform
    import tempfile
    import traceback

    from nestflow._version import __version__

    trace = "".join(traceback.format_exception(e))
    where = f"nestflow {__version__}, Python {platform.python_version()}, {platform.system()}"
    head = f"{where}\narguments: {sys.argv[1:]!r}\n\n"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="nestflow-", suffix=".txt", delete=False, encoding="utf-8") as f:
            f.write(head + trace)
        place = f"the trace is in {f.name}"
    except OSError:
        place = f"the trace could not be written to a file:\n{trace}"
    click.echo(
        f"internal error: {type(e).__name__}: {' '.join(str(e).split())[:200]}\n"
        f"This is a bug in nestflow, not in your spec; {place}\n"
        "Please report it with that file and the spec.",
        err=True,
    )
    return INTERNAL
