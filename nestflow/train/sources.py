"""What a run reads: text as bytes, or examples by input. Each gives batches, goes on from where a checkpoint was, and
measures what was held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nestflow.diagnostics.core import fail
from nestflow.train.config import TrainConfig
from nestflow.train.data import Corpus, Windows, corpus
from nestflow.train.evaluate import validation_bpb
from nestflow.train.examples import Batches, Dataset, dataset, is_items, split, whole_parts
from nestflow.train.protocol import Trainable, require_vocab, token_input
from nestflow.train.readers import is_table

BPB = "bits per byte"


class Items(Protocol):
    """A data set of torch: its length, and its items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Data = str | Path | bytes | Corpus | Dataset | Mapping[str, Any] | Sequence[Any] | Items


class Source(Protocol):
    """Batches of a run. name, fingerprint: what a checkpoint was trained on. length: ticks of a batch at most.
    text: losses are nats per byte."""

    name: str
    fingerprint: str
    length: int
    text: bool

    def next(self) -> tuple[dict[str, Tensor], int]:
        """The next batch, and how many tokens (or examples) it has."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def measure(self, bundle: Any) -> dict[str, float] | None:
        """Measures of what was held out, or None where nothing was."""
        ...


def source_of(bundle: Trainable, data: Data | None, config: TrainConfig) -> Source:
    """Text or examples, by what is given; checked before the first step, so that no run dies at its first validation.

    Raises NestflowError: NF520 to NF522 and NF527 (text), NF530 to NF535 (examples).
    """
    given: Any = config.data if data is None else data
    if isinstance(given, Mapping | Dataset) or (is_items(given) and not isinstance(given, Corpus)):
        return Examples(dataset(bundle.graph.inputs, given), config, bundle.graph.shares)
    if isinstance(given, str | Path) and _holds_examples(bundle, Path(given)):
        return Examples(dataset(bundle.graph.inputs, Path(given)), config, bundle.graph.shares)
    text = given if isinstance(given, Corpus) else corpus(given, config.holdout)
    return Text(bundle, text, config)


def _holds_examples(bundle: Trainable, path: Path) -> bool:
    """A path to examples. Where a spec reads bytes, a file of lines is text unless it names the spec's input."""
    if not is_table(path):
        return False
    inputs = list(bundle.graph.inputs)
    bytes_ = len(inputs) == 1 and inputs[0].type.dtype == "int" and bool(inputs[0].type.clock)
    if path.suffix.lower() in (".csv", ".jsonl") and bytes_ and path.is_file():
        with path.open("rb") as file:
            return inputs[0].name.encode() in file.readline(1 << 16)
    return True


class Text:
    """Windows of a text."""

    text = True

    def __init__(self, bundle: Trainable, text: Corpus, config: TrainConfig) -> None:
        self.corpus, self.config, self.name = text, config, text.name
        self.fingerprint, self.length = text.fingerprint, config.length
        self.input = token_input(bundle)
        require_vocab(bundle, max(int(t.max()) for t in (text.train_N, text.val_M) if len(t)))
        self.windows = Windows(text.train_N, config.batch, config.length, config.seed)

    def next(self) -> tuple[dict[str, Tensor], int]:
        x_BT = self.windows.next()
        return {self.input: x_BT}, x_BT.numel()

    def state(self) -> dict[str, Any]:
        return self.windows.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.windows.restore(state)

    def measure(self, bundle: Any) -> dict[str, float] | None:
        c = self.config
        if len(self.corpus.val_M) <= c.length:
            return None
        return {BPB: validation_bpb(bundle, self.corpus.val_M, c.length, c.eval_windows, c.batch)}


