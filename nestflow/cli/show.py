"""`nestflow show`: a spec as one text, or every value with every default and where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nestflow.cli.colour import echo_spec, wanted
from nestflow.cli.common import set_option
from nestflow.diagnostics.core import fail

if TYPE_CHECKING:
    from nestflow.language.resolve import Program
    from nestflow.view.resolved import Row, Section

WIDTH = 44


@click.command(
    "show",
    epilog="Examples: nestflow show hope --resolved; nestflow show my.nl --where lr --set lr=1e-3",
)
@click.argument("spec", metavar="FILE|NAME")
@click.option("--resolved", is_flag=True, help="Every value with every default, where it is from, what it replaced.")
@click.option("--where", metavar="NAME", help="Only the values of this name: a param, a field, a slot (`adamw.beta2`).")
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True, help="As what."
)
@set_option
def command(spec: str, resolved: bool, where: str | None, format_: str, overrides: dict[str, str]) -> None:
    """Print a spec with all it uses as one text that stands alone; with --resolved or --where, its values instead."""
    from nestflow.language.resolve import load

    program = load(spec, overrides)
    if not resolved and where is None and format_ == "text":
        echo_spec(one_text(program).rstrip("\n"), "spec.nl")
        return
    from nestflow.graph.build import build
    from nestflow.view.resolved import resolved as values

    sections = values(program, build(program))
    if where is not None:
        sections = _only(sections, where)
    if format_ == "json":
        click.echo(json.dumps([asdict(s) for s in sections], indent=2, ensure_ascii=False))
    else:
        click.echo("\n\n".join(_section(s) for s in sections), color=wanted())


def one_text(program: Program) -> str:
    """The program in .nl: no `use` and no `extends`, params as they are set."""
    from dataclasses import replace

    from nestflow.language import tree as T
    from nestflow.language.printer import print_nl

    given = dict(program.overrides)
    body = (
        replace(s, default=given[s.name]) if isinstance(s, T.Param) and s.name in given else s for s in program.body
    )
    return print_nl(replace(program.spec, body=tuple(body)))


def _only(sections: list[Section], name: str) -> list[Section]:
    """The sections with those of their rows whose name is the one asked for, or ends in it."""
    from dataclasses import replace

    from nestflow.diagnostics.suggest import did_you_mean

    def fits(row: Row) -> bool:
        return row.name == name or row.name.endswith("." + name)

    found = [replace(s, rows=tuple(r for r in s.rows if fits(r))) for s in sections]
    found = [s for s in found if s.rows]
    if not found:
        known = {part for s in sections for r in s.rows for part in (r.name, r.name.rsplit(".", 1)[-1])}
        help = did_you_mean(name, known) or "`nestflow show SPEC --resolved` lists all"
        raise fail("NF033", f"the spec has no value `{name}`", help=help)
    return found


def _section(s: Section) -> str:
    from nestflow.diagnostics.render import safe

    head = click.style(safe(s.title), bold=True) + (f"  {_dim(s.origin)}" if s.origin else "")
    names = max((len(r.name) + 2 * r.depth for r in s.rows), default=0)
    texts = min(WIDTH, max((len(_text(r)) for r in s.rows), default=0))
    return "\n".join([head, *(_row(r, names, texts) for r in s.rows)])


def _text(r: Row) -> str:
    from nestflow.diagnostics.render import safe

    return safe(" ".join(r.text.split()) + (f" = {r.value}" if r.value is not None else ""))


def _row(r: Row, names: int, texts: int) -> str:
    from nestflow.diagnostics.render import safe

    name = ("  " * r.depth + safe(r.name)).ljust(names)
    text = _text(r).ljust(texts)
    origin = safe(r.origin) + (f", in place of {safe(r.instead)}" if r.instead else "")
    return f"  {name}  {text if r.given else _dim(text)}  {_dim(origin)}".rstrip()


def _dim(text: Any) -> str:
    return click.style(text, dim=True) if wanted() else text
