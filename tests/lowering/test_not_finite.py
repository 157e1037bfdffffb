"""What is not finite at one tick: the ticks before it are those of a clean run to the bit, forward and backward, and
from there on nothing is finite that is not finite token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.ops import causal
from tests.lowering.compiled import Compiled
from tests.lowering.test_patterns import CHOSEN, inputs
from tests.lowering.tick_loop import Setting, run

TICKS, BAD = 11, 5
SETTINGS = [s for s, pattern in CHOSEN if pattern != "scan"] + [Setting("mlp2", "l2", "momentum")]
BOTH = pytest.mark.parametrize("number", [torch.nan, torch.inf])


def spoiled(x: dict[str, Tensor], name: str, number: float) -> dict[str, Tensor]:
    """The inputs, one number of row 0 at tick BAD not finite."""
    found = {n: i.detach().clone() for n, i in x.items()}
    found[name][0, BAD, 0] = number
    return {n: i.requires_grad_() for n, i in found.items()}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_pattern(setting: Setting) -> None:
    number = torch.inf if SETTINGS.index(setting) % 3 == 0 else torch.nan
    compiled = Compiled(setting.text)
    w, x = compiled.weights(), inputs(2, TICKS, 3)
    clean = compiled(x, w)
    for name in ("k", "v", "q", "lr", "b", "a"):
        bad = spoiled(x, name, number)
        got, want = compiled(bad, w), run(setting, bad, w)
        assert torch.equal(got[0, :BAD], clean[0, :BAD]), name
        assert torch.equal(got[1], clean[1]), name
        assert not (got.isfinite() & ~want.isfinite()).any(), name
        if setting.read == "after" and setting.every == 1 and "lagged" not in setting.rule and number != number:
            assert torch.equal(got.isfinite(), want.isfinite()), name


@pytest.mark.parametrize("setting", SETTINGS[::3], ids=str)
def test_gradients_of_what_comes_before(setting: Setting, number: float = torch.nan) -> None:
    module = nestflow.compile(setting.text, dtype="float64").module
    weights = list(module.weights.values())

    def gradients(x: dict[str, Tensor]) -> list[Tensor]:
        y = module(**x)
        early = torch.cat([y[0, :BAD].flatten(), y[1].flatten()])
        leaves = [*weights, *x.values()]
        return list(torch.autograd.grad((early * early.detach().cos()).sum(), leaves, materialize_grads=True))

    x = inputs(2, TICKS, 3)
    want = gradients(x)
    for name in ("k", "v", "q"):
        bad = spoiled(x, name, number)
        for a, b in zip(gradients(bad), want, strict=True):
            assert torch.equal(a, b), name
        y = module(**bad)
        assert not y.isfinite().all()
        late = torch.autograd.grad(y.sum(), list(bad.values()), materialize_grads=True)
        assert any(g.isnan().any() for g in late), "a gradient of what is not finite is not finite"


ATTENTION = [
    "memory cache",
    "memory cache(window = 3)",
    "memory cache(window = 3, sink = 1)",
    "memory cache(segment = 4)",
    "memory cache(window = 3, prefix = 2)",
]


@BOTH
@pytest.mark.parametrize("memory", ATTENTION)
def test_attention(memory: str, number: float) -> None:
    bundle = nestflow.compile(
        "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\ninput q : float[T, 4]\noutput look(k, v, q)\n"
        f"level look(k, v, q) {{ {memory}; key k; value v; query q }}",
        dtype="float64",
    )
    x = {n: torch.randn(2, TICKS, 4, dtype=torch.float64) for n in "kvq"}
    clean = bundle.module(**x)
    for name in "kvq":
        bad = spoiled(x, name, number)
        got, want = bundle.module(**bad), bundle.reference()(**bad)
        assert torch.equal(got[0, :BAD], clean[0, :BAD])
        assert torch.equal(got[1], clean[1])
        assert torch.equal(got.isfinite(), want.isfinite())
        torch.testing.assert_close(got.nan_to_num(0, 0, 0), want.nan_to_num(0, 0, 0))


def test_what_overflows_inside_a_chunk() -> None:
    """Finite inputs, errors that are not."""
    text = (
        "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\noutput m(k, v)\nlevel m(k, v) { every 1 token;"
        " chunk 8; memory mlp(hidden = 8); key k; value v; query v; objective l2; update gd(0.1) }"
    )
    bundle = nestflow.compile(text)
    x = {n: torch.randn(1, 8, 4) for n in "kv"}
    clean = bundle.module(**x)
    x["k"][0, BAD] = 3e38
    got = bundle.module(**x)
    assert torch.equal(got[0, :BAD], clean[0, :BAD])
    assert not got[0, BAD].isfinite().all()


def test_care_changes_no_bit_of_what_is_finite() -> None:
    for setting in SETTINGS[:8]:
        compiled = Compiled(setting.text)
        w, x = compiled.weights(), inputs(2, TICKS, 3)
        plain = compiled(x, w)
        token = causal.CARE.set(True)
        try:
            assert torch.equal(compiled(x, w), plain)
        finally:
            causal.CARE.reset(token)


def test_a_level_is_computed_once_where_all_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Compiled(SETTINGS[0].text)
    w, x = compiled.weights(), inputs(2, TICKS, 3)
    asked = []
    monkeypatch.setattr(causal, "sound", lambda y: asked.append(y.shape) or True)
    compiled(x, w)
    assert asked == [(2, TICKS, 6)], "one look at the recalls of the call"
    compiled({n: i[:, :1] for n, i in x.items()}, w)
    assert len(asked) == 1, "one tick has none before it"
