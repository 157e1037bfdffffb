"""Examples from files and mappings: every kind of file gives the same, every mistake names its row and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nestflow
from nestflow.train import Batches, dataset
from nestflow.train.examples import split
from tests.graph.building import mistakes

TABLE = nestflow.check("""nestflow 1
input x : float[3]
input label : int in [0, 4)
input good : bool
output f(x)
flow f(x) { return linear(x, 4) }
""").inputs
SERIES = nestflow.check("""nestflow 1
input value : float[T, 2]
input kind : int[T] in [0, 9]
output f(value)
flow f(x) { return linear(x, 4) }
""").inputs
MASKED = nestflow.check("""nestflow 1
input tokens : int[T] in [0, 50)
input label : int in [0, 4)
input mask : bool[T]
output f(tokens)
flow f(x) { return embed(x, 50, 4) }
""").inputs


def columns(rows: int = 5) -> dict[str, np.ndarray]:
    r = np.random.default_rng(0)
    return {
        "x": r.standard_normal((rows, 3)).astype("float32"),
        "label": r.integers(0, 4, rows),
        "good": r.integers(0, 2, rows).astype(bool),
        "unused": np.arange(rows),
    }


def write(folder: Path, kind: str, values: dict[str, Any]) -> Path:
    """The same columns as a file of each kind."""
    path = folder / f"data.{kind}"
    if kind == "npz":
        np.savez(path, **values)
    elif kind == "safetensors":
        save_file({n: torch.tensor(v) for n, v in values.items()}, path)
    elif kind == "folder":
        path.mkdir()
        for n, v in values.items():
            np.save(path / f"{n}.npy", v)
    elif kind == "jsonl":
        rows = [{n: v[i].tolist() for n, v in values.items()} for i in range(len(values["label"]))]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        lines = ["x.0,x.1,x.2,label,good,unused"]
        for i in range(len(values["label"])):
            cells = [*values["x"][i].tolist(), values["label"][i], str(bool(values["good"][i])).lower(), i]
            lines.append(",".join(map(str, cells)))
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors", "folder", "csv", "jsonl"])
def test_every_kind_of_file_gives_the_columns(kind: str, tmp_path: Path) -> None:
    values = columns()
    found = dataset(TABLE, write(tmp_path, kind, values))
    assert list(found.columns) == ["x", "label", "good"] and found.rows == 5 and found.ticks is None
    for name, x in found.columns.items():
        torch.testing.assert_close(x, torch.tensor(values[name]))
    same = dataset(TABLE, {n: torch.tensor(v) for n, v in values.items()})
    assert same.fingerprint == found.fingerprint
    values["x"][3, 1] += 1
    assert dataset(TABLE, values).fingerprint != found.fingerprint


def test_numbers_become_what_the_input_is() -> None:
    found = dataset(TABLE, {"x": torch.ones(2, 3, dtype=torch.uint8), "label": torch.ones(2, dtype=torch.int16),
                            "good": torch.tensor([0, 1])})  # fmt: skip
    assert [x.dtype for x in found.columns.values()] == [torch.float32, torch.int64, torch.bool]
    exact = dataset(TABLE, {"x": torch.ones(2, 3).double(), "label": [1, 2], "good": [True, 0]})
    assert exact.columns["x"].dtype == torch.float64


def test_lines_of_a_csv_are_ticks_where_all_inputs_tick(tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("value.0,value.1,kind\n" + "".join(f"{i},{-i / 2},{i % 9}\n" for i in range(20)))
    found = dataset(SERIES, path)
    assert found.rows == 1 and found.ticks == 20
    torch.testing.assert_close(found.columns["value"][0, :, 1], -torch.arange(20) / 2)


def test_rows_of_different_lengths_are_padded_and_masked(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [[3, 4, 5], [7], [1, 2]]
    path.write_text("".join(json.dumps({"tokens": t, "label": i}) + "\n" for i, t in enumerate(rows)))
    found = dataset(MASKED, path)
    assert found.columns["tokens"].tolist() == [[3, 4, 5], [7, 0, 0], [1, 2, 0]]
    assert found.columns["mask"].tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    some = found.take(torch.tensor([1, 2]))  # cut off behind the longest of the batch
    assert some["tokens"].tolist() == [[7, 0], [1, 2]] and some["label"].tolist() == [1, 2]
    even = dataset(MASKED, {"tokens": torch.ones(2, 4).long(), "label": torch.zeros(2).long()})
    assert even.columns["mask"].all() and even.lengths is None


def good(**changes: Any) -> dict[str, Any]:
    return {"x": torch.zeros(3, 3), "label": torch.zeros(3).long(), "good": torch.zeros(3).bool()} | changes


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "misspelt": ({"labels": torch.zeros(3).long(), "label": None}, "NF531", "`label`"),
    "shape": (good(x=torch.zeros(3, 4)), "NF532", "[rows, 3]"),
    "flat": (good(x=torch.zeros(3)), "NF532", "a number"),
    "no rows at all": (good(label=torch.tensor(3)), "NF532", "no rows"),
    "float for int": (good(label=torch.zeros(3)), "NF532", "is int"),
    "float for bool": (good(good=torch.zeros(3)), "NF532", "is bool"),
    "complex": (good(x=torch.zeros(3, 3, dtype=torch.complex64)), "NF532", "complex"),
    "rows differ": (good(label=torch.zeros(4).long()), "NF533", "`label` 4"),
    "class too high": (good(label=torch.tensor([0, 4, 1])), "NF534", "row 1, column `label`"),
    "class below": (good(label=torch.tensor([0, 1, -1])), "NF534", "is -1"),
    "nan": (good(x=torch.tensor([[0.0] * 3, [0, 1, float("nan")], [0.0] * 3])), "NF534", "row 1, column `x`"),
    "beyond float32": (good(x=torch.full((3, 3), 1e39, dtype=torch.float64)), "NF534", "element [0] is 1e+39"),
    "inf": (good(x=torch.full((3, 3), float("inf"))), "NF534", "element [0] is inf"),
    "truth 2": (good(good=torch.tensor([0, 1, 2])), "NF534", "row 2"),
    "empty": (
        {"x": torch.zeros(0, 3), "label": torch.zeros(0).long(), "good": torch.zeros(0).bool()},
        "NF535",
        "no rows",
    ),
    "text in a list": (good(label=["1", "two", "3"]), "NF534", "'two'"),
    "none in a list": (good(label=[1, None, 3]), "NF534", "has no `label`"),
    "half in a list": (good(label=[1, 2.5, 3]), "NF534", "whole number"),
    "ragged features": (good(x=[[1, 2, 3], [1, 2], [1, 2, 3]]), "NF532", "of shape [2]"),
    "huge whole number": (good(label=[1, 2**70, 3]), "NF532", "no number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_name_row_and_column(name: str) -> None:
    values, code, said = WRONG[name]
    (d, *more) = mistakes(lambda: dataset(TABLE, {n: v for n, v in values.items() if v is not None}))
    assert d.code == code and any(said in m.message for m in (d, *more)), d
    assert name == "misspelt" or not more
    if name == "misspelt":
        assert [m.code for m in (d, *more)] == ["NF531"] * 3  # all in one run
        assert any("did you mean `labels`" in (m.help or "") for m in (d, *more))


def test_ticks_must_agree() -> None:
    value, kind = torch.zeros(2, 5, 2), torch.zeros(2, 4).long()
    (d,) = mistakes(lambda: dataset(SERIES, {"value": value, "kind": kind}))
    assert d.code == "NF533" and "5 ticks in `value` and 4 in `kind`" in d.message
    (d,) = mistakes(lambda: dataset(SERIES, {"value": [[[1, 2]], [[1, 2], [3, 4]]], "kind": [[1], [1, 2]]}))
    assert d.code == "NF533" and "differ in length" in d.message and "mask" in (d.help or "")
    (d,) = mistakes(lambda: dataset(SERIES, {"value": torch.zeros(2, 0, 2), "kind": torch.zeros(2, 0).long()}))
    assert d.code == "NF535"


FILES = {
    "damaged.npz": (b"PK\x03\x04 and no more", "NF530", "no .npz file"),
    "damaged.safetensors": (b"\xff" * 40, "NF530", "safetensors"),
    "empty.csv": (b"", "NF530", "is empty"),
    "headless.csv": (b"1,2,3\n4,5,6\n", "NF530", "no header"),
    "short.csv": (b"x.0,x.1,x.2,label,good\n1,2,3,1,true\n1,2\n", "NF530", "line 3"),
    "cell.csv": (b"x.0,x.1,x.2,label,good\n1,2,3,1,true\n1,,3,1,true\n", "NF534", "line 3, column `x`"),
    "class.csv": (b"x.0,x.1,x.2,label,good\n1,2,3,1,true\n1,2,3,7,true\n", "NF534", "line 3, column `label`"),
    "half.csv": (b"x.0,x.1,x.2,label,good\n1,2,3,1.5,true\n", "NF534", "'1.5', and a whole number is wanted"),
    "no number.csv": (b"x.0,x.1,x.2,label,good\n1,2,3,nan,true\n", "NF534", "'nan', and a whole number is wanted"),
    "vast.csv": (b"x.0,x.1,x.2,label,good\n1,2,3,1e300,true\n", "NF534", "a whole number is wanted"),
    "text.npz": (b"hello, this is no archive", "NF530", "no arrays of numpy"),
    "text.npy": (b"hello, this is no array", "NF530", "no arrays of numpy"),
    "twice.csv": (b"x.0,x.0,label\n", "NF530", "twice"),
    "only a header.csv": (b"x.0,x.1,x.2,label,good\n", "NF535", "no rows"),
    "not text.csv": (b"x.0,\xff\xfe\n", "NF530", "cannot be read|utf"),
    "list.jsonl": (b"[1, 2]\n", "NF530", "no object"),
    "broken.jsonl": (b'{"x": [1,2,3], "label": 1, "good": true}\n{"x": [1,\n', "NF530", "line 2"),
    "missing.jsonl": (b'{"x": [1,2,3], "label": 1, "good": true}\n{"x": [1,2,3], "good": true}\n', "NF534", "line 2"),
    "nan.jsonl": (b'{"x": [1,NaN,3], "label": 1, "good": true}\n', "NF534", "line 1"),
    "empty.jsonl": (b"", "NF530", "is empty"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_told(name: str, tmp_path: Path) -> None:
    content, code, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    (d, *_) = mistakes(lambda: dataset(TABLE, tmp_path / name))
    assert "pickle" not in d.message
    assert d.code == code and any(s in d.message + str(d.help) for s in said.split("|")), d


def test_a_class_may_be_written_as_a_float(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x.0,x.1,x.2,label,good\n1,2,3,1.0,true\n1,2,3, 3 ,1.0\n", encoding="utf-8")
    assert dataset(TABLE, tmp_path / "a.csv").columns["label"].tolist() == [1, 3]


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([{"a": 1}], dtype=object))
    (d,) = mistakes(lambda: dataset(TABLE, tmp_path / "data.npz"))
    assert d.code == "NF530" and "Python objects, which are not read" in d.message and "pickle" not in d.message
    (d,) = mistakes(lambda: dataset(TABLE, tmp_path / "nothing.npz"))
    assert d.code == "NF530" and "nothing.npz" in d.message


def test_each_pass_takes_each_row_once_and_goes_on_from_a_state() -> None:
    data = dataset(
        TABLE, {"x": torch.arange(30.0).reshape(10, 3), "label": torch.arange(10) % 4, "good": torch.ones(10).bool()}
    )
    batches = Batches(data, 4, 8, seed=3)
    passes = [[int(v) for _ in range(3) for v in batches.next()["x"][:, 0] / 3] for _ in range(2)]
    assert all(sorted(p) == list(range(10)) for p in passes) and passes[0] != passes[1]
    again = Batches(data, 4, 8, seed=3)
    again.restore({"seed": 3, "position": 4})
    fifth, other = again.next(), Batches(data, 4, 8, seed=3)
    for _ in range(4):
        other.next()
    assert torch.equal(fifth["x"], other.next()["x"])
    assert Batches(data, 64, 8).next()["x"].shape == (10, 3)


def test_long_sequences_give_windows() -> None:
    value = torch.arange(200.0).reshape(1, 100, 2)
    data = dataset(SERIES, {"value": value, "kind": (torch.arange(100) % 9)[None]})
    batches = Batches(data, 6, 10)
    b = batches.next()
    assert b["value"].shape == (6, 10, 2) and torch.equal(b["value"][:, :, 1], b["value"][:, :, 0] + 1)
    assert torch.equal((b["value"][:, :, 0] / 2 % 9).long(), b["kind"])  # the same ticks of every input
    training, held = split(data, 0.2, 10, 0)
    assert training.ticks == 80 and held is not None and held.ticks == 20
    assert torch.equal(torch.cat([training.columns["value"], held.columns["value"]], 1), value)


def test_the_split_is_by_seed_and_leaves_rows_on_both_sides() -> None:
    data = dataset(
        TABLE, {"x": torch.arange(60.0).reshape(20, 3), "label": torch.zeros(20).long(), "good": torch.ones(20).bool()}
    )
    first, again, other = (split(data, 0.25, 8, s) for s in (0, 0, 1))
    assert first[1] is not None and again[1] is not None and other[1] is not None
    assert (first[0].rows, first[1].rows) == (15, 5) and torch.equal(first[1].columns["x"], again[1].columns["x"])
    assert not torch.equal(first[1].columns["x"], other[1].columns["x"])
    both = torch.cat([first[0].columns["x"], first[1].columns["x"]])[:, 0]
    assert sorted(both.tolist()) == [3.0 * i for i in range(20)]
    one = data.part(torch.tensor([7]), "one")
    assert split(one, 0.25, 8, 0) == (one, None)
    two = split(data.part(torch.tensor([7, 8]), "two"), 0.01, 8, 0)
    assert two[1] is not None and (two[0].rows, two[1].rows) == (1, 1)


class Items(torch.utils.data.Dataset[Any]):
    """A data set of torch; the items are what `make` makes of a row."""

    def __init__(self, make: Any, rows: int = 5) -> None:
        self.values, self.make, self.rows = columns(rows), make, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        return self.make({n: v[index] for n, v in self.values.items()})


def test_a_data_set_of_torch_gives_its_items() -> None:
    want = dataset(TABLE, columns()).fingerprint
    for make in (
        lambda row: row,
        lambda row: (row["x"], row["label"], row["good"]),
        lambda row: {"x": torch.tensor(row["x"]), "label": int(row["label"]), "good": bool(row["good"])},
        lambda row: [row["x"].tolist(), int(row["label"]), bool(row["good"])],
    ):
        assert dataset(TABLE, Items(make)).fingerprint == want
    (d,) = mistakes(lambda: dataset(TABLE, Items(lambda row: (row["x"], row["label"]))))
    assert d.code == "NF531" and "2 values" in d.message
    (d,) = mistakes(lambda: dataset(TABLE, 3))
    assert d.code == "NF530"
    (d,) = mistakes(lambda: dataset(TABLE, Items(lambda row: row["nothing"])))
    assert d.code == "NF530" and "KeyError" in d.message
    ragged = dataset(MASKED, [{"tokens": torch.arange(1, 1 + n), "label": n} for n in (3, 1)])
    assert ragged.columns["mask"].tolist() == [[True, True, True], [True, False, False]]


class Table:
    """What a table of pandas offers."""

    def __init__(self, values: dict[str, list[Any]]) -> None:
        self.values, self.columns = values, list(values)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, name: str) -> list[Any]:
        return self.values[name]

    def to_dict(self) -> dict[str, list[Any]]:
        return self.values


def test_a_table_gives_its_columns() -> None:
    values = columns()
    cells = {f"x.{i}": values["x"][:, i].tolist() for i in range(3)}
    table = Table({**cells, "label": values["label"].tolist(), "good": values["good"].tolist()})
    assert dataset(TABLE, table).fingerprint == dataset(TABLE, values).fingerprint


def test_a_huge_file_is_read_in_reasonable_pieces(tmp_path: Path) -> None:
    n = 60_000
    np.savez(tmp_path / "data.npz", x=np.zeros((n, 3), "float32"), label=np.zeros(n, "int64"), good=np.ones(n, bool))
    data = dataset(TABLE, tmp_path / "data.npz")
    assert data.rows == n and Batches(data, 256, 8).next()["x"].shape == (256, 3)
