"""`make demo`: HOPE from a page of spec to a model that has learned real text, and what its memory is for.

    python -m nestflow.train.demo --out out/hope

Draws the level graph, trains on the shipped plays, compares with byte n-grams and with the same weights when the memory
does not learn, looks at windows four times as long. Associative recall, with and without a learning memory, is trained
meanwhile by a second process (these tensors are too small for one process to use two cores well).
Everything printed is measured in this run; `results.json` has all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from nestflow.diagnostics.core import NestflowError
from nestflow.diagnostics.render import safe
from nestflow.train.data import Corpus, Windows, corpus
from nestflow.train.demo_recall import RecallPlan, RecallRun
from nestflow.train.evaluate import PositionLoss, loss_by_position, validation_bpb
from nestflow.train.history import History
from nestflow.train.loop import train
from nestflow.train.ngrams import baselines
from nestflow.train.plot import plot_loss
from nestflow.train.sampling import generate
from nestflow.view import screen


@dataclass(frozen=True)
class Plan:
    """What the demo does. budget: seconds for the text part; a slower machine takes fewer steps, and is told so."""

    spec: str = "hope"
    text: str = "shakespeare"
    model: dict[str, Any] = field(default_factory=lambda: {"dim": 128, "depth": 2, "n_heads": 4, "chunk": 16})
    steps: int = 400
    batch: int = 8
    length: int = 256
    eval_windows: int = 64
    budget: float = 200.0
    recall: RecallPlan = field(default_factory=RecallPlan)


QUICK = Plan(
    model={"dim": 32, "depth": 1, "n_heads": 2, "chunk": 16},
    steps=8,
    batch=2,
    length=64,
    eval_windows=4,
    recall=RecallPlan(model={"dim": 16, "depth": 1, "n_heads": 1, "chunk": 4}, steps=3, rows=8),
)


def demo(out: str | Path = "out/hope", plan: Plan = Plan(), console: Console | None = None) -> dict[str, Any]:
    """Run the demo and leave its files in `out`; returns what `results.json` holds."""
    import nestflow

    begin = time.perf_counter()
    console = console or screen.console()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    bundle = nestflow.compile(plan.spec, **plan.model)
    _draw(console, bundle)
    text = corpus(plan.text)
    yard = baselines(text)
    _say(console, f"{plan.text}: {len(text.train_N):,} bytes to train on, {len(text.val_M):,} held out")
    results: dict[str, Any] = {"where": _where(nestflow.__version__), "plan": asdict(plan), "baselines_bpb": yard}

    with RecallRun(plan.recall, out / "recall.json") as recall:
        steps = _steps_for(console, plan, text)
        console.print(Rule(f"1  {plan.spec} learns {plan.text}", align="left"))
        history = train(
            bundle, text, steps, batch=plan.batch, length=plan.length, eval_every=-(-steps // 4), seed=0,
            eval_windows=plan.eval_windows, checkpoint_every=100, out=out, overwrite=True, console=console,
        )  # fmt: skip
        if history.interrupted:
            _say(console, f"go on with: nestflow train --resume --out {out}")
            return results
        results["text"] = history.to_json()
        results["text"]["parameters"] = sum(p.numel() for p in bundle.module.parameters())
        _sample(console, bundle, results)
        positions = _measure(console, plan, bundle, history, text, yard, results)
        _leave(bundle, out, history, yard, positions, plan)
        console.print(Rule("2  what the memory is for: associative recall", align="left"))
        results["recall"] = recall.finish(console)
    results["seconds"] = time.perf_counter() - begin
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    _say(console, f"\n{results['seconds']:.0f} s in all. In {out}: " + ", ".join(sorted(p.name for p in out.iterdir())))
    return results


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style))


def _draw(console: Console, bundle: Any) -> None:
    from nestflow.view.terminal import render

    console.print(render(bundle.graph))


def _where(version: str) -> dict[str, Any]:
    return {
        "nestflow": version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _steps_for(console: Console, plan: Plan, text: Corpus) -> int:
    """The planned steps, or fewer where this machine would take longer than the budget; said aloud when fewer."""
    import nestflow

    probe = nestflow.compile(plan.spec, **plan.model)
    windows = Windows(text.train_N, plan.batch, plan.length, seed=1)
    name = probe.graph.inputs[0].name
    probe.step({name: windows.next()})
    begin = time.perf_counter()
    for _ in range(3):
        probe.step({name: windows.next()})
    each = (time.perf_counter() - begin) / 3
    possible = int(plan.budget / max(each, 1e-9))
    if possible >= plan.steps:
        return plan.steps
    steps = max(possible // 10 * 10, 20)
    _say(
        console,
        f"a step takes {each:.2f} s here, so {plan.steps} steps would take {each * plan.steps:.0f} s: "
        f"training {steps} steps instead",
        "yellow",
    )
    return min(steps, plan.steps)


def _sample(console: Console, bundle: Any, results: dict[str, Any]) -> None:
    prompt = "\nHAMLET.\n"
    data = generate(bundle, prompt, tokens=300, temperature=0.7, seed=0)
    written = prompt.lstrip() + data.decode("utf-8", errors="replace")
    results["sample"] = written
    console.print(
        Panel(Text(safe(written)), title="what it writes (temperature 0.7)", title_align="left", expand=False)
    )


def _frozen(plan: Plan, bundle: Any) -> Any:
    """The same weights in the same model with its inner rates at 0: a memory that stays as it starts."""
    import nestflow

    still = nestflow.compile(plan.spec, **plan.model, rate=0)
    still.module.load_state_dict(bundle.module.state_dict())
    return still


def _against(own: float, yard: dict[str, float], name: str) -> str:
    return f"{abs(yard[name] - own):.3f} {'below' if own < yard[name] else 'above'} the byte {name}"


def _measure(
    console: Console,
    plan: Plan,
    bundle: Any,
    history: History,
    text: Corpus,
    yard: dict[str, float],
    results: dict[str, Any],
) -> list[PositionLoss]:
    """The table of bits per byte, and loss against position up to four times the length trained on."""
    own = history.val[-1][1]
    frozen = validation_bpb(_frozen(plan, bundle), text.val_M, plan.length, plan.eval_windows, plan.batch)
    results["val_bpb"] = {plan.spec: own, "memory frozen, same weights": frozen}
    table = Table("validation, bits per byte", "", box=None, header_style="bold")
    for name in ("unigram", "bigram", "trigram", "4-gram"):
        table.add_row(f"byte {name}", f"{yard[name]:.3f}")
    table.add_row(f"{plan.spec}, {history.steps} steps", f"[bold]{own:.3f}[/bold]")
    table.add_row("the same weights, inner rates at 0 (memory frozen)", f"{frozen:.3f}")
    console.print(table)
    _say(
        console,
        f"{_against(own, yard, 'bigram')}, {_against(own, yard, 'trigram')}; the memory's learning in context is worth "
        f"{frozen - own:.3f} bits per byte on this text",
    )
    longest = 4 * plan.length
    positions = loss_by_position(bundle, text.val_M, longest, windows=48, buckets=8, batch=8)
    results["loss_by_position"] = [asdict(p) for p in positions]
    quarter = [
        sum(p.bpb * (p.stop - p.start) for p in positions if i * plan.length <= p.start < (i + 1) * plan.length)
        / plan.length
        for i in range(4)
    ]
    results["bpb_by_training_length"] = quarter
    table = Table("position in windows of", *(f"{i * plan.length}–{(i + 1) * plan.length}" for i in range(4)), box=None)
    table.add_row(f"{longest} (trained on {plan.length})", *(f"{q:.3f}" for q in quarter))
    console.print(table)
    return positions


def _leave(
    bundle: Any, out: Path, history: History, yard: dict[str, float], positions: list[PositionLoss], plan: Plan
) -> None:
    """The bundle, its source, its pictures and the curves in `out`."""
    from nestflow.view import write_html, write_svg

    bundle.save(out / "bundle")
    bundle.write_source(out)
    write_svg(bundle.graph, out / "graph.svg")
    write_html(bundle.graph, out / "graph.html")
    lines = {name: yard[name] for name in ("bigram", "trigram")}
    plot_loss(out / "loss.png", history, lines, positions, plan.length, f"{plan.spec} on {plan.text}")


def main(argv: list[str] | None = None) -> int:
    """Command line of the demo. Exit code 1 for an error that is told, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="nestflow.train.demo", description="Train HOPE on real text and show what it does."
    )
    parser.add_argument("--out", default="out/hope", help="folder for the bundle, the pictures and results.json")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps: checks that everything runs")
    args = parser.parse_args(argv)
    # recall runs beside the text part, and threads that wait for a busy core cost more than they bring at these sizes
    torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) - 1)))
    try:
        results = demo(args.out, QUICK if args.quick else Plan())
    except NestflowError as e:
        print(e, file=sys.stderr)
        return 1
    return 0 if "recall" in results else 130


if __name__ == "__main__":
    sys.exit(main())
