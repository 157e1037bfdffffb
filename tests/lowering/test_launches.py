"""How many operations generated code launches: a number that no clock and no machine changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nestflow
from benchmarks.floor import multiply_adds as products_by_hand
from nestflow.bundle.counting import Count, Watch, counted
from tests.specs.test_architectures import SPECS

LAYER: dict[str, Any] = {"dim": 16, "n_heads": 2, "depth": 1}
# of one piece, forward and backward, as they were when this was written: fewer is progress, and then these are lowered
PIECES = {
    "linear_attention": ({}, 2, 5),
    "gated_deltanet": ({}, 5, 14),
    "titans": ({"chunk": 4}, 21, 63),
    "hope": ({"chunk": 4}, 111, 323),  # five memories side by side: 240 and 690 of one after the other
}


def growth(name: str, more: dict[str, Any]) -> tuple[float, float]:
    """Launches of one more piece of the memory, forward, and backward of the whole (whose other parts do not grow)."""
    b = nestflow.compile(name, **LAYER, **more)
    ((path, level),) = b.plan.levels.items()
    few, many = (counted(b, 1, n * level.size, backward=True) for n in (3, 5))
    assert many[""].launches == few[""].launches
    return tuple((many[p].launches - few[p].launches) / 2 for p in (path, "backward"))  # type: ignore[return-value]


@pytest.mark.parametrize("name", PIECES)
def test_launches_of_a_piece(name: str) -> None:
    more, forward, backward = PIECES[name]
    found = growth(name, more)
    assert found[0] <= forward, f"a piece of {name} launches {found[0]} operations forward"
    assert found[1] <= backward, f"a piece of {name} launches {found[1]} operations backward"


# What waits for the device: the bounds of the tokens (twice), and for each memory once a call whether its recalls are
# finite. These go through the text in segments, and call their levels (the memory, attention) once in each: a token's
# share.
SEGMENTS = {"titans_mac": 2 / 4, "cms_sequential": 1 / 2, "cms_nested": 1 / 2, "cms_independent": 1 / 2}


@pytest.mark.parametrize("name", SPECS)
def test_launches_grow_with_the_length_and_syncs_do_not(name: str) -> None:
    b = nestflow.compile(name, execution={"block": 8}, **SPECS[name])

    def run(ticks: int) -> Count:
        watch = Watch()
        watch.fixed = ""
        x = torch.randint(0, 32, (1, ticks), generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), watch:
            b.module(tokens=x)
        return watch.found[""]

    few, many = run(16), run(64)
    assert many.launches <= 4.2 * few.launches
    share = SEGMENTS.get(name, 0)
    assert many.syncs - few.syncs <= share * (64 - 16), dict(many.ops)
    assert few.syncs <= 2 + (share * 16 or sum(len(x.memories) for x in b.plan.levels.values())), dict(few.ops)


@pytest.mark.parametrize("name", ["titans", "hope", "gated_deltanet", "kda", "mamba2", "samba", "mesanet", "omega"])
def test_a_backward_pass_never_waits_for_the_device(name: str) -> None:
    """Counted by the profiler: torch's own derivatives ask below what a dispatch mode sees (that of `cumprod` does)."""
    b = nestflow.compile(name, execution={"block": 8}, **SPECS[name])
    value = b.module(tokens=torch.randint(0, 32, (1, 24))).square().sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        value.backward()
    counts = {e.key: e.count for e in seen.key_averages()}
    assert counts.get("aten::mm", 0) + counts.get("aten::bmm", 0) > 0
    assert not {n for n in counts if n in ("aten::_local_scalar_dense", "aten::nonzero", "aten::item")}


def test_counts_are_those_of_a_matrix_product() -> None:
    """20 tokens through 4 → 6 → 5: launches, multiply-adds, bytes for the backward pass; and nothing is left behind."""
    b = nestflow.compile("""nestflow 1
input x : float[T, 4]
output f(x)
flow f(x) { return x |> linear(6) |> linear(5) }
level outer { every 1 step; memory weights(f); objective mean(square(f(x))); update gd(0.1) }
""")
    before = {n: w.detach().clone() for n, w in b.module.named_parameters()}
    found = counted(b, 2, 10, backward=True)
    assert found[""].ops["mm"] == 2
    assert found[""].launches - 2 == found[""].ops.total() - 2 <= 6  # whether the input is finite
    assert found[""].syncs == 1
    assert found[""].multiply_adds == 20 * (4 * 6 + 6 * 5)
    assert found["backward"].multiply_adds == 20 * (4 * 6 + 2 * 6 * 5)  # the input asks for no gradient
    assert found[""].held == 4 * 20 * 6
    assert all(w.grad is None and torch.equal(w, before[n]) for n, w in b.module.named_parameters())


@pytest.mark.parametrize("chunk", [16, 64])
def test_counts_of_a_chunked_memory_are_those_of_its_equations(chunk: int) -> None:
    """Every product that `benchmarks.floor` writes down by hand, and few more: those of the rule's own numbers."""
    b = nestflow.compile(Path(__file__).parents[2] / "benchmarks" / "titans_memory.nl", chunk_size=chunk)
    by_hand = products_by_hand(1, 2 * chunk, chunk, 256, 4, 2)
    assert 1 <= counted(b, 1, 2 * chunk)["titans"].multiply_adds / by_hand < 1.04


def test_attention_is_counted() -> None:
    """Two products over all pairs, backward five: a causal mask is not taken off, as torch does not where it counts."""
    b = nestflow.compile("transformer", **LAYER)
    few, many = (counted(b, 1, n, backward=True) for n in (8, 16))

    def more(place: str) -> int:  # beyond what grows with the length alone
        return many[place].multiply_adds - 2 * few[place].multiply_adds

    pairs = 16 * 16 - 2 * 8 * 8
    assert more(*b.plan.levels) == 2 * 16 * pairs
    assert more("backward") == 5 * 16 * pairs


def test_what_a_level_runs_is_counted_there() -> None:
    b = nestflow.compile("titans", chunk=4, **LAYER | {"depth": 2})
    found = counted(b, 1, 8)
    first, second = (found[p] for p in sorted(b.plan.levels))
    assert first.launches == second.launches > 0 and first.held == second.held > 0
    assert 0 < found[""].launches < first.launches


def test_a_memory_of_the_model_is_put_back() -> None:
    b = nestflow.compile("""nestflow 1
input x : float[T, 4]
output m(x)
level m(x) { every 4 tokens; per model; memory matrix; key x; value x; query x; objective l2; update gd(0.1) }
""")
    b.module(x=torch.randn(2, 8, 4))
    kept = {p: x.clone() for p, x in b.module.kept.items()}
    counted(b, 2, 8)
    assert kept and all(torch.equal(x, kept[p]) for p, x in b.module.kept.items())
