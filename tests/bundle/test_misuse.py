"""Bundles in hands that try everything: wrong arguments, pickles, moved modules, edited files."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nestflow
from nestflow.diagnostics.core import NestflowError
from tests.bundle.specs import LM, MEMORY
from tests.graph.building import codes

TOKENS = torch.randint(0, 11, (3, 10), generator=torch.Generator().manual_seed(0))
BATCH = {"tokens": TOKENS}
UNTYPED: Any = nestflow  # arguments of wrong kinds are what is tested here: a type checker is not to see them
CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "step of a tensor": ("NF501", lambda b: b.step(TOKENS)),
    "step of nothing": ("NF501", lambda b: b.step(None)),
    "loss of a tensor": ("NF501", lambda b: b.loss(TOKENS)),
    "no rows": ("NF518", lambda b: b.stream(0)),
    "rows below none": ("NF518", lambda b: b.stream(-1)),
    "more rows than there are": ("NF518", lambda b: b.stream(10**30)),
    "half a row": ("NF518", lambda b: b.stream(2.5)),
    "rows as text": ("NF518", lambda b: b.stream(2).reset("a")),
    "a row that is not there": ("NF507", lambda b: b.stream(2).reset(7)),
    "a dict as state": ("NF507", lambda b: b.module.run({"a": 1}, tokens=TOKENS)),
    "a state of another spec": (
        "NF507",
        lambda b: b.module.run(nestflow.compile(MEMORY, dim=16).module.initial_state(3), tokens=TOKENS),
    ),
    "no steps": ("NF518", lambda b: b.set_total_steps(0)),
    "steps as text": ("NF518", lambda b: b.optimizer.set_total_steps("9")),
    "a seed with a fraction": ("NF518", lambda b: UNTYPED.compile(LM, seed=1.5)),
    "a seed as text": ("NF518", lambda b: UNTYPED.compile(LM, seed="1")),
    "no device": ("NF518", lambda b: nestflow.compile(LM, device="junk")),
    "a device that is away": ("NF518", lambda b: nestflow.compile(LM, device="cuda:99")),
    "eight bits": ("NF517", lambda b: nestflow.compile(LM, dtype="float8_e4m3fn")),
    "extra as a list": ("NF516", lambda b: b.save("never", extra=[1])),
    "a zero byte": ("NF511", lambda b: b.save("a\0b")),
    "a long name": ("NF511", lambda b: b.save("x" * 300)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, call = CALLS[name]
    with pytest.raises(nestflow.NestflowError, match=code):
        call(nestflow.compile(LM))
    assert not list(tmp_path.iterdir())


def test_a_stream_may_reset_one_row() -> None:
    stream = nestflow.compile(LM).stream(3)
    stream.feed(TOKENS)
    stream.reset(1)
    assert stream.t == (10, 0, 10)


def test_bounds_say_whole_numbers_whole() -> None:
    with pytest.raises(nestflow.NestflowError, match="is 4611686018427387904"):
        nestflow.compile(LM).module(TOKENS * 0 + 2**62)


@pytest.mark.parametrize(
    "through", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_pickles_and_copies_go_on_alike(through: Callable[[Any], Any]) -> None:
    b = nestflow.compile(LM, seed=5)
    b.step(BATCH)
    b.module.weights["model.emb.weight"].requires_grad_(False)
    module, whole = through(b.module.eval()), through(b)
    assert torch.equal(module(TOKENS), b.module(TOKENS)) and not module.training
    assert not module.weights["model.emb.weight"].requires_grad
    assert [whole.step(BATCH)["loss"] for _ in range(4)] == [b.step(BATCH)["loss"] for _ in range(4)]
    for path, w in b.module.weights.items():
        assert torch.equal(w, whole.module.weights[path]) and w is not whole.module.weights[path]


def test_a_pickle_keeps_type_and_name() -> None:
    b = nestflow.compile("titans", dim=16, n_heads=2, depth=1, dtype="float64")
    again = pickle.loads(pickle.dumps(b))
    assert again.name == "titans" and again.params == b.params and again.module.dtype == torch.float64


def test_the_optimizer_follows_a_module_that_is_moved() -> None:
    moved, born = nestflow.compile(LM), nestflow.compile(LM, dtype="float64")
    moved.step(BATCH)
    moved.module.double()
    for path, w in born.module.weights.items():
        with torch.no_grad():
            w.copy_(moved.module.weights[path])
    born.optimizer.load_state_dict(moved.optimizer.state_dict())
    assert [moved.step(BATCH)["loss"] for _ in range(6)] == [born.step(BATCH)["loss"] for _ in range(6)]


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_step_learns_whatever_is_switched_off(off: Callable[[], Any]) -> None:
    a, b = nestflow.compile(LM), nestflow.compile(LM)
    with off():
        inside = [b.step({"tokens": TOKENS.clone()})["loss"] for _ in range(3)]
    assert inside == [a.step(BATCH)["loss"] for _ in range(3)]


def test_two_schedules_of_one_rate_are_told() -> None:
    constant = nestflow.compile(LM)
    scheduled = nestflow.compile("titans", dim=16, n_heads=2, depth=1)
    scheduled.set_total_steps(20)
    for b, told in ((constant, False), (scheduled, True)):
        b.step(BATCH)
        for g in b.optimizer.param_groups:
            g["lr"] = g["lr"] * 0.5
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            b.step(BATCH)
        assert told == any("schedule in the spec" in str(w.message) for w in caught)


def test_a_thousand_unrolled_layers() -> None:
    b = nestflow.compile(
        "nestflow 1\ninput x : float[T, 2]\noutput f(x)\n"
        "flow f(x) { shared mix = linear(2); repeat 1000 { x = x + mix(x) / 1000 }; return x }\n",
        dtype="float64",
    )
    x = torch.randn(1, 2, 2, dtype=torch.float64)
    want = x @ torch.matrix_power(torch.eye(2, dtype=torch.float64) + b.module.weights["f.mix.weight"] / 1000, 1000).T
    torch.testing.assert_close(b.module(x), want)


def test_no_room_for_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000000 bytes")

    monkeypatch.setattr("nestflow.bundle.module.draw", draw)
    with pytest.raises(nestflow.NestflowError, match=r"NF518.*no memory for `model\.emb\.weight`"):
        nestflow.compile(LM)


@pytest.mark.parametrize("heads", ["", "heads 2; "])
@pytest.mark.parametrize("bad", [5, -1])
def test_an_index_outside_a_table(heads: str, bad: int) -> None:
    e = "split_heads(embed(i, 5, 4))" if heads else "embed(i, 5, 4)"
    b = nestflow.compile(
        "nestflow 1\ninput i : int[T]\noutput m(i)\n"
        f"level m(i) {{ {heads}memory matrix; a = {e}; key a; value a; query a; "
        "objective dot; update gd(1) }\n"
    )
    assert b.module(torch.full((2, 3), 4)).isfinite().all()
    with pytest.raises(nestflow.NestflowError, match="NF506"):
        b.module(torch.full((2, 3), bad))


def test_every_class_counts_unless_it_is_masked() -> None:
    head = "nestflow 1\ninput x : float[T, 4]\ninput label : int[T]\ninput keep : bool[T]\noutput f(x)\n"
    body = (
        "flow f(x) { return linear(x, 3) }\nlevel o { every 1 step; memory weights(f); objective loss; update gd(1) }\n"
    )
    x, keep = torch.randn(1, 3, 4, dtype=torch.float64), torch.tensor([[True, True, False]])
    label = torch.tensor([[0, 2, -100]])
    batch = {"x": x, "label": label, "keep": keep}
    masked = nestflow.compile(f"{head}{body}loss = cross_entropy(f(x), label, mask = keep)\n", dtype="float64")
    want = torch.nn.functional.cross_entropy(masked.module(**batch)[0, :2], label[0, :2])
    torch.testing.assert_close(masked.loss(batch), want)
    (level,) = masked.graph.step_levels
    torch.testing.assert_close(masked.reference().loss(level.objective, batch).squeeze(), want)
    bare = nestflow.compile(f"{head}{body}loss = cross_entropy(f(x), label)\n", dtype="float64")
    with pytest.raises(nestflow.NestflowError, match="NF506"):
        bare.loss(batch)


# ---- files


def test_saving_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    b = nestflow.compile(LM)
    b.save(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    b.step(BATCH)
    b.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]
    assert torch.equal(nestflow.load(tmp_path / "real").module(TOKENS), b.module(TOKENS))


def test_extra_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(nestflow.NestflowError, match="NF516"):
        nestflow.compile(LM).save(tmp_path / "b", extra=loop)
    assert not list(tmp_path.iterdir())


def resealed(folder: Path, change: Callable[[dict[str, Any]], Any], seal: bool) -> None:
    """Change the index of a bundle; seal: with no digest of its own, as an older nestflow wrote it."""
    file = folder / "bundle.json"
    index = json.loads(file.read_text())
    change(index)
    if seal:
        index.pop("sha256", None)
    file.write_text(json.dumps(index))


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another rate": lambda i: i["optimizer"]["param_groups"][0].update(lr=3.0),
    "optimizer 3": lambda i: i.update(optimizer=3),
    "optimizer empty": lambda i: i.update(optimizer={}),
    "optimizer without groups": lambda i: i["optimizer"].pop("param_groups"),
    "groups of others": lambda i: i["optimizer"]["param_groups"][0].update(params=[]),
    "a tensor that is away": lambda i: i["optimizer"]["state"]["$items"][0][1].update(x={"$tensor": "no"}),
    "no format": lambda i: i.update(format=0),
    "extra none": lambda i: i.update(extra=None),
    "steps as text": lambda i: i.update(total_steps="x"),
    "no sizes": lambda i: i.update(files={n: {} for n in i["files"]}),
    "weights as spec": lambda i: i.update(spec="weights.safetensors"),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("seal", [False, True])
def test_an_edited_index_is_told(name: str, seal: bool, tmp_path: Path) -> None:
    b = nestflow.compile(LM)
    b.step(BATCH)
    b.save(tmp_path / "b")
    resealed(tmp_path / "b", EDITS[name], seal)
    if name == "another rate" and seal:  # a well-formed number: nothing can tell
        assert nestflow.load(tmp_path / "b").optimizer.param_groups[0]["lr"] == 3.0
        return
    with pytest.raises(nestflow.NestflowError, match="NF513"):
        nestflow.load(tmp_path / "b")


def test_tensors_that_are_none(tmp_path: Path) -> None:
    b = nestflow.compile(LM)
    b.save(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "bundle.json", tmp_path / "b" / "weights.safetensors")
    data = (tmp_path / "b" / "weights.safetensors").read_bytes()

    def known(index: dict[str, Any]) -> None:
        import hashlib

        index["files"]["weights.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    resealed(tmp_path / "b", known, True)
    with pytest.raises(nestflow.NestflowError, match="NF513"):
        nestflow.load(tmp_path / "b")


def test_saving_clears_what_a_killed_save_left(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import os, sys, nestflow\nfrom nestflow.bundle import files\nfrom tests.bundle.specs import LM\n"
        "files._swap = lambda *_: os._exit(9)\nnestflow.compile(LM).save(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "b")], check=False)
    assert done.returncode == 9 and len(list(tmp_path.iterdir())) == 1
    other = tmp_path / ".b.writing-00000000-1-of-another-machine"
    other.mkdir()
    nestflow.compile(LM).save(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, "b"]


def test_large_weights_are_made_only_if_they_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    text = (
        "nestflow 1\nparam n = 20_000\ninput x : float[8]\noutput f(x)\nflow f(x) { return linear(linear(x, n), n) }\n"
    )
    tracemalloc.start()
    with pytest.raises(NestflowError) as caught:
        nestflow.compile(text)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert [d.code for d in caught.value.diagnostics] == ["NF539"]
    assert "1.6 GB" in str(caught.value) and "linear(linear(x, n), n)" in str(caught.value)
    monkeypatch.setattr("nestflow.bundle.budget.MOST_BYTES", 1000)
    assert codes(lambda: nestflow.compile(text, n=40)) == ["NF539"]
    assert nestflow.compile(text, n=40, allow_large=True).module(x=torch.zeros(1, 8)).shape == (1, 40)


def test_state_counts_as_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestflow.bundle.budget.MOST_BYTES", 10_000)
    level = "level a(x) { every 1 token; memory matrix; key x; value x; query x; objective l2; update gd(0.1) }"
    text = f"nestflow 1\nparam n = 8\ninput x : float[T, n]\noutput a(x)\n{level}\n"
    nestflow.compile(text)
    assert codes(lambda: nestflow.compile(text, n=64)) == ["NF539"]
