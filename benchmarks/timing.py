"""Interleaved rounds in one process: a busy host slows every case of a round alike, so ratios within a round hold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Summary = dict[str, float | int]
Run = Callable[[], object]


@dataclass
class Times:
    """Seconds of one case in each round it ran, and the floor's seconds in the same rounds."""

    seconds: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    def ratios(self, passes: int) -> list[float]:
        """Multiples of the floor, round by round; a training step counts as three passes."""
        return [s / (passes * f) for s, f in zip(self.seconds, self.floor, strict=True)]

    def summary(self, passes: int) -> Summary:
        """Median and spread of the ratios first, then the seconds."""
        return {**spread(self.ratios(passes)), **self.plain()}

    def plain(self) -> Summary:
        """Seconds alone."""
        return {
            "seconds": statistics.median(self.seconds),
            "seconds_best": min(self.seconds),
            "rounds": len(self.seconds),
        }

    def over(self, other: Times) -> Summary:
        """How many times as long as the other case, round by round; the one that left first ends the rounds."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds)]
        return {**spread(ratios), "rounds": len(ratios)}


def spread(ratios: Sequence[float]) -> Summary:
    """The median, the lowest and the highest."""
    return {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}


def once(run: Run, device: str) -> float:
    """Seconds of one call."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def floor_seconds(run: Run, device: str, repeats: int = 3) -> float:
    """The fastest of a few, or of one that takes a second: a floor is a floor."""
    found = [once(run, device)]
    while len(found) < repeats and sum(found) < 1.0:
        found.append(once(run, device))
    return min(found)


def interleave(
    floor: Run | None,
    cases: Mapping[str, Run],
    rounds: int,
    budget: float,
    device: str,
    against: Collection[str] | None = None,
) -> dict[str, Times]:
    """Run every case once a round, in turn; a case that has used its ``budget`` of seconds leaves after the round.

    floor: run anew before each, or before those in `against`; None where there is none."""
    times = {name: Times() for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            if sum(times[name].seconds) < budget:
                if floor is not None and (against is None or name in against):
                    times[name].floor.append(floor_seconds(floor, device))
                times[name].seconds.append(once(run, device))
    return times
