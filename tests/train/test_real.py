"""The trainer on real bundles: shipped specs, real checkpoints, the demo from end to end."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

import nestflow
from nestflow.diagnostics import NestflowError
from nestflow.train import RecallTask, generate, loss_by_position, train, train_recall
from nestflow.train.demo import QUICK, demo

TEXT = b"the quick brown fox jumps over the lazy dog; " * 60
SMALL = {"batch": 2, "length": 32, "eval_every": 0, "eval_windows": 2, "checkpoint_every": 0, "show": False}
TINY = {"dim": 16, "depth": 1, "n_heads": 2, "chunk": 8}


def test_resume_of_hope_is_bit_exact_in_the_middle_of_a_period(tmp_path: Path):
    whole = train(nestflow.compile("hope", **TINY), TEXT, 7, out=tmp_path / "whole", **SMALL)
    # the schedule knows the whole run's length, so the run is cut short by a checkpoint and not by its end
    cut = {**SMALL, "checkpoint_every": 3, "keep": 9}
    train(nestflow.compile("hope", **TINY), TEXT, 7, out=tmp_path / "cut", **cut)
    again = train(
        None, TEXT, resume=tmp_path / "cut" / "checkpoints" / "step-000003", out=tmp_path / "more", show=False
    )
    assert again.losses == whole.losses
    for name, w in whole.bundle.module.state_dict().items():
        assert torch.equal(w, again.bundle.module.state_dict()[name]), name
    assert again.updates() == {"outer": 7, "cms_1": 7, "cms_4": 1}


def test_learns_and_writes():
    history = train(nestflow.compile("linear_attention", dim=32, depth=1, n_heads=2), TEXT, 40, **SMALL)
    assert history.losses[-1] < history.losses[0] - 1
    text = generate(history.bundle, "the ", 12, temperature=0)
    assert text == generate(history.bundle, "the ", 12, temperature=0) and len(text) == 12
    pieces = loss_by_position(history.bundle, torch.frombuffer(bytearray(TEXT), dtype=torch.uint8), 128, 2, 4)
    assert [p.stop for p in pieces] == [32, 64, 96, 128]


def test_a_memory_driven_by_features_is_not_trained_on_text():
    spec = "nestflow 1\ninput x : float[T, 8]\noutput model(x)\nflow model(x) { return linear(x, 8) }\n"
    with pytest.raises(NestflowError) as e:
        train(nestflow.compile(spec), TEXT, 1, **SMALL)
    assert e.value.diagnostics[0].code == "NF527"


@pytest.mark.slow
def test_recall_needs_a_memory_that_learns():
    task = RecallTask(pairs=2, length=12, keys=8, values=8)
    sizes = {"dim": 32, "depth": 2, "n_heads": 2, "vocab": task.vocab, "chunk": 2}
    learns = train_recall(nestflow.compile("titans", **sizes), task, 250, 32).accuracy
    frozen = train_recall(nestflow.compile("titans", **sizes, rate=0), task, 250, 32).accuracy
    assert frozen < 0.7 and learns > frozen + 0.15


@pytest.mark.slow
def test_demo_from_end_to_end(tmp_path: Path):
    console = Console(record=True, width=120, file=io.StringIO())
    results = demo(tmp_path, QUICK, console)
    for name in ("bundle", "model.py", "optim.py", "graph.svg", "graph.html", "loss.png", "results.json"):
        assert (tmp_path / name).exists(), name
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["val_bpb"] == results["val_bpb"] and set(written["recall"]["runs"]) == {
        "memory learns",
        "memory frozen (inner rates at 0)",
    }
    text = console.export_text()
    assert f"{results['val_bpb']['hope']:.3f}" in text and "memory frozen" in text and "byte trigram" in text
    assert nestflow.load(tmp_path / "bundle").params["dim"] == 32


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_goes_on(tmp_path: Path):
    settings = {"batch": 2, "length": 16, "eval_every": 3, "eval_windows": 2, "checkpoint_every": 3, "show": False}
    text = b"to be or not to be, that is the question " * 40
    small = {"dim": 8, "n_heads": 1, "depth": 1}
    run = tmp_path / "run"
    whole = train(nestflow.compile("linear_attention", **small), text, 9, out=run, **settings)
    newest = run / "checkpoints" / "step-000009"
    shutil.copytree(run, tmp_path / "other")
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step-000009.*truncated.*step-000006"):
        again = train(None, text, resume=run, show=False)
    assert again.losses == whole.losses and again.steps == 9
    assert nestflow.load(newest).extra["train"]["step"] == 9  # written anew
    assert (run / "checkpoints" / "damaged-step-000009").is_dir()
    # one that is named is meant, and where none is whole the newest is told
    other = tmp_path / "other" / "checkpoints"
    (other / "step-000009" / "bundle.json").unlink()
    with pytest.raises(nestflow.NestflowError) as e:
        train(None, text, resume=other / "step-000009", show=False)
    assert e.value.diagnostics[0].code == "NF512"
    for folder in other.iterdir():
        (folder / "weights.safetensors").unlink()
    with pytest.raises(nestflow.NestflowError) as e:
        train(None, text, resume=tmp_path / "other", show=False)
    assert e.value.diagnostics[0].code == "NF512" and "step-000009" in str(e.value)


def test_a_file_of_a_bundle_is_not_the_bundle(tmp_path: Path):
    nestflow.compile("linear_attention", dim=8, n_heads=1, depth=1).save(tmp_path / "b")
    for name in ("bundle.json", "weights.safetensors", "linear_attention.nl"):
        with pytest.raises(nestflow.NestflowError) as e:
            nestflow.load(tmp_path / "b" / name)
        (d,) = e.value.diagnostics
        assert d.code == "NF512" and f"is a file of the bundle in `{tmp_path / 'b'}`" in d.message


def test_the_folder_of_a_run_says_where_its_bundle_lies(tmp_path: Path):
    nestflow.compile("linear_attention", dim=8, n_heads=1, depth=1).save(tmp_path / "bundle")
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.load(tmp_path)
    (d,) = e.value.diagnostics
    assert d.code == "NF512" and d.help is not None and f'nestflow.load("{tmp_path / "bundle"}")' in d.help
