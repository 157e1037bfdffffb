"""Every architecture of specs/architectures at one size on one text: python -m benchmarks.zoo [--quick] [--write].

For each: parameters, lines of its spec, how it is lowered, how far the compiled module is from the interpreter in
float64, bits per byte on held-out text after some steps, the same with the memory's rate at 0 (a dead memory would
not be missed), how far its recall moves the scores at the end of a window, and tokens per second of training.
`--write` fills the marked block of docs/zoo.md and draws docs/zoo.svg.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

import nestflow
from benchmarks.options import RESULTS
from benchmarks.options import write as keep
from benchmarks.table import write_block
from benchmarks.zoo_table import markdown, picture
from nestflow.language.shipped import shipped_files
from nestflow.lowering.explain import explanations
from nestflow.train.data import corpus, validation_windows
from nestflow.train.evaluate import validation_bpb
from nestflow.train.loop import train
from nestflow.train.ngrams import baselines

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "transformer"
LONGER = 4  # windows of so many times the length trained on are read too, learning and still


@dataclass(frozen=True)
class Run:
    """What every spec gets. dim: of the reference, the others are as wide as makes them as large."""

    dim: int = 64
    n_heads: int = 2
    depth: int = 2
    steps: int = 200
    batch: int = 4
    length: int = 96
    windows: int = 48
    lr: float = 5e-3
    warmup: int = 15
    seed: int = 0


QUICK = Run(dim=32, steps=10, batch=2, length=48, windows=8, warmup=2)


def names() -> list[str]:
    """The shipped models that read nothing but tokens and can be made in any size."""
    shipped = sorted({n.removeprefix("architectures.") for n in shipped_files() if n.startswith("architectures.")})
    return [n for n in shipped if reads_text(nestflow.check(n))]


def reads_text(graph: Any) -> bool:
    sizes = {"dim", "n_heads", "depth", "lr", "warmup"}
    return [i.name for i in graph.inputs] == ["tokens"] and sizes <= {p.name for p in graph.params}


def size_of(name: str, run: Run, dim: int) -> int:
    """Parameters at that width, without building anything."""
    total = 0
    for w in nestflow.check(name, dim=dim, n_heads=run.n_heads, depth=run.depth).weights:
        count = w.heads or 1
        for n in w.shape:
            count *= n
        total += count
    return total


def width_for(name: str, run: Run, target: int) -> int:
    """The width, a multiple of 4 per head, whose size is nearest to the target (sizes grow with the width)."""
    step = 4 * run.n_heads
    low, high = 1, 2 * run.dim // step
    while low < high:
        middle = (low + high) // 2
        if size_of(name, run, middle * step) < target:
            low = middle + 1
        else:
            high = middle
    return min((n * step for n in (max(low - 1, 1), low)), key=lambda d: abs(size_of(name, run, d) - target))


def difference(name: str, run: Run) -> float:
    """max |compiled − interpreted| of the logits, float64, 20 tokens, one block."""
    b = nestflow.compile(name, dim=16, n_heads=run.n_heads, depth=1, dtype=torch.float64)
    x = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(run.seed))
    with torch.no_grad():
        return float((b.module(tokens=x) - b.reference()(tokens=x)).abs().max())


def patterns(bundle: Any) -> list[str]:
    """How its memories are lowered, each way once."""
    found = dict.fromkeys(e.pattern for e in explanations(bundle))
    return list(found)


def measure(name: str, run: Run, target: int) -> dict[str, Any]:
    """One row: trained from the same seed on the same windows as all others."""
    started = time.perf_counter()
    dim = width_for(name, run, target)
    settings = {"dim": dim, "n_heads": run.n_heads, "depth": run.depth, "lr": run.lr, "warmup": run.warmup}
    b = nestflow.compile(name, seed=run.seed, **settings)
    text = corpus("shakespeare")
    history = train(b, text, run.steps, batch=run.batch, length=run.length, seed=run.seed,
                    eval_every=0, eval_windows=run.windows, show=False)  # fmt: skip
    row = {
        "name": name,
        "paper": paper(b.graph.doc or ""),
        "lines": len((ROOT / "specs" / "architectures" / f"{name}.nl").read_text(encoding="utf-8").splitlines()),
        "lowering": patterns(b),
        "difference": difference(name, run),
        "dim": dim,
        "parameters": sum(w.numel() for w in b.module.parameters()),
        "bpb": history.val[-1][1],
        "without": None,
        "moved": None,
        "long": None,
        "tokens_per_cpu_s": 0.0,
        "curve": [r.bpb for r in history.records],
    }
    if "rate" in {p.name for p in b.graph.params}:
        still = nestflow.compile(name, seed=run.seed, rate=0, **settings)
        still.module.load_state_dict(b.module.state_dict())
        row["without"] = validation_bpb(still, text.val_M, run.length, run.windows)
        row["moved"] = moved(b, still, text.val_M, run)
        row["long"] = [validation_bpb(x, text.val_M, LONGER * run.length, 12) for x in (b, still)]
    row["tokens_per_cpu_s"] = speed(b, text.train_N, run)  # last: it goes on training
    row["seconds"] = time.perf_counter() - started
    return row


def moved(learning: Any, still: Any, val_M: torch.Tensor, run: Run) -> float:
    """How far learning in context moves the scores at the end of a window, as a share of their spread: 0 is a memory
    that writes nothing, or that nothing reads."""
    tokens_nT = validation_windows(val_M, run.length, 8)[:, : run.length]
    with torch.no_grad():
        on_nTV, off_nTV = (b.module.eval()(tokens=tokens_nT)[:, -run.length // 4 :] for b in (learning, still))
    return float((on_nTV - off_nTV).square().mean().sqrt() / off_nTV.std())


def speed(bundle: Any, train_N: torch.Tensor, run: Run, steps: int = 5) -> float:
    """Tokens a second of training, in CPU time of this process: what else the machine does then counts little."""
    draw = torch.Generator().manual_seed(run.seed)
    taken: list[float] = []
    for _ in range(steps):
        at_B = torch.randint(len(train_N) - run.length, (run.batch,), generator=draw).tolist()
        tokens_BT = torch.stack([train_N[i : i + run.length] for i in at_B]).long()
        begun = time.process_time()
        bundle.step({"tokens": tokens_BT})
        taken.append(time.process_time() - begun)
    return run.batch * run.length / statistics.median(taken)


def paper(doc: str) -> str:
    """Authors and year: what the last paragraph of a spec begins with."""
    found = re.search(r"([A-Z][^.\"(]*? (?:et al\. )?\d{4})", doc.strip().split("\n\n")[-1].replace("\n", " "))
    return found[1] if found else ""


def results(run: Run, chosen: list[str], mode: str, out: Path | None, resume: bool = False) -> dict[str, Any]:
    """All rows. out: written after each of them; there rows of earlier calls with the same settings stay until their
    spec is measured again. resume: it is not."""
    text, target = corpus("shakespeare"), size_of(REFERENCE, run, run.dim)
    found = {
        "mode": mode,
        "run": asdict(run),
        "target": target,
        "baselines": dict(baselines(text)),
        "machine": {"torch": torch.__version__, "threads": torch.get_num_threads(), "platform": platform.machine()},
        "date": date.today().isoformat(),
        "rows": [],
    }
    if out is not None and out.exists():
        before = json.loads(out.read_text(encoding="utf-8"))
        if before["run"] == found["run"]:
            found["rows"] = before["rows"]
    for name in chosen:
        if resume and name in {r["name"] for r in found["rows"]}:
            continue
        r = measure(name, run, target)
        found["rows"] = [x for x in found["rows"] if x["name"] != name] + [r]
        if out is not None:
            keep(out, found)
        off = "" if r["without"] is None else f", {r['without']:.3f} without its memory"
        pace = f"{r['tokens_per_cpu_s']:,.0f} tokens/s, {r['seconds']:.0f} s"
        longer = "" if r["long"] is None else ", windows {} times as long: {:.3f} and {:.3f}".format(LONGER, *r["long"])
        print(f"{name:18} {r['bpb']:.3f} bits per byte{off}{longer}, {pace}", flush=True)
    return found


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help="small and short: it shows that all train, not how well")
    p.add_argument("--only", nargs="+", metavar="SPEC", help="these alone")
    p.add_argument("--steps", type=int, help="steps of each")
    p.add_argument("--write", action="store_true", help="fill docs/zoo.md and draw docs/zoo.svg")
    p.add_argument("--out", type=Path, help="where rows are kept, one by one (benchmarks/results/zoo.json)")
    p.add_argument("--resume", action="store_true", help="what is kept is not measured again")
    p.add_argument("--read", type=Path, help="kept results, instead of a run")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args(argv)
    unknown = [n for n in a.only or () if n not in names()]
    if unknown:
        p.error(f"no architecture is called {', '.join(unknown)}; there are {', '.join(names())}")
    torch.set_num_threads(a.threads)
    run = QUICK if a.quick else Run()
    run = replace(run, steps=a.steps) if a.steps else run
    if a.read:
        found = json.loads(a.read.read_text(encoding="utf-8"))
    else:
        kind = ("-quick" if a.quick else "") + (f"-{a.steps}" if a.steps else "")  # other settings, another file
        found = results(
            run, a.only or names(), "quick" if a.quick else "full", a.out or RESULTS / f"zoo{kind}.json", a.resume
        )
    table = markdown(found)
    print(table)
    if a.write:
        picture(found, ROOT / "docs" / "zoo.svg")
        write_block(ROOT / "docs" / "zoo.md", "zoo", table + "\n\n![Training curves](zoo.svg)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
