"""The targets of this project's speed, each held against what the suites have kept. Nothing here is measured.

A figure is one or more numbers of kept results and a limit. It is reached where all of them are within the limit; one
whose suite has not been run, or did not time it, is not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import hope, peer_memories
from benchmarks.hope_peer import PACKAGE
from benchmarks.machine import QUIET

Results = Mapping[str, dict[str, Any]]  # by suite
Numbers = Sequence[float | None]

CHUNKS = {  # most multiples of the floor: eager and compiled forward, likewise training
    16: (2.2, 1.6, 3.0, 2.0),
    64: (2.0, 1.7, 2.2, 2.0),
}
LENGTHS = (2048, 8192)
EAGER, COMPILED, CHECKPOINTED = "nestflow", "nestflow, compiled", "nestflow, checkpointing auto"
TITANS_PEER = "titans-pytorch"
PASSES = {"forward": "forward", "training": "forward and backward"}
FLAT = 1.2  # later over earlier that still counts as flat: what the rounds of a quiet machine are apart


@dataclass(frozen=True)
class Figure:
    """sign: "≤" or "≥". numbers: those that the limit holds for. note: which is which, where there are several."""

    what: str
    sign: str
    limit: float
    numbers: tuple[float | None, ...]
    note: str = ""
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        """None: not measured, or not all of it."""
        if not self.numbers or any(n is None for n in self.numbers):
            return None
        within = [n <= self.limit if self.sign == "≤" else n >= self.limit for n in self.numbers if n is not None]
        return all(within)


def number(row: Any, *path: str) -> float | None:
    """What stands at the end of a path of a row; None where something is missing on the way."""
    for name in path:
        if not isinstance(row, Mapping) or name not in row:
            return None
        row = row[name]
    return row


def row_of(results: Results, suite: str, **where: Any) -> dict[str, Any] | None:
    """The one row with these values."""
    found = (r for r in results.get(suite, {}).get("rows", ()) if all(r.get(k) == v for k, v in where.items()))
    return next(found, None)


def over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or b == 0 else a / b


def titans(results: Results) -> Iterator[Figure]:
    """The layer of Titans' memory."""

    def of(chunk: int, case: str, *path: str) -> Numbers:
        return [number(row_of(results, "titans_memory", chunk=chunk, length=n, case=case), *path) for n in LENGTHS]

    def times(case: str, ours: str, mode: str) -> tuple[float | None, ...]:
        """How many times as long as ours, round by round where ours is the eager case."""
        theirs = of(16, case, f"{mode}_over_ours", "ratio")
        if ours == EAGER:
            return tuple(theirs)
        return tuple(over(a, b) for a, b in zip(theirs, of(16, ours, f"{mode}_over_ours", "ratio")))

    both = " / ".join(f"T = {n:,}" for n in LENGTHS)
    for chunk, limits in CHUNKS.items():
        cases = [(m, c) for m in PASSES for c in (EAGER, COMPILED)]
        for (mode, case), limit in zip(cases, limits):
            how = "compiled" if case == COMPILED else "eager"
            name = f"Titans' memory, chunk {chunk}, {PASSES[mode]}, {how}: × floor"
            yield Figure(name, "≤", limit, tuple(of(chunk, case, mode, "ratio")), both)
    for case, how in ((EAGER, "eager"), (CHECKPOINTED, "checkpointing auto")):
        share = over(of(16, case, "peak_mb")[-1], of(16, TITANS_PEER, "peak_mb")[-1])
        name = f"Titans' memory, chunk 16, T = {LENGTHS[-1]:,}, peak memory, {how}: share of {TITANS_PEER}'s"
        yield Figure(name, "≤", 0.15, (share,))
    versus = {
        TITANS_PEER: {"forward": (6.0, 10.0), "training": (5.0, 7.0)},
        "plain torch": {"forward": (1.3, 1.7), "training": (1.25, 1.6)},
    }
    for other, modes in versus.items():
        for mode, limits in modes.items():
            for case, how, limit in zip((EAGER, COMPILED), ("eager", "compiled"), limits):
                name = f"Titans' memory, chunk 16, {PASSES[mode]}, {how}: times as fast as {other}"
                yield Figure(name, "≥", limit, times(other, case, mode), both)
    share = over(of(16, EAGER, "peak_mb")[-1], of(16, "plain torch", "peak_mb")[-1])
    yield Figure("Titans' memory, chunk 16, peak memory: share of plain torch's", "≤", 1.0, (share,))


