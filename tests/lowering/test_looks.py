"""Errors that look at the memory elsewhere than they write, or twice, or beside errors that do not look: in closed form
against a scan, the interpreter and the published loop of RWKV-7."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.lowering.compiled import Compiled, as_interpreted, as_scanned, error, gradients
from tests.lowering.test_levels import compiled, draw

NAMES = "gone = l2norm(linear(x)); erased = memory(gone); memory matrix"
ERASE = "objective inner(erased, M(sigmoid(linear(x)) * gone)) - inner(M(key), value)"
APART = f"{NAMES}; key l2norm(linear(x)); value linear(x); query linear(x); {ERASE}"
BOTH = """memory matrix; key l2norm(x); value linear(x); query linear(x)
  gone = l2norm(linear(x)); erased = memory(gone)
  objective 0.5 * sum(square(M(key) - 0.3 * erased - value)) - inner(M(x), value)"""
LOOKS = {
    "key gates": (APART + "; update gd(0.7); retain sigmoid(linear(x) + 2)", "delta"),
    "under heads": (
        f"heads 2; {APART}; update gd(0.7); retain sigmoid(linear(x) + 2); return merge_heads(y)",
        "delta",
    ),
    "a gate": (APART + "; update gd(sigmoid(linear(x, 1))); retain sigmoid(linear(x, 1) + 2)", "delta"),
    "a rate that learns": (APART + "; update gd(learned(1, init = 0.3)); weight sigmoid(linear(x, 1))", "delta"),
    "momentum, decayed first": (
        APART
        + "; update momentum(sigmoid(linear(x, 1)), 0.5); retain decay_first(sigmoid(linear(x, 1) + 2)); read before",
        "delta",
    ),
    "two looks, one of them decayed": (
        BOTH + "; update gd(sigmoid(linear(x, 1))); retain decay_first(sigmoid(linear(x, 1) + 2))",
        "delta",
    ),
    "two looks, key gates": (BOTH + "; update gd(0.4); retain decay_first(sigmoid(linear(x) + 2))", "delta"),
    "steps constant": (BOTH + "; update gd(0.4); retain 0.9; gradient stop", "delta"),
    "known errors in rounds": (
        """memory matrix; key [l2norm(x), l2norm(linear(x))]; value x; query linear(x); update momentum(0.3, 0.4)
        objective 0.5 * sum(square(M(key) - value)) + inner(M(0.1 * key * value), value); retain 0.9""",
        "delta",
    ),
    "a value that is recalled": (
        """memory matrix; k = l2norm(x); key k; value linear(x) + 0.4 * memory(l2norm(linear(x))); query linear(x)
        objective l2; update dgd(0.3); retain sigmoid(linear(x, 1) + 2)""",
        "delta",
    ),
    "a half that is recalled": (
        "memory matrix; k = l2norm(x); key k; value (memory(k) + x) / 2; query x; objective l2; update gd(0.3)",
        "delta",
    ),
    "two errors that look": (
        """memory matrix; key l2norm(x); value x; query x; update gd(0.1)
        objective l2(M(key), value) + l2(M(l2norm(linear(x))), x)""",
        "scan",
    ),
    "rounds that look back": (
        """memory matrix; rounds 2; k = l2norm(x); key k; value (memory(k) + x) / 2; query x; objective l2
        update gd(0.3)""",
        "scan",
    ),
    "a gate that is recalled": (
        """memory matrix; k = l2norm(x); key k; value x; query x; objective l2; update gd(0.3)
        retain sigmoid(memory(k) |> linear(1))""",
        "scan",
    ),
    "a name that is given back": (
        """memory matrix; k = l2norm(x); key k; value x; query x; objective l2; update gd(0.3); was = memory(k)
        return y - was""",
        "scan",
    ),
}


@pytest.mark.parametrize("name", LOOKS)
def test_looks(name: str) -> None:
    text, pattern = LOOKS[name]
    fast, slow = compiled(text), compiled(text, ["cache", "scan"])
    assert fast.patterns == [pattern]
    as_scanned(fast, slow, draw(2, 70), random.Random(name).randint(1, 69))


@pytest.mark.parametrize("name", LOOKS)
def test_the_interpreter(name: str) -> None:
    as_interpreted(compiled(LOOKS[name][0]), draw(2, 9, 1))


RWKV = """nestflow 1
input r : float[T, 6]
input k : float[T, 6]
input v : float[T, 5]
input gone : float[T, 6]
input f : float[T, 6]
input decay : float[T, 6]
output rwkv(r, k, v, gone, f, decay)
level rwkv(r, k, v, gone, f, decay) {
  every 1 token; memory matrix(5, 6); key k; value v; query r; update gd(1); retain decay
  erased = memory(gone)
  objective inner(erased, M(f * gone)) - inner(M(key), value)
}
"""
WIDTHS = {"r": 6, "k": 6, "v": 5, "gone": 6, "f": 6, "decay": 6}


def rwkv(x: dict[str, Tensor]) -> Tensor:
    """RWKV-7 as published: S <- S (diag(w) - κ (κ ∘ f)ᵀ) + v kᵀ, y = S r."""
    batch, ticks, width = x["k"].shape
    s, ys = x["k"].new_zeros(batch, x["v"].shape[-1], width), []
    for t in range(ticks):
        at = {n: i[:, t] for n, i in x.items()}
        turn = torch.diag_embed(at["decay"]) - at["gone"][:, :, None] * (at["gone"] * at["f"])[:, None]
        s = s @ turn + at["v"][:, :, None] * at["k"][:, None]
        ys.append((s @ at["r"][:, :, None])[..., 0])
    return torch.stack(ys, 1)


@pytest.mark.parametrize("keys", ["free", "equal", "nearly equal", "zero"])
def test_the_published_loop(keys: str) -> None:
    """Gates that are zero, keys as alike as those of ordinary text."""
    g = torch.Generator().manual_seed(3)
    x = {n: torch.randn(2, 75, d, generator=g, dtype=torch.float64) for n, d in WIDTHS.items()}
    if keys != "free":
        spread = {"equal": 0.0, "nearly equal": 1e-3, "zero": 0.0}[keys]
        base = torch.zeros(6) if keys == "zero" else torch.ones(6)
        x |= {n: base + spread * x[n] for n in ("k", "gone")}
    x |= {n: x[n] / (x[n].square().sum(-1, keepdim=True) + 1e-9).sqrt() for n in ("k", "gone")}
    x |= {"f": x["f"].sigmoid(), "decay": (x["decay"].sigmoid() * 1.3).clamp(max=1)}
    x["decay"][0, 40], x["decay"][1, ::9, 2], x["f"][0, 3] = 0.0, 0.0, 0.0
    x = {n: i.requires_grad_() for n, i in x.items()}
    compiled = Compiled(RWKV)
    assert compiled.patterns == ["delta"]
    got, want = compiled(x, {}), rwkv(x)
    assert error(got, want) < 1e-10
    for name, a, b in zip(x, gradients(got, [*x.values()]), gradients(want, [*x.values()]), strict=True):
        assert error(a, b) < 1e-9, name


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_with_its_tick(number: float) -> None:
    compiled, slow = Compiled(RWKV), Compiled(RWKV, ["cache", "scan"])
    g = torch.Generator().manual_seed(4)
    x = {n: torch.rand(2, 40, d, generator=g, dtype=torch.float64) / 3 for n, d in WIDTHS.items()}
    clean = compiled(x, {})
    for name in x:
        bad = {n: i.clone() for n, i in x.items()}
        bad[name][0, 23, 0] = number
        got, want = compiled(bad, {}), slow(bad, {})
        assert torch.equal(got[0, :23], clean[0, :23]), name
        assert torch.equal(got[1], clean[1]), name
        assert not (got.isfinite() & ~want.isfinite()).any(), name
