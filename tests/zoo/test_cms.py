"""The continuum memory systems that learn while they read are the equations of Nested Learning (70 to 74): a plain loop
over segments, with attention's pairs kept from the segments before."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow

DIM, HEADS, FAST, SLOW, RATE = 8, 2, 2, 4, 0.05
NAMES = ("cms_sequential", "cms_nested", "cms_independent")
Pairs = list[tuple[Tensor, Tensor]]


def bundle(name: str, **params: Any) -> nestflow.Bundle:
    sizes = {"dim": DIM, "n_heads": HEADS, "vocab": 16, "depth": 2, "fast": FAST, "slow": SLOW, "rate": RATE}
    b = nestflow.compile(name, dtype=torch.float64, **(sizes | params))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, w in b.module.weights.items():
            w.add_(0.3 * torch.randn(w.shape, generator=source, dtype=torch.float64))
            if path.endswith("emb.weight"):
                w.mul_(2)
    return b


def tokens(rows: int = 2, ticks: int = 15) -> Tensor:
    return torch.randint(0, 16, (rows, ticks), generator=torch.Generator().manual_seed(1))


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def turned(x: Tensor, first: int) -> Tensor:
    """Rotary positions: pairs (i, i + d/2), angle p · 10000^(−2i/d)."""
    half = x.shape[-1] // 2
    p = torch.arange(first, first + x.shape[0], dtype=x.dtype)
    angle = p[:, None, None] * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def attention(w: dict[str, Tensor], p: str, x: Tensor, first: int, past: tuple[Tensor, Tensor] | None) -> Any:
    """Softmax attention of a segment over its own pairs and those before it: x [n, D]."""
    key, value, query = (torch.einsum("hfd,nd->nhf", w[f"{p}.{n}.linear.weight"], x) for n in ("key", "value", "query"))
    key, query = turned(key, first), turned(query, first)
    if past is not None:
        key, value = torch.cat([past[0], key]), torch.cat([past[1], value])
    scores = torch.einsum("nhf,mhf->hnm", query, key) / key.shape[-1] ** 0.5
    t = torch.arange(first, first + len(x))
    scores = scores.masked_fill(torch.arange(len(key)) > t[:, None], float("-inf"))
    y = torch.einsum("hnm,mhf->nhf", scores.softmax(-1), value).flatten(1)
    return y @ w[f"{p}.out.linear.weight"].T, (key, value)


def mlp(w: dict[str, Tensor], p: str, x: Tensor) -> Tensor:
    return F.gelu(x @ w[f"{p}.linear.weight"].T) @ w[f"{p}.linear_2.weight"].T


def segment(name: str, w: dict[str, Tensor], row: Tensor, first: int, past: Pairs | None) -> tuple[Tensor, Pairs]:
    """The scores of a segment of one row, [n, V], and all pairs so far."""
    emb = w["model.emb.weight"]
    x, kept = emb[row] * DIM**0.5, []
    for i in range(2):
        p = f"model.block.{i}"
        y, pairs = attention(w, f"{p}.attention", norm(x, w[f"{p}.rmsnorm.weight"]), first, past and past[i])
        kept.append(pairs)
        x = x + y
        n = norm(x, w[f"{p}.rmsnorm_2.weight"])
        if name == "cms_independent":
            x = x + mlp(w, f"{p}.fast", n) * w[f"{p}.a_fast"] + mlp(w, f"{p}.slow", n) * w[f"{p}.a_slow"]
        else:
            x = x + mlp(w, f"{p}.fast", n)
            x = x + mlp(w, f"{p}.slow", norm(x, w[f"{p}.rmsnorm_3.weight"]))
    return norm(x, w["model.rmsnorm.weight"]) @ emb.T, kept


def scores(name: str, weights: dict[str, Tensor], row: Tensor) -> Tensor:
    """One row, segment by segment; at a boundary the blocks that are due learn from the gradients of their period."""
    w, outs, past = dict(weights), [], None
    fast, slow = ([p for p in w if f".{n}." in p] for n in ("fast", "slow"))
    nested = name == "cms_nested"
    if nested:
        w |= {f: w[s] for f, s in zip(fast, slow, strict=True)}
    sums = {p: torch.zeros_like(w[p]) for p in (*fast, *slow)}
    for at in range(0, len(row), FAST):
        here = row[at : at + FAST]
        y, pairs = segment(name, w, here, at, past)
        outs.append(y)
        if at + FAST >= len(row):
            break
        held = {p: w[p].detach().clone().requires_grad_() for p in sums}
        constant = past and [(k.detach(), v.detach()) for k, v in past]
        again, _ = segment(name, {**w, **held}, here, at, constant)
        loss = F.cross_entropy(again, row[at + 1 : at + FAST + 1], reduction="sum")
        for p, g in zip(held, torch.autograd.grad(loss, list(held.values()))):
            sums[p] = sums[p] + g
        past = pairs
        for every, paths in ((FAST, fast), (SLOW, slow)):
            if (at + FAST) % every == 0:
                w |= {p: w[p] - RATE * sums[p] for p in paths}
                sums |= {p: torch.zeros_like(sums[p]) for p in paths}
        if nested and (at + FAST) % SLOW == 0:
            w |= {f: w[s] for f, s in zip(fast, slow, strict=True)}
    return torch.cat(outs)


@pytest.mark.parametrize("name", NAMES)
def test_is_the_paper(name: str) -> None:
    b, x = bundle(name), tokens()
    weights = dict(b.module.named_weights())
    want, got = torch.stack([scores(name, weights, row) for row in x]), b.module(tokens=x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theirs, mine = (
        torch.autograd.grad((y * probe).sum(), list(weights.values()), allow_unused=True, materialize_grads=True)
        for y in (want, got)
    )
    for path, a, c in zip(weights, mine, theirs, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-8, msg=lambda m, path=path: f"{path}: {m}")


@pytest.mark.parametrize("name", ["cms_sequential", "cms_independent"])
def test_rate_zero_is_the_plain_model_bit_for_bit(name: str) -> None:
    still, steps, learns = bundle(name, rate=0), bundle(name, reading=False), bundle(name)
    x = tokens()
    assert torch.equal(still.module(tokens=x), steps.module(tokens=x))
    assert (learns.module(tokens=x) - steps.module(tokens=x)).abs().max() > 1e-3


def test_on_the_step_clock_a_call_does_not_learn() -> None:
    """`reading = false`: the MLPs learn once in 2 and 4 steps of training, and not between."""
    b, x = bundle("cms_sequential", reading=False), tokens()
    b.set_total_steps(8)
    weights = dict(b.module.named_weights())
    for step in range(1, 9):
        kept = {p: w.detach().clone() for p, w in weights.items()}
        b.step({"tokens": x})
        for word, every in (("fast", FAST), ("slow", SLOW)):
            changed = any(not torch.equal(kept[p], weights[p]) for p in weights if f".{word}." in p)
            assert changed == (step % every == 0)


def cosine(t: int, peak: float, warmup: int, total: int) -> float:
    """Linear to the peak, then half a cosine down to a tenth of it."""
    if t <= warmup:
        return peak * t / warmup
    done = min((t - warmup) / max(total + 1 - warmup, 1), 1.0)
    return 0.1 * peak + 0.9 * peak * (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize("name", NAMES)
def test_the_step_clock_is_the_paper(name: str) -> None:
    """`reading = false`: each MLP learns by AdamW once in its period, from the sum of its gradients, all else at each;
    nested: the fast MLPs begin anew at the slow ones after each update of those."""
    steps, lr, warmup = 9, 1e-2, 2
    b, x = bundle(name, reading=False, lr=lr, warmup=warmup), tokens()
    b.set_total_steps(steps)
    weights = dict(b.module.named_weights())
    w = {p: v.detach().clone().requires_grad_() for p, v in weights.items()}
    fast, slow = ([p for p in w if f".{n}." in p] for n in ("fast", "slow"))
    rest = [p for p in w if p not in {*fast, *slow}]
    matrices = [p for p in rest if w[p].ndim >= 2]
    optimizers = {
        1: torch.optim.AdamW(
            [{"params": [w[p] for p in matrices], "weight_decay": 0.05},
             {"params": [w[p] for p in rest if p not in matrices], "weight_decay": 0}], lr=lr, betas=(0.9, 0.95)),
        FAST: torch.optim.AdamW([w[p] for p in fast], lr=lr / FAST),
        SLOW: torch.optim.AdamW([w[p] for p in slow], lr=lr / SLOW),
    }  # fmt: skip
    for t in range(1, steps + 1):
        if name == "cms_nested" and t > 1 and t % SLOW == 1:
            with torch.no_grad():
                for f, s in zip(fast, slow, strict=True):
                    w[f].copy_(w[s])
            optimizers[FAST].state.clear()
            for p in fast:
                w[p].grad = None
        scored = torch.stack([segment(name, w, row, 0, None)[0] for row in x])
        loss = F.cross_entropy(scored[:, :-1].flatten(0, 1), x[:, 1:].flatten())
        loss.backward()  # sums what the periods bring
        torch.nn.utils.clip_grad_norm_([w[p] for p in rest], 1)
        for group in optimizers[1].param_groups:
            group["lr"] = cosine(t, lr, warmup, steps)
        for every, optimizer in optimizers.items():
            if t % every == 0:
                optimizer.step()
                optimizer.zero_grad()
        got = b.step({"tokens": x})["loss"]
        assert abs(got - loss.item()) < 1e-9, f"step {t}"
        for p, v in weights.items():
            torch.testing.assert_close(v.detach(), w[p].detach(), rtol=1e-8, atol=1e-9, msg=lambda m, p=p: f"{p}: {m}")
