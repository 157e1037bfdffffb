"""Examples for a spec: columns matched to its inputs by name, checked once, split, and drawn in batches by seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestflow.diagnostics.core import Diagnostic, NestflowError, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.model import InputSpec
from nestflow.train.columns import Ragged, converted
from nestflow.train.readers import Columns, read_columns, vectors


@dataclass(frozen=True)
class Dataset:
    """Examples by input, rows on axis 0. lengths: ticks of each row where they differ (the rest is padding)."""

    name: str
    columns: dict[str, Tensor]
    clocked: tuple[str, ...] = ()
    lengths: Tensor | None = None

    @property
    def rows(self) -> int:
        return next(iter(self.columns.values())).shape[0]

    @property
    def ticks(self) -> int | None:
        """The length of the token axis, or None where no input has it."""
        return self.columns[self.clocked[0]].shape[1] if self.clocked else None

    @property
    def fingerprint(self) -> str:
        """A digest: a checkpoint remembers what it was trained on."""
        digest = hashlib.sha256()
        for name, x in sorted(self.columns.items()):
            digest.update(f"{name}{x.dtype}{tuple(x.shape)}".encode())
            digest.update(x.contiguous().view(torch.uint8).numpy().tobytes() if x.numel() else b"")
        return digest.hexdigest()[:16]

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Those rows, cut off behind the longest of them."""
        found = {n: x[rows] for n, x in self.columns.items()}
        if self.lengths is not None and rows.numel():
            longest = int(self.lengths[rows].max())
            found = {n: x[:, :longest] if n in self.clocked else x for n, x in found.items()}
        return found

    def part(self, rows: Tensor, name: str) -> Dataset:
        """A data set of those rows alone."""
        lengths = None if self.lengths is None else self.lengths[rows]
        return Dataset(name, {n: x[rows] for n, x in self.columns.items()}, self.clocked, lengths)

    def ticks_between(self, low: int, high: int, name: str) -> Dataset:
        """The same rows, only these ticks."""
        return Dataset(name, {n: x[:, low:high] for n, x in self.columns.items()}, self.clocked)


