"""Titans' memory: nestflow by each option of `execution`, plain torch and titans-pytorch, against the matmul floor.

    python -m benchmarks.titans_memory --chunks 16 --lengths 2048 --cases nestflow "plain torch"

times a part of what `python -m benchmarks.run` times, and keeps nothing unless told where.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cases import (
    CASES,
    DEFAULT,
    DIM,
    EXPAND,
    HEADS,
    NEEDS,
    WARM,
    forward_pass,
    same_by_options,
    same_numbers,
    training_pass,
)
from benchmarks.floor import floor, multiply_adds
from benchmarks.machine import busy, version
from benchmarks.options import Options, write
from benchmarks.peak import in_a_process
from benchmarks.table import markdown
from benchmarks.timing import interleave


@dataclass(frozen=True)
class What:
    """Which cases, at which chunks and lengths; peak: measure peak memory too."""

    chunks: Sequence[int] = (16, 64)
    lengths: Sequence[int] = (2048, 8192)
    cases: Sequence[str] = DEFAULT
    peak: bool = True


QUICK = What(chunks=(16,), lengths=(512,), cases=tuple(n for n in DEFAULT if n not in WARM), peak=False)


def run_setting(what: What, options: Options, chunk: int, length: int) -> list[dict[str, Any]]:
    """All cases at one chunk and length: forward, training, peak memory."""
    torch.manual_seed(0)
    x = torch.randn(options.batch, length, DIM, device=options.device)
    layers = {name: CASES[name](chunk, options.device) for name in what.cases}
    same_options(layers, x)
    base = floor(options.batch, length, chunk, DIM, HEADS, EXPAND, options.device)
    rows = [{"case": name, "chunk": chunk, "length": length} for name in what.cases]
    for mode, make, passes in (("forward", forward_pass, 1), ("training", training_pass, 3)):
        for name, layer in layers.items():
            make(layer, x if name in WARM else x[:, : 4 * chunk])()
        runs = {name: make(layer, x) for name, layer in layers.items()}
        times = interleave(base, runs, options.rounds, options.budget, options.device)
        for row in rows:
            row[mode] = times[row["case"]].summary(passes)
            if "nestflow" in times:
                row[f"{mode}_over_ours"] = times[row["case"]].over(times["nestflow"])
            print(
                f"chunk {chunk:3d}  T {length:6,d}  {mode:8s}  {row['case']:30s}  {row[mode]['ratio']:7.2f} × floor",
                flush=True,
            )
    if what.peak and length == max(what.lengths):
        for row in (r for r in rows if r["case"] not in WARM):  # that would be compiled again
            arguments = [row["case"], chunk, length, options.batch, options.device]
            row["peak_mb"] = in_a_process("benchmarks.cases:passes_of", arguments, options.device)
            print(f"chunk {chunk:3d}  T {length:6,d}  peak      {row['case']:30s}  {row['peak_mb']} MB", flush=True)
    return rows


def same_options(layers: dict[str, nn.Module], x: torch.Tensor) -> None:
    """The options of `execution` give what nestflow gives without them, on what is timed. Raises ValueError."""
    others = {n: layer for n, layer in layers.items() if n.startswith("nestflow, ")}
    if "nestflow" not in layers or not others:
        return
    torch.compiler.reset()  # of all that was compiled for other lengths: past a limit torch would not compile
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no effect")
        found = same_by_options(layers["nestflow"], others, x)
    for name, error in found.items():
        print(f"{name} differs by {error:.1e} in float32", flush=True)
        if not error < 1e-4:
            raise ValueError(f"{name} differs from nestflow by {error:.1e}: nothing is timed")


def same(what: What) -> None:
    """nestflow and plain torch agree in float64. Raises ValueError where they do not."""
    for chunk in what.chunks:
        if {"nestflow", "plain torch"} <= set(what.cases):
            error = same_numbers(chunk)
            print(f"chunk {chunk}: nestflow and plain torch differ by {error:.1e} in float64")
            if not error < 1e-9:
                raise ValueError(f"nestflow and plain torch differ by {error:.1e}: nothing is timed")


def results(
    what: What, options: Options, keep: Callable[[dict[str, Any]], None] = lambda found: None
) -> dict[str, Any]:
    """All rows; `keep` is called after each setting. Raises ValueError where what is compared is not the same."""
    absent = [n for n in what.cases if n in NEEDS and version(NEEDS[n]) is None]
    what = What(what.chunks, what.lengths, [n for n in what.cases if n not in absent], what.peak)
    for n in absent:
        print(f"{n} is not installed: left out")
    same(what)
    settings = {"chunks": what.chunks, "lengths": what.lengths, "cases": what.cases, "peak": what.peak,
                "batch": options.batch, "rounds": options.rounds}  # fmt: skip
    found = options.begin("titans_memory", settings)
    found |= {
        **settings, "dim": DIM, "heads": HEADS, "expand": EXPAND, "absent": absent,
        "versions": {n: version(NEEDS[n]) for n in what.cases if n in NEEDS},
        "multiply_adds_per_token": {
            c: multiply_adds(1, what.lengths[0], c, DIM, HEADS, EXPAND) // what.lengths[0] for c in what.chunks
        },
    }  # fmt: skip
    done = {(r["chunk"], r["length"]) for r in found["rows"]}
    for chunk in what.chunks:
        for length in what.lengths:
            if (chunk, length) not in done:
                found["rows"] += run_setting(what, options, chunk, length)
                keep(found)
    return found


def main(argv: list[str] | None = None) -> int:
    """A part of the suite, by options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds after which a case leaves the rounds")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(DEFAULT))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--out", type=Path, help="keep the results in this JSON file")
    a = parser.parse_args(argv)
    torch.set_num_threads(a.threads)
    options = Options(rounds=a.rounds, budget=a.budget, batch=a.batch, device=a.device, threads=a.threads)
    try:
        result = results(What(a.chunks, a.lengths, a.cases, not a.no_memory), options)
    except (ValueError, UserWarning) as e:
        print(e, file=sys.stderr)
        return 1
    busy(result["machine"])
    print("\n" + markdown(result))
    if a.out:
        write(a.out, result)
        print(f"\nkept in {a.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
