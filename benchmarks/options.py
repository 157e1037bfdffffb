"""What every suite of `benchmarks.run` is told, and where its results are kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Options:
    """rounds: interleaved rounds. budget: seconds after which a case leaves them. resume: rows that an earlier run with
    the same settings has kept, and that did not fail, are not measured again."""

    quick: bool = False
    rounds: int = 5
    budget: float = 12.0
    batch: int = 1
    device: str = "cpu"
    threads: int = 1
    resume: bool = False
    folder: Path = field(default=RESULTS)

    def file(self, suite: str) -> Path:
        """Where the results of a suite are kept; a quick run has a file of its own."""
        return self.folder / f"{suite}-{self.device.split(':')[0]}{'-quick' if self.quick else ''}.json"

    def begin(self, suite: str, settings: dict[str, Any]) -> dict[str, Any]:
        """A result without rows; with `resume`, the kept one if its settings are the same."""
        fresh: dict[str, Any] = {
            "suite": suite,
            "device": self.device,
            "quick": self.quick,
            "settings": settings,
            "machine": machine(self.device, self.threads),
            "rows": [],
        }
        if self.resume and self.file(suite).exists():
            try:
                before = json.loads(self.file(suite).read_text(encoding="utf-8"))
                rows = [r for r in before["rows"] if "failed" not in r]
            except (ValueError, KeyError, TypeError):  # a file that is damaged: measured anew
                return fresh
            if before.get("settings") == json.loads(json.dumps(settings)):
                return {**fresh, "rows": rows}
        return fresh

    def keep(self, suite: str, result: dict[str, Any]) -> None:
        """Write the result as it stands."""
        write(self.file(suite), result)


def write(path: Path, result: dict[str, Any]) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
