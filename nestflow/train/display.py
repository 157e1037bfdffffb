"""The live display of a run: step, loss, bits per byte, tokens/s, and what each level did.

On a terminal it redraws in place; elsewhere it prints a line now and then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from nestflow.view import screen


def token_levels_line(graph: Any, length: int) -> str:
    """How often the fast levels learn inside one window of `length` tokens; empty if the graph has none.

    The memories of one level are named together:
    `inside a window of 256: titans learns every token (256 times), in 2 places`.
    """
    groups: dict[tuple[str, int, int], int] = {}
    names = {getattr(level, "name", "") for level in getattr(graph, "levels", ()) or ()}
    for level in getattr(graph, "levels", ()) or ():
        # the memories of an update rule learn with the level that they belong to
        if "patch" in getattr(level, "frequency_text", ""):
            continue  # it learns inside each example
        if level.clock == "token" and level.every >= 1 and getattr(level, "parent", None) not in names:
            key = (level.title.split(".")[0], level.every, level.count)
            groups[key] = groups.get(key, 0) + 1
    parts: list[str] = []
    for (title, every, count), memories in groups.items():
        who = title if memories == 1 else f"{title} ({memories} memories)"
        often = "every token" if every == 1 else f"every {every} tokens"
        parts.append(f"{who} learns {often} ({length // every} times)" + (f", in {count} places" if count > 1 else ""))
    return f"inside a window of {length}: " + "; ".join(parts) if parts else ""


def told(measures: Mapping[str, float]) -> str:
    """`2.514 bits per byte`; `loss 0.412, accuracy 91.2%`."""
    parts: list[str] = []
    for name, value in measures.items():
        if name.startswith("accuracy"):
            parts.append(f"{name} {100 * value:.1f}%")
        else:
            parts.append(f"{value:.3f} {name}" if name == "bits per byte" else f"{name} {value:.4g}")
    return ", ".join(parts)


class LevelCounts:
    """What the step-clock levels did: name -> period, updates so far, whether it updated in this step."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts = dict(counts or {})
        self.every: dict[str, int] = {}
        self.updated: dict[str, bool] = {}

    def add(self, levels: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
        """Count one step's report; returns the names that updated."""
        for name, did in levels.items():
            self.every[name] = int(did["every"])
            self.updated[name] = bool(did["updated"])
            self.counts[name] = self.counts.get(name, 0) + int(self.updated[name])
        return tuple(name for name, did in levels.items() if did["updated"])

    def text(self) -> str:
        """`fast every step → updated (120)   slow every 16 · waits (7)`."""
        parts: list[str] = []
        for name, every in self.every.items():
            often = "never" if every == 0 else "every step" if every == 1 else f"every {every}"
            did = "frozen" if every == 0 else "→ updated" if self.updated[name] else "· waits"
            parts.append(f"{name} {often} {did} ({self.counts[name]})")
        return "   ".join(parts)


class Display:
    """Shows a run. `with Display(...) as d: d.step(record, levels)`. show=False prints nothing."""

    def __init__(
        self,
        steps: int,
        start: int = 0,
        show: bool = True,
        console: Console | None = None,
        note: str = "",
        text: bool = True,
    ) -> None:
        self.console = console or screen.console()
        self.show = show
        self.steps = steps
        self.note = note
        self.live: Live | None = None
        self.last_print = 0.0
        self.val: Mapping[str, float] | None = None
        self.text = text  # losses are nats per byte, and ticks are counted; else examples
        self.progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self.task = self.progress.add_task("train", total=steps, completed=start)

    def __enter__(self) -> Display:
        if self.show and self.note:
            self.console.print(Text(self.note, style="dim"), soft_wrap=not self.console.is_terminal)
        if self.show and self.console.is_terminal:
            self.live = Live(self.progress, console=self.console, refresh_per_second=8)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def step(
        self,
        step: int,
        loss: float,
        tokens_per_s: float,
        levels: LevelCounts,
        emitted: Mapping[str, float] | None = None,
    ) -> None:
        if not self.show:
            return
        val = "" if self.val is None else f"   validation {told(self.val)}"
        bits = f" nats   {loss / math.log(2):.3f} bits per byte" if self.text else ""
        numbers = f"step {step}   loss {loss:.3f}{bits}{val}   "
        numbers += f"{tokens_per_s:,.0f} {'tokens' if self.text else 'examples'}/s"
        numbers += "".join(f"   {name} {value:.3g}" for name, value in (emitted or {}).items())
        if self.live is not None:
            self.progress.update(self.task, completed=step)
            self.live.update(Group(self.progress, Text(numbers, style="cyan"), Text(levels.text(), style="dim")))
        elif time.monotonic() - self.last_print > 15 or step == self.steps:
            self.last_print = time.monotonic()
            self.say(f"{numbers}   [{levels.text()}]")

    def validation(self, measures: Mapping[str, float]) -> None:
        self.val = measures

    def say(self, text: str) -> None:
        if self.show:
            self.console.print(Text(text), soft_wrap=not self.console.is_terminal)  # a line of a log stays one
