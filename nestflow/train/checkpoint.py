"""Checkpoints of a run: whole or absent, never half, so that a kill at any moment leaves a loadable one.

    out/my-run/log.jsonl
    out/my-run/checkpoints/step-000200/    a bundle (nestflow.load), with the trainer's state in its `extra`

A checkpoint is written beside its place and renamed into it; older ones go only after that.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nestflow.diagnostics.core import NestflowError, fail

DAMAGE = {"NF512", "NF513"}  # a file is missing, truncated or changed
FOLDER = "checkpoints"
_STEP = re.compile(r"step-(\d+)$")


def load_bundle(path: Path, **networks: Any) -> Any:
    """`nestflow.load`, imported late: it brings in the whole compiler."""
    from importlib import import_module

    return import_module("nestflow").load(path, **networks)


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the whole checkpoints of a run, oldest first."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in folder.iterdir() if (m := _STEP.match(p.name)) and p.is_dir()]
    return sorted(found)


def find_checkpoint(path: str | Path) -> tuple[Path, Path]:
    """(checkpoint folder, run folder) for a run's folder or one checkpoint of it. Raises NF525 if there is none."""
    path = Path(path)
    if _STEP.match(path.name) and path.is_dir():
        return path, path.parent.parent
    found = checkpoints(path)
    if not found:
        what = "has no checkpoint" if path.exists() else "does not exist"
        raise fail("NF525", f"cannot resume: `{path}` {what}", help="give the folder that `train` wrote (`--out`)")
    return found[-1][1], path


def load_newest(path: str | Path, networks: Mapping[str, Any] | None = None) -> tuple[Any, Path, Path]:
    """(bundle, its checkpoint, the run's folder): the newest checkpoint of a run that is whole, or the one named.

    A damaged one is named in a warning and set aside under another name, so that the run can write its step again.
    Raises NF525 if there is none, and what `load` says of the newest where none is whole.
    """
    newest, run = find_checkpoint(path)
    if newest == Path(path):
        return load_bundle(newest, **(networks or {})), newest, run
    first: NestflowError | None = None
    damaged: list[Path] = []
    for _, where in reversed(checkpoints(run)):
        try:
            bundle = load_bundle(where, **(networks or {}))
        except NestflowError as e:
            if not {d.code for d in e.diagnostics} <= DAMAGE:
                raise
            first = first or e
            damaged.append(where)
            continue
        for old in damaged:
            shutil.rmtree(aside := old.with_name(f"damaged-{old.name}"), ignore_errors=True)
            old.rename(aside)
        if first is not None:
            said = first.diagnostics[0].message
            warnings.warn(f"{said}; the run goes on from `{where}`, the one before it", stacklevel=2)
        return bundle, where, run
    assert first is not None
    raise first


def save_checkpoint(bundle: Any, run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoint `step` of a run and drop all but the newest `keep`. Returns its folder.

    state: JSON data for `resume`. Raises NF525 if it cannot be written.
    """
    folder = run / FOLDER
    final = folder / f"step-{step:06d}"
    if final.exists():
        return final
    writing = folder / f".writing-{step:06d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(writing, ignore_errors=True)
        bundle.save(writing, extra={"train": state})
        writing.rename(final)
    except OSError as e:
        shutil.rmtree(writing, ignore_errors=True)
        raise fail("NF525", f"cannot write the checkpoint `{final}`: {e.strerror or e}") from e
    prune(run, keep)
    return final


def prune(run: Path, keep: int) -> None:
    """Drop old checkpoints and what a killed run left half-written."""
    for _, old in checkpoints(run)[:-keep]:
        # renamed first, so that a kill while deleting leaves no checkpoint with files missing
        gone = old.with_name(f".removed-{old.name}")
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    for rest in [*(run / FOLDER).glob(".removed-*"), *(run / FOLDER).glob(".writing-*")]:
        shutil.rmtree(rest, ignore_errors=True)


def clear(run: Path) -> None:
    """Remove the checkpoints and log of an earlier run in this folder, and nothing else."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    (run / "log.jsonl").unlink(missing_ok=True)


def rng_state() -> dict[str, Any]:
    """torch's random state as JSON data."""
    state: dict[str, Any] = {"cpu": _text(torch.get_rng_state())}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = [_text(s) for s in torch.cuda.get_rng_state_all()]
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Undo of `rng_state`. CUDA states are used where there are as many devices."""
    torch.set_rng_state(_tensor(state["cpu"]))
    cuda = [_tensor(s) for s in state.get("cuda", [])]
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)


def _text(t: torch.Tensor) -> str:
    return base64.b64encode(t.numpy().tobytes()).decode("ascii")


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
