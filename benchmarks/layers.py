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

from benchmarks.models import DIM, HEADS, difference, lowering, one_layer, per_token, some_tokens
from benchmarks.options import Options
from benchmarks.plain_blocks import PlainAttention, PlainBlock, PlainLinear
from benchmarks.products import multiply_adds, recorded, replay
from benchmarks.timing import Run, interleave

CLOSE = 1e-8  # in float64, of outputs of order one
LENGTHS = (2048, 256)  # of a full run and of a quick one
GROWTH = 4  # the short sequence is so many times shorter
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
    error = difference(ours, loop)
    if not error < CLOSE:
        return {"spec": name, "failed": f"compiled and per-token loop differ by {error:.1e} in float64"}
    tokens = some_tokens(length, options.batch, options.device)
    short = tokens[:, : length // GROWTH]
    products = recorded(forward_pass(ours, tokens))
    floor = replay(products, options.device)
    row: dict[str, Any] = {
        "spec": name,
        "lowering": lowering(bundle),
        "difference": error,
        "products": len(products),
        "multiply_adds_per_token": multiply_adds(products) // (length * options.batch),
    }
    for mode, make, passes in (("forward", forward_pass, 1), ("training", training_pass, 3)):
        runs = {"ours": make(ours, tokens), **{n: make(m, tokens) for n, m in plain.items()}}
        runs |= {"short": make(ours, short), "loop": make(loop, short)}
        make(loop, tokens[:, :8])()
        for warm in ("short", *plain):
            runs[warm]()
        times = interleave(floor, runs, options.rounds, options.budget, options.device)
        row[mode] = {
            "floor": times["ours"].summary(passes),
            "loop": times["loop"].over(times["short"]),
            "growth": times["ours"].over(times["short"]),
            **{n: times["ours"].over(times[n]) for n in plain},
        }
    return row


def line(row: dict[str, Any]) -> str:
    """What the terminal shows of a row."""
    if "failed" in row:
        return f"{row['spec']:22s} {row['failed']}"
    parts = []
    for mode in ("forward", "training"):
        r = row[mode]
        parts.append(
            f"{mode} {r['floor']['ratio']:6.2f} × floor, loop {r['loop']['ratio']:6.1f} × as long, "
            f"T × {GROWTH} {r['growth']['ratio']:.1f}"
        )
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
    lines = [HEAD]
    for r in result["rows"]:
        name = f"[{r['spec']}](../specs/architectures/{r['spec']}.nl)"
        if "failed" in r:
            lines.append(f"| {name} | not timed: {r['failed']} | – | – | – | – | – | – |")
            continue
        modes = [r["forward"], r["training"]]
        cells = [bold(m["floor"]) for m in modes]
        cells.append(" / ".join(f"{m['loop']['ratio']:.1f}" for m in modes))
        cells += [" / ".join(f"{m[n]['ratio']:.1f}" for m in modes) for n in YARDSTICKS]
        cells.append(" / ".join(f"{m['growth']['ratio']:.1f}" for m in modes))
        lines.append(f"| {name} | {', '.join(r['lowering'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bold(s: dict[str, float]) -> str:
    """The median, and the lowest and highest round."""
    kept = f"({s['ratio_low']:.1f}–{s['ratio_high']:.1f})" if s["rounds"] > 1 else "(1 run)"
    return f"**{s['ratio']:.1f}** {kept}"