def layers_alone(results: Results) -> Iterator[Figure]:
    """HOPE's five memories, and a memory that no paper has."""
    limits = {
        ("forward", EAGER): 3.5,
        ("forward", COMPILED): 2.5,
        ("training", EAGER): 3.7,
        ("training", COMPILED): 2.6,
    }

    def of(spec: str, chunk: int, case: str, mode: str) -> float | None:
        return number(row_of(results, "memories", spec=spec, chunk=chunk, case=case), mode, "ratio")

    for (mode, case), limit in limits.items():
        how = "compiled" if case == COMPILED else "eager"
        numbers = tuple(of("hope_memory", c, case, mode) for c in (16, 64))
        yield Figure(f"HOPE's five memories, {PASSES[mode]}, {how}: × floor", "≤", limit, numbers, "chunk 16 / 64")
    novel, known = ([of(s, 32, EAGER, m) for m in PASSES] for s in ("new_memory", "titans_memory"))
    numbers = tuple(over(a, b) for a, b in zip(novel, known))
    yield Figure("A memory that no paper has: its × floor over Titans'", "≤", 2.0, numbers, "forward / training")


def matrices(results: Results) -> Iterator[Figure]:
    """Matrix memories beside their loops, attention and linear attention."""

    def of(mode: str, peer: str, names: Sequence[str]) -> tuple[float | None, ...]:
        return tuple(number(row_of(results, "peers", what=n, peer=peer), "modes", mode, "ratio") for n in names)

    sums, deltas = peer_memories.MATRICES[:3], peer_memories.MATRICES[3:]
    for names, limits in ((sums, (14.0, 40.0)), (deltas, (8.0, 30.0))):
        for mode, limit in zip(PASSES, limits):
            numbers = of(mode, peer_memories.LOOP, names)
            label = f"Levels alone, T = 2,048, {PASSES[mode]}: times as fast as tick by tick"
            yield Figure(label, "≥", limit, numbers, " / ".join(names))
    for mode in PASSES:
        peer = f"torch sdpa, T = {peer_memories.SHORT:,}"
        numbers = of(mode, peer, peer_memories.MATRICES)
        label = f"Levels alone, T = {peer_memories.SHORT:,}, {PASSES[mode]}: times as fast as causal attention"
        yield Figure(label, "≥", 1.0, numbers, " / ".join(peer_memories.MATRICES))
    names = ("gla", "kda", "rwkv7")
    for mode, limit in (("forward", 3.0), ("training", 5.0)):
        numbers = tuple(number(row_of(results, "layers", spec=n), mode, "linear attention", "ratio") for n in names)
        yield Figure(
            f"One block, {PASSES[mode]}: × linear attention in plain torch", "≤", limit, numbers, " / ".join(names)
        )


def worst(found: Mapping[str, float | None]) -> tuple[tuple[float | None, ...], str]:
    """The largest number and whose it is."""
    known = {n: x for n, x in found.items() if x is not None}
    if not known:
        return (None,), ""
    name = max(known, key=lambda n: known[n])
    return (known[name],), f"{name}, the worst of {len(known)}"


def growing(results: Results) -> Iterator[Figure]:
    """What length costs, but where an attention sees all tokens."""
    linear = [r for r in results.get("layers", {}).get("rows", ()) if "failed" not in r and not r.get("sees_all")]
    for mode in PASSES:
        numbers, note = worst({r["spec"]: number(r, mode, "growth", "ratio") for r in linear})
        yield Figure(f"Any spec, {PASSES[mode]}: what T × 4 costs", "≤", 4.6, numbers, note)
    streams = [r for r in results.get("streams", {}).get("rows", ()) if not r["sees_all"]]
    numbers, note = worst({r["spec"]: number(r, "time", "ratio") for r in streams})
    yield Figure("Any spec, streaming: a token after 8,192 over one after 512", "≤", FLAT, numbers, note)
    numbers, note = worst({r["spec"]: over(r["kept"]["late"], r["kept"]["early"]) for r in streams})
    yield Figure("Any spec, streaming: bytes kept, likewise", "≤", 1.0, numbers, note)


