"""All benchmarks in one process: python -m benchmarks.run [--quick] [--only SUITE ...] [--write].

titans_memory  one Titans layer by each option of `execution`, beside plain torch and titans-pytorch
layers         every shipped architecture against its GEMM floor, a per-token loop and two yardsticks
peers          fla, torch and titans-pytorch beside ours, where they are installed
decode         one token at a time, at the beginning and after 4,096 tokens

Results are kept in benchmarks/results. `--write` fills the marked blocks of docs/speed.md and README.md and draws
docs/speed.svg; with `--read` from what is kept, without measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import decode, layers, peers, table, titans_memory
from benchmarks.machine import busy, caption
from benchmarks.options import Options
from benchmarks.picture import picture
from benchmarks.zoo import names

ROOT = Path(__file__).resolve().parents[1]
PAGE, README, PICTURE = ROOT / "docs" / "speed.md", ROOT / "README.md", ROOT / "docs" / "speed.svg"


def suites(chosen: list[str]) -> dict[str, Callable[[Options], dict[str, Any]]]:
    """chosen: architectures."""
    return {
        "titans_memory": lambda o: titans_memory.results(titans_memory.QUICK if o.quick else titans_memory.What(), o),
        "layers": lambda o: layers.results(chosen, o),
        "peers": peers.results,
        "decode": decode.results,
    }


def text_of(suite: str, result: dict[str, Any]) -> str:
    """The block of a page: the table, and what was run."""
    if suite == "titans_memory":
        return table.markdown(result)
    made = {"layers": layers, "peers": peers, "decode": decode}[suite].markdown(result)
    return f"{made}\n\n{about(suite, result)} {caption(result)}"


def about(suite: str, result: dict[str, Any]) -> str:
    """The settings in words."""
    s = result["settings"]
    common = f"Medians of {s['rounds']} interleaved rounds at most"
    if suite == "layers":
        return f"One layer of width {s['dim']}, {s['heads']} heads, batch {s['batch']}, T = {s['length']:,}. {common}."
    if suite == "peers":
        return f"{s['heads']} heads of {s['width']}, batch 1, T = {s['length']:,}. {common}; above 1 ours is faster."
    return f"Width {s['dim']}, {s['heads']} heads, batch 1, {s['ticks']} tokens a round. {common}."


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
    p.add_argument("--resume", action="store_true", help="`layers` goes on where an earlier run stopped")
    p.add_argument("--read", action="store_true", help="what an earlier run has kept, instead of a run")
    p.add_argument("--write", action="store_true", help="fill docs/speed.md and README.md, draw docs/speed.svg")
    a = p.parse_args(argv)
    if a.quick and a.write:
        p.error("a quick run is not for publication")
    every = names()
    if unknown := [n for n in a.specs or () if n not in every]:
        p.error(f"no architecture is called {', '.join(unknown)}; there are {', '.join(every)}")
    torch.set_num_threads(a.threads)
    small = {"rounds": 2, "budget": 0.5} if a.quick else {"rounds": a.rounds, "budget": a.budget}
    options = Options(quick=a.quick, device=a.device, threads=a.threads, resume=a.resume, **small)
    failed = False
    for suite, measure in suites(a.specs or every).items():
        if suite not in a.only:
            continue
        print(f"== {suite}", flush=True)
        began = time.perf_counter()
        try:
            if a.read:
                result = json.loads(options.file(suite).read_text(encoding="utf-8"))
            else:
                result = measure(options)
                busy(result["machine"])
                options.keep(suite, result)
        except (ValueError, FileNotFoundError, UserWarning) as e:
            print(e, file=sys.stderr)
            failed = True
            continue
        failed = failed or any("failed" in r for r in result["rows"])
        print(f"\n{text_of(suite, result)}\n\n{suite}: {time.perf_counter() - began:.0f} s\n", flush=True)
        if a.write:
            publish(suite, result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
