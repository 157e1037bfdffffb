"""The loop: it learns, its log and checkpoints are whole, and resuming is bit for bit, wherever it was stopped."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nestflow.diagnostics import NestflowError
from nestflow.train import checkpoint as ckpt
from nestflow.train import read_history, train
from tests.train import fake

TEXT = b"the quick brown fox jumps over the lazy dog; " * 60
SMALL = {"batch": 4, "length": 24, "eval_every": 5, "eval_windows": 4, "checkpoint_every": 5, "show": False}


@pytest.fixture(autouse=True)
def fake_load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ckpt, "load_bundle", fake.load)


def test_learns_and_reports():
    seen: list[int] = []
    h = train(fake.FakeBundle(), TEXT, 60, on_step=lambda r: seen.append(r.step), **SMALL)
    assert seen == list(range(1, 61)) and h.steps == 60
    assert h.losses[-1] < h.losses[0] - 1
    assert [s for s, _ in h.val] == list(range(5, 61, 5))
    assert h.updates() == {"fast": 60, "slow": 15}
    assert h.bundle.total == 60 and h.interrupted is None
    assert h.to_json()["train_bpb"][0][1] == pytest.approx(h.losses[0] / 0.6931471805599453)


@pytest.mark.parametrize("stop", [5, 6, 11])
def test_resume_is_bit_exact(tmp_path: Path, stop: int):
    whole = train(fake.FakeBundle(), TEXT, 16, out=tmp_path / "whole", **SMALL)

    def interrupt(record):
        if record.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(fake.FakeBundle(), TEXT, 16, out=tmp_path / "cut", on_step=interrupt, **SMALL)
    assert first.interrupted == "SIGTERM" and first.steps == stop
    torch.manual_seed(12345)
    second = train(None, TEXT, out=None, resume=tmp_path / "cut", show=False)
    assert second.losses == whole.losses and second.val == whole.val
    for a, b in zip(whole.bundle.module.parameters(), second.bundle.module.parameters()):
        assert torch.equal(a, b)
    assert read_history(tmp_path / "cut").losses == read_history(tmp_path / "whole").losses == whole.losses


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(fake.FakeBundle(), TEXT, 1, **SMALL)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_longer_run_from_a_checkpoint(tmp_path: Path):
    train(fake.FakeBundle(), TEXT, 5, out=tmp_path / "a", **SMALL)
    h = train(None, TEXT, 8, resume=tmp_path / "a", out=tmp_path / "b", show=False)
    assert h.steps == 8 and h.bundle.total == 8
    assert len(read_history(tmp_path / "b").records) == 8
    assert train(None, TEXT, resume=tmp_path / "b", show=False).steps == 8


def test_keeps_the_newest_checkpoints_only(tmp_path: Path):
    h = train(fake.FakeBundle(), TEXT, 17, out=tmp_path, keep=2, **SMALL)
    assert [s for s, _ in ckpt.checkpoints(tmp_path)] == [15, 17]
    assert h.checkpoint == ckpt.checkpoints(tmp_path)[-1][1]


def test_failed_save_leaves_the_old_checkpoint(tmp_path: Path):
    class Bad(fake.FakeBundle):
        def save(self, path, extra=None):
            if self.count == 5:
                Path(path).mkdir(parents=True)
                raise OSError(28, "No space left on device")
            super().save(path, extra)

    with pytest.raises(NestflowError) as e:
        train(Bad(), TEXT, 10, out=tmp_path, **SMALL)
    assert e.value.diagnostics[0].code == "NF525" and "No space left" in e.value.diagnostics[0].message
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000000"]


def test_not_a_number_stops_and_keeps_the_last_good_state(tmp_path: Path):
    class Bad(fake.FakeBundle):
        def step(self, batch):
            report = super().step(batch)
            return {**report, "loss": float("nan")} if self.count == 7 else report

    with pytest.raises(NestflowError) as e:
        train(Bad(), TEXT, 10, out=tmp_path, **SMALL)
    d = e.value.diagnostics[0]
    assert d.code == "NF526" and "step 7" in d.message and "step-000005" in d.message
    assert ckpt.checkpoints(tmp_path)[-1][0] == 5


@pytest.mark.parametrize(
    "change, code",
    [
        ({"batch": 5}, "NF525"),
        ({"data": b"another text that is long enough to be trained on, or so it is hoped " * 9}, "NF525"),
        ({"stepz": 5}, "NF524"),
    ],
)
def test_resume_refuses_another_run(tmp_path: Path, change: dict, code: str):
    train(fake.FakeBundle(), TEXT, 2, out=tmp_path, **SMALL)
    with pytest.raises(NestflowError) as e:
        train(None, **{"data": TEXT, "resume": tmp_path, "show": False, **change})
    assert e.value.diagnostics[0].code == code


def test_mistakes_before_anything_is_written(tmp_path: Path):
    out = tmp_path / "run"
    cases = [
        ("NF525", lambda: train(None, TEXT, 2, out=out)),
        ("NF525", lambda: train(None, TEXT, resume=tmp_path / "nowhere")),
        ("NF524", lambda: train(fake.FakeBundle(), TEXT, 0, out=out)),
        ("NF522", lambda: train(fake.FakeBundle(), b"short", 2, out=out)),
        ("NF527", lambda: train(fake.FakeBundle(low=None, high=None), TEXT, 2, out=out)),
        ("NF527", lambda: train(fake.FakeBundle(high=63, vocab=64), TEXT, 2, out=out)),
    ]
    for code, call in cases:
        with pytest.raises(NestflowError) as e:
            call()
        assert e.value.diagnostics[0].code == code
    assert not out.exists()


def test_an_earlier_run_is_not_overwritten_unasked(tmp_path: Path):
    train(fake.FakeBundle(), TEXT, 5, out=tmp_path, **SMALL)
    with pytest.raises(NestflowError) as e:
        train(fake.FakeBundle(), TEXT, 2, out=tmp_path, **SMALL)
    assert e.value.diagnostics[0].code == "NF525"
    (tmp_path / "mine.txt").write_text("kept")
    h = train(fake.FakeBundle(), TEXT, 2, out=tmp_path, overwrite=True, **SMALL)
    assert h.steps == 2 and len(read_history(tmp_path).records) == 2 and (tmp_path / "mine.txt").exists()
    assert [s for s, _ in ckpt.checkpoints(tmp_path)] == [0, 2]


def test_display_tells_what_each_level_did():
    console = Console(record=True, width=200, force_terminal=False, file=io.StringIO())
    train(fake.FakeBundle(), TEXT, 4, console=console, **{**SMALL, "show": True})
    text = console.export_text()
    assert "inside a window of 24: memory learns every token (24 times), in 2 places" in text
    assert "fast every step → updated (4)" in text and "slow every 4 → updated (1)" in text
    assert "bits per byte" in text and "tokens/s" in text


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from nestflow.train import train
from tests.train import fake
train(fake.FakeBundle(), {text!r}, 100000, out={out!r}, batch=2, length=8, checkpoint_every=1, eval_every=0, show=False)
"""


@pytest.mark.parametrize("delay", [0.05, 0.31, 0.77])
def test_killed_at_any_moment_leaves_a_loadable_checkpoint(tmp_path: Path, delay: float):
    root = str(Path(__file__).parents[2])
    script = SCRIPT.format(root=root, text=TEXT, out=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", script])
    while not ckpt.checkpoints(tmp_path / "run"):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    process.wait()
    at = ckpt.find_checkpoint(tmp_path / "run")[0]
    done = int(at.name.split("-")[1])
    resumed = train(None, TEXT, done + 3, resume=tmp_path / "run", show=False)
    whole = train(fake.FakeBundle(), TEXT, done + 3, batch=2, length=8, eval_every=0, show=False)
    assert resumed.losses == whole.losses
