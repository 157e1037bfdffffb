"""`nestflow explain`: a word of the language, the code of a mistake, or how a spec is computed."""

from __future__ import annotations

import json
import math
import re
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nestflow.cli.common import bundle_of, console, graph_of, set_option, yes_option
from nestflow.diagnostics.core import NestflowError, fail

_LABEL = 13  # columns of `  half-life  `
_CODE = re.compile(r"NF\d{3}", re.IGNORECASE)


@click.command("explain", epilog="Examples: nestflow explain dgd; nestflow explain NF201; nestflow explain hope")
@click.argument("what", metavar="[WORD|CODE|SPEC]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Of a spec: the same as records.")
@yes_option
@set_option
def command(what: str | None, as_json: bool, yes: bool, overrides: dict[str, str]) -> None:
    """Say what a word means, what an error code means, or how each level of a spec is lowered and what it costs.

    Without an argument, list all words.
    """
    if as_json:
        if what is None or _CODE.fullmatch(what) or word(what):
            raise click.UsageError("--json explains specs: give a shipped name or a file")
        spec(what, overrides, yes, as_json=True)
    elif what is None:
        click.echo(overview())
    elif _CODE.fullmatch(what):
        click.echo(page(what.upper()))
    elif text := word(what):
        click.echo(text)
    else:
        spec(what, overrides, yes)


def page(code: str) -> str:
    """The page of a code. Raises NestflowError NF033 where there is none."""
    from importlib.resources import files

    folder = files("nestflow.diagnostics") / "pages"
    file = folder / f"{code}.md"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    raise fail("NF033", f"there is no code {code}", help="codes are printed with each mistake, as error[NF201]")


def word(name: str) -> str | None:
    """What the vocabulary, or a shipped optimiser or block, says about a word."""
    from nestflow.vocabulary import find
    from nestflow.vocabulary.examples import example

    record = find(name)
    if record is None:
        return _template(name)
    lines = [f"{record.signature}    ({record.kind})", "", record.doc]
    if record.paper:
        lines += ["", f"from: {record.paper}"]
    if line := example(name):
        lines += ["", f"for example: {line}"]
    if record.also:
        lines += ["", "elsewhere called " + ", ".join(record.also)]
    return "\n".join(lines)


def _template(name: str) -> str | None:
    """A level, flow or optimizer of the shipped specs, as written; a whole model is explained as a spec."""
    from nestflow.language.shipped import shipped_files, shipped_template

    if name in {n.rsplit(".", 1)[-1] for n in shipped_files() if n.startswith("architectures.")}:
        return None
    found = shipped_template(name)
    if found is None or found.span is None:
        return None
    doc = f"{found.doc}\n\n" if found.doc else ""
    return f"{doc}{found.span.text}\n\n({type(found).__name__.lower()} in {Path(found.span.source.name).name})"


def spec(name: str, overrides: dict[str, str], yes: bool = False, as_json: bool = False) -> None:
    """How a spec is computed, and where the time and memory go."""
    try:
        bundle = bundle_of(name, overrides, yes)
    except NestflowError as e:
        codes = [d.code for d in e.diagnostics]
        if codes == ["NF009"]:
            raise unknown(name) from None
        if codes != ["NF560"]:
            raise
        bundle = graph_of(name, overrides)  # without its network: what is known of its levels
    from nestflow.bundle.bundle import Bundle
    from nestflow.bundle.pricing import prices
    from nestflow.lowering.explain import explain, explanations

    counts = prices(bundle) if isinstance(bundle, Bundle) else None
    if as_json:
        click.echo(json.dumps(records(explanations(bundle), counts), indent=2, ensure_ascii=False))
        return
    text = explain(bundle) + (f"\n\n{counts}" if counts else "")
    out = console()
    out.print(hanging(text, out.width), soft_wrap=True)


def records(memories: list[Any], counts: Any) -> dict[str, Any]:
    """What `--json` prints: the memories, and what was counted (null where that would take long). JSON has no infinity:
    a half-life without end is "inf"."""
    found = [asdict(e) for e in memories]
    for e in found:
        if e["half_life"] is not None and math.isinf(e["half_life"]):
            e["half_life"] = "inf"
    return {"memories": found, "counted": None if counts is None else asdict(counts)}


def hanging(text: str, width: int) -> str:
    """Long lines go on below their text, behind the column of its label."""
    lines = text.split("\n")
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=" " * _LABEL, break_long_words=False, break_on_hyphens=False)
        if len(line) > width
        else line
        for line in lines
    )


def overview() -> str:
    """All words by their kind."""
    from nestflow.language.shipped import shipped_words
    from nestflow.vocabulary import WORDS
    from nestflow.vocabulary.fields import SYNTAX

    groups: dict[str, list[str]] = {}
    for record in (*SYNTAX.values(), *WORDS.values()):
        groups.setdefault(record.kind, []).append(record.name)
    groups["shipped flow, level or optimizer"] = [w for w in shipped_words() if w not in WORDS]
    said = [
        f"{kind}\n{textwrap.fill(' '.join(sorted(names)), 98, initial_indent='  ', subsequent_indent='  ')}"
        for kind, names in groups.items()
    ]
    return "\n\n".join([*said, "nestflow explain WORD says more, and nestflow explain SPEC how a spec is computed"])


def unknown(name: str) -> NestflowError:
    """A word that is neither of the language nor a spec."""
    from nestflow.diagnostics.suggest import did_you_mean
    from nestflow.language.shipped import shipped_names, shipped_words
    from nestflow.vocabulary import WORDS
    from nestflow.vocabulary.fields import SYNTAX, words_for

    records = words_for(name)
    if records:
        help = "nestflow calls it " + " or ".join(f"`{w.name}`" for w in records)
    else:
        specs = [n.rsplit(".", 1)[-1] for n in shipped_names()]
        takes = [w.name for w in WORDS.values() if any(s.name == name for s in w.slots)]
        near = did_you_mean(name, [*WORDS, *SYNTAX, *specs, *shipped_words()])
        help = near or "`nestflow specs` lists the specs"
        if takes:
            help = f"it is an argument of {', '.join(f'`{w}`' for w in takes[:5])}: `nestflow explain {takes[0]}`"
    return fail("NF033", f"`{name}` is no word of the language, no code and no shipped spec", help=help)
