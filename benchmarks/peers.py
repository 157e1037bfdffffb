"""What others would use instead, where it is installed: fla's forms in plain torch, torch's attention and
optimizers, titans-pytorch, and the inner loops of higher and TorchOpt.

Every comparison is of the same numbers, checked before it is timed, but for those that say so: titans-pytorch computes
another model than ours (benchmarks/README.md says which), and attention another than a matrix memory.
"""

from __future__ import annotations

from typing import Any

from benchmarks.machine import version
from benchmarks.options import Options
from benchmarks.pair import measured
from benchmarks.peer_loops import loops
from benchmarks.peer_memories import HEADS, WIDTH, memories, titans
from benchmarks.peer_steps import optimizers

OWN = ("torch ", "torch.", "the same")  # not named among the packages


def results(options: Options) -> dict[str, Any]:
    """A row for each comparison: how many times as long as ours the peer takes."""
    length = 256 if options.quick else 2048
    found = options.begin("peers", {"length": length, "heads": HEADS, "width": WIDTH, "rounds": options.rounds})
    found["absent"] = [n for n in ("titans-pytorch", "fla-core", "higher", "torchopt") if version(n) is None]
    done = {(r["what"], r["peer"]) for r in found["rows"]}
    pairs = [
        lambda: memories(length, options.device),
        lambda: titans(length, options.device),
        lambda: optimizers(options.quick, options.device),
        lambda: loops(options.quick),
    ]
    for pair in (p for make in pairs for p in make()):
        if (pair.what, pair.peer) in done:
            continue
        row = measured(pair, options)
        found["rows"].append(row)
        options.keep("peers", found)
        shown = row.get("failed") or ", ".join(f"{m} {s['ratio']:.2f} × ours" for m, s in row["modes"].items())
        print(f"{pair.what:26s} {pair.peer:36s} {shown}", flush=True)
    for n in found["absent"]:
        print(f"{n} is not installed: left out")
    return found


def markdown(result: dict[str, Any]) -> str:
    """One row a comparison: above 1 ours is faster."""
    lines = ["| what | peer | forward, × ours | training, × ours | numbers differ by |", "|---|---|---|---|---|"]
    steps = ["| optimizer | peer | a step, × ours | ms of ours | numbers differ by |", "|---|---|---|---|---|"]
    for r in result["rows"]:
        differ = r["note"] if r["difference"] is None else f"{r['difference']:.0e}"
        if "failed" in r:
            lines.append(f"| {r['what']} | {r['peer']} | not timed | – | {differ} |")
        elif "step" in r["modes"]:
            s = r["modes"]["step"]
            steps.append(f"| {r['what']} | {r['peer']} | {_cell(s)} | {1e3 * s['seconds_ours']:.1f} | {differ} |")
        else:
            cells = [_cell(r["modes"][m]) if m in r["modes"] else "–" for m in ("forward", "training")]
            lines.append(f"| {r['what']} | {r['peer']} | {' | '.join(cells)} | {differ} |")
    versions = {r["peer"].split(",")[0]: r["version"] for r in result["rows"] if not r["peer"].startswith(OWN)}
    text = "\n".join([*lines, "", *steps])
    named = ", ".join(f"{n} {v}" for n, v in versions.items())
    absent = ", ".join(result["absent"])
    return (
        text + (f"\n\nPeers: {named}." if named else "") + (f"\n\nNot installed, left out: {absent}." if absent else "")
    )


def _cell(s: dict[str, float]) -> str:
    spread = f" ({s['ratio_low']:.2g}–{s['ratio_high']:.2g})" if s["rounds"] > 1 else " (1 run)"
    return f"**{s['ratio']:.2g}**{spread}"
