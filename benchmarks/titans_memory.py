"""Time Titans' memory: nestflow, plain torch and titans-pytorch against the matmul floor, in one run, as ratios.

python -m benchmarks.titans_memory --quick
python -m benchmarks.titans_memory --chunks 16 64 --lengths 2048 8192 --write README.md
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, DEFAULT, DIM, EXPAND, HEADS, forward_pass, same_numbers, training_pass
from benchmarks.floor import floor, multiply_adds
from benchmarks.peak import in_a_process
from benchmarks.table import markdown, write_block
from benchmarks.timing import interleave

RESULTS = Path(__file__).with_name("results")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short length, few rounds: half a minute")
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds after which a case leaves the rounds")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(DEFAULT))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/titans_memory-DEVICE.json)")
    parser.add_argument("--write", type=Path, metavar="README", help="fill the marked block of this Markdown file")
    parsed = parser.parse_args(argv)
    if parsed.quick:
        parsed.lengths, parsed.rounds, parsed.budget = [1024], 3, 10.0
    return parsed


def run_setting(args: argparse.Namespace, chunk: int, length: int) -> list[dict[str, Any]]:
    """All cases at one chunk and length: forward, training, peak memory."""
    torch.manual_seed(0)
    x = torch.randn(args.batch, length, DIM, device=args.device)
    layers = {name: CASES[name](chunk, args.device) for name in args.cases}
    base = floor(args.batch, length, chunk, DIM, HEADS, EXPAND, args.device)
    rows = [{"case": name, "chunk": chunk, "length": length} for name in args.cases]
    for mode, make, passes in (("forward", forward_pass, 1), ("training", training_pass, 3)):
        for layer in layers.values():
            make(layer, x[:, : 4 * chunk])()
        runs = {name: make(layer, x) for name, layer in layers.items()}
        times = interleave(base, runs, args.rounds, args.budget, args.device)
        for row in rows:
            row[mode] = times[row["case"]].summary(passes)
            print(
                f"chunk {chunk:3d}  T {length:6,d}  {mode:8s}  {row['case']:30s}  {row[mode]['ratio']:7.2f} × floor",
                flush=True,
            )
    if not args.no_memory:
        for row in rows:
            row["peak_mb"] = in_a_process(row["case"], chunk, length, args.batch, args.device)
            print(f"chunk {chunk:3d}  T {length:6,d}  peak      {row['case']:30s}  {row['peak_mb']} MB", flush=True)
    return rows


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What it ran on."""
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else _cpu_name()
    return {"torch": torch.__version__, "python": platform.python_version(), "threads": args.threads, "processor": name}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> int:
    """Run, print the table, keep the JSON."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    if {"nestflow", "plain torch"} <= set(args.cases):
        for chunk in args.chunks:
            error = same_numbers(chunk)
            print(f"chunk {chunk}: nestflow and plain torch differ by {error:.1e} in float64")
            if error > 1e-9:
                print("they do not compute the same thing: nothing is timed", file=sys.stderr)
                return 1
    result: dict[str, Any] = {
        "device": args.device, "machine": machine(args), "batch": args.batch, "chunks": args.chunks,
        "lengths": args.lengths, "cases": args.cases, "dim": DIM, "heads": HEADS, "expand": EXPAND,
        "multiply_adds_per_token": {
            c: multiply_adds(1, args.lengths[0], c, DIM, HEADS, EXPAND) // args.lengths[0] for c in args.chunks
        },
    }  # fmt: skip
    result["rows"] = [r for c in args.chunks for n in args.lengths for r in run_setting(args, c, n)]
    table = markdown(result)
    print("\n" + table)
    out = args.out or RESULTS / f"titans_memory-{args.device.split(':')[0]}{'-quick' if args.quick else ''}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nkept in {out}")
    if args.write and not write_block(args.write, table):
        print(f"{args.write} has no `<!-- bench:titans -->` … `<!-- /bench:titans -->` block", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
