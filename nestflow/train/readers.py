"""Files of examples as raw columns by name: .npz, .safetensors, .csv, .jsonl, a folder of arrays. Nothing is run."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestflow.diagnostics.core import NestflowError, fail

TABLES = (".npz", ".safetensors", ".csv", ".jsonl")
ARRAYS = (".npy", ".npz", ".safetensors")


@dataclass(frozen=True)
class Columns:
    """What a file holds: a tensor with the rows on axis 0, or a list of one value a row (numbers, texts of numbers, or
    lists of them), by name. first_line: the line of row 0 in a file of lines, for messages. ticks: the rows of a table
    of numbers may be the ticks of one sequence (.csv)."""

    name: str
    values: dict[str, Tensor | list[Any]]
    first_line: int | None = None
    ticks: bool = False

    def place(self, row: int) -> str:
        """Where a row stands, for a message."""
        return f"row {row}" if self.first_line is None else f"line {row + self.first_line}"


def is_table(path: Path) -> bool:
    """Whether a path names examples rather than text, by its ending; a folder by what lies in it."""
    if path.is_dir():
        return any(p.suffix.lower() in ARRAYS for p in path.iterdir() if p.is_file())
    return path.suffix.lower() in TABLES


def read_columns(path: Path) -> Columns:
    """The columns of a file or folder. Raises NestflowError NF530 where it cannot be read as what its ending says."""
    readers = {".npz": _npz, ".npy": _npy, ".safetensors": _safetensors, ".csv": _csv, ".jsonl": _jsonl}
    try:
        if path.is_dir():
            return Columns(str(path), _folder(path))
        found = readers[path.suffix.lower()](path)
        return found if isinstance(found, Columns) else Columns(str(path), found)
    except NestflowError:
        raise
    except OSError as e:
        raise fail("NF530", f"cannot read `{path}`: {e.strerror or e}") from e
    except MemoryError as e:
        raise fail("NF530", f"`{path}` does not fit into memory", help="split it into several files") from e
    except Exception as e:  # damaged files: each library has errors of its own
        raise fail(
            "NF530",
            f"`{path}` is no {path.suffix.lower() or 'data'} file that can be read: {_said(e)}",
            help="was it cut short? The readable kinds are " + ", ".join(TABLES),
        ) from e


def _said(e: Exception) -> str:
    """What a library says of a damaged file, without words that are its own settings."""
    said = " ".join(str(e).split())[:200]
    if "allow_pickle" in said or "pickled" in said:
        objects = "Object arrays" in said
        return "it holds Python objects, which are not read" if objects else "what it holds are no arrays of numpy"
    return said


def _folder(path: Path) -> dict[str, Tensor | list[Any]]:
    """Arrays of a folder: `image.npy` is the column `image`; files of several arrays give theirs."""
    values: dict[str, Tensor | list[Any]] = {}
    for p in sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in ARRAYS):
        found = read_columns(p).values
        twice = sorted(found.keys() & values.keys())
        if twice:
            raise fail("NF530", f"`{path}` has the column `{twice[0]}` in two files, `{p.name}` is one of them")
        values |= found
    return values


def _npz(path: Path) -> dict[str, Tensor | list[Any]]:
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return {str(n): _array(archive[n]) for n in archive.files}


def _npy(path: Path) -> dict[str, Tensor | list[Any]]:
    import numpy as np

    return {path.stem: _array(np.load(path, allow_pickle=False))}


def _array(array: Any) -> Tensor:
    """A tensor of its own memory. Arrays of texts or objects are no numbers (ValueError)."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array of {array.dtype} holds no numbers")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch has no arithmetic of these
        if array.size and array.max() > 2**63 - 1:
            raise ValueError("numbers above 2^63 − 1")
        array = array.astype("int64")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype("float64")
    return torch.tensor(array.astype(array.dtype.newbyteorder("=")))


def _safetensors(path: Path) -> dict[str, Tensor | list[Any]]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _csv(path: Path) -> Columns:
    """A header of names, then numbers. Columns `x.0`, `x.1`, … are the features of one input `x`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        header = [h.strip() for h in next(lines, [])]
        if not any(header):
            raise fail("NF530", f"`{path}` is empty", help="the first line names the columns: `x.0,x.1,label`")
        if len(set(header)) < len(header):
            twice = next(h for h in header if header.count(h) > 1)
            raise fail("NF530", f"`{path}` names the column `{twice}` twice")
        values: dict[str, list[Any]] = {h: [] for h in header}
        columns = list(values.values())
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(header):
                raise fail(
                    "NF530",
                    f"line {lines.line_num} of `{path}` has {len(cells)} cells, and the header names {len(header)}",
                )
            for column, cell in zip(columns, cells):
                column.append(cell)
    if all(_is_number(h) for h in header):
        raise fail("NF530", f"`{path}` has no header", help="the first line names the columns: `x.0,x.1,label`")
    return Columns(str(path), vectors(values), 2, ticks=True)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def vectors(values: dict[str, list[Any]]) -> dict[str, Tensor | list[Any]]:
    """`x.0`, `x.1`, … joined: one list a row."""
    groups: dict[str, dict[int, list[Any]]] = {}
    for name, column in values.items():
        stem, dot, number = name.rpartition(".")
        if dot and number.isdigit():
            groups.setdefault(stem, {})[int(number)] = column
    joined: dict[str, Tensor | list[Any]] = dict(values)
    for stem, parts in groups.items():
        if sorted(parts) == list(range(len(parts))) and stem not in values:
            joined[stem] = [list(cells) for cells in zip(*(parts[i] for i in range(len(parts))))]
    return joined


def _jsonl(path: Path) -> Columns:
    """One object a line: names to numbers or lists of numbers."""
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for n, line in enumerate(file, 1):
            if not line.strip():
                raise fail("NF530", f"line {n} of `{path}` is empty", help="one object a line")
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as e:
                raise fail("NF530", f"line {n} of `{path}` is not JSON: {str(e)[:120]}") from e
            if not isinstance(row, dict):
                raise fail("NF530", f"line {n} of `{path}` is no object", help='`{"x": [0.5, 1.5], "label": 3}`')
            rows.append(row)
    if not rows:
        raise fail("NF530", f"`{path}` is empty", help='one object a line: `{"x": [0.5, 1.5], "label": 3}`')
    names = dict.fromkeys(n for row in rows for n in row)
    return Columns(str(path), {n: [row.get(n) for row in rows] for n in names}, 1)
