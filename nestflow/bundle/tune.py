"""`nestflow.tune`: which settings of `execution` are fastest for a spec, at one size, on the machine at hand.

Each round runs every candidate once, one after the other, and begins with another one: what slows the machine down for
a while slows all of them. What a candidate holds for the backward pass is counted apart, and is no estimate.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestflow._version import __version__
from nestflow.bundle.budget import sized
from nestflow.bundle.bundle import Bundle
from nestflow.bundle.candidates import Settings, candidates, drawn
from nestflow.bundle.compile import Target, compile
from nestflow.bundle.settings import whole
from nestflow.diagnostics.core import fail
from nestflow.ops.loop import not_compiled
from nestflow.ops.room import counted

SHORTEST = 0.02  # seconds: a sample has as many passes as the fastest candidate makes in them
LEGEND = "ratio: to the time of what the spec says", "held: kept for the backward pass"
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """One candidate. settings: what it adds to the spec's own (nothing: the default). times: seconds of a pass, a round
    each. held: bytes kept for the backward pass beside the weights; on a GPU the most that was allocated; None: torch
    cannot tell."""

    settings: Settings
    times: tuple[float, ...]
    held: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Between the quartiles; with fewer than four rounds, between the ends; of one alone not known, so inf."""
        if len(self.times) == 1:
            return math.inf
        if len(self.times) < 4:
            return max(self.times) - min(self.times)
        low, _, high = statistics.quantiles(self.times, n=4)
        return high - low

    @property
    def name(self) -> str:
        return ", ".join(f"{n} {_yaml(v)}" for n, v in self.settings.items()) or "as the spec says"


@dataclass(frozen=True)
class Tuning:
    """What was measured. results: the default first. best: the fastest that fits. where: the machine. size: in words.
    failed: why `compile` could not be measured, or None."""

    results: tuple[Result, ...]
    best: Result
    spec: str
    where: str
    size: str
    failed: str | None = None

    @property
    def settings(self) -> Settings:
        """Those of the best: `nestflow.compile(spec, execution = tuning.settings)`."""
        return dict(self.best.settings)

    def ratio(self, r: Result) -> float:
        """Its time in that of the default."""
        return r.median / self.results[0].median

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Settings, ratio, median, spread and what is held of each, the fastest first, as text."""
        return [
            (r.name, f"{self.ratio(r):.2f}", _seconds(r.median), _seconds(r.spread), _bytes(r.held))
            for r in sorted(self.results, key=lambda r: r.median)
        ]

    def __str__(self) -> str:
        """A file of settings: what was measured as comments, the best as YAML."""
        rows = [("settings", "ratio", "median", "spread", "held"), *self.rows()]
        wide = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(x.ljust(n) if i == 0 else x.rjust(n) for i, (x, n) in enumerate(zip(row, wide))) for row in rows
        ]
        head = [
            f"Written by nestflow tune for {self.spec}: {self.size}.",
            f"Measured {date.today().isoformat()} on {self.where}.",
            f"{LEGEND[0]}. spread: between the quartiles. {LEGEND[1]}.",
            *([f"not compiled: {self.failed}"] if self.failed else []),
            "",
            *lines,
        ]
        settings = [f"{n}: {_yaml(v)}" for n, v in self.best.settings.items()] or ["{}  # what the spec says stays"]
        return "\n".join([f"# {x}".rstrip() for x in head] + settings) + "\n"


def tune(
    target: Target,
    *,
    batch: int = 8,
    length: int = 256,
    forward: bool = False,
    compiled: bool = False,
    rounds: int = 5,
    memory: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_large: bool = False,
    device: Any = None,
    tell: Tell | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **params: Any,
) -> Tuning:
    """Measure the settings of `execution` for a spec, and choose the fastest.

    batch, length: rows and ticks of the inputs, which are drawn at random within their bounds. forward: passes without
    gradients; else forward and backward of the spec's losses (of its output where it has none). compiled: also with
    `compile true`, whose first passes take minutes. rounds: samples of each candidate. memory: a bound on what is held
    for the backward pass, in MB of 10⁶ bytes. tell(what, done, of): hears of the progress. clock: in seconds.
    Raises NestflowError: those of `compile`; NF548 (nothing holds so little), NF518 (sizes).
    """
    batch, length = whole(batch, "the batch", 1), whole(length, "the length", 1)
    rounds = whole(rounds, "the number of rounds", 1)
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int | float) or not memory >= 0):
        raise fail("NF518", f"the bound on memory is a number of MB, at least 0, and this is {memory!r:.60}")
    tell = tell or (lambda what, done, of: None)

    def made(settings: Settings) -> Bundle:
        given = {"overrides": overrides, "allow_large": allow_large, "device": device, **params}
        return compile(target, execution=settings, **given)

    first = made({})
    if first.graph.output is None and not any(x.objective is not None for x in first.graph.step_levels):
        raise fail(
            "NF518",
            f"`tune` measures passes of a model, and `{first.name}` is an optimizer, which has none",
            help="tune the spec whose weights it moves: `execution` says how that one is run",
        )
    if first.module.device.type == "meta":
        raise fail("NF518", "`tune` measures time, and on the device `meta` nothing runs", help="cpu, cuda, cuda:1, …")
    batch = max(batch // first.graph.shares, 1) * first.graph.shares
    inputs = {i.name: drawn(i, batch, length, first.module.device) for i in first.graph.inputs}
    learns = not forward and any(w.requires_grad for w in first.module.weights.values())
    wanted = candidates(first.graph, length, learns, compiled)
    runs: list[_Run] = []
    failed = None
    for n, settings in enumerate(wanted):
        tell(_named(settings), n, len(wanted))
        run = _Run(settings, first if not settings else made(settings), inputs, learns)
        if settings:
            run.share(first)
        why = run.warm()
        failed = failed or why
        if why is None:
            runs.append(run)
    _measure(runs, rounds, tell, clock)
    results = tuple(Result(r.settings, tuple(r.times), r.held) for r in runs)
    passes = "forward and backward" if learns else "forward"
    kind = str(first.module.dtype).removeprefix("torch.")
    size = f"{passes}, batch {batch}, length {length}, {kind}, {rounds} round{'s' * (rounds > 1)}"
    return Tuning(results, _best(results, memory), first.name, machine(first.module.device), size, failed)


@dataclass
class _Run:
    """A candidate that is being measured."""

    settings: Settings
    bundle: Bundle
    inputs: Mapping[str, Tensor]
    learns: bool
    times: list[float] = field(default_factory=list)
    held: int | None = 0

    def share(self, first: Bundle) -> None:
        """The weights of the first candidate: the same numbers, once in memory."""
        self.bundle.module.load_state_dict(first.module.state_dict(), assign=True)

    def once(self) -> None:
        """One pass, as it is measured."""
        module = self.bundle.module
        if not self.learns:
            with torch.no_grad():
                module(**{n: x for n, x in self.inputs.items() if n in self.bundle.graph.needed})
            return
        module.train()
        self.value().backward()
        for w in module.parameters():
            w.grad = None

    def value(self) -> Tensor:
        """One number to take gradients of."""
        module = self.bundle.module
        values = module.losses(training=True, **self.inputs) if self.bundle._objectives else {}
        if not values:
            out = module(**{n: x for n, x in self.inputs.items() if n in self.bundle.graph.needed})
            values = out if isinstance(out, Mapping) else {"": out}
        none = torch.zeros((), device=module.device, requires_grad=True)  # where no weight reaches what is computed
        return none + sum(x.float().mean() for x in values.values())

    def warm(self) -> str | None:
        """A first pass, which compiles what is to be compiled, and one in which what is held is counted. Returns why
        `compile` has no effect, if it was asked for and has none."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*has no effect.*")  # it is told with the results
            self.once()
        if self.settings.get("compile") and not_compiled() is not None:
            return not_compiled()
        self.held = self.count()
        return None

    def count(self) -> int | None:
        device = self.bundle.module.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            self.once()
            return torch.cuda.max_memory_allocated(device) - before
        if not self.learns:
            return 0
        own = (*self.bundle.module.parameters(), *self.inputs.values())
        self.bundle.module.train()
        try:
            return counted(self.value, own)[1]
        except RuntimeError as e:
            if "saved tensor" not in str(e):
                raise
            return None  # levels inside the step: what torch.func saves cannot be watched


