"""Where the time goes: of one pass, the share of each kind of operation, by torch's profiler.

Shares are of the time inside of operations (their own, without what they call). The profiler costs every operation the
same, so small ones look larger than they are; the part of products in an undisturbed pass is one over its × floor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import DIM, forward_pass, training_pass
from benchmarks.memories import LENGTHS, layer
from benchmarks.options import Options

PRODUCTS = "mm bmm baddbmm baddbmm_ addmm linalg_solve_triangular triangular_solve"
ELEMENTWISE = (
    "mul mul_ add add_ sub neg div gelu gelu_backward silu silu_backward sigmoid sigmoid_backward exp log rsqrt sqrt "
    "pow square tanh tanh_backward where addcmul abs sign clamp clamp_min maximum minimum softplus softplus_backward "
    "gt lt ge le eq ne logical_and masked_fill masked_fill_"
)
SUMS = "sum mean amax cumsum cumprod tril triu any all"
COPIES = (
    "copy_ cat stack fill_ zero_ zeros zeros_like ones clone contiguous constant_pad_nd slice_backward select_backward "
    "empty empty_like empty_strided new_empty_strided _to_copy"
)
NAMES = {"products": PRODUCTS, "elementwise": ELEMENTWISE, "sums": SUMS, "copies": COPIES}
KINDS = {kind: frozenset(names.split()) for kind, names in NAMES.items()}
REST = ("compiled", "autograd", "views and calls")
WHAT = (("HOPE's five memories", "hope_memory", "chunk", 16), ("Titans' memory", "titans_memory", "chunk_size", 16))


def kind_of(event: str) -> str:
    """The kind of one event of the profiler."""
    if event.startswith(("autograd::", "torch::autograd")) or event.endswith("Backward0"):
        return "autograd"
    name = event.removeprefix("aten::")
    if name == event:
        return "compiled"
    return next((kind for kind, names in KINDS.items() if name in names), "views and calls")


def shares(run: Callable[[], object]) -> dict[str, float]:
    """Kind -> its share of the time inside of operations, in percent. The pass is made twice before."""
    for _ in range(2):
        run()
    with profile(activities=[ProfilerActivity.CPU]) as watch:
        run()
    found: Counter[str] = Counter()
    for e in watch.key_averages():
        found[kind_of(e.key)] += e.self_cpu_time_total
    return {kind: 100 * found[kind] / found.total() for kind in (*KINDS, *REST)}


def results(options: Options) -> dict[str, Any]:
    """A row for each layer, option and pass."""
    length = LENGTHS[options.quick]
    found = options.begin("shares", {"length": length, "dim": DIM})
    for what, spec, name, chunk in WHAT:
        for case in ("nestflow",) if options.quick else ("nestflow", "nestflow, compiled"):
            module, x = layer(spec, name, chunk, case, options.device).module, torch.randn(1, length, DIM)
            for mode, make in (("forward", forward_pass), ("training", training_pass)):
                about = {"what": what, "spec": spec, "chunk": chunk, "case": case, "mode": mode}
                if any(about.items() <= r.items() for r in found["rows"]):
                    continue
                row = {**about, "shares": shares(make(module, x.to(options.device)))}
                print(what, case, mode, {k: round(v) for k, v in row["shares"].items()}, flush=True)
                found["rows"].append(row)
                options.keep("shares", found)
    return found


def markdown(result: dict[str, Any]) -> str:
    """One row a layer, option and pass."""
    kinds = [*KINDS, *REST]
    lines = ["| layer | | " + " | ".join(kinds) + " |", "|---|---|" + "---|" * len(kinds)]
    for r in result["rows"]:
        cells = " | ".join(f"{r['shares'][k]:.0f} %" if r["shares"][k] >= 0.5 else "–" for k in kinds)
        lines.append(f"| {r['what']}, chunk {r['chunk']} | {r['case']}, {r['mode']} | {cells} |")
    return "\n".join(lines)