def beside_nested_learning(results: Results) -> Iterator[Figure]:
    """HOPE's block."""
    theirs = row_of(results, "hope", case=PACKAGE)
    heads = {case: case.removeprefix("nestflow, ") for case in hope.UNITS[::-1]}
    for case, of in heads.items():
        for mode in PASSES:
            name = f"HOPE's block, {of}, {PASSES[mode]}: tokens/s, times {PACKAGE}'s"
            yield Figure(name, "≥", 12.0, (number(theirs, mode, "over", case, "ratio"),))
    for mode in PASSES:
        cases = (hope.UNITS[1], f"{hope.UNITS[1]}, checkpointing auto")
        ours = [number(row_of(results, "hope", case=case), mode, "peak_mb") for case in cases]
        numbers = tuple(over(n, number(theirs, mode, "peak_mb")) for n in ours)
        name = f"HOPE's block, 4 heads, {PASSES[mode]}, peak memory: share of {PACKAGE}'s"
        yield Figure(name, "≤", 1.0, numbers, "eager / checkpointing auto")


def decoding(results: Results) -> Iterator[Figure]:
    """One token at a time."""
    at = ("start", "later")
    for what, peer, limit in (("titans_memory", TITANS_PEER, 0.25), ("hope_block", PACKAGE, 0.1)):
        row = row_of(results, "decode", what=f"{what}, chunk 16", case=peer)
        numbers = tuple(over(1.0, number(row, p, "ratio")) for p in at)
        yield Figure(f"Decoding, {what}: ms a token, share of {peer}'s", "≤", limit, numbers, "at the start / later")
    for spec in ("linear_attention", "gated_deltanet"):
        row = row_of(results, "decode", what=f"{spec}, one block", case="by hand")
        numbers = tuple(over(1.0, number(row, p, "ratio")) for p in at)
        yield Figure(f"Decoding, {spec}: ms a token, over a loop by hand", "≤", 1.0, numbers, "at the start / later")
    rows = results.get("decode", {}).get("rows", ())
    ours = {r["what"]: number(r, "growth", "ratio") for r in rows if r.get("case") == EAGER}
    numbers, note = worst({n: x for n, x in ours.items() if not n.startswith("transformer")})
    yield Figure("Decoding: a token later over one at the start", "≤", FLAT, numbers, note)


def starting(results: Results) -> Iterator[Figure]:
    """How long until one can work."""
    rows = results.get("start", {}).get("rows", ())
    for key, what, limit in (("compile", "compile(spec) after import torch", 1.5), ("check", "nestflow check", 0.5)):
        numbers, note = worst({r["spec"]: number(r, key, "seconds") for r in rows})
        yield Figure(f"`{what}`", "≤", limit, numbers, note, " s")


def figures(results: Results) -> list[Figure]:
    """All of them, in the order of the table."""
    parts = (titans, layers_alone, matrices, growing, beside_nested_learning, decoding, starting)
    return [f for part in parts for f in part(results)]


def markdown(results: Results) -> str:
    """The table, and how many are reached."""
    all_ = figures(results)
    busy = [s for s, r in results.items() if (r["machine"].get("load") or 0) > QUIET]
    lines = ["| figure | target | measured | reached |", "|---|---|---|---|"]
    for f in all_:
        said = {True: "yes", False: "**no**", None: "not measured"}[f.reached]
        measured = " / ".join("–" if n is None else f"{n:.2f}{f.unit}" for n in f.numbers)
        note = f" ({f.note})" if f.note else ""
        limit = f"{f.limit:g}"
        lines.append(f"| {f.what}{note} | {f.sign} {limit}{f.unit} | {measured} | {said} |")
    count = [sum(f.reached is kind for f in all_) for kind in (True, False, None)]
    lines += ["", f"{count[0]} of {len(all_)} reached, {count[1]} not, {count[2]} not measured."]
    if busy:
        lines[-1] += f" Others used the machine when these suites began: {', '.join(busy)}."
    return "\n".join(lines)
