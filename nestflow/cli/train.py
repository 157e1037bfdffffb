"""`nestflow train`: text in, a trained bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nestflow.cli.common import bundle_of, execution_option, set_option, yes_option
from nestflow.cli.failure import INTERRUPTED
from nestflow.view import words


@click.command(
    "train",
    epilog="Examples: nestflow train hope --steps 400 --out out/hope; nestflow train --resume --out out/hope",
)
@click.argument("spec", metavar="[FILE|NAME|BUNDLE]", required=False)
@click.option(
    "--data",
    help="A text file, a folder of .txt files, the shipped text; or examples: a .npz, .safetensors, .csv or .jsonl "
    "file, or a folder of .npy files.  [default: shakespeare]",
)
@click.option("--steps", type=click.IntRange(1), help="Steps in all.  [default: 400]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for the log, checkpoints and the trained bundle.  [default: out/NAME]",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, bit for bit.")
@click.option("--overwrite", is_flag=True, help="Drop an earlier run in --out.")
@click.option("--batch", type=click.IntRange(1), help="Windows, or examples, per step.  [default: 8]")
@click.option("--length", type=click.IntRange(2), help="Tokens per window of longer sequences.  [default: 256]")
@click.option("--seed", type=click.IntRange(0), help="Of the weights and of the windows.  [default: 0]")
@click.option("--holdout", type=click.FloatRange(0, 1, True, True), help="Share for validation.  [default: 0.1]")
@click.option("--eval-every", type=click.IntRange(0), help="Steps between validations; 0: at the end.  [default: 100]")
@click.option(
    "--checkpoint-every", type=click.IntRange(0), help="Steps between checkpoints; 0: at the end.  [default: 100]"
)
@click.option("--device", help="cpu, cuda, cuda:1, ...")
@click.option("--quiet", is_flag=True, help="No progress display.")
@execution_option
@yes_option
@set_option
def command(
    spec: str | None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    device: str | None,
    quiet: bool,
    execution: dict[str, Any] | None,
    yes: bool,
    overrides: dict[str, str],
    **settings: Any,
) -> int:
    """Train on text or on examples, with a live display: step, loss, validation, tokens/s, which levels learned.

    Ctrl-C ends after the step, with a checkpoint; --resume goes on as if nothing had happened.
    """
    if resume and (spec is not None or overrides):
        raise click.UsageError("--resume takes spec and params from the run in --out: give neither SPEC nor --set")
    if resume and out is None:
        raise click.UsageError("--resume needs --out, the folder of the run")
    if not resume and spec is None:
        raise click.UsageError("Missing argument 'FILE|NAME|BUNDLE'.")
    given = {k: v for k, v in settings.items() if v is not None}
    from nestflow.train import train
    from nestflow.train.display import told
    from nestflow.train.protocol import reads_bytes

    bundle = None
    if not resume:
        bundle = bundle_of(
            spec or "", overrides, yes, execution, **_compile_settings(spec or "", given.get("seed"), device)
        )
        out = out or Path("out") / bundle.name
    if out is not None:
        from nestflow.bundle.files import refuse_foreign

        refuse_foreign(out / "bundle")
    history = train(
        bundle,
        out=out,
        resume=out if resume else None,
        overwrite=overwrite,
        show=not quiet,
        execution=execution,
        **given,
    )
    if history.interrupted:
        click.echo(f"go on with: nestflow train --resume --out {out}", err=True)
        return INTERRUPTED
    folder = out or Path("out")
    saved = history.bundle.save(folder / "bundle")
    last = {"bits per byte": history.val[-1][1]} if history.val else dict(history.metrics[-1:]).get(history.steps)
    measured = "" if last is None else f"validation {told(last)}; "
    click.echo(f"{words.plural(history.steps, 'step')}; {measured}saved {saved}")
    if reads_bytes(history.bundle):
        click.echo(f"next: nestflow generate {saved} --prompt 'The '")
    return 0


def _compile_settings(spec: str, seed: int | None, device: str | None) -> dict[str, Any]:
    """What `nestflow.compile` is told; a bundle that is loaded has its weights already."""
    settings: dict[str, Any] = {} if device is None else {"device": device}
    return settings if Path(spec).is_dir() or seed is None else settings | {"seed": seed}
