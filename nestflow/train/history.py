"""What a run did: a record per step, validations, and the JSON-lines log that survives a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One step. loss in nats per token, seconds of this step, updated: the step-clock levels that updated.
    emitted: the mean of what the spec's `emit` publishes, by name."""

    step: int
    loss: float
    seconds: float
    tokens: int
    updated: tuple[str, ...] = ()
    emitted: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def bpb(self) -> float:
        """Bits per byte (per token)."""
        return self.loss / math.log(2)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass
class History:
    """Steps and validations of a run, the ones before a resume included.

    val: (step, bits per byte) of text. metrics: (step, measures by name) of examples. interrupted: the signal that
    ended the run early, or None. bundle: what was trained.
    checkpoint: the folder of the last checkpoint, if the run has a folder."""

    records: list[StepRecord] = field(default_factory=list)
    val: list[tuple[int, float]] = field(default_factory=list)
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list[tuple[int, dict[str, float]]])
    interrupted: str | None = None
    bundle: Any = None
    checkpoint: Path | None = None

    @property
    def losses(self) -> list[float]:
        """Training loss per step, nats per token."""
        return [r.loss for r in self.records]

    @property
    def steps(self) -> int:
        """The last step taken, counted from the first run."""
        return self.records[-1].step if self.records else 0

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.records)

    @property
    def tokens_per_s(self) -> float:
        """Over all steps, validations left out."""
        return sum(r.tokens for r in self.records) / max(self.seconds, 1e-9)

    def updates(self) -> dict[str, int]:
        """How often each step-clock level updated."""
        counts: dict[str, int] = {}
        for r in self.records:
            for name in r.updated:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """Plain data: what `results.json` holds."""
        return {
            "steps": self.steps,
            "train_bpb": [[r.step, r.bpb] for r in self.records],
            "val_bpb": [list(v) for v in self.val],
            "tokens_per_s": self.tokens_per_s,
            "seconds": self.seconds,
            "updates": self.updates(),
            "interrupted": self.interrupted,
            **({"metrics": [[n, m] for n, m in self.metrics]} if self.metrics else {}),
        }


class Log:
    """`log.jsonl` in the run's folder: one line per step and per validation, flushed as written.

    from_step: of a resumed run; the lines up to it are kept. source: the resumed run's folder, if another."""

    def __init__(self, folder: Path | None, from_step: int, source: Path | None = None):
        self._file = None
        if folder is None:
            return
        path = folder / LOG
        kept = [line for line in read_lines((source or folder) / LOG) if line["step"] <= from_step] if from_step else []
        # lines after the checkpoint belong to steps that are about to be taken again
        fresh = path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        fresh.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def step(self, r: StepRecord) -> None:
        line = {"step": r.step, "loss": r.loss, "bpb": r.bpb, "seconds": r.seconds, "tokens": r.tokens}
        self._write({**line, "updated": list(r.updated), **({"emitted": r.emitted} if r.emitted else {})})

    def val(self, step: int, bpb: float) -> None:
        self._write({"step": step, "val_bpb": bpb})

    def metrics(self, step: int, measures: Mapping[str, float]) -> None:
        self._write({"step": step, "metrics": dict(measures)})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def read_history(folder: str | Path, up_to: int | None = None) -> History:
    """The history that a run's log tells, up to a step."""
    history = History()
    for line in read_lines(Path(folder) / LOG):
        if up_to is not None and line["step"] > up_to:
            continue
        if "val_bpb" in line:
            history.val.append((line["step"], line["val_bpb"]))
        elif "metrics" in line:
            history.metrics.append((line["step"], line["metrics"]))
        else:
            history.records.append(
                StepRecord(
                    line["step"],
                    line["loss"],
                    line["seconds"],
                    line["tokens"],
                    tuple(line["updated"]),
                    line.get("emitted", {}),
                )
            )
    return history
