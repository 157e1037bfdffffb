"""Levels with a copy for each worker: DiLoCo against torch's optimizers in a plain loop, compiled = interpreted."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestflow
import nestflow.train

EXAMPLE = (Path(__file__).parents[2] / "examples" / "diloco.nl").read_text(encoding="utf-8")
W, N, LENGTH = 3, 4, 4  # workers, rows of each, steps of a round

HEAD = """nestflow 1
input x : float[6]
input label : int in [0, 3)
output net(x)
clock round = 3 steps
flow net(x) { return x |> linear(5, bias = true) |> tanh |> linear(3) }
"""
SHARED = "level shared { every 1 round; memory weights(net); value average(worker); objective l2; update gd(0.9) }\n"
WORKER = """level worker { per worker(3); every 1 step; memory net; init shared; reset each(round, keep = rule)
  objective cross_entropy(worker(x), label); update adam(0.01) }
"""
SPECS = {
    "one norm for each copy": SHARED + WORKER.replace("adam", "g |> clip_norm(0.1) |> adam"),
    "the rule begins anew": SHARED + WORKER.replace(", keep = rule", ""),
    "near the shared weights": SHARED
    + WORKER.replace("label);", "label) + 0.1 * square_distance(worker, shared) + 0.01 * total(worker ^ 2);"),
    "sums, gates and bounds": SHARED
    + WORKER.replace("every 1 step", "every 2 steps; retain 0.9; project ball(0.8); when mean(x) > -0.02; weight 2.0"),
    "a schedule": SHARED + WORKER.replace("0.01", "linear_decay(0.05, total = 12)"),
    "a schedule that begins anew": SHARED
    + WORKER.replace("0.01", "linear_decay(0.05, total = 12)").replace(", keep = rule", ""),
    "one rate for each copy": SHARED + WORKER.replace("adam(0.01)", "hypergradient(0.05, 0.01)"),
    "matrices": SHARED + WORKER.replace("adam(0.01)", "muon(0.02)"),
    "what the copies say": """level shared { every 1 step; memory weights(net); update gd(0.1)
          objective square_distance(net(x), worker(x)) + 0.1 * total((shared - average(worker)) ^ 2) }
        """
    + WORKER,
    "a vector": """level worker { per worker(3); memory vector(6); every 1 step; objective mean(square(x - worker))
          update gd(0.3) }
        level outer { every 1 step; memory weights(net); objective cross_entropy(net(x), label); update gd(0.1) }""",
    "from zeros": """level worker { per worker(3); memory net; init 0.1; every 1 step
          objective cross_entropy(worker(x), label); update adam(0.02) }
        level shared { every 1 step; memory weights(net); value average(worker); objective l2; update gd(0.5) }""",
}


def batches(n: int, rows: int = 6, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(rows, 6, generator=g, dtype=torch.float64)
        yield {"x": x, "label": torch.randint(0, 3, (rows,), generator=g)}


def tensors(b: nestflow.Bundle) -> dict[str, Tensor]:
    return {p: w.detach().clone() for p, w in {**b.module.weights, **b.module.kept}.items()}


class Net(nn.Sequential):
    """The example's network on the weights of a bundle."""

    def __init__(self, b: nestflow.Bundle) -> None:
        super().__init__(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.double()
        with torch.no_grad():
            for p, w in zip(self.parameters(), b.module.weights.values(), strict=True):
                p.copy_(w)


def diloco(
    b: nestflow.Bundle, given: list[dict[str, Tensor]], clip: float | None = None
) -> Iterator[tuple[float, Net]]:
    """DiLoCo as published, with torch's optimizers: (mean loss, shared network) after each step."""
    shared = Net(b)
    workers = [copy.deepcopy(shared) for _ in range(W)]
    inner = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in workers]
    outer = torch.optim.SGD(shared.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    for step, batch in enumerate(given, 1):
        total = 0.0
        for i, (net, optimizer) in enumerate(zip(workers, inner, strict=True)):
            own = slice(i * N, (i + 1) * N)
            loss = F.cross_entropy(net(batch["x"][own]), batch["label"][own])
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            total += float(loss.detach()) / W
        if step % LENGTH == 0:
            for p, *copies in zip(shared.parameters(), *(m.parameters() for m in workers), strict=True):
                p.grad = torch.stack([p.detach() - q.detach() for q in copies]).mean(0)
            outer.step()
            for net in workers:
                net.load_state_dict(shared.state_dict())
        yield total, shared


@pytest.mark.parametrize("clip", [None, 0.3])
def test_diloco_is_the_loop_of_the_paper(clip: float | None) -> None:
    text = EXAMPLE if clip is None else EXAMPLE.replace("update adamw", f"update g |> clip_norm({clip}) |> adamw")
    b = nestflow.compile(text, dtype="float64", workers=W, length=LENGTH, hidden=16)
    slow, g = b.reference_steps(), torch.Generator().manual_seed(1)
    given = [
        {
            "x": torch.randn(W * N, 8, generator=g, dtype=torch.float64),
            "label": torch.randint(0, 4, (W * N,), generator=g),
        }
        for _ in range(4 * LENGTH + 2)
    ]
    for i, (batch, (loss, shared)) in enumerate(zip(given, diloco(b, given, clip), strict=True), 1):
        report = b.step(batch)
        assert report["loss"] == pytest.approx(loss, rel=1e-9)
        assert slow.step(batch)["worker"] == pytest.approx(loss, rel=1e-9)
        assert report["levels"]["shared"]["updated"] == (i % LENGTH == 0)
        for (p, w), want in zip(b.module.weights.items(), shared.parameters(), strict=True):
            torch.testing.assert_close(w, want, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(slow.tensors[p], want.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(b.module(batch["x"]), shared(batch["x"]))
    assert report["levels"]["worker"]["updates"] == 4 * LENGTH + 2  # the rule's count goes on through the rounds


@pytest.mark.parametrize("name", SPECS)
def test_compiled_equals_interpreted(name: str) -> None:
    b = nestflow.compile(HEAD + SPECS[name], dtype="float64", seed=1)
    slow, at_start = b.reference_steps(), tensors(b)
    for i, batch in enumerate(batches(11)):
        report, losses = b.step(batch), slow.step(batch)
        assert losses == pytest.approx({n: report["losses"][n] for n in losses}, rel=1e-12)
        for p, x in tensors(b).items():
            torch.testing.assert_close(x, slow.tensors[p], rtol=1e-10, atol=1e-12, msg=f"{p} after step {i + 1}")
    assert all(not torch.equal(x, at_start[p]) for p, x in tensors(b).items())


def test_a_schedule_goes_on_where_the_rule_is_spared() -> None:
    """keep = rule: what a rule counts is not reset, so a rate that falls over the run falls through the rounds."""
    b = nestflow.compile(HEAD + SPECS["a schedule"].replace("adam(", "gd("), dtype="float64")
    again = nestflow.compile(HEAD + SPECS["a schedule that begins anew"].replace("adam(", "gd("), dtype="float64")
    rates = [], []
    for batch in batches(6):
        for one, found in zip((b, again), rates, strict=True):
            one.step(batch)
            found.append(next(g["lr"] for g in one.optimizer.param_groups if g["level"] == "worker"))
    falling = [0.05 * (1 - k / 13) for k in range(1, 7)]
    assert rates[0] == pytest.approx(falling)
    assert rates[1] == pytest.approx(falling[:3] * 2)


@pytest.mark.parametrize("name", ["one norm for each copy", "sums, gates and bounds", "a schedule", "matrices"])
def test_saved_and_loaded_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    b = nestflow.compile(HEAD + SPECS[name], seed=1)
    given = [{n: x.float() if n == "x" else x for n, x in batch.items()} for batch in batches(9)]
    for batch in given[:4]:  # in the middle of a round
        b.step(batch)
    b.save(tmp_path / "run")
    other = nestflow.load(tmp_path / "run")
    for batch in given[4:]:
        assert b.step(batch) == other.step(batch)
    assert all(torch.equal(x, tensors(other)[p]) for p, x in tensors(b).items())
    assert len(b.module.kept) == 3 * len(b.module.weights)


def test_each_copy_answers_for_its_part() -> None:
    text = HEAD.replace("output net(x)", "output worker(x)") + SHARED + WORKER
    b = nestflow.compile(text, dtype="float64")
    for batch in batches(2):
        b.step(batch)
    x, w = next(batches(1))["x"], b.module.kept
    want = torch.cat(
        [
            F.linear(
                torch.tanh(
                    F.linear(x[2 * i : 2 * i + 2], w[f"worker.{i}.linear.weight"], w[f"worker.{i}.linear.bias"])
                ),
                w[f"worker.{i}.linear_2.weight"],
            )
            for i in range(3)
        ]
    )
    torch.testing.assert_close(b.module(x), want)
    torch.testing.assert_close(b.reference()(x), want)
    assert not torch.allclose(w["worker.0.linear.weight"], w["worker.1.linear.weight"])


def test_one_worker_is_a_lookahead() -> None:
    """With one worker and plain rates: k steps, then a part of the way there."""
    text = HEAD + SHARED + WORKER.replace("per worker(3)", "per worker(1)").replace("adam(0.01)", "gd(0.1)")
    b = nestflow.compile(text, dtype="float64")
    w = {p: x.detach().clone() for p, x in b.module.weights.items()}
    fast = dict(w)
    for step, batch in enumerate(batches(9), 1):
        b.step(batch)
        own = {p: x.requires_grad_() for p, x in fast.items()}
        h = torch.tanh(F.linear(batch["x"], own["net.linear.weight"], own["net.linear.bias"]))
        loss = F.cross_entropy(F.linear(h, own["net.linear_2.weight"]), batch["label"])
        grads = torch.autograd.grad(loss, list(own.values()))
        fast = {p: (x - 0.1 * g).detach() for (p, x), g in zip(own.items(), grads, strict=True)}
        if step % 3 == 0:
            w = {p: x + 0.9 * (fast[p] - x) for p, x in w.items()}
            fast = dict(w)
        for p, x in b.module.weights.items():
            torch.testing.assert_close(x.detach(), w[p], rtol=1e-9, atol=1e-12)


def test_rows_that_cannot_be_shared_are_told() -> None:
    b = nestflow.compile(HEAD + SHARED + WORKER, dtype="float64")
    batch = next(batches(1, rows=7))
    before = tensors(b)
    with pytest.raises(nestflow.NestflowError, match=r"NF505.*7 rows, and `worker` has 3 workers"):
        b.step(batch)
    with pytest.raises(nestflow.NestflowError, match=r"NF505.*7 rows"):
        b.reference_steps().step(batch)
    with pytest.raises(nestflow.NestflowError, match="NF505"):
        b.module.metrics(**batch)
    assert b.module(batch["x"]).shape == (7, 3)  # the shared weights take any number
    assert all(torch.equal(x, before[p]) for p, x in tensors(b).items())


WRONG = [
    ("per worker(3)", "per worker", r"NF231.*how many"),
    ("per worker(3)", "per worker(2, 3)", "NF231"),
    ("per worker(3)", "per worker(0)", "NF406"),
    ("per worker(3)", "per worker(1.5)", "NF"),
    ("per worker(3)", "per wroker(3)", "NF231"),
    ("memory net; init shared", "memory rest(net)", "NF"),
    ("reset each(round, keep = rule)", "reset each(step)", r"NF231.*from step to step"),
    ("init shared", "init shared; rounds 3", "NF231"),
    ("value average(worker)", "value worker", "NF237"),
    ("value average(worker)", "value before(worker)", "NF237"),
    ("adam(0.01)", "dgd(0.01)", "NF490"),
    ("adam(0.01)", "sophia(0.01)", "NF490"),
    ("cross_entropy(worker(x), label)", "es(cross_entropy(worker(x), label), sigma = 0.1, pairs = 2)", "NF490"),
    ("cross_entropy(worker(x), label)", "cross_entropy(worker(x), label) + total(worker.g ^ 2)", "NF490"),
    ("cross_entropy(worker(x), label)", "cross_entropy(worker(x) + other(x), label)", "NF490"),
    ("cross_entropy(worker(x), label)", "cross_entropy(worker(x) + uphill(x), label)", "NF490"),
    ("|> tanh", "|> tanh |> dropout(0.1)", "NF490"),
]
OTHERS = """level other { per worker(3); every 1 step; memory net; init 0.1
  objective cross_entropy(other(x), label); update gd(0.1) }
level uphill { memory net; init shared; reset each(step); objective cross_entropy(uphill(x), label); update gd(0.1) }
"""


@pytest.mark.parametrize(("old", "new", "code"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_mistakes_are_told(old: str, new: str, code: str) -> None:
    text = HEAD + SHARED + WORKER + (OTHERS if "other(" in new or "uphill(" in new else "")
    assert old in text
    with pytest.raises(nestflow.NestflowError, match=code):
        nestflow.check(text.replace(old, new))


def test_a_level_does_not_begin_at_many_copies() -> None:
    text = (
        HEAD
        + SHARED
        + WORKER
        + "level last { every 1 round; memory like(net); value shared; init worker; update gd(1) }"
    )
    with pytest.raises(nestflow.NestflowError, match="NF490"):
        nestflow.check(text)


def test_the_level_graph_shows_the_copies() -> None:
    b = nestflow.compile(EXAMPLE)
    row = next(r for r in b.graph.levels if r.name == "worker")
    one = sum(w.numel() for w in b.module.weights.values())
    assert (row.count, row.state, row.parameters) == (4, 4 * one, 0)
    assert {(e.kind, e.source, e.target) for e in b.graph.edges} >= {
        ("initialises", "shared", "worker"),
        ("generates", "worker", "shared"),
    }
    assert not nestflow.check(EXAMPLE).notes
    assert "worker ×4" in str(b)


def test_uneven_data_is_trained_on(tmp_path: Path) -> None:
    """A pass leaves out what the workers cannot share; a killed run goes on bit for bit."""
    g = torch.Generator().manual_seed(0)
    data = {"x": torch.randn(69, 8, generator=g), "label": torch.randint(0, 4, (69,), generator=g)}
    quiet = {"batch": 8, "checkpoint_every": 3, "eval_every": 3, "show": False}
    whole = nestflow.train.train(nestflow.compile(EXAMPLE), data, 9, out=tmp_path / "whole", **quiet)
    nestflow.train.train(nestflow.compile(EXAMPLE), data, 6, out=tmp_path / "run", **quiet)
    rest = nestflow.train.train(None, data, 9, resume=tmp_path / "run", show=False)
    assert [r.loss for r in whole.records[6:]] == [r.loss for r in rest.records[-3:]]
    assert all(math.isfinite(v) for _, m in whole.metrics for v in m.values()) and whole.metrics
    with pytest.raises(nestflow.NestflowError, match=r"(?s)NF505.*multiple of 4"):
        nestflow.train.train(nestflow.compile(EXAMPLE), data, 1, batch=6, show=False)


def test_a_file_of_python_is_of_the_shared_weights() -> None:
    """A file holds the weights of the model; what levels keep beside them is told."""
    b = nestflow.compile(HEAD + SHARED + WORKER)
    names: dict[str, object] = {}
    exec(compile(b.standalone(), "standalone", "exec"), names)
    x = next(batches(1))["x"].float()
    assert torch.equal(names["Model"]()(x), b.module(x))  # type: ignore[operator]
    with pytest.raises(nestflow.NestflowError, match="NF490"):
        nestflow.compile(HEAD.replace("output net(x)", "output worker(x)") + SHARED + WORKER).standalone()
