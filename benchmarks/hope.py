"""HOPE's self-modifying memory and two MLPs of a continuum, ours beside the package nested-learning.

`hope_block.nl` with one head computes what the package computes, which is checked in float64 before anything is timed.
The package knows one head; with four of the same width in all, ours is the size of the other suites. Both learn while
they read. Training is a step of each: ours with gradients through all that the memories did, the package's without (its
memories learn in `torch.no_grad`), and with the pass in which they learn (see `benchmarks.hope_peer`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import hope_peer as peer
from benchmarks.cases import DIM
from benchmarks.machine import version
from benchmarks.options import Options
from benchmarks.peak import in_a_process
from benchmarks.timing import interleave

CHUNK = 16
LENGTHS = (1024, 64)  # of a full run and of a quick one
LIMIT = 1e-7  # in float64: the norm of keys, where ours adds 1e-6 to the squared length
OURS: dict[str, tuple[int, dict[str, Any]]] = {  # heads, `execution`
    "nestflow, one head": (1, {}),
    "nestflow, 4 heads": (4, {}),
    "nestflow, 4 heads, checkpointing auto": (4, {"checkpointing": "auto"}),
}
UNITS = ("nestflow, one head", "nestflow, 4 heads")  # what others are held against
PEER = peer.PACKAGE
MAKER = "benchmarks.hope:passes_of"


def passes(case: str, length: int, device: str) -> dict[str, Callable[[], None]]:
    """forward and training of one case."""
    torch.manual_seed(0)
    x, target = torch.randn(2, 1, length, DIM, device=device).unbind()
    if case == PEER:
        block = peer.theirs(DIM, CHUNK, device)
        return {"forward": peer.their_forward(block, x), "training": peer.their_training(block, x, target)}
    heads, execution = OURS[case]
    bundle = peer.ours(DIM, CHUNK, heads, device, execution)
    return {"forward": peer.our_forward(bundle, x), "training": peer.our_training(bundle, x, target)}


def passes_of(case: str, mode: str, length: int, device: str) -> tuple[Callable[[], None], ...]:
    """For `benchmarks.peak`: a short pass, and the one that counts."""
    return passes(case, 2 * CHUNK, device)[mode], passes(case, length, device)[mode]


def results(options: Options) -> dict[str, Any]:
    """A row a case: tokens a second, and how many times as long as ours with four heads it takes."""
    length = LENGTHS[options.quick]
    settings = {"length": length, "dim": DIM, "chunk": CHUNK, "rounds": options.rounds}
    found = options.begin("hope", settings)
    found["peers"] = {PEER: version(PEER)}
    if found["rows"]:
        return found  # measured whole
    cases = list(OURS)
    if version(PEER):
        error = peer.same_numbers()
        found["difference"] = error
        print(f"one head and {PEER} differ by {error:.1e} in float64", flush=True)
        if not error < LIMIT:
            found["rows"].append({"case": PEER, "failed": f"it differs by {error:.1e}"})
            print(f"{PEER}: it differs by {error:.1e}", file=sys.stderr)
        else:
            cases.append(PEER)
    else:
        print(f"{PEER} is not installed: left out")
    made = {case: passes(case, length, options.device) for case in cases}
    rows: list[dict[str, Any]] = [{"case": case} for case in cases]
    for mode in ("forward", "training"):
        runs = {case: p[mode] for case, p in made.items()}
        for case in OURS:
            if case in runs:
                runs[case]()
        times = interleave(None, runs, options.rounds, options.budget, options.device)
        for row in rows:
            mine = times[row["case"]]
            row[mode] = {
                "tokens_per_s": length / mine.plain()["seconds"],
                "over": {case: mine.over(times[case]) for case in UNITS},
            }
            print(f"{row['case']:38s} {mode:8s} {row[mode]['tokens_per_s']:9.0f} tokens/s", flush=True)
    for row in rows:
        for mode in ("forward", "training"):
            arguments = [row["case"], mode, length, options.device]
            row[mode]["peak_mb"] = None if options.quick else in_a_process(MAKER, arguments, options.device)
    found["rows"] += rows
    options.keep("hope", found)
    return found


def markdown(result: dict[str, Any]) -> str:
    """One row a case."""
    lines = [
        "| block | tokens/s, forward / training | forward, × ours with one head / 4 heads | training, likewise | "
        "peak MB, forward / training |",
        "|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        if "failed" in r:
            lines.append(f"| {r['case']} | not timed: {r['failed']} | – | – | – |")
            continue
        speed = " / ".join(f"{r[m]['tokens_per_s']:,.0f}" for m in ("forward", "training"))
        over = (" / ".join(f"**{r[m]['over'][c]['ratio']:.2g}**" for c in UNITS) for m in ("forward", "training"))
        peaks = (r[m].get("peak_mb") for m in ("forward", "training"))
        peak = " / ".join("–" if p is None else f"{p:,.0f}" for p in peaks)
        lines.append(f"| {r['case']} | {speed} | {' | '.join(over)} | {peak} |")
    found = result["peers"][PEER]
    said = f"{PEER} {found}: no gradient passes through what its memories did, so its training is another than ours."
    return "\n".join([*lines, "", said if found else f"{PEER} was not installed."])
