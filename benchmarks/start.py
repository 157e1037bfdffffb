"""Seconds until one can work: a spec checked by a process of its own, and compiled in one that has imported torch.

Each in a fresh process a round, after one that is not counted (it fills the caches of the system, and of the package).
`compile` is everything after `import torch`: nestflow imported, the spec read, checked and lowered, the module built.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.options import Options

ROOT = Path(__file__).resolve().parent.parent
SPECS = ("hope", "titans", "linear_attention")
COMPILE = """
import sys, time, torch
began = time.perf_counter()
import nestflow
nestflow.compile(sys.argv[1], **{k: int(v) for k, v in (a.split("=") for a in sys.argv[2:])})
print(time.perf_counter() - began)
"""
SIZES = ("dim=256", "n_heads=4", "depth=1")


def process(*arguments: str) -> tuple[float, str]:
    """Seconds of a whole Python process, and what it printed. Raises RuntimeError where it fails."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    return seconds, done.stdout


def checked(spec: str) -> float:
    """`nestflow check SPEC`, the whole process."""
    return process("-m", "nestflow", "check", spec)[0]


def compiled(spec: str) -> float:
    """From `import torch` on."""
    return float(process("-c", COMPILE, spec, *SIZES)[1])


def results(options: Options) -> dict[str, Any]:
    """A row a spec: median, lowest and highest of both."""
    rounds = 1 if options.quick else options.rounds
    found = options.begin("start", {"rounds": rounds})
    done = {r["spec"] for r in found["rows"]}
    for spec in SPECS[:1] if options.quick else SPECS:
        if spec in done:
            continue
        row: dict[str, Any] = {"spec": spec}
        for what, measure in (("check", checked), ("compile", compiled)):
            measure(spec)
            seconds = [measure(spec) for _ in range(rounds)]
            row[what] = {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}
        found["rows"].append(row)
        options.keep("start", found)
        print(
            f"{spec:20s} check {row['check']['seconds']:.2f} s, compile {row['compile']['seconds']:.2f} s", flush=True
        )
    return found


def markdown(result: dict[str, Any]) -> str:
    """One row a spec."""
    lines = ["| spec | `nestflow check`, whole process | `compile` after `import torch` |", "|---|---|---|"]
    for r in result["rows"]:
        cells = (f"**{r[w]['seconds']:.2f} s** ({r[w]['low']:.2f}–{r[w]['high']:.2f})" for w in ("check", "compile"))
        lines.append(f"| {r['spec']} | {' | '.join(cells)} |")
    return "\n".join(lines)
