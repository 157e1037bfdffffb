"""All benchmarks in one process: python -m benchmarks.run [--quick] [--only SUITE ...] [--write].

start          a spec checked and compiled in fresh processes
titans_memory  one Titans layer by each option of `execution`, beside plain torch and titans-pytorch
memories       HOPE's five memories and a memory that no paper has, against their GEMM floor
hope           HOPE's block beside nested-learning's
decode         one token at a time, at the beginning and after 4,096 tokens
streams        is a stream flat: every architecture after 512 and after 8,192 tokens
peers          fla, torch, titans-pytorch, higher and TorchOpt beside ours, where they are installed
shares         where the time of two layers goes, by kind of operation
layers         every shipped architecture against its GEMM floor, a per-token loop and two yardsticks

Results are kept in benchmarks/results, row by row. `--write` fills the marked blocks of docs/speed.md and README.md,
among them the table of targets, and draws docs/speed.svg; with `--read` from what is kept, without measuring.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import decode, figures, hope, layers, memories, peers, shares, start, streams, table, titans_memory
from benchmarks.machine import busy, caption
from benchmarks.options import Options
from benchmarks.picture import picture
from benchmarks.zoo import names
from nestflow.bundle.settings import device_of
from nestflow.diagnostics.core import NestflowError

ROOT = Path(__file__).resolve().parents[1]
PAGE, README, PICTURE = ROOT / "docs" / "speed.md", ROOT / "README.md", ROOT / "docs" / "speed.svg"


def titans(options: Options) -> dict[str, Any]:
    """The suite titans_memory, kept as it goes."""
    what = titans_memory.QUICK if options.quick else titans_memory.What()
    return titans_memory.results(what, options, lambda found: options.keep("titans_memory", found))


def suites(chosen: list[str]) -> dict[str, Callable[[Options], dict[str, Any]]]:
    """In the order in which they run: what the targets hang on first. chosen: architectures."""
    return {
        "start": start.results,
        "titans_memory": titans,
        "memories": memories.results,
        "hope": hope.results,
        "decode": decode.results,
        "streams": lambda o: streams.results(chosen, o),
        "peers": peers.results,
        "shares": shares.results,
        "layers": lambda o: layers.results(chosen, o),
    }


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "start": start.markdown,
    "memories": memories.markdown,
    "hope": hope.markdown,
    "decode": decode.markdown,
    "streams": streams.markdown,
    "peers": peers.markdown,
    "shares": shares.markdown,
    "layers": layers.markdown,
}


def text_of(suite: str, result: dict[str, Any]) -> str:
    """The block of a page: the table, and what was run."""
    if suite == "titans_memory":
        return table.markdown(result)
    return f"{TABLES[suite](result)}\n\n{about(suite, result)} {caption(result)}"


def about(suite: str, result: dict[str, Any]) -> str:
    """The settings in words."""
    s = result["settings"]
    common = f"Medians of {s.get('rounds')} interleaved rounds at most"
    return {
        "start": lambda: f"Medians of {s['rounds']} processes.",
        "memories": lambda: f"Width {s['dim']}, batch 1, T = {s['length']:,}. {common}.",
        "hope": lambda: f"Width {s['dim']}, chunk {s['chunk']}, batch 1, T = {s['length']:,}. {common}.",
        "decode": lambda: f"Width {s['dim']}, {s['heads']} heads, batch 1, {s['ticks']} tokens a round. {common}.",
        "streams": lambda: f"One block, batch 1, pieces of {s['piece']} tokens. {common}.",
        "peers": lambda: (
            f"{s['heads']} heads of {s['width']}, batch 1, T = {s['length']:,}. Medians of interleaved rounds; above 1 "
            "ours is faster."
        ),
        "shares": lambda: f"Width {s['dim']}, batch 1, T = {s['length']:,}. One pass each, under the profiler.",
        "layers": lambda: (
            f"One layer of width {s['dim']}, {s['heads']} heads, batch {s['batch']}, T = {s['length']:,}. {common}."
        ),
    }[suite]()


def kept(options: Options) -> dict[str, dict[str, Any]]:
    """What has been kept of every suite that has run."""
    files = {s: options.file(s) for s in suites([])}
    return {s: json.loads(f.read_text(encoding="utf-8")) for s, f in files.items() if f.exists()}


def targets(options: Options) -> str:
    """The block of the targets, from what is kept."""
    return figures.markdown(kept(options))


def publish(suite: str, result: dict[str, Any]) -> None:
    """Fill the pages' blocks. Raises ValueError where one is missing."""
    text = text_of(suite, result)
    if suite == "layers":
        picture(result, PICTURE)
        text += "\n\n![Multiples of the GEMM floor, by spec](speed.svg)"
    table.write_block(PAGE, suite, text)
    if suite == "titans_memory":
        table.write_block(README, suite, text)


def main(argv: list[str] | None = None) -> int:
    """Run the suites, print the tables, keep the JSON."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = list(suites([]))
    p.add_argument("--only", nargs="+", choices=known, default=known, metavar="SUITE", help=", ".join(known))
    p.add_argument("--quick", action="store_true", help="small and short: it shows that all runs, not how fast")
    p.add_argument("--specs", nargs="+", metavar="SPEC", help="of `layers`, these alone")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--budget", type=float, default=12.0, help="seconds after which a case leaves the rounds")
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=1, help="torch threads")
    p.add_argument("--resume", action="store_true", help="each suite goes on where an earlier run of it stopped")
    p.add_argument("--read", action="store_true", help="what an earlier run has kept, instead of a run")
    p.add_argument("--write", action="store_true", help="fill docs/speed.md and README.md, draw docs/speed.svg")
    a = p.parse_args(argv)
    if a.quick and a.write:
        p.error("a quick run is not for publication")
    if min(a.rounds, a.threads) < 1 or not 0 <= a.budget < math.inf:
        p.error("--rounds and --threads are at least 1, and --budget is a number of seconds")
    try:
        device_of(None if a.read else a.device)  # what was measured elsewhere may be read here
    except NestflowError as e:
        p.error(e.diagnostics[0].message)
    every = names()
    if unknown := [n for n in a.specs or () if n not in every]:
        p.error(f"no architecture is called {', '.join(unknown)}; there are {', '.join(every)}")
    torch.set_num_threads(a.threads)
    small = {"rounds": 2, "budget": 0.5} if a.quick else {"rounds": a.rounds, "budget": a.budget}
    options = Options(quick=a.quick, device=a.device, threads=a.threads, resume=a.resume, **small)
    failed, start_ = False, time.perf_counter()
    for n, (suite, measure) in enumerate(chosen := [x for x in suites(a.specs or every).items() if x[0] in a.only], 1):
        print(f"== {suite}: {n} of {len(chosen)}, after {time.perf_counter() - start_:.0f} s", flush=True)
        began = time.perf_counter()
        try:
            if a.read:
                result = json.loads(options.file(suite).read_text(encoding="utf-8"))
            else:
                result = measure(options)
                busy(result["machine"])
                options.keep(suite, result)
        except (ValueError, FileNotFoundError, RuntimeError, UserWarning) as e:
            print(f"{suite}: {e}", file=sys.stderr)
            failed = True
            continue
        failed = failed or any("failed" in r for r in result["rows"])
        print(f"\n{text_of(suite, result)}\n\n{suite}: {time.perf_counter() - began:.0f} s\n", flush=True)
        if a.write:
            publish(suite, result)
    print(targets(options))
    if a.write:
        table.write_block(PAGE, "figures", targets(options))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
