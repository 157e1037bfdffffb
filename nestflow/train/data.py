"""Text as bytes: corpora, a split that holds out the end of each file, and windows drawn at random but repeatably."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestflow.data import files_of, shipped
from nestflow.diagnostics.core import fail
from nestflow.diagnostics.suggest import did_you_mean


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes held out, each one file after another.

    train_N, val_M: uint8, one byte per token. files: names, for messages. The last part of each file is held out.
    """

    name: str
    files: tuple[str, ...]
    train_N: Tensor
    val_M: Tensor

    @property
    def fingerprint(self) -> str:
        """A digest of both splits: a checkpoint remembers what it was trained on."""
        digest = hashlib.sha256(self.train_N.numpy().tobytes())
        digest.update(self.val_M.numpy().tobytes())
        return digest.hexdigest()[:16]


def corpus(source: str | Path | bytes, holdout: float = 0.1) -> Corpus:
    """A corpus from a shipped name (`shakespeare`), a file, a folder of `.txt` files, or bytes.

    Any file is read as bytes, whatever its encoding. holdout: the share at the end of each file kept for validation.
    Raises NestflowError NF520 (nothing there), NF521 (empty), NF524 (holdout).
    """
    if isinstance(source, bytes):
        return split_files("bytes", [("bytes", source)], holdout)
    name = str(source)
    paths = files_of(name) if not Path(name).exists() else _files_at(Path(name))
    if not paths:
        known = ", ".join(shipped())
        raise fail(
            "NF520",
            f"there is no text at `{name}`",
            help=did_you_mean(name, shipped()) or f"give a file, a folder with .txt files, or a shipped text: {known}",
        )
    contents: list[tuple[str, bytes]] = []
    for p in paths:
        try:
            contents.append((p.name, p.read_bytes()))
        except OSError as e:
            raise fail("NF520", f"cannot read `{p}`: {e.strerror or e}") from e
    return split_files(name, contents, holdout)


def _files_at(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*.txt") if p.is_file())
        if not found:
            raise fail("NF520", f"the folder `{path}` has no .txt file", help="name a file of another ending itself")
        return found
    return [path]


def split_files(name: str, contents: list[tuple[str, bytes]], holdout: float = 0.1) -> Corpus:
    """Hold out the last part of each file. Raises NF521 when there is no byte at all, NF524 (holdout)."""
    if not 0 < holdout < 1:
        raise fail("NF524", f"`holdout` is the share of each file kept for validation, between 0 and 1, not {holdout}")
    train, val = bytearray(), bytearray()
    for _, data in contents:
        cut = int(len(data) * (1 - holdout) + 1e-9)
        train += data[:cut]
        val += data[cut:]
    if not train and not val:
        raise fail(
            "NF521", f"`{name}` is empty: there is nothing to train on", help="give a text of some thousand bytes"
        )
    return Corpus(name, tuple(n for n, _ in contents), _tensor(train), _tensor(val))


def _tensor(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def require_length(text_N: Tensor, length: int, what: str) -> None:
    """NF522 if a text has no window of `length` tokens and the one after it."""
    if len(text_N) < length + 1:
        raise fail(
            "NF522",
            f"the {what} has {len(text_N)} bytes, too few for one window of {length}",
            help=f"use a longer text, or windows of at most {max(len(text_N) - 1, 1)} (`length`)",
        )


class Windows:
    """Random windows of a text. Batch number n is a function of (seed, n) alone, so the state is two integers and
    resuming needs no replay.

    `next()` gives tokens_BT, int64.
    """

    def __init__(self, text_N: Tensor, batch: int, length: int, seed: int = 0):
        require_length(text_N, length, "training text")
        self.text_N = text_N
        self.batch = batch
        self.length = length
        self.seed = seed
        self.position = 0

    def next(self) -> Tensor:
        g = torch.Generator().manual_seed((self.seed * 1_000_003 + self.position) % (2**63))
        self.position += 1
        starts_B = torch.randint(0, len(self.text_N) - self.length + 1, (self.batch,), generator=g)
        return self.text_N[starts_B[:, None] + torch.arange(self.length)].long()

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on with the very next batch; plain JSON."""
        return {"seed": self.seed, "position": self.position, "batch": self.batch, "length": self.length}

    def restore(self, state: dict[str, Any]) -> None:
        self.seed, self.position = int(state["seed"]), int(state["position"])


def validation_windows(text_N: Tensor, length: int, count: int) -> Tensor:
    """At most `count` windows spread evenly over a text, with the token after each: int64 [count, length + 1].

    They do not overlap where the text is long enough. Raises NF522 if the text is too short for one.
    """
    require_length(text_N, length, "validation text")
    room = len(text_N) - (length + 1)
    n = max(1, min(count, len(text_N) // (length + 1)))
    starts_n = torch.linspace(0, room, n, dtype=torch.float64).round().long() if n > 1 else torch.zeros(1).long()
    return text_N[starts_n[:, None] + torch.arange(length + 1)].long()
