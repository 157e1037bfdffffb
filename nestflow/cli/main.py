"""`nestflow`: the group of commands. A command's module is loaded when it is used, so that help and check stay fast."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from nestflow._version import __version__

# name: (module.attribute, one line of help); in the order of the help text
COMMANDS = {
    "specs": ("specs:command", "List the shipped specs, or print one."),
    "new": ("new:command", "Start a spec of your own from a shipped one."),
    "check": ("check:command", "Check specs: names, shapes, clocks, levels."),
    "explain": ("explain:command", "Explain a word, an error code, or how a spec is lowered."),
    "view": ("view:command", "Draw the level graph, in the terminal or as svg, html, png, mmd, dot."),
    "compile": ("compile:command", "Write the PyTorch module, the optimizer and a bundle."),
    "tune": ("tune:command", "Measure how a spec runs fastest on this machine."),
    "train": ("train:command", "Train on text, with checkpoints; or go on with a run."),
    "generate": ("generate:command", "Let a trained bundle write."),
    "fmt": ("fmt:command", "Format a spec in place, or check that it is formatted."),
    "convert": ("convert:command", "Turn .nl into YAML and YAML into .nl."),
    "show": ("show:command", "Print a spec as one text, or every value and where it comes from."),
    "schema": ("schema:command", "Print the JSON Schema of specs in YAML, for editors."),
}

START = """
\b
Start here:
  nestflow specs                    what is shipped
  nestflow view hope                HOPE's levels in time
  nestflow new my.nl --from hope    a spec of your own
  nestflow check my.nl
  nestflow train my.nl --steps 200 --out out/my
"""


class Commands(click.Group):
    """Loads commands late, suggests names, and turns what goes wrong into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        return getattr(import_module(f"nestflow.cli.{module}"), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from nestflow.diagnostics.render import safe
            from nestflow.diagnostics.suggest import did_you_mean

            near = did_you_mean(args[0], COMMANDS)
            hint = near or "`nestflow --help` lists the commands"
            raise click.UsageError(f"there is no command `{safe(args[0])[:60]}`: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Runs a command. Exit codes: 0, 1 a user's mistake, 2 usage, 70 an internal error, 130 Ctrl-C."""
        from nestflow.cli.failure import run

        extra["standalone_mode"] = False
        sys.exit(run(lambda: super(Commands, self).main(*args, **extra)))


@click.group(
    cls=Commands, invoke_without_command=True, epilog=START, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="nestflow")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Nested optimisation as a language: levels with a memory, an objective, an update rule and a frequency become a
    PyTorch module and an optimizer."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """The console entry point."""
    app.main(prog_name="nestflow")
