"""Every pattern against the token-by-token loop: outputs and all gradients in float64, any split, any phase."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.lowering.compiled import Compiled, error, gradients
from tests.lowering.tick_loop import MEMORIES, D, Setting, run

CHOSEN = [  # (setting, the pattern that must take it)
    (Setting("matrix", "dot", "gd"), "recurrence"),
    (Setting("matrix", "dot", "gd", retain="none"), "recurrence"),
    (Setting("matrix", "dot", "momentum"), "recurrence"),
    (Setting("matrix", "dot", "nesterov", every=3, chunk=3), "recurrence"),
    (Setting("matrix", "dot", "lagged", read="before"), "recurrence"),
    (Setting("matrix", "dot", "gd", chunk=4, read="chunk_start"), "recurrence"),
    (Setting("matrix", "dot", "gd", retain="first"), "recurrence"),
    (Setting("matrix", "l2", "gd"), "delta"),
    (Setting("matrix", "l2", "gd", retain="first"), "delta"),
    (Setting("matrix", "l2", "momentum", read="before"), "delta"),
    (Setting("matrix", "l2", "nesterov", retain="none"), "delta"),
    (Setting("matrix", "l2", "lagged"), "delta"),
    (Setting("matrix", "l2", "gd", chunk=4), "chunk"),
    (Setting("mlp2", "l2", "gd", chunk=4), "chunk"),
    (Setting("mlp2", "l2", "momentum", chunk=4), "chunk"),
    (Setting("mlp2", "l2", "momentum", chunk=6, every=2), "chunk"),
    (Setting("mlp2", "l2", "nesterov", chunk=6, every=3, read="before"), "chunk"),
    (Setting("mlp2", "huber", "lagged", chunk=4, read="chunk_start"), "chunk"),
    (Setting("mlp2", "lp", "momentum", chunk=100), "chunk"),
    (Setting("gated", "l2", "momentum", chunk=4), "chunk"),
    (Setting("gated", "dot", "nesterov", chunk=4, every=2), "chunk"),
    (Setting("deep", "l2", "momentum", chunk=3), "chunk"),
    (Setting("mlp2", "l2", "momentum"), "scan"),
    (Setting("mlp2", "l2", "gd", retain="first"), "scan"),
    (Setting("mlp2", "l2", "momentum", every=3, chunk=3), "scan"),
    (Setting("gated", "l2", "clip", chunk=4), "scan"),
    (Setting("mlp2", "l2", "clip", every=2, chunk=4, read="before"), "scan"),
    (Setting("mlp2", "l2", "adam", chunk=4), "scan"),
    (Setting("mlp2", "l2", "muon", every=4, chunk=4), "scan"),
    (Setting("gated", "huber", "muon", every=2, chunk=4, read="chunk_start"), "scan"),
    (Setting("matrix", "huber", "gd"), "scan"),
    (Setting("matrix", "l2", "dgd"), "delta"),
    (Setting("matrix", "dot", "dgd", read="before"), "delta"),
    (Setting("matrix", "l2", "dgd", chunk=4), "chunk"),
    (Setting("matrix", "l2", "dgd", every=3, chunk=6), "scan"),
    (Setting("matrix", "huber", "dgd", every=2, chunk=2), "scan"),
    (Setting("mlp2", "l2", "momentum", chunk=4, gradient="stop"), "chunk"),
    (Setting("matrix", "dot", "momentum", gradient="stop"), "recurrence"),
    (Setting("matrix", "l2", "gd", gradient="stop"), "delta"),
    (Setting("mlp2", "l2", "momentum", gradient="stop"), "scan"),
    (Setting("matrix", "dot", "lagged", gradient="stop"), "scan"),
]


def inputs(batch: int, ticks: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.randn(batch, ticks, width, generator=g, dtype=torch.float64)

    unit = torch.nn.functional.normalize
    x = {
        "k": unit(draw(D), dim=-1),
        "v": 0.5 * draw(D),
        "q": unit(draw(D), dim=-1),
        "lr": 0.1 * draw(1).sigmoid(),
        "b": 0.8 * draw(1).sigmoid(),
        "a": 0.9 + 0.1 * draw(1).sigmoid(),
    }
    return {n: i.requires_grad_() for n, i in x.items()}


def check(setting: Setting, compiled: Compiled, x: dict[str, Tensor], sizes: list[int] | None = None) -> None:
    w = compiled.weights()
    got, want = compiled(x, w, sizes), run(setting, x, w)
    assert error(got, want) < 1e-10
    leaves = [*x.values(), *w.values()]
    for leaf, a, b in zip([*x, *w], gradients(got, leaves), gradients(want, leaves), strict=True):
        assert error(a, b) < 1e-9, leaf


@pytest.mark.parametrize(("setting", "pattern"), CHOSEN, ids=str)
def test_pattern_equals_tick_loop(setting: Setting, pattern: str) -> None:
    compiled = Compiled(setting.text)
    assert compiled.patterns == [pattern]
    for batch, ticks, seed in ((2, 11, 0), (1, 1, 1)):
        check(setting, compiled, inputs(batch, ticks, seed))


@pytest.mark.parametrize(("setting", "pattern"), CHOSEN, ids=str)
def test_any_split_equals_full(setting: Setting, pattern: str) -> None:
    compiled, rng = Compiled(setting.text), random.Random(str(setting))
    x = inputs(2, 13, 2)
    w = compiled.weights()
    full, state = compiled.run(x, w)
    for _ in range(3):
        cuts = sorted(rng.sample(range(1, 13), rng.randint(1, 6)))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 13])]
        split, after = compiled.run(x, w, sizes)
        assert error(split, full) < 1e-12
        for path, value in state.items():
            assert error(after[path], value) < 1e-12, path


@pytest.mark.parametrize("seed", range(24))
def test_random_settings(seed: int) -> None:
    rng = random.Random(seed)
    every = rng.choice([1, 1, 2, 3])
    chunk = every * rng.choice([1, 2, 5])
    setting = Setting(
        rng.choice(list(MEMORIES)),
        rng.choice(["l2", "dot", "huber"]),
        rng.choice(["gd", "momentum", "nesterov", "lagged"]),
        chunk,
        every,
        rng.choice(["after", "before", "chunk_start"]),
        rng.choice(["a", "none"]),
    )
    ticks = rng.randint(2, 17)
    x = inputs(rng.randint(1, 2), ticks, seed)
    cut = rng.randint(1, ticks - 1)
    check(setting, Compiled(setting.text), x)
    check(setting, Compiled(setting.text), x, [cut, ticks - cut])
    check(setting, Compiled(setting.text, ["cache", "scan"]), x)


@pytest.mark.parametrize(
    "setting", [CHOSEN[0][0], CHOSEN[2][0], CHOSEN[7][0], CHOSEN[8][0], CHOSEN[14][0], CHOSEN[15][0]], ids=str
)
@pytest.mark.parametrize("kind", ["zero gates", "ones", "negative gates", "equal keys", "zero keys", "no rate"])
def test_corners(setting: Setting, kind: str) -> None:
    x = {n: i.detach().clone() for n, i in inputs(2, 10, 5).items()}
    if kind == "zero gates":
        x["a"][:, ::3], x["b"][:, 1::3] = 0, 0
    elif kind == "ones":
        x["a"][:], x["b"][:] = 1, 1
    elif kind == "negative gates":
        x["a"][:, ::2] *= -1
    elif kind == "equal keys":
        x["k"][:] = x["k"][:, :1]
    elif kind == "zero keys":
        x["k"][:, 2:6] = 0
    else:
        x["lr"][:] = 0
    check(setting, Compiled(setting.text), {n: i.requires_grad_() for n, i in x.items()})


def test_output_depends_on_no_later_token() -> None:
    for setting, _ in CHOSEN:
        compiled = Compiled(setting.text)
        x, w = inputs(1, 9, 3), compiled.weights()
        y = compiled(x, w)
        later = {n: torch.cat([i[:, :5], 0.5 * i[:, 5:]], 1) for n, i in x.items()}
        assert torch.equal(compiled(later, w)[:, :5], y[:, :5])


def test_long_chunk_is_worked_in_pieces() -> None:
    """A chunk longer than a block: errors stay at the chunk's first state."""
    setting = Setting("mlp2", "l2", "momentum", chunk=96)
    compiled = Compiled(setting.text)
    (level,) = compiled.plan.levels.values()
    assert 16 <= level.size < 96
    check(
        setting,
        compiled,
        {n: (i if n != "lr" else 0.02 * i).detach().requires_grad_() for n, i in inputs(1, 110, 4).items()},
    )


def test_float32_stays_near_float64() -> None:
    setting = Setting("matrix", "l2", "gd")
    compiled, x = Compiled(setting.text), inputs(1, 512, 6)
    w = compiled.weights()
    want = compiled(x, w)
    got = compiled({n: i.float() for n, i in x.items()}, {n: i.float() for n, i in w.items()})
    assert error(got.double(), want) < 1e-5
