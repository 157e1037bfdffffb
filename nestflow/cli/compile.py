"""`nestflow compile`: a spec to source, a bundle, and three lines of Python that use them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nestflow.cli.common import bundle_of, execution_option, graph_of, set_option, spec_of, write, yes_option
from nestflow.diagnostics.core import fail
from nestflow.view import words

if TYPE_CHECKING:
    from nestflow.bundle.bundle import Bundle


@click.command("compile", epilog="Example: nestflow compile hope --set dim=256 -o out/hope")
@click.argument("spec", metavar="FILE|NAME")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="A folder.  [default: out/NAME]")
@click.option("--standalone", is_flag=True, help="Also write NAME_standalone.py, one file that needs torch alone.")
@click.option(
    "--dump",
    type=click.Choice(["tree", "graph", "plan", "source"]),
    help="Print what a stage of the compiler made; write nothing.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the weights.")
@click.option("--dtype", help="Type of the weights.  [default: the spec's `execution`, or float32]")
@execution_option
@yes_option
@set_option
def command(
    spec: str,
    output: Path | None,
    standalone: bool,
    dump: str | None,
    seed: int,
    dtype: str | None,
    execution: dict[str, Any] | None,
    yes: bool,
    overrides: dict[str, str],
) -> None:
    """Write model.py, optim.py (both to be read) and a bundle (to be loaded) to a folder."""
    if dump in ("tree", "graph"):
        _dump_front(spec, dump, overrides)
        return
    bundle = bundle_of(spec, overrides, yes, execution, seed=seed, dtype=dtype)
    if dump == "plan":
        from nestflow.cli.dump import dump_plan

        click.echo(dump_plan(bundle.plan), nl=False)
        return
    if dump == "source":
        click.echo(bundle.source.rstrip("\n"))
        return
    folder = output or Path("out") / bundle.name
    if (folder / "checkpoints").is_dir():
        raise fail(
            "NF032",
            f"`{folder}` holds a training run, whose bundle would be replaced by one that has learned nothing",
            help="choose another folder with -o",
        )
    files = bundle.write_source(folder)
    if standalone:
        file = folder / f"{bundle.name}_standalone.py"
        write(file, bundle.standalone())
        files.append(file)
    saved = bundle.save(folder / "bundle")
    click.echo(f"{words.clean(bundle.name)}: {words.totals(bundle.graph)}")
    for file in files:
        click.echo(f"  {file}  ({len(file.read_text(encoding='utf-8').splitlines())} lines)")
    click.echo(f"  {saved}\n\n{usage(bundle, saved)}")


def usage(bundle: Bundle, saved: Path) -> str:
    """Three lines of Python that use a bundle."""
    names = [i.name for i in bundle.graph.inputs]
    batch = ", ".join(f'"{n}": {n}' for n in names)
    learns = any(s.rule is not None for s in bundle.graph.step_levels)
    call = ", ".join(f"{n}={n}" for n in names)
    last = f"b.step({{{batch}}})" if learns else f"b.module({call})"
    load = f'b = nestflow.load("{saved.as_posix()}")'
    wide = max(len(load), len(last))
    what = "one step of training" if learns else "what it computes"
    return f"import nestflow\n{load:<{wide}}  # b.module, b.optimizer: torch's own kinds\n{last:<{wide}}  # {what}"


def _dump_front(spec: str, stage: str, overrides: dict[str, str]) -> None:
    from nestflow.cli.dump import dump

    if stage == "graph":
        click.echo(dump(graph_of(spec, overrides)), nl=False)
        return
    from nestflow.language.resolve import load

    click.echo(dump(load(spec_of(spec), overrides).body), nl=False)
