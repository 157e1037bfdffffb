"""`nestflow generate`: a trained bundle writes."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import click

from nestflow.cli.common import execution_option, find_bundle, python_option


@click.command("generate", epilog="Example: nestflow generate out/hope/bundle --prompt 'To be' --tokens 300")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", default="\n", help="What the text begins with.")
@click.option("--tokens", type=click.IntRange(0), default=400, show_default=True, help="How many bytes to write.")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.7, show_default=True, help="0 takes the likeliest byte."
)
@click.option("--top-k", type=click.IntRange(1), help="Draw from the k likeliest only.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same text.")
@execution_option
@python_option
def command(
    bundle: Path,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    execution: dict[str, Any] | None,
) -> None:
    """Continue a prompt, byte by byte, the memories learning while they read.

    BUNDLE is a bundle or the folder of a run.
    """
    import nestflow
    from nestflow.diagnostics.render import safe
    from nestflow.train import generate

    loaded = nestflow.load(find_bundle(bundle), execution=execution)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    click.echo(prompt if prompt.strip() else "", nl=False)
    generate(
        loaded,
        prompt,
        tokens,
        temperature,
        seed,
        top_k,
        on_token=lambda byte: click.echo(safe(decoder.decode(bytes([byte]))), nl=False),
    )
    click.echo(safe(decoder.decode(b"", final=True)))
