"""The training loop: text or examples in, a trained bundle, its history and its checkpoints out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nestflow.diagnostics.core import NestflowError, fail
from nestflow.train import checkpoint as ckpt
from nestflow.train.config import TrainConfig, train_config
from nestflow.train.display import Display, LevelCounts, token_levels_line, told
from nestflow.train.history import History, Log, StepRecord, read_history
from nestflow.train.protocol import Trainable, device_of
from nestflow.train.signals import StopRequest
from nestflow.train.sources import BPB, Data, Source, other_data, source_of

OnStep = Callable[[StepRecord], None]

# a resumed run reads the very batches that the first would have read
_FIXED = ("batch", "length", "seed", "holdout")


def train(
    bundle: Trainable | None,
    data: Data | None = None,
    steps: int | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    show: bool = True,
    console: Any = None,
    networks: Mapping[str, Any] | None = None,
    execution: Mapping[str, Any] | str | Path | None = None,
    **settings: Any,
) -> History:
    """Train a bundle on bytes of text, or on examples.

    data: a shipped text (`shakespeare`), a file, a folder of .txt files, bytes, or a `Corpus`; or examples by input: a
    mapping of tensors, a `Dataset`, one of torch, a .npz, .safetensors, .csv or .jsonl file, a folder of .npy files.
    steps: in all.
    settings: the other fields of `TrainConfig` (batch, length, seed, holdout, eval_every, eval_windows,
    checkpoint_every, keep). out: a folder for `log.jsonl` and checkpoints; None writes nothing.
    resume: a folder that an earlier run wrote, or one checkpoint in it: weights, optimiser, clocks, data position and
    random state go on bit for bit, and `bundle` may be None. overwrite: drop an earlier run in `out`.
    networks: those of the spec (`extern`), by name, to resume with. execution: settings of `execution`, or a file of
    them, to resume with; a bundle that is given has its own.

    SIGINT and SIGTERM end the run after the step, with a checkpoint (`History.interrupted`).
    Raises NestflowError: NF520 to NF522 (text), NF530 to NF535 (examples), NF524 (settings), NF525 (checkpoints),
    NF526 (the loss is not a number), NF527 (the spec does not read bytes).
    """
    given = dict(settings) | ({} if steps is None else {"steps": steps})
    if isinstance(data, (str, Path)):
        given["data"] = str(data)
    own = None if data is None or isinstance(data, (str, Path)) else data
    if resume is not None:
        run = _resume(own, given, out, resume, networks, execution)
    else:
        run = _start(bundle, own, given, out, overwrite)
    run.on_step = on_step
    source = run.source
    note = token_levels_line(run.bundle.graph, source.length) if source.length else ""
    with StopRequest() as stop, Display(run.config.steps, run.done, show, console, note, source.text) as display:
        try:
            run.loop(stop, display)
        finally:
            run.log.close()
    return run.history


def _start(bundle: Any, own: Data | None, given: dict[str, Any], out: Any, overwrite: bool) -> _Run:
    """A new run. Everything is checked before anything is written."""
    if bundle is None:
        raise fail("NF525", "there is nothing to train: no bundle was given, and no run to resume")
    config = train_config(given)
    run = _Run(bundle, source_of(bundle, own, config), config, None if out is None else Path(out), History())
    if run.folder is not None:
        _claim(run.folder, overwrite)
    run.open()
    # a kill before the first periodic checkpoint still leaves one to resume from
    run.save()
    return run


def _resume(
    own: Data | None,
    given: dict[str, Any],
    out: Any,
    resume: str | Path,
    networks: Mapping[str, Any] | None = None,
    execution: Any = None,
) -> _Run:
    """A run as its last checkpoint left it."""
    more = {} if execution is None else {"execution": execution}
    bundle, where, folder = ckpt.load_newest(resume, {**(networks or {}), **more})
    state = (getattr(bundle, "extra", None) or {}).get("train")
    if not state:
        raise fail("NF525", f"`{where}` was not written by `train`: it has no training state to resume")
    before = dict(state["config"])
    for name in _FIXED:
        if name in given and given[name] != before[name]:
            raise fail(
                "NF525",
                f"the run in `{folder}` has {name} = {before[name]}, and cannot go on with {given[name]}",
                help=f"leave `{name}` out to resume, or start a new run",
            )
    config = train_config(before | given)
    source = source_of(bundle, own, config)
    if source.fingerprint != state["fingerprint"]:
        raise other_data(source, folder)
    target = folder if out is None else Path(out)
    target.mkdir(parents=True, exist_ok=True)
    run = _Run(bundle, source, config, target, read_history(folder, state["step"]))
    source.restore(state["windows"])
    run.done = int(state["step"])
    run.open(folder)
    run.history.checkpoint = where
    ckpt.set_rng_state(state["rng"])
    return run


class _Run:
    """The state of one call of `train`."""

    def __init__(self, bundle: Trainable, source: Source, config: TrainConfig, folder: Path | None, history: History):
        self.bundle = bundle
        self.source = source
        self.config = config
        self.folder = folder
        self.history = history
        self.done = 0
        self.levels = LevelCounts(history.updates())
        self.on_step: OnStep | None = None
        history.bundle = bundle

    def open(self, source: Path | None = None) -> None:
        """Open the log where the run stands and tell the bundle's schedules how long the run is."""
        self.log = Log(self.folder, self.done, source)
        set_total = getattr(self.bundle, "set_total_steps", None)
        if set_total is not None:
            set_total(self.config.steps)

    def loop(self, stop: StopRequest, display: Display) -> None:
        """Steps until the end or a signal; validation and checkpoints at their periods."""
        c = self.config
        while self.done < c.steps and stop.name is None:
            record = self.one_step()
            display.step(record.step, record.loss, record.tokens_per_s, self.levels, record.emitted)
            if self.on_step is not None:
                self.on_step(record)
            last = self.done == c.steps
            if last or (c.eval_every and self.done % c.eval_every == 0):
                self.validate(display)
            if last or stop.name is not None or (c.checkpoint_every and self.done % c.checkpoint_every == 0):
                self.save()
        if stop.name is not None:
            self.history.interrupted = stop.name
            self.save()
            where = f": {self.history.checkpoint}" if self.history.checkpoint else ""
            display.say(f"stopped by {stop.name} after step {self.done}{where}")

    def validate(self, display: Display) -> None:
        measures = self.source.measure(self.bundle)
        if measures is None:
            return
        if BPB in measures:
            self.history.val.append((self.done, measures[BPB]))
            self.log.val(self.done, measures[BPB])
        else:
            self.history.metrics.append((self.done, measures))
            self.log.metrics(self.done, measures)
        display.validation(measures)
        display.say(f"step {self.done}: validation {told(measures)}")
        if not all(math.isfinite(v) for v in measures.values()):
            display.say("a memory ran away on what was held out: lower its rate or its chunk (NF526)")

    def one_step(self) -> StepRecord:
        begin = time.perf_counter()
        batch, count = self.source.next()
        device = device_of(self.bundle.module)
        self.bundle.module.train()
        report = self.bundle.step({name: x.to(device) for name, x in batch.items()})
        loss = float(report["loss"])
        if not math.isfinite(loss):
            raise _not_finite(loss, self.done + 1, self.history.checkpoint)
        updated = self.levels.add(report["levels"])
        self.done += 1
        record = StepRecord(self.done, loss, time.perf_counter() - begin, count, updated, report.get("emitted", {}))
        self.history.records.append(record)
        self.log.step(record)
        return record

    def save(self) -> None:
        if self.folder is None:
            return
        state = {
            "step": self.done,
            "windows": self.source.state(),
            "config": self.config.model_dump(),
            "fingerprint": self.source.fingerprint,
            "rng": ckpt.rng_state(),
        }
        self.history.checkpoint = ckpt.save_checkpoint(self.bundle, self.folder, self.done, state, self.config.keep)


def _claim(folder: Path, overwrite: bool) -> None:
    """Take a folder for a new run; never over an earlier one unless asked."""
    found = ckpt.checkpoints(folder)
    if found and not overwrite:
        raise fail(
            "NF525",
            f"`{folder}` holds a run that got to step {found[-1][0]}",
            help="resume it (`--resume`), choose another folder, or drop it (`--overwrite`)",
        )
    try:
        if overwrite:
            ckpt.clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise fail("NF525", f"cannot write to `{folder}`: {e.strerror or e}") from e


def _not_finite(loss: float, step: int, checkpoint: Path | None) -> NestflowError:
    kept = f"; the last good state is `{checkpoint}`" if checkpoint else ""
    return fail(
        "NF526",
        f"the loss became {loss} at step {step}{kept}",
        help="a memory is stable while chunk · lr / (1 − beta) is below about 1.5, with keys of unit length "
        "(`l2norm`): lower its rate, momentum or chunk; or lower the outer learning rate",
    )
