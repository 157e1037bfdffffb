"""Training settings: every mistake told, with its place, in one go."""

from __future__ import annotations

from pathlib import Path

import pytest

from nestflow.diagnostics import NestflowError
from nestflow.train import load_train_config, train_config


def test_defaults_and_values():
    c = train_config({"steps": 7, "holdout": 0.2})
    assert (c.steps, c.holdout, c.batch, c.data) == (7, 0.2, 8, "shakespeare")


def test_all_mistakes_at_once():
    with pytest.raises(NestflowError) as e:
        train_config({"stepz": 5, "batch": 0, "length": "long"})
    found = {d.message.split("`")[1]: d for d in e.value.diagnostics}
    assert set(found) == {"stepz", "batch", "length"}
    assert {d.code for d in found.values()} == {"NF524"}
    assert found["stepz"].help == "did you mean `steps`?"


def test_file_with_places(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("# a run\nsteps: 10\nbatchh: 4\n")
    with pytest.raises(NestflowError) as e:
        load_train_config(path)
    span = e.value.diagnostics[0].span
    assert span is not None and (span.line, span.column, span.text) == (3, 1, "batchh")
    path.write_text('{"steps": 3, "length": 32}')
    assert load_train_config(path).length == 32
    path.write_text("")
    assert load_train_config(path).steps == 400


@pytest.mark.parametrize(
    "text", [b"a: [1, 2", b"- 1\n- 2\n", b"\xff\xfe", b"a: &x 1\nb: *x\n", b"[" * 10_000, b"? [1]\n: 2\n"]
)
def test_bad_files_are_diagnostics(tmp_path: Path, text: bytes):
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(NestflowError) as e:
        load_train_config(path)
    assert e.value.diagnostics[0].code in {"NF520", "NF524"}


def test_missing_file(tmp_path: Path):
    with pytest.raises(NestflowError) as e:
        load_train_config(tmp_path / "no.yaml")
    assert e.value.diagnostics[0].code == "NF520"
