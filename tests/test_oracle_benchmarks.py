"""What the benchmark compares with must be right: the plain-torch layer, the floor's arithmetic, the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks import cases
from benchmarks.floor import chunk_products, floor, multiply_adds
from benchmarks.plain_titans import PlainTitans, decay
from benchmarks.table import markdown, marks, write_block
from benchmarks.timing import Times, interleave
from tests.oracles import titans_memory
from tests.oracles.cases import merge, split
from tests.oracles.hope import l2norm


def small(chunk: int) -> PlainTitans:
    torch.manual_seed(0)
    return PlainTitans(dim=16, heads=2, expand=2, chunk=chunk).double()


@pytest.mark.parametrize(("chunk", "ticks"), [(4, 8), (4, 11), (16, 5), (1, 3)])
def test_plain_layer_equals_the_oracle_forward_and_backward(chunk: int, ticks: int) -> None:
    layer = small(chunk)
    x = torch.randn(2, ticks, 16, dtype=torch.float64, requires_grad=True)
    key, value, query = (l2norm(split(f(x), 2)) for f in (layer.to_key, layer.to_value, layer.to_query))
    gates = {
        "rate": 0.1 * split(layer.to_lr(x), 2).sigmoid(),
        "beta": split(layer.to_beta(x), 2).sigmoid(),
        "retain": (split(layer.to_alpha(x), 2) + 6).sigmoid(),
    }
    recalled, _, _ = titans_memory(key, value, query, [layer.w1, layer.w2], chunk=chunk, **gates)
    want, got = layer.out(merge(recalled)), layer(x)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    leaves = [x, *layer.parameters()]
    for a, b in zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_decay_is_the_product_and_survives_tiny_gates() -> None:
    log_a = F.logsigmoid(torch.randn(3, 5, dtype=torch.float64))
    table = decay(log_a)
    for t in range(5):
        for s in range(5):
            want = log_a[:, s + 1 : t + 1].sum(-1).exp() if s <= t else torch.zeros(3, dtype=torch.float64)
            torch.testing.assert_close(table[:, t, s], want)
    assert torch.isfinite(decay(torch.full((1, 64), -30.0))).all()


def test_compiled_spec_computes_what_plain_torch_computes() -> None:
    assert cases.same_numbers(chunk=16) < 1e-9


def test_floor_runs_every_product_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0
    real = torch.bmm

    def count(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        nonlocal counted
        counted += a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
        return real(a, b, out=out)

    monkeypatch.setattr(torch, "bmm", count)
    floor(2, 10, 4, 16, 2, 2, "cpu")()
    assert counted == multiply_adds(2, 10, 4, 16, 2, 2)
    assert len(chunk_products(4, 8, 16)) == 10


def test_rounds_are_interleaved_and_a_slow_case_leaves() -> None:
    order: list[str] = []
    runs = {name: (lambda n=name: order.append(n)) for name in ("a", "b")}
    times = interleave(lambda: None, runs, rounds=3, budget=1e9, device="cpu")
    assert order == ["a", "b"] * 3
    assert all(len(t.seconds) == len(t.floor) == 3 for t in times.values())
    once = interleave(lambda: None, runs, rounds=3, budget=1e-12, device="cpu")
    assert len(once["a"].seconds) == 1


def test_table_prints_ratios_and_replaces_only_its_block(tmp_path: Path) -> None:
    summary = Times([3.0, 6.0, 9.0], [1.0, 1.0, 1.0]).summary(passes=3)
    assert (summary["ratio"], summary["ratio_low"], summary["ratio_high"]) == (2.0, 1.0, 3.0)
    row = {"case": "plain torch", "chunk": 16, "length": 64, "training": summary, "peak_mb": 12.3}
    result = {
        "batch": 1, "lengths": [64], "chunks": [16, 64], "cases": ["plain torch"], "rows": [row], "device": "cpu",
        "machine": {"threads": 1, "torch": "x"},
    }  # fmt: skip
    table = markdown(result)
    assert "| chunk 16: plain torch | – | **2.0** (1.0–3.0) | 12 |" in table
    readme = tmp_path / "README.md"
    readme.write_text("no marks\n")
    with pytest.raises(ValueError, match="no block"):
        write_block(readme, "titans_memory", table)
    begin, end = marks("titans_memory")
    readme.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    write_block(readme, "titans_memory", table)
    write_block(readme, "titans_memory", table)
    text = readme.read_text()
    assert (
        text.startswith("above\n")
        and text.endswith("\nbelow\n")
        and "old" not in text
        and text.count("| chunk 16") == 1
    )
