"""The demo's second part, in a process beside: associative recall with the memory learning, and with it frozen.

python -m nestflow.train.demo_recall OUT.json < plan.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nestflow.diagnostics.core import NestflowError, fail
from nestflow.train.recall import RecallTask, train_recall

# the runs by name, and what is set in the spec for each
RUNS: dict[str, dict[str, Any]] = {"memory learns": {}, "memory frozen (inner rates at 0)": {"rate": 0}}


@dataclass(frozen=True)
class RecallPlan:
    """Which model learns recall, and how long: `rows` rows a step."""

    spec: str = "titans"
    model: dict[str, Any] = field(default_factory=lambda: {"dim": 64, "depth": 2, "n_heads": 2, "chunk": 4})
    steps: int = 250
    rows: int = 64


class RecallRun:
    """`with RecallRun(plan, path) as run: ...; run.finish(console)`: trains in a process of its own until asked."""

    def __init__(self, plan: RecallPlan, out: Path):
        self.plan = plan
        self.out = out
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RecallRun:
        self.out.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nestflow.train.demo_recall", str(self.out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdin is not None  # PIPE was asked for
        self.process.stdin.write(json.dumps(asdict(self.plan)))
        self.process.stdin.close()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def finish(self, console: Console) -> dict[str, Any]:
        """Wait for the process, print its table, return its numbers. Raises NF526 if it failed."""
        assert self.process is not None  # entered
        with console.status("associative recall is still training") as status:
            while self.process.poll() is None:
                time.sleep(0.2)
                tail = read(self.out)
                if "step" in tail:
                    done = f"step {tail['step']}/{self.plan.steps}, recall {tail['accuracy']:.2f}"
                    status.update(f"associative recall, {tail['name']}: {done}")
        if self.process.returncode:
            told = (self.process.stderr.read() if self.process.stderr else "").strip().splitlines()
            raise fail("NF526", f"the recall part of the demo failed: {told[-1] if told else 'no reason told'}")
        found = read(self.out)
        self.out.unlink(missing_ok=True)
        show(console, self.plan, found)
        return found


def show(console: Console, plan: RecallPlan, found: dict[str, Any]) -> None:
    """The table of recall, learning and frozen."""
    task = RecallTask()
    console.print(
        Text(
            f"{plan.spec} reads {task.pairs} pairs of key and value once, then is asked for each key's value: "
            f"chance {1 / task.values:.2f}, guessing among the values it saw {1 / task.pairs:.2f}"
        )
    )
    table = Table(f"after {plan.steps} steps of {plan.rows} rows", "recall on new rows", box=None, header_style="bold")
    for name in RUNS:
        table.add_row(name, f"{found['runs'][name]['accuracy']:.2f}")
    console.print(table)


def read(path: Path) -> dict[str, Any]:
    """What the process wrote last; empty before it wrote anything."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all: the other process reads while this one writes."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value), encoding="utf-8")
    fresh.replace(path)


def run(plan: RecallPlan, out: Path) -> None:
    """Train and measure each of RUNS; the last write to `out` has all of them."""
    import nestflow

    task = RecallTask()
    runs: dict[str, Any] = {}
    for name, more in RUNS.items():
        bundle = nestflow.compile(plan.spec, **plan.model, vocab=task.vocab, **more)

        def tell(step: int, loss: float, accuracy: float, name: str = name) -> None:
            if step % 10 == 0:
                write(out, {"name": name, "step": step, "accuracy": accuracy})

        begin = time.perf_counter()
        result = train_recall(bundle, task, plan.steps, plan.rows, on_step=tell)
        seconds = time.perf_counter() - begin
        runs[name] = {"accuracy": result.accuracy, "curve": result.curve, "seconds": seconds}
    write(out, {"plan": asdict(plan), "task": asdict(task), "runs": runs})


def main() -> int:
    """Of the process beside. A plan in JSON on standard input, the file to write as the argument."""
    torch.set_num_threads(1)
    try:
        run(RecallPlan(**json.load(sys.stdin)), Path(sys.argv[1]))
    except NestflowError as e:
        print(e.diagnostics[0].message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
