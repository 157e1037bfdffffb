"""Layers alone against the GEMM floor: HOPE's five memories, a memory that no paper has, and Titans' beside it.

Each by the options of `execution`. The floor is recorded (`benchmarks.products`) for all of them, so that they can be
held against each other; that of the suite titans_memory is written by hand, and differs.
Before anything is timed the compiled module must give what its per-token loop gives in float64, and the
options what the plain module gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import nestflow
from benchmarks.cases import DIM, forward_pass, same_by_options, training_pass
from benchmarks.layers import CLOSE
from benchmarks.models import per_token
from benchmarks.options import Options
from benchmarks.peak import in_a_process
from benchmarks.products import multiply_adds, recorded, replay
from benchmarks.same import apart
from benchmarks.timing import interleave
from nestflow.bundle.bundle import Bundle

# what, spec, name of its chunk, chunk
LAYERS: tuple[tuple[str, str, str, int], ...] = (
    ("HOPE's five memories", "hope_memory", "chunk", 16),
    ("HOPE's five memories", "hope_memory", "chunk", 64),
    ("Titans' memory", "titans_memory", "chunk_size", 32),
    ("gated MLP, huber, nesterov, every 4 tokens", "new_memory", "chunk", 32),
)
CASES: dict[str, dict[str, Any]] = {
    "nestflow": {},
    "nestflow, checkpointing auto": {"checkpointing": "auto"},
    "nestflow, compiled": {"compile": True},
}
WARM = "nestflow, compiled"
COMPILED = ("hope_memory",)  # specs that are timed so too: it takes minutes to compile one
LENGTHS = (2048, 128)  # of a full run and of a quick one


def layer(spec: str, name: str, chunk: int, case: str, device: str) -> Bundle:
    """The spec with that chunk, as the case runs it."""
    path = Path(__file__).with_name(f"{spec}.nl")
    return nestflow.compile(str(path), execution=CASES[case] or None, device=device, **{name: chunk})


def passes_of(spec: str, name: str, chunk: int, case: str, length: int, device: str) -> tuple[Callable[[], None], ...]:
    """For `benchmarks.peak`: a pass before, and the training pass that counts."""
    module = layer(spec, name, chunk, case, device).module
    x = torch.randn(1, length, DIM, device=device)
    return training_pass(module, x[:, : 2 * chunk]), training_pass(module, x)


def loop_apart(bundle: Bundle, ticks: int = 40) -> float:
    """How far the compiled layer is from the same spec tick by tick, in float64."""
    loop = per_token(bundle)
    x = torch.randn(1, ticks, DIM, dtype=torch.float64, device=str(next(loop.parameters()).device))
    try:
        with torch.no_grad():
            return apart([bundle.module.double()(x=x)], [loop.double()(x=x)])
    finally:
        bundle.module.float()


def measured(what: str, spec: str, name: str, chunk: int, options: Options) -> list[dict[str, Any]]:
    """A row for each case; one that has `failed` where the numbers are not the same."""
    torch.manual_seed(0)
    torch.compiler.reset()
    length, device = LENGTHS[options.quick], options.device
    cases = [n for n in CASES if n != WARM or (spec in COMPILED and not options.quick)]
    bundles = {n: layer(spec, name, chunk, n, device) for n in cases}
    about = {"what": what, "spec": spec, "chunk": chunk}
    error = loop_apart(bundles["nestflow"])
    if not error < CLOSE:
        return [{**about, "case": "nestflow", "failed": f"it and its loop differ by {error:.1e} in float64"}]
    modules = {n: b.module for n, b in bundles.items()}
    x = torch.randn(1, length, DIM, device=device)
    others = {n: m for n, m in modules.items() if n != "nestflow"}
    apart_ = same_by_options(modules["nestflow"], others, x)
    if bad := {n: e for n, e in apart_.items() if not e < 1e-4}:
        return [{**about, "case": n, "failed": f"it differs by {e:.1e} from the plain module"} for n, e in bad.items()]
    products = recorded(forward_pass(modules["nestflow"], x))
    floor = replay(products, device)
    rows = [
        {**about, "case": n, "difference": error, "multiply_adds_per_token": multiply_adds(products) // length}
        for n in cases
    ]
    for mode, make, passes in (("forward", forward_pass, 1), ("training", training_pass, 3)):
        runs = {n: make(m, x) for n, m in modules.items()}
        for run in runs.values():
            run()
        times = interleave(floor, runs, options.rounds, options.budget, device)
        for row in rows:
            row[mode] = times[row["case"]].summary(passes)
    for row in rows:
        arguments = [spec, name, chunk, row["case"], length, device]
        skipped = options.quick or row["case"] == WARM  # it would be compiled again
        row["peak_mb"] = None if skipped else in_a_process("benchmarks.memories:passes_of", arguments, device)
        print(
            f"{what}, chunk {chunk}  {row['case']:30s} forward {row['forward']['ratio']:.2f} × floor, "
            f"training {row['training']['ratio']:.2f}, {row['peak_mb'] or 0:.0f} MB",
            flush=True,
        )
    return rows


def results(options: Options) -> dict[str, Any]:
    """All rows, kept after each layer."""
    settings = {"length": LENGTHS[options.quick], "dim": DIM, "rounds": options.rounds}
    found = options.begin("memories", settings)
    done = {(r["spec"], r["chunk"]) for r in found["rows"]}
    for what, spec, name, chunk in LAYERS:
        if (spec, chunk) in done:
            continue
        found["rows"] += measured(what, spec, name, chunk, options)
        options.keep("memories", found)
    for r in found["rows"]:
        if "failed" in r:
            print(f"{r['what']}, {r['case']}: {r['failed']}", file=sys.stderr)
    return found


def markdown(result: dict[str, Any]) -> str:
    """One row a layer and case."""
    lines = [
        "| layer | | forward, × floor | training, × floor | peak MB of training | multiply-adds a token |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        name = f"| [{r['what']}](../benchmarks/{r['spec']}.nl), chunk {r['chunk']} | {r['case']} |"
        if "failed" in r:
            lines.append(f"{name} not timed: {r['failed']} | – | – | – |")
            continue
        cells = " | ".join(_ratio(r[m]) for m in ("forward", "training"))
        peak = f"{r['peak_mb']:,.0f}" if r.get("peak_mb") is not None else "–"
        lines.append(f"{name} {cells} | {peak} | {r['multiply_adds_per_token']:,} |")
    return "\n".join(lines)


def _ratio(s: dict[str, float]) -> str:
    spread = f"({s['ratio_low']:.1f}–{s['ratio_high']:.1f})" if s["rounds"] > 1 else "(1 run)"
    return f"**{s['ratio']:.1f}** {spread}"
