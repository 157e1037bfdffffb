"""What commands share: `--set`, loading a spec, consoles, writing files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nestflow.diagnostics.core import fail

if TYPE_CHECKING:
    from nestflow.graph.model import LevelGraph


def parse_sets(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--set dim=512` as {"dim": "512"}; the value is an expression of the language."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise click.BadParameter(f"`{text}` is not NAME=VALUE, as in --set dim=512", ctx, param)
        found[name.strip()] = value.strip()
    return found


def set_option(f: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--set NAME=VALUE`, given to the command as `overrides`, and `--allow-python`."""
    return python_option(
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="NAME=VALUE",
            callback=parse_sets,
            help="Set a param; may be repeated.",
        )(f)
    )


def python_option(f: Callable[..., Any]) -> Callable[..., Any]:
    """The option `--allow-python`: what the command reads may run the Python functions that it names."""
    return click.option(
        "--allow-python",
        is_flag=True,
        expose_value=False,
        callback=_allow_python,
        help='Let the spec run the Python functions that it names, py("pkg.mod:fn").',
    )(f)


def _allow_python(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    from nestflow import _python

    _python.allow(given)
    if given and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # functions of yours lie where you work


def execution_option(f: Callable[..., Any]) -> Callable[..., Any]:
    """The option `--execution FILE`, given to the command as `execution`: settings by name, checked, or None."""
    return click.option(
        "--execution",
        metavar="FILE",
        callback=_execution,
        help="Settings of `execution`, as `nestflow tune` writes them; they are not saved with a bundle.",
    )(f)


def _execution(ctx: click.Context, param: click.Parameter, file: str | None) -> dict[str, Any] | None:
    if file is None:
        return None
    from nestflow.bundle.tuned import told

    return told(file)


def yes_option(f: Callable[..., Any]) -> Callable[..., Any]:
    """The flag `--yes`, given to the command as `yes`: large weights are meant."""
    return click.option("--yes", is_flag=True, help="Make weights and state over 1 GB without asking.")(f)


def spec_of(target: str) -> str:
    """The target of a command: `-` is the text on stdin."""
    if target != "-":
        return target
    from nestflow.cli.text import read_spec_text

    return read_spec_text(Path("-")) + "\n"


def graph_of(target: str, overrides: dict[str, str]) -> LevelGraph:
    """The checked level graph of a spec."""
    from nestflow.graph.build import build
    from nestflow.language.resolve import load

    return build(load(spec_of(target), overrides))


def bundle_of(
    target: str,
    overrides: dict[str, str],
    yes: bool = False,
    execution: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A compiled spec, or a bundle loaded from its folder. yes: large weights are made."""
    import nestflow

    if target and Path(target).is_dir():
        if overrides:
            raise fail(
                "NF035", f"`{target}` is a bundle: its params are settled", help="compile its spec anew with --set"
            )
        return nestflow.load(find_bundle(Path(target)), execution=execution)
    return nestflow.compile(spec_of(target), overrides=overrides, allow_large=yes, execution=execution, **settings)


def find_bundle(path: Path) -> Path:
    """The bundle that a folder is, or that a run left in it (the trained one, else its last checkpoint)."""
    if (path / "bundle.json").is_file() or not path.is_dir():
        return path
    if (path / "bundle").is_dir():
        return path / "bundle"
    if (path / "checkpoints").is_dir():
        from nestflow.train.checkpoint import find_checkpoint

        return find_checkpoint(path)[0]
    raise fail(
        "NF033",
        f"`{path}` holds no bundle and no run",
        help="give a folder that `nestflow compile` or `nestflow train` wrote",
    )


def console(stderr: bool = False) -> Any:
    """See `nestflow.view.screen.console`; rich is loaded when it is called."""
    from nestflow.view import screen

    return screen.console(stderr)


def write(path: Path, text: str, force: bool = True) -> None:
    """Writes a text file with its folders. Raises NestflowError NF032 where it exists and may not be replaced."""
    if path.exists() and not force:
        raise fail("NF032", f"`{path}` exists already", help="choose another name, or add --force to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
