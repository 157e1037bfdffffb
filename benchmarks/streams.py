"""Is a stream flat: what a piece of it costs after 512 tokens and after 8,192, and what is kept between calls.

Every shipped architecture, one block. The stream is fed in pieces as long as the first of the two places; what is timed
is a piece of 64 tokens from the state that stands there, both places in the same rounds. What is kept is counted in
bytes, and what the call needs above it is measured. An attention that sees all tokens costs as much as there are, by
its meaning: its row says `sees all`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.decode import stepper
from benchmarks.models import one_layer, sees_all, some_tokens
from benchmarks.options import Options
from benchmarks.peak import needed
from benchmarks.timing import interleave

PLACES = ((512, 8192), (64, 256))  # of a full run and of a quick one
PIECE = 64


def kept(state: Any) -> int:
    """Bytes of a stream between calls."""
    return sum(x.numel() * x.element_size() for x in state.tensors.values())


@torch.no_grad()
def fed(step: Callable[..., tuple[Tensor, Any]], tokens: Tensor, piece: int) -> Any:
    """The state after them."""
    state = None
    for part in tokens.split(piece, 1):
        _, state = step(state, part)
    return state


def measured(name: str, places: tuple[int, int], options: Options) -> dict[str, Any]:
    """One row."""
    bundle = one_layer(name).to(options.device)
    step = stepper(bundle.module, "tokens")
    tokens = some_tokens(places[1] + PIECE, 1, options.device)
    states = {"early": fed(step, tokens[:, : places[0]], places[0])}
    states["late"] = fed(step, tokens[:, : places[1]], places[0])
    next_ = tokens[:, places[1] :]

    def piece(state: Any) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                step(state, next_)

        return run

    runs = {place: piece(state) for place, state in states.items()}
    for run in runs.values():
        run()
    times = interleave(None, runs, options.rounds, options.budget, options.device)
    return {
        "spec": name,
        "sees_all": sees_all(bundle.graph),
        "time": times["late"].over(times["early"]),
        "us_per_token": {p: 1e6 * times[p].plain()["seconds"] / PIECE for p in runs},
        "kept": {p: kept(state) for p, state in states.items()},
        "needed": {p: needed(run) for p, run in runs.items()},
    }


def results(names: list[str], options: Options) -> dict[str, Any]:
    """A row a spec, kept after each."""
    places = PLACES[options.quick]
    found = options.begin("streams", {"places": list(places), "piece": PIECE, "rounds": options.rounds})
    done = {r["spec"] for r in found["rows"]}
    for name in names:
        if name in done:
            continue
        row = measured(name, places, options)
        found["rows"].append(row)
        options.keep("streams", found)
        print(f"{name:22s} time × {row['time']['ratio']:.2f}, kept × {growth(row):.2f}", flush=True)
    return found


def growth(row: dict[str, Any]) -> float:
    """Of what is kept."""
    return row["kept"]["late"] / max(1, row["kept"]["early"])


def markdown(result: dict[str, Any]) -> str:
    """One row a spec."""
    early, late = (f"{n:,}" for n in result["settings"]["places"])
    lines = [
        f"| spec | µs a token after {early} / {late} | later over earlier | kB kept after {early} / {late} | "
        "MB that a call needs, likewise |",
        "|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        name = f"| {r['spec']}{' (sees all)' if r['sees_all'] else ''} |"
        us = " / ".join(f"{r['us_per_token'][p]:.0f}" for p in ("early", "late"))
        kb = " / ".join(f"{r['kept'][p] / 1024:,.0f}" for p in ("early", "late"))
        mb = " / ".join(f"{r['needed'][p] / 2**20:,.1f}" for p in ("early", "late"))
        t = r["time"]
        lines.append(f"{name} {us} | **{t['ratio']:.2f}** ({t['ratio_low']:.2f}–{t['ratio_high']:.2f}) | {kb} | {mb} |")
    return "\n".join(lines)
