"""One comparison of ours with a peer, and how it is timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.options import Options
from benchmarks.timing import Run, interleave, once

CLOSE = 2e-5  # float32, of the largest number: some of the peers compute in nothing else

SHORT, MORE = 0.02, 3  # what takes fewer seconds has so many times as many rounds


@dataclass
class Pair:
    """One comparison. ours and theirs: mode -> what is timed. difference: of their numbers, None where they are of
    different models. note: what the difference is then. limit: of the difference."""

    what: str
    peer: str
    version: str | None
    ours: dict[str, Run]
    theirs: dict[str, Run]
    difference: float | None
    note: str = ""
    limit: float = CLOSE
    settings: dict[str, Any] = field(default_factory=dict)


def measured(pair: Pair, options: Options) -> dict[str, Any]:
    """One row. Nothing is timed where the numbers are not the same."""
    row: dict[str, Any] = {
        "what": pair.what, "peer": pair.peer, "version": pair.version, "difference": pair.difference, "note": pair.note,
        "settings": pair.settings,
    }  # fmt: skip
    if pair.difference is not None and not pair.difference < pair.limit:
        return {**row, "failed": f"the numbers differ by {pair.difference:.1e}"}
    row["modes"] = {}
    for mode in pair.ours:
        runs = {"ours": pair.ours[mode], "theirs": pair.theirs[mode]}
        runs["ours"]()
        rounds = options.rounds * (MORE if once(runs["ours"], options.device) < SHORT else 1)
        times = interleave(None, runs, rounds, options.budget, options.device)
        row["modes"][mode] = {
            **times["theirs"].over(times["ours"]),
            "seconds": times["theirs"].plain()["seconds"],
            "seconds_ours": times["ours"].plain()["seconds"],
        }
    return row
