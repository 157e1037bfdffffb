"""Every shipped architecture as a one-layer model: against the GEMM floor, a per-token loop, and two yardsticks.

`rows` gives one row a spec. Before a spec is timed its compiled module and its per-token loop must give the same
numbers in float64, and so must the yardsticks and the specs whose weights they take.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import DIM, HEADS, difference, lowering, one_layer, per_token, sees_all, some_tokens
from benchmarks.options import Options
from benchmarks.peak import available, needed
from benchmarks.plain_blocks import PlainAttention, PlainBlock, PlainLinear
from benchmarks.products import multiply_adds, recorded, replay
from benchmarks.timing import Run, interleave, once

CLOSE = 1e-8  # in float64, of outputs of order one
LENGTHS = (2048, 128)  # of a full run and of a quick one
CHECKED = (70, 24)  # ticks on which the numbers are compared, likewise
GROWTH = 4  # the short sequence is so many times shorter
LONGEST = 4.0  # seconds that a training pass may take; a spec that is slower is measured at the short length
BUDGET = 3.0  # seconds after which a case leaves the rounds, here where there are many
YARDSTICKS: dict[str, tuple[str, type[PlainBlock]]] = {
    "linear attention": ("linear_attention", PlainLinear),
    "attention": ("transformer", PlainAttention),
}


def yardsticks(device: str) -> dict[str, nn.Module]:
    """The plain torch blocks. Raises ValueError where one does not compute what its spec computes."""
    made: dict[str, nn.Module] = {}
    for name, (spec, kind) in YARDSTICKS.items():
        module = one_layer(spec).to(device).module
        plain = kind(dict(module.named_weights()), HEADS).to(device)
        error = difference(plain, module)
        if not error < CLOSE:
            raise ValueError(f"plain torch {name} and the compiled {spec} differ by {error:.1e}: nothing is timed")
        made[name] = plain
    return made


def forward_pass(module: Callable[[Tensor], Tensor], tokens: Tensor) -> Run:
    """One inference pass."""

    def run() -> None:
        with torch.no_grad():
            module(tokens)

    return run


def training_pass(module: nn.Module, tokens: Tensor) -> Run:
    """Forward and backward into every weight."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        module(tokens).square().mean().backward()

    return run


def rows(names: Iterable[str], length: int, options: Options) -> Iterator[dict[str, Any]]:
    """A row for each spec, as it is done. One that fails, or computes something else than its loop, has `failed`."""
    plain = yardsticks(options.device)
    for name in names:
        try:
            row = measured(name, length, plain, options)
        except (RuntimeError, MemoryError, AssertionError) as e:
            text = (str(e).strip().splitlines() or [type(e).__name__])[0]
            row = {"spec": name, "failed": text[:200]}
        print(line(row), flush=True)
        yield row


