"""Training through a bundle, its files, and the file that needs torch alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nestflow
from nestflow.bundle import files
from nestflow.bundle.bundle import Bundle
from tests.bundle.specs import FROZEN, LM, MEMORY, TWO_OBJECTIVES

TOKENS = torch.randint(0, 11, (3, 10), generator=torch.Generator().manual_seed(0))
BATCH = {"tokens": TOKENS}


def test_step_is_loss_backward_optimizer_step() -> None:
    a, b = nestflow.compile(LM), nestflow.compile(LM)
    for i in range(7):
        report = a.step(BATCH)
        loss = b.loss(BATCH)
        b.optimizer.zero_grad()
        loss.backward()
        b.optimizer.step()
        assert report["loss"] == loss.item()
        assert report["levels"]["outer"]["updated"] and report["levels"]["slow"]["updated"] == ((i + 1) % 3 == 0)
    for path, w in a.module.weights.items():
        assert torch.equal(w, b.module.weights[path])


@pytest.mark.parametrize("spec", [LM, MEMORY], ids=["flows", "memories"])
def test_it_learns_a_batch_by_heart(spec: str) -> None:
    b = nestflow.compile(spec)
    first = b.step(BATCH)["loss"]
    for _ in range(60):
        last = b.step(BATCH)["loss"]
    assert last < 0.7 * first


def test_levels_with_objectives_of_their_own() -> None:
    b = nestflow.compile(TWO_OBJECTIVES, dtype="float64")
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    first, last = (b.module.weights[f"model.{n}.weight"] for n in ("first", "last"))
    far = torch.nn.functional.silu(x @ first.T) @ last.T - y
    want_last = last - 0.1 * torch.autograd.grad(far.square().mean(), last)[0]
    far = torch.nn.functional.silu(x @ first.T) @ want_last.T - y  # the second objective sees what the first has made
    want_first = first - 0.1 * torch.autograd.grad(far.abs().mean(), first)[0]
    report = b.step({"x": x, "goal": y})
    torch.testing.assert_close(last.detach(), want_last.detach())
    torch.testing.assert_close(first.detach(), want_first.detach())
    assert set(report["losses"]) == {"first", "last"}
    with pytest.raises(nestflow.NestflowError, match="NF510"):
        b.loss({"x": x, "goal": y})
    with pytest.raises(nestflow.NestflowError, match="step"):
        b.optimizer.step()


def test_a_frozen_level_stays_as_it_starts() -> None:
    b = nestflow.compile(FROZEN)
    still = b.module.weights["model.emb.weight"].clone()
    assert not b.module.weights["model.emb.weight"].requires_grad
    others = {p: w.clone() for p, w in b.module.weights.items()}
    b.step(BATCH)
    assert torch.equal(b.module.weights["model.emb.weight"], still)
    assert sum(not torch.equal(w, others[p]) for p, w in b.module.weights.items()) == len(others) - 1


def test_a_spec_without_step_levels_has_no_optimizer() -> None:
    b = nestflow.compile("nestflow 1\ninput x : float[T, 4]\noutput f(x)\nflow f(x) { return linear(x, 2) }\n")
    assert b.module(torch.randn(1, 3, 4)).shape == (1, 3, 2)
    for use in (lambda: b.optimizer, lambda: b.loss({"x": torch.randn(1, 3, 4)})):
        with pytest.raises(nestflow.NestflowError, match="NF509"):
            use()


def test_printing_is_the_level_table() -> None:
    text = str(nestflow.compile(MEMORY))
    assert len(text.splitlines()) <= 20
    assert all(word in text for word in ("titans", "outer", "every", "adamw(3e-3)"))
    assert "Bundle" in repr(nestflow.compile(LM))


# ---- files


@pytest.fixture()
def trained() -> Bundle:
    b = nestflow.compile(LM, dim=4, seed=5)
    for _ in range(4):
        b.step(BATCH)
    return b


def test_a_loaded_bundle_goes_on_bit_for_bit(trained: Bundle, tmp_path: Path) -> None:
    trained.module.eval()
    extra = {"step": 4, "rate": 0.1 + 0.2, "order": [1, 2], "rng": torch.arange(5, dtype=torch.uint8), "pair": (1, 2.5)}
    assert trained.save(tmp_path / "b", extra=extra) == tmp_path / "b"
    again = nestflow.load(tmp_path / "b")
    assert again.params == {"dim": 4} and again.seed == 5 and not again.module.training and again.name == trained.name
    assert torch.equal(again.extra.pop("rng"), extra.pop("rng")) and again.extra == extra
    for _ in range(5):  # passes an update of the slow level in the middle of a period
        assert trained.step(BATCH) == again.step(BATCH)
    for path, w in trained.module.weights.items():
        assert torch.equal(w, again.module.weights[path])


def test_types_and_schedules_come_back(tmp_path: Path) -> None:
    spec = LM.replace("adamw(3e-3) }", "adamw(cosine(3e-3, warmup = 2)) }")
    b = nestflow.compile(spec, dtype="float64")
    b.set_total_steps(8)
    b.step(BATCH)
    b.save(tmp_path / "b")
    again = nestflow.load(tmp_path / "b")
    assert again.module.dtype == torch.float64
    for _ in range(6):
        assert b.step(BATCH) == again.step(BATCH)


def test_eval_mode_uses_the_weights_that_the_rule_names(tmp_path: Path) -> None:
    spec = LM.replace("adamw(3e-3)", "averaged(adamw(3e-3))").replace("g |> clip_norm(1) |> ", "")
    b = nestflow.compile(spec)
    for _ in range(5):
        b.step(BATCH)
    trained = b.module(TOKENS)
    averaged = b.module.eval()(TOKENS)
    assert not torch.allclose(averaged, trained)
    assert torch.equal(b.module.train()(TOKENS), trained)
    b.module.eval()
    b.save(tmp_path / "b")
    again = nestflow.load(tmp_path / "b")
    assert torch.equal(again.module(TOKENS), averaged)
    assert b.step(BATCH) == again.step(BATCH)
    assert torch.equal(again.module(TOKENS), b.module(TOKENS))


def test_the_saved_spec_needs_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "parts.nl").write_text("nestflow 1\nflow part(x) { return x |> linear |> silu }\n")
    (tmp_path / "main.nl").write_text(
        'nestflow 1\nuse "parts.nl"\ninput x : float[T, 4]\noutput f(x)\nflow f(x) { return part(x) |> linear(2) }\n'
    )
    b = nestflow.compile(str(tmp_path / "main.nl"))
    b.save(tmp_path / "out")
    (tmp_path / "parts.nl").unlink()
    x = torch.randn(1, 3, 4)
    assert torch.equal(nestflow.load(tmp_path / "out").module(x), b.module(x))


def test_saving_over_a_bundle_replaces_it_whole(trained: Bundle, tmp_path: Path) -> None:
    trained.save(tmp_path / "b")
    trained.step(BATCH)
    trained.save(tmp_path / "b")
    assert torch.equal(nestflow.load(tmp_path / "b").module(TOKENS), trained.module(TOKENS))
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_nothing_but_a_bundle_is_ever_replaced(trained: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "file"):
        with pytest.raises(nestflow.NestflowError, match="NF511"):
            trained.save(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("moment", ["while writing", "before the swap", "between the renames"])
def test_a_failure_at_any_moment_leaves_a_bundle_that_loads(
    trained: Bundle, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save(tmp_path / "b")
    want = trained.module(TOKENS)
    trained.step(BATCH)

    class Killed(BaseException):
        pass

    renames = []

    def rename(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == {"before the swap": 1, "between the renames": 2}[moment]:
            raise Killed
        os.replace(self, target)  # noqa: PTH105  (Path.rename is the one that fails here)
        return Path(target)

    def digest(file: Path) -> str:
        raise Killed

    if moment == "while writing":
        monkeypatch.setattr(files, "_digest", digest)
    else:
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(Killed):
        trained.save(tmp_path / "b")
    monkeypatch.undo()
    assert torch.equal(nestflow.load(tmp_path / "b").module(TOKENS), want)


def _damage(folder: Path, how: str) -> None:
    index = json.loads((folder / "bundle.json").read_text())
    match how:
        case "no folder":
            shutil.rmtree(folder)
        case "no index":
            (folder / "bundle.json").unlink()
        case "no weights":
            (folder / "weights.safetensors").unlink()
        case "truncated weights":
            data = (folder / "weights.safetensors").read_bytes()
            (folder / "weights.safetensors").write_bytes(data[: len(data) // 2])
        case "flipped bit":
            data = bytearray((folder / "weights.safetensors").read_bytes())
            data[-3] ^= 1
            (folder / "weights.safetensors").write_bytes(bytes(data))
        case "truncated index":
            (folder / "bundle.json").write_text((folder / "bundle.json").read_text()[:100])
        case "foreign index":
            (folder / "bundle.json").write_text('{"model_type": "llama"}')
        case "half an index":
            (folder / "bundle.json").write_text(json.dumps({"format": 1, "name": "x"}))
        case "from the future":
            (folder / "bundle.json").write_text(json.dumps(index | {"format": 99}))
        case "escaping file":
            (folder / "bundle.json").write_text(
                json.dumps(index | {"files": index["files"] | {"../secret": {"bytes": 1}}})
            )
        case "another spec":
            spec = (folder / index["spec"]).read_text().replace("repeat 2", "repeat 1")
            (folder / index["spec"]).write_text(spec)
            entry = {"bytes": len(spec.encode()), "sha256": files._digest(folder / index["spec"])}
            index["files"][index["spec"]] = entry
            (folder / "bundle.json").write_text(json.dumps(index | {"sha256": files._index_digest(index)}))


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("no folder", "NF512"),
        ("no index", "NF512"),
        ("no weights", "NF512"),
        ("truncated weights", "NF513"),
        ("flipped bit", "NF513"),
        ("truncated index", "NF513"),
        ("foreign index", "NF513"),
        ("half an index", "NF513"),
        ("escaping file", "NF513"),
        ("from the future", "NF514"),
        ("another spec", "NF514"),
    ],
)
def test_damaged_bundles_are_sentences(trained: Bundle, tmp_path: Path, how: str, code: str) -> None:
    trained.save(tmp_path / "b")
    _damage(tmp_path / "b", how)
    with pytest.raises(nestflow.NestflowError, match=code):
        nestflow.load(tmp_path / "b")


def test_extra_must_be_data(trained: Bundle, tmp_path: Path) -> None:
    with pytest.raises(nestflow.NestflowError, match="NF516"):
        trained.save(tmp_path / "b", extra={"f": lambda: None})
    assert list(tmp_path.iterdir()) == []


# ---- standalone

ALONE = """
import sys, torch
sys.modules["nestflow"] = None
import model
m = model.Model()
x = torch.randint(0, 11, (3, 10), generator=torch.Generator().manual_seed(0))
torch.save(m(tokens=x).detach(), "out.pt")
a, s = m.run(None, x[:, :3])
b, s = m.run(s, x[:, 3:])
torch.testing.assert_close(torch.cat([a, b], 1), m(x))
assert not any(n.startswith("nestflow") and v is not None for n, v in sys.modules.items())
"""


@pytest.mark.parametrize("spec", [LM, MEMORY], ids=["flows", "memories"])
def test_the_standalone_file_needs_torch_alone_and_gives_the_same_numbers(spec: str, tmp_path: Path) -> None:
    b = nestflow.compile(spec)
    (tmp_path / "model.py").write_text(b.standalone(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), b.module(TOKENS).detach(), rtol=0, atol=0)