class Examples:
    """Batches of a data set."""

    text = False

    def __init__(self, data: Dataset, config: TrainConfig, shares: int = 1) -> None:
        """shares: workers that share each batch evenly."""
        self.name, self.fingerprint, self.config = data.name, data.fingerprint, config
        self.training, self.held = split(data, config.holdout, config.length, config.seed)
        self.batches = Batches(self.training, config.batch, config.length, config.seed, shares)
        self.length = config.length if self.batches.windowed else (data.ticks or 0)

    def next(self) -> tuple[dict[str, Tensor], int]:
        batch = self.batches.next()
        return batch, next(iter(batch.values())).shape[0]

    def state(self) -> dict[str, Any]:
        return self.batches.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.batches.restore(state)

    def measure(self, bundle: Any) -> dict[str, float] | None:
        if self.held is None or not whole_parts(self.held.rows, bundle.graph.shares):
            return None
        c = self.config
        return measure(bundle, self.held, c.batch, c.length if self.batches.windowed else None, c.eval_windows)


def measure(
    bundle: Any, data: Data, batch: int = 32, length: int | None = None, most: int | None = None
) -> dict[str, float]:
    """Losses and accuracies over examples: `loss` (`loss of NAME` where there are several), and `accuracy` of each
    cross entropy of classes, over all unmasked terms.

    A loss is the mean of its batches, each counted by its rows, or by its unmasked terms where it is one cross
    entropy. length: longer sequences are cut in pieces of it. most: batches at most, spread evenly. Rows that the
    workers of a spec cannot share evenly are left out.
    """
    shares = bundle.graph.shares
    data = dataset(bundle.graph.inputs, data)
    if shares > 1:
        batch = max(whole_parts(batch, shares), shares)
        if not whole_parts(data.rows, shares):
            raise fail("NF505", f"`{data.name}` has {data.rows} rows, and {shares} workers share them evenly")
        data = data.part(torch.arange(whole_parts(data.rows, shares)), data.name)
    parts = list(pieces(data, batch, length))
    if most is not None and len(parts) > most:
        parts = [parts[i * len(parts) // most] for i in range(most)]
    sums: dict[str, list[float]] = {}
    was = bundle.module.training
    bundle.module.eval()
    try:
        with torch.no_grad():
            for part in parts:
                _add(sums, bundle.module.metrics(**part), next(iter(part.values())).shape[0])
    finally:
        bundle.module.train(was)
    losses = [n for n in sums if not n.startswith("accuracy of ")]
    scored = [n for n in sums if n.startswith("accuracy of ")]
    short = {n: "loss" if len(losses) == 1 else f"loss of {n}" for n in losses}
    short |= {n: "accuracy" if len(scored) == 1 else n for n in scored}
    return {short[n]: total / count if count else 0.0 for n, (total, count) in sums.items()}


def _add(sums: dict[str, list[float]], found: Mapping[str, Any], rows: int) -> None:
    for name, value in found.items():
        if isinstance(value, tuple):  # hits, of how many
            hits: tuple[Any, Any] = value
            right, count = float(hits[0]), float(hits[1])
        else:
            terms: Any = found.get(f"accuracy of {name}")
            count = float(terms[1]) if terms is not None else float(rows)
            right = float(value) * count
        known = sums.setdefault(name, [0.0, 0.0])
        known[0] += right
        known[1] += count


def pieces(data: Dataset, batch: int, length: int | None) -> Any:
    """A data set in batches, in order; sequences longer than `length` in pieces, the last one as long as is left."""
    ticks = data.ticks
    cut = length if length is not None and ticks is not None and ticks > length else None
    for low in range(0, data.rows, batch):
        rows = torch.arange(low, min(low + batch, data.rows))
        if cut is None or ticks is None:
            yield data.take(rows)
            continue
        for start in range(0, ticks - min(cut, 2) + 1, cut):
            part = data.ticks_between(start, min(start + cut, ticks), data.name)
            yield part.take(rows)


def other_data(source: Source, folder: Path) -> Exception:
    """What to raise where a run would go on with other data."""
    return fail(
        "NF525",
        f"the {'text' if source.text else 'data'} `{source.name}` is not what the run in `{folder}` was trained on",
        help="resume with the same data, or start a new run from the checkpoint's bundle",
    )