def measured(name: str, length: int, plain: dict[str, nn.Module], options: Options) -> dict[str, Any]:
    """One spec at `length` and at a quarter of it, where its loop is timed too."""
    bundle = one_layer(name).to(options.device)
    ours, loop = bundle.module, per_token(bundle)
    error = difference(ours, loop, CHECKED[options.quick])
    if not error < CLOSE:
        return {"spec": name, "failed": f"compiled and per-token loop differ by {error:.1e} in float64"}
    tokens = some_tokens(length, options.batch, options.device)
    few = tokens[:, : length // GROWTH**2]
    training_pass(ours, few)()
    if length == LENGTHS[0] and GROWTH**2 * once(training_pass(ours, few), options.device) > LONGEST:
        return measured(name, length // GROWTH, plain, options)
    short = tokens[:, : length // GROWTH]
    products = recorded(forward_pass(ours, tokens))
    floor = replay(products, options.device)
    budget = min(options.budget, BUDGET)
    row: dict[str, Any] = {
        "spec": name,
        "length": length,
        "lowering": lowering(bundle),
        "sees_all": sees_all(bundle.graph),
        "difference": error,
        "products": len(products),
        "multiply_adds_per_token": multiply_adds(products) // (length * options.batch),
    }
    for mode, make, passes in (("forward", forward_pass, 1), ("training", training_pass, 3)):
        runs = {"ours": make(ours, tokens), **{n: make(m, tokens) for n, m in plain.items()}}
        runs |= {"short": make(ours, short), "loop": make(loop, short)}
        for case, module, times_longer in (("loop", loop, GROWTH), ("ours", ours, GROWTH**2)):
            make(module, few)()
            bytes_ = times_longer * needed(make(module, few))
            if not fits(bytes_):
                del runs[case]
                row.setdefault("left_out", []).append(f"{case}, {mode}: {bytes_ / 2**30:.0f} GB")
        for warm in (n for n in ("short", "ours", *plain) if n in runs):  # finding memory for the first time takes long
            runs[warm]()
        times = interleave(floor, runs, options.rounds, budget, options.device, against=("ours",))
        pairs = {"loop": ("loop", "short"), "growth": ("ours", "short"), **{n: ("ours", n) for n in plain}}
        row[mode] = {name: times[a].over(times[b]) for name, (a, b) in pairs.items() if a in times}
        if "ours" in times:
            row[mode]["floor"] = times["ours"].summary(passes)
    return row


def fits(bytes_: int) -> bool:
    """Whether so much is there to be had, with a fifth to spare: what does not fit would end the whole run."""
    free = available()
    return free is None or bytes_ < 0.8 * free


def line(row: dict[str, Any]) -> str:
    """What the terminal shows of a row."""
    if "failed" in row:
        return f"{row['spec']:22s} {row['failed']}"
    parts = []
    for mode in ("forward", "training"):
        floor, loop, growth = (median(row[mode], n) for n in ("floor", "loop", "growth"))
        parts.append(f"{mode} {floor} × floor, loop {loop} × as long, T × {GROWTH} {growth}")
    parts += row.get("left_out", [])
    return f"{row['spec']:22s} {';  '.join(parts)}"


def results(names: list[str], options: Options) -> dict[str, Any]:
    """All rows, kept after each."""
    length = LENGTHS[options.quick]
    settings = {"length": length, "dim": DIM, "heads": HEADS, "batch": options.batch, "rounds": options.rounds}
    found = options.begin("layers", settings)
    done = {r["spec"] for r in found["rows"]}
    for row in rows([n for n in names if n not in done], length, options):
        found["rows"].append(row)
        options.keep("layers", found)
    for r in found["rows"]:
        if "failed" in r:
            print(f"{r['spec']}: {r['failed']}", file=sys.stderr)
    return found


HEAD = (
    "| spec | lowering | forward × floor | training × floor | per-token loop, forward / training | "
    "× linear attention | × attention | T × 4 costs, forward / training |\n|---|---|---|---|---|---|---|---|"
)


def markdown(result: dict[str, Any]) -> str:
    """One row a spec; those that failed say so."""
    lines, length = [HEAD], result.get("settings", {}).get("length")
    for r in result["rows"]:
        name = f"[{r['spec']}](../specs/architectures/{r['spec']}.nl)"
        if r.get("length", length) != length:
            name += f", T = {r['length']:,}"
        if "failed" in r:
            lines.append(f"| {name} | not timed: {r['failed']} | – | – | – | – | – | – |")
            continue
        modes = [r["forward"], r["training"]]
        cells = [bold(m["floor"]) if "floor" in m else "–" for m in modes]
        cells += [" / ".join(median(m, n) for m in modes) for n in ("loop", *YARDSTICKS, "growth")]
        lines.append(f"| {name} | {', '.join(r['lowering'])} | {' | '.join(cells)} |")
    out = [f"{r['spec']} ({', '.join(r['left_out'])})" for r in result["rows"] if r.get("left_out")]
    return "\n".join(lines) + (f"\n\nLeft out, for want of memory: {'; '.join(out)}." if out else "")


def median(mode: dict[str, Any], name: str) -> str:
    """Of one of a row's ratios; a dash where it was left out."""
    return f"{mode[name]['ratio']:.1f}" if name in mode else "–"


def bold(s: dict[str, float]) -> str:
    """The median, and the lowest and highest round."""
    kept = f"({s['ratio_low']:.1f}–{s['ratio_high']:.1f})" if s["rounds"] > 1 else "(1 run)"
    return f"**{s['ratio']:.1f}** {kept}"