def dataset(inputs: Sequence[InputSpec], source: str | Path | Mapping[str, Any] | Dataset | Columns | Any) -> Dataset:
    """The examples of a file, a folder, a mapping of tensors, or a torch data set, checked against the spec's inputs.

    A torch data set has a length and items: mappings by input, or one value for each input in the spec's order.
    Columns that no input has the name of are left alone. Rows of different lengths are padded where the spec has one
    input `bool[T]` that the data does not give: it is true where a row has a tick. In a `.csv` whose spec has the
    token axis at every input, the lines are the ticks of one sequence.
    Raises NestflowError with every mistake found: NF530 (unreadable), NF531 (a column is missing), NF532 (type or
    shape), NF533 (rows or ticks differ), NF534 (a value), NF535 (no rows).
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, Mapping):
        source = Columns("the data", dict(source))
    if isinstance(source, str | Path):
        columns = read_columns(Path(source))
    else:
        columns = source if isinstance(source, Columns) else _items(inputs, source)
    if not inputs:
        raise fail("NF531", "this spec has no inputs, so no data goes into it")
    found: dict[str, Tensor | Ragged] = {}
    mistakes: list[Diagnostic] = []
    as_ticks = columns.ticks and all(i.type.clock == "T" for i in inputs)
    missing = [i for i in inputs if i.name not in columns.values]
    mask = _mask(inputs, missing)
    for i in inputs:
        if i is mask:
            continue
        if i in missing:
            mistakes.append(_missing(i, columns))
            continue
        try:
            found[i.name] = converted(i, columns.values[i.name], columns, as_ticks)
        except NestflowError as e:
            mistakes += e.diagnostics
    if mistakes:
        raise NestflowError(mistakes)
    return _agree(inputs, found, mask, columns)


def is_items(source: Any) -> bool:
    """A torch data set, or a list of examples: it has a length, and items by number."""
    return (
        hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, str | bytes | Tensor)
    )


def _items(inputs: Sequence[InputSpec], source: Any) -> Columns:
    """The items of a torch data set as columns."""
    name = type(source).__name__
    if not is_items(source):
        raise fail(
            "NF530",
            f"a {name} is no data: it has no length, or no items by number",
            help="a mapping of tensors, a file, or a torch data set",
        )
    if hasattr(source, "columns") and hasattr(source, "to_dict"):  # a table of pandas: a column by its name
        return Columns("the table", vectors({str(n): list(source[n]) for n in source.columns}), ticks=True)
    values: dict[str, list[Any]] = {}
    for n in range(len(source)):
        try:
            item = source[n]
        except Exception as e:  # of the caller's own code
            said = f"{type(e).__name__}: {e}"
            raise fail("NF530", f"item {n} of the {name} cannot be had: {said[:200]}") from e
        if not isinstance(item, Mapping):
            given = list(item) if isinstance(item, list | tuple) else [item]
            if len(given) != len(inputs):
                listed = ", ".join(f"`{i.name}`" for i in inputs)
                raise fail(
                    "NF531",
                    f"item {n} of the {name} has {len(given)} values, and the spec has {len(inputs)} inputs: {listed}",
                    help="one value for each input in their order, or a mapping by name",
                )
            item = dict(zip((i.name for i in inputs), given))
        for i in inputs:
            if i.name in item:
                values.setdefault(i.name, [None] * n).append(item[i.name])
    return Columns(f"the {name}", {k: _column(v) for k, v in values.items()})


def _column(values: list[Any]) -> Tensor | list[Any]:
    """Items of one input: a tensor where all are tensors of one shape."""
    found = [torch.as_tensor(v) if hasattr(v, "__array__") else v for v in values]
    tensors = [v for v in found if isinstance(v, Tensor)]
    if len(tensors) == len(found) and len({(t.shape, t.dtype) for t in tensors}) == 1:
        return torch.stack(tensors)
    return [v.tolist() if isinstance(v, Tensor) else v for v in found]


def _mask(inputs: Sequence[InputSpec], missing: Sequence[InputSpec]) -> InputSpec | None:
    """The input that says where a row has a tick: the one of type bool[T] that the data does not give."""
    able = [i for i in missing if i.type.dtype == "bool" and i.type.clock and not i.type.shape]
    others = any(i.type.clock == "T" for i in inputs if i not in able)
    return able[0] if len(able) == 1 and others else None


def _missing(i: InputSpec, columns: Columns) -> Diagnostic:
    names = [str(n) for n in columns.values]
    listed = ", ".join(f"`{n}`" for n in names[:12]) + (", …" if len(names) > 12 else "")
    vector = f"`{i.name}.0`, `{i.name}.1`, … to `{i.name}.{i.type.shape[0] - 1}`" if len(i.type.shape) == 1 else ""
    near = did_you_mean(i.name, names)
    wanted = f"a .csv gives its features as {vector}; " if columns.ticks and vector else ""
    help_ = near or f"{wanted}the columns are {listed or 'none'}"
    return Diagnostic("NF531", f"`{columns.name}` has no column `{i.name}` for this input", i.span, help_)


def _tasks(inputs: Sequence[InputSpec], found: Mapping[str, Tensor | Ragged], columns: Columns) -> None:
    """Rows are tasks where inputs have the axis N: those of one group have as many examples, the same in all rows."""
    first: dict[str, tuple[str, int]] = {}
    for name in (i.name for i in inputs if i.type.clock == "N" and i.name in found):
        own = _lengths(found[name])
        other, size = first.setdefault(name.rpartition(".")[0], (name, int(own[0])))
        if bool((own != size).any()):
            at = int((own != size).nonzero()[0])
            message = (
                f"{columns.place(at)} of `{columns.name}` has {int(own[at])} examples in `{name}`, and "
                f"{columns.place(0)} {size} in `{other}`"
            )
            raise fail("NF533", message, help="all tasks have as many examples, and so have the inputs of one group")
        if not size:
            raise fail("NF535", f"{columns.place(0)} of `{columns.name}` has no examples in `{name}`")


def _agree(
    inputs: Sequence[InputSpec], found: dict[str, Tensor | Ragged], mask: InputSpec | None, columns: Columns
) -> Dataset:
    """Columns of one number of rows and, along the token axis, of one length a row."""
    rows = {n: len(x.rows) if isinstance(x, Ragged) else x.shape[0] for n, x in found.items()}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"`{n}` {k}" for n, k in rows.items())
        raise fail("NF533", f"the columns of `{columns.name}` differ in their number of rows: {listed}")
    n = next(iter(rows.values()))
    if not n:
        raise fail("NF535", f"`{columns.name}` has no rows", help="give at least one example")
    _tasks(inputs, found, columns)
    clocked = [i.name for i in inputs if i.type.clock == "T" and i is not mask]
    lengths = {name: _lengths(found[name]) for name in clocked}
    first = lengths[clocked[0]] if clocked else torch.ones(n, dtype=torch.int64)
    for name, own in lengths.items():
        if not torch.equal(own, first):
            at = int((own != first).nonzero()[0])
            message = (
                f"{columns.place(at)} of `{columns.name}` has {int(first[at])} ticks in `{clocked[0]}` and "
                f"{int(own[at])} in `{name}`"
            )
            raise fail("NF533", message, help="inputs with the token axis tick together")
    if int(first.min()) == 0:
        raise fail("NF535", f"{columns.place(int(first.argmin()))} of `{columns.name}` has no ticks")
    uneven = bool((first != first[0]).any())
    if uneven and mask is None:
        at = int((first != first[0]).nonzero()[0])
        raise fail(
            "NF533",
            f"rows of `{columns.name}` differ in length: {columns.place(0)} has {int(first[0])} ticks, "
            f"{columns.place(at)} has {int(first[at])}",
            help="add `input mask : bool[T]` and leave the padding out of the loss: `cross_entropy(…, mask = mask)`; "
            "it is filled in for you",
        )
    longest = int(first.max())
    tensors = {name: x.padded(longest) if isinstance(x, Ragged) else x for name, x in found.items()}
    if mask is not None:
        tensors[mask.name] = torch.arange(longest) < first[:, None]
        clocked.append(mask.name)
    ordered = {i.name: tensors[i.name] for i in inputs}
    return Dataset(columns.name, ordered, tuple(clocked), first if uneven else None)


def _lengths(x: Tensor | Ragged) -> Tensor:
    if isinstance(x, Ragged):
        return torch.tensor([len(r) for r in x.rows])
    return torch.full((x.shape[0],), x.shape[1])


def split(data: Dataset, holdout: float, length: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """Training and validation examples. Of one long sequence its end is held out, else a share of the rows, drawn by
    seed. None where there is too little to hold out."""
    ticks = data.ticks
    if data.rows == 1 and ticks is not None and len(data.clocked) == len(data.columns):
        cut = int(ticks * (1 - holdout) + 1e-9)
        if cut < 1 or ticks - cut < min(length, 2):
            return data, None
        return data.ticks_between(0, cut, data.name), data.ticks_between(cut, ticks, f"{data.name}, held out")
    held = max(1, round(data.rows * holdout)) if data.rows > 1 else 0
    if not held:
        return data, None
    order = torch.randperm(data.rows, generator=torch.Generator().manual_seed(seed))
    return data.part(order[held:].sort().values, data.name), data.part(order[:held].sort().values, data.name)


def whole_parts(rows: int, shares: int) -> int:
    """The most rows that so many workers can share evenly."""
    return rows - rows % shares


class Batches:
    """Batches of examples. Batch number n is a function of (seed, n) alone, so the state is two integers.

    Rows are drawn anew in each pass, each once. Of sequences longer than `length` (every input has the token axis)
    random windows of that length are drawn. shares: the rows of a batch are a multiple of it; what is left over in a
    pass is not drawn.
    """

    def __init__(self, data: Dataset, batch: int, length: int, seed: int = 0, shares: int = 1) -> None:
        self.data, self.length, self.seed = data, length, seed
        self.rows, self.batch = whole_parts(data.rows, shares), min(batch, whole_parts(data.rows, shares))
        self.windowed = (
            data.ticks is not None
            and data.ticks > length
            and data.lengths is None
            and len(data.clocked) == len(data.columns)
        )
        if self.windowed:
            self.batch = batch
        if self.batch % shares or not self.batch:
            raise fail(
                "NF505",
                f"batches of `{data.name}` have {min(batch, data.rows)} rows, and {shares} workers share them evenly",
                help=f"a multiple of {shares} rows: `--batch {max(batch // shares, 1) * shares}`",
            )
        self.position = 0
        self._pass = -1
        self._order = torch.empty(0)

    def next(self) -> dict[str, Tensor]:
        """The next batch: inputs by name."""
        n, self.position = self.position, self.position + 1
        if self.windowed:
            g = torch.Generator().manual_seed((self.seed * 1_000_003 + n) % 2**63)
            rows = torch.randint(0, self.data.rows, (self.batch,), generator=g)
            starts = torch.randint(0, (self.data.ticks or 0) - self.length + 1, (self.batch,), generator=g)
            at = starts[:, None] + torch.arange(self.length)
            return {name: x[rows[:, None], at] for name, x in self.data.columns.items()}
        each = math.ceil(self.rows / self.batch)
        turn, at = divmod(n, each)
        if turn != self._pass:
            g = torch.Generator().manual_seed((self.seed * 1_000_003 + turn) % 2**63)
            self._pass, self._order = turn, torch.randperm(self.data.rows, generator=g)[: self.rows]
        return self.data.take(self._order[at * self.batch : (at + 1) * self.batch])

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on with the very next batch; plain JSON."""
        return {"seed": self.seed, "position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        self.seed, self.position = int(state["seed"]), int(state["position"])
        self._pass = -1
