"""Training on examples: exact resumes, measures, what the command says, and mistakes told before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

import nestflow
from nestflow.cli.main import app
from nestflow.train import measure, read_history, train
from tests.graph.building import mistake

CLASSIFIER = """nestflow 1
input x : float[3]
input label : int in [0, 4)
output model(x)
flow model(x) { return x |> linear(8) |> tanh |> linear(4) }
level fast { every 1 step; memory weights(model, "linear.**"); objective loss; update adamw(0.05) }
level slow { every 3 steps; memory rest(model); objective loss; update adamw(0.05) }
loss = cross_entropy(model(x), label)
"""
QUIET: dict[str, Any] = {"batch": 8, "show": False, "eval_every": 0, "checkpoint_every": 0}


def command(*args: str) -> Result:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def examples(n: int = 40, seed: int = 0) -> dict[str, Tensor]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "label": (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()}


def save(folder: Path, n: int = 40) -> Path:
    np.savez(folder / "data.npz", **{k: v.numpy() for k, v in examples(n).items()})
    return folder / "data.npz"


@pytest.mark.parametrize("data", ["mapping", "file"])
def test_a_resumed_run_is_the_whole_run_bit_for_bit(data: str, tmp_path: Path) -> None:
    given = examples() if data == "mapping" else save(tmp_path)
    whole = train(nestflow.compile(CLASSIFIER), given, 13, out=tmp_path / "whole", **QUIET)
    train(nestflow.compile(CLASSIFIER), given, 13, out=tmp_path / "cut", **QUIET | {"checkpoint_every": 4, "keep": 9})
    again = train(
        None,
        None if data == "file" else given,
        resume=tmp_path / "cut" / "checkpoints" / "step-000004",
        out=tmp_path / "more",
        show=False,
    )
    assert again.losses == whole.losses and again.metrics == whole.metrics
    for n, w in whole.bundle.module.state_dict().items():
        assert torch.equal(w, again.bundle.module.state_dict()[n])
    assert read_history(tmp_path / "more").metrics == again.metrics


def test_other_data_is_no_resume(tmp_path: Path) -> None:
    train(nestflow.compile(CLASSIFIER), examples(), 2, out=tmp_path / "run", **QUIET)
    d = mistake(lambda: train(None, examples(seed=1), 4, resume=tmp_path / "run", show=False))
    assert d.code == "NF525" and "is not what the run" in d.message


def test_measures_are_over_all_examples() -> None:
    b = nestflow.compile(CLASSIFIER)
    given = examples(37)
    p = b.module(x=given["x"])
    found = measure(b, given, batch=5)
    assert found["accuracy"] == pytest.approx((p.argmax(-1) == given["label"]).float().mean().item())
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(p, given["label"]).item(), rel=1e-5)


def test_measures_of_masked_terms_count_them_once() -> None:
    text = """nestflow 1
input x : float[T, 3]
input kind : int[T] in [0, 4)
input mask : bool[T]
output model(x)
flow model(x) { return linear(x, 4) }
level outer { every 1 step; memory weights(model); objective cross_entropy(model(x), kind, mask = mask)
  update gd(0.1) }
"""
    b = nestflow.compile(text)
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(int(n), 3, generator=g) for n in (7, 1, 4, 2, 9)]
    kinds = [torch.randint(0, 4, (len(r),), generator=g) for r in rows]
    found = measure(b, {"x": [r.tolist() for r in rows], "kind": [k.tolist() for k in kinds]}, batch=2)
    w = next(iter(b.module.weights.values()))
    p, y = torch.cat(rows) @ w.T, torch.cat(kinds)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(p, y).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((p.argmax(-1) == y).float().mean().item())


def test_several_losses_are_measured_by_name() -> None:
    text = CLASSIFIER.replace("rest(model); objective loss;", "rest(model); objective mean(square(model(x)));")
    history = train(nestflow.compile(text), examples(), 3, **QUIET)
    assert set(history.metrics[-1][1]) == {"loss of fast", "loss of slow", "accuracy"}


def test_one_row_trains_and_nothing_is_held_out() -> None:
    history = train(nestflow.compile(CLASSIFIER), examples(1), 2, **QUIET)
    assert history.steps == 2 and history.metrics == []


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    bad = examples()
    bad["label"][7] = 9
    d = mistake(lambda: train(nestflow.compile(CLASSIFIER), bad, 2, out=tmp_path / "run", **QUIET))
    assert d.code == "NF534" and "row 7" in d.message and not (tmp_path / "run").exists()
    d = mistake(lambda: train(nestflow.compile(CLASSIFIER), steps=2, **QUIET))
    assert d.code == "NF527" and "--data" in (d.help or "")


def test_the_command_trains_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.nl").write_text(CLASSIFIER)
    given = [str(tmp_path / "model.nl"), "--data", str(save(tmp_path)), "--steps", "6", "--quiet"]
    result = command("train", *given, "--out", str(tmp_path / "run"))
    assert "validation loss" in result.output and "accuracy" in result.output and "generate" not in result.output
    command("train", "--resume", "--out", str(tmp_path / "run"), "--steps", "8", "--quiet")
    assert read_history(tmp_path / "run").steps == 8
    loaded = nestflow.load(tmp_path / "run" / "bundle")
    assert loaded.module(torch.zeros(2, 3)).shape == (2, 4)


def test_text_stays_text_where_a_spec_reads_bytes(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a, b\n" * 200)
    small = nestflow.compile("linear_attention", dim=16, depth=1, n_heads=2)
    history = train(small, tmp_path / "notes.csv", 1, length=16, **QUIET)
    assert history.metrics == [] and history.val
    (tmp_path / "tokens.jsonl").write_text('{"tokens": [1, 2, 3, 4, 5, 6, 7, 8]}\n' * 6)
    small = nestflow.compile("linear_attention", dim=16, depth=1, n_heads=2)
    assert train(small, tmp_path / "tokens.jsonl", 1, length=16, **QUIET).metrics
