"""Attention and what stands beside it: Transformer++'s, linear attention, Titans alone, as gate and layer, Samba.

Whole layers from x as the papers have them, from the same weights; outputs and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

import nestflow
from tests.oracles.attention import rope
from tests.oracles.titans import titans_memory
from tests.zoo import layers, matrices
from tests.zoo.layers import L, merge, plain, unit
from tests.zoo.test_recurrences import near

DIM, HEADS, CHUNK, WINDOW, PREFIX = 8, 2, 4, 3, 2


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def attention(w: L, x: Tensor) -> Tensor:
    """Softmax attention with rotary positions over all tokens so far."""
    k, q = rope(w.lin(x, "key.linear")), rope(w.lin(x, "query.linear"))
    return w.lin(merge(matrices.attention(k, w.lin(x, "value.linear"), q, x.shape[1])), "out.linear")


def windowed(w: L, x: Tensor) -> Tensor:
    """Over the last WINDOW tokens and the learned pairs, which every token sees."""
    q, k, v = rope(w.lin(x, "query.linear")), rope(w.lin(x, "key.linear")), w.lin(x, "value.linear")
    learned = [w(f"memory.prefix.{n}").expand(x.shape[0], -1, -1, -1) for n in ("key", "value")]
    rows = []
    for t in range(x.shape[1]):
        seen = slice(max(0, t - WINDOW + 1), t + 1)
        keys, values = (torch.cat([p, y[:, :, seen]], 2) for p, y in zip(learned, (k, v), strict=True))
        p = (torch.einsum("bhd,bhnd->bhn", q[:, :, t], keys) / q.shape[-1] ** 0.5).softmax(-1)
        rows.append(torch.einsum("bhn,bhnd->bhd", p, values))
    return w.lin(merge(torch.stack(rows, 2)), "out.linear")


def linear_attention(w: L, x: Tensor) -> Tensor:
    """W_t = W_{t−1} + v kᵀ, y = W_t q."""
    k, v, q = plain(w, x, "key"), w.lin(x, "value.linear"), plain(w, x, "query")
    state, rows = torch.zeros(()), []
    for t in range(x.shape[1]):
        state = state + v[:, :, t, :, None] * k[:, :, t, None, :]
        rows.append((state @ q[:, :, t, :, None])[..., 0])
    return w.lin(merge(w.norm(torch.stack(rows, 2), "out")), "out.linear")


def titans(w: L, x: Tensor) -> Tensor:
    """S ← β S − η ∇ℓ, M ← α M + S, y = M(q): Titans 8 to 18, gradients at the chunk's first state."""
    key, value, query = (unit(w.mixed(x, n)) for n in ("key", "value", "query"))
    beta = w.lin(x, "beta.linear").sigmoid()
    y, _, _ = titans_memory(
        key, value, query, [w("memory.linear.weight"), w("memory.linear_2.weight")],
        rate=1.6 / CHUNK * (1 - beta) * w.lin(x, "update.linear").sigmoid(), beta=beta,
        retain=(w.lin(x, "retain.linear") + 6).sigmoid(), chunk=CHUNK, residual=True,
    )  # fmt: skip
    return w.lin(merge(w.norm(y, "out")), "out.linear")


def mag(w: L, x: Tensor, memory_gates: bool = False) -> Tensor:
    """σ(norm(SWA([P ‖ x]))) ⊙ norm(M(x)), or the σ on the other branch."""
    eyes = rms(windowed(w.below("swa"), x), w("rmsnorm.weight"))
    kept = rms(titans(w.below("titans"), x), w("rmsnorm_2.weight"))
    return (eyes * kept.sigmoid() if memory_gates else eyes.sigmoid() * kept) @ w("linear.weight").T


def swiglu(w: L, x: Tensor) -> Tensor:
    return (silu(x @ w("gate.weight").T) * (x @ w("up.weight").T)) @ w("down.weight").T


def mal(w: L, x: Tensor) -> Tensor:
    """The memory, then attention over what it recalled, then SwiGLU, residuals around each."""
    x = x + titans(w.below("titans"), rms(x, w("rmsnorm.weight")))
    x = x + windowed(w.below("swa"), rms(x, w("rmsnorm_2.weight")))
    return x + swiglu(w.below("swiglu"), rms(x, w("rmsnorm_3.weight")))


SMALL = {"chunk": CHUNK, "window": WINDOW, "persistent": PREFIX}
CASES: dict[str, tuple[str, dict[str, Any], Callable[[L, Tensor], Tensor]]] = {
    "transformer": ("attention", {}, attention),
    "linear_attention": ("linear_attention", {}, linear_attention),
    "titans": ("titans", {"chunk": CHUNK}, titans),
    "titans_mag": ("mag", SMALL, mag),
    "titans_mag, memory": ("mag", SMALL | {"memory_gates": True}, lambda w, x: mag(w, x, True)),
    "titans_mal": ("block", SMALL, mal),
}


@pytest.mark.parametrize("name", CASES)
def test_layer_is_the_paper(name: str) -> None:
    word, params, paper = CASES[name]
    text = f"nestflow 1\nuse {word} of {name.partition(',')[0]}\ninput x : float[T, dim]\noutput {word}(x)\n"
    b = nestflow.compile(text, dtype=torch.float64, dim=DIM, n_heads=HEADS, **params)
    weights = moved(b)
    x = torch.randn(2, 10, DIM, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    got, want = b.module(x=x), paper(L(weights, word), x)
    near(got, want, 1e-9, "output")
    near(b.reference()(x=x), want, 1e-9, "interpreted")
    same_gradients(got, want, {"x": x, **weights})


def test_samba_is_its_layers_in_turn() -> None:
    """Embedding, Mamba-2, SwiGLU, sliding window attention, SwiGLU, the tied head: residuals and norms around each."""
    b = nestflow.compile("samba", dtype=torch.float64, dim=DIM, n_heads=HEADS, depth=2, vocab=16, state=3, window=4)
    w = L(moved(b), "model.lm")
    tokens = torch.randint(16, (2, 10), generator=torch.Generator().manual_seed(5))
    emb = w("emb.weight")
    x = emb[tokens] * DIM**0.5
    for i, mixer in enumerate((layers.mamba2, layers.swa)):
        x = x + mixer(w.below(f"mixers.{i}"), rms(x, w(f"rmsnorm.{i}.weight")))
        x = x + swiglu(w.below(f"swiglu.{i}"), rms(x, w(f"rmsnorm_2.{i}.weight")))
    want, got = rms(x, w("rmsnorm_3.weight")) @ emb.T, b.module(tokens=tokens)
    near(got, want, 1e-9, "scores")
    same_gradients(got, want, w.weights)


def moved(b: nestflow.Bundle) -> dict[str, Tensor]:
    """The weights, away from their ones and zeros."""
    weights = dict(b.module.named_weights())
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for w in weights.values():
            w.add_(0.1 * torch.randn(w.shape, generator=source, dtype=torch.float64))
    return weights


def same_gradients(got: Tensor, want: Tensor, leaves: dict[str, Tensor]) -> None:
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((y * probe).sum(), list(leaves.values())) for y in (got, want))
    for path, a, b in zip(leaves, mine, theirs, strict=True):
        near(a, b, 1e-9, f"gradient of {path}")