def _measure(runs: Sequence[_Run], rounds: int, tell: Tell, clock: Callable[[], float]) -> None:
    """Samples of all runs in turn; their order moves on by one each round."""

    def sample(run: _Run, passes: int) -> float:
        _settle(run.bundle.module.device)
        start = clock()
        for _ in range(passes):
            run.once()
        _settle(run.bundle.module.device)
        return (clock() - start) / passes

    fastest = min(sample(run, 1) for run in runs)
    passes = max(1, math.ceil(SHORTEST / max(fastest, 1e-6)))
    done = 0
    for r in range(rounds):
        for i in range(len(runs)):
            run = runs[(i + r) % len(runs)]
            tell(_named(run.settings), done, rounds * len(runs))
            run.times.append(sample(run, passes))
            done += 1


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best(results: Sequence[Result], memory: float | None) -> Result:
    """The fastest that fits; the default, if it fits and is not slower by more than its samples differ."""
    fits = [r for r in results if memory is None or (r.held is not None and r.held <= memory * 1e6)]
    if not fits:
        least = min(results, key=lambda r: math.inf if r.held is None else r.held)
        raise fail(
            "NF548",
            f"no setting holds as little as {sized(int((memory or 0) * 1e6))} for the backward pass",
            help=f"the least is {_bytes(least.held)} ({least.name}); a smaller batch or shorter sequences hold less",
        )
    best, default = min(fits, key=lambda r: r.median), results[0]
    close = default in fits and default.median - best.median <= max(best.spread, default.spread)
    return default if close else best


def machine(device: torch.device) -> str:
    """What was measured on: processor or GPU, threads, torch."""
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    threads = torch.get_num_threads()
    some = f"{threads} thread{'s' * (threads > 1)}, " if device.type == "cpu" else ""
    return f"{what}, {some}torch {torch.__version__}, nestflow {__version__}"


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return (names or [platform.processor()])[0] or platform.machine() or "an unknown processor"


def _named(settings: Settings) -> str:
    return Result(settings, (), 0).name


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bytes(n: int | None) -> str:
    return "not known" if n is None else sized(n)


def _seconds(t: float) -> str:
    if math.isinf(t):
        return "–"
    return f"{t:.2f} s" if t >= 1 else f"{t * 1e3:.3g} ms"


__all__ = ["Result", "Tuning", "tune"]
