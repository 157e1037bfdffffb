"""The interpreter against loops over ticks that are written out here, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .models import SPLIT, B, D, H, T, bare, close, draw, heads, merged, reference, streams


def mv(w: Tensor, x: Tensor) -> Tensor:
    """W x for each row and head."""
    return (w @ x.unsqueeze(-1)).squeeze(-1)


def outer(a: Tensor, b: Tensor) -> Tensor:
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def loop(step: Callable[[Tensor, Tensor, Tensor, int], Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """A matrix memory from zeros, read after: y_t = W_t q_t."""
    k, v, q = (heads(inputs[n]) for n in "kvq")
    w, ys = torch.zeros(B, H, D, D, dtype=torch.float64), []
    for t in range(T):
        w = step(w, k[:, :, t], v[:, :, t], t)
        ys.append(mv(w, q[:, :, t]))
    return merged(torch.stack(ys, 2))


def same(got: Tensor, want: Tensor, leaves: list[Tensor]) -> None:
    """Equal, and with equal gradients in every leaf."""
    close(got, want)
    probe = draw(*want.shape, seed=5)
    for a, b in zip(
        *(
            torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True, materialize_grads=True)
            for y in (got, want)
        ),
        strict=True,
    ):
        close(a, b)


def test_linear_attention() -> None:
    inputs = streams()
    got = reference(bare(f"memory matrix; {SPLIT}; objective dot; update gd(1)"))(**inputs)
    same(got, loop(lambda w, k, v, t: w + outer(v, k), inputs), list(inputs.values()))


@pytest.mark.parametrize("first", [True, False], ids=["decay first", "decay after the error"])
def test_gated_delta_rule(first: bool) -> None:
    inputs = streams("k", "v", "q", "r")
    retain = "decay_first(sigmoid(g_))" if first else "sigmoid(g_)"
    text = f"memory matrix; g_ = split_heads(r); {SPLIT}; objective l2; update gd(0.3); retain {retain}"
    gate = heads(inputs["r"]).sigmoid().unsqueeze(-1)

    def step(w: Tensor, k: Tensor, v: Tensor, t: int) -> Tensor:
        decayed = gate[:, :, t] * w
        seen = decayed if first else w
        return decayed - 0.3 * outer(mv(seen, k) - v, k)

    same(reference(bare(text, ("k", "v", "q", "r")))(**inputs), loop(step, inputs), list(inputs.values()))


@pytest.mark.parametrize("axis", ["key", "value"])
def test_a_vector_gate_acts_on_its_axis(axis: str) -> None:
    inputs = streams("k", "v", "q", "f")
    gate = "sigmoid(split_heads(f))" if axis == "key" else "on_value(sigmoid(split_heads(f)))"
    text = f"memory matrix; {SPLIT}; objective dot; update gd(1); retain {gate}"
    f = heads(inputs["f"]).sigmoid().unsqueeze(-2 if axis == "key" else -1)
    want = loop(lambda w, k, v, t: f[:, :, t] * w + outer(v, k), inputs)
    same(reference(bare(text, ("k", "v", "q", "f")))(**inputs), want, list(inputs.values()))


@pytest.mark.parametrize("exact", [True, False])
def test_dgd_on_a_matrix(exact: bool) -> None:
    """Exact: the proximal step, A ← A − η(A k kᵀ + g), η = lr/(1 + lr‖k‖²)."""
    inputs = streams()
    text = f"memory matrix; {SPLIT}; objective dot; update dgd(0.3, exact = {str(exact).lower()})"

    def step(w: Tensor, k: Tensor, v: Tensor, t: int) -> Tensor:
        size = k.square().sum(-1)[..., None, None]
        eta = 0.3 / (1 + 0.3 * size) if exact else 0.3
        return w - eta * (w @ outer(k, k) - outer(v, k))

    same(reference(bare(text))(**inputs), loop(step, inputs), list(inputs.values()))


@pytest.mark.parametrize("read", ["after", "before", "chunk_start"])
@pytest.mark.parametrize(("every", "chunk"), [(1, 1), (1, 4), (2, 4), (3, 3)])
def test_titans_memory(every: int, chunk: int, read: str) -> None:
    """Momentum and decay on a two-layer memory; errors at the chunk's first state, by the chain rule written out."""
    inputs = streams("k", "v", "q", "r")
    graph = bare(
        f"chunk {chunk}; memory mlp(depth = 2, expand = 1, act = tanh, residual = true); r_ = split_heads(r); {SPLIT}; "
        f"objective l2; update momentum(lr = 0.1 * sigmoid(r_), beta = 0.5); retain 0.9; read {read}",
        ("k", "v", "q", "r"),
        f"{every} token" + "s" * (every > 1),
    )
    ref = reference(graph)
    w1, w2 = (w.expand(B, H, D, D) for w in ref.weights.values())
    k, v, q = (heads(inputs[n]) for n in "kvq")
    rate = 0.1 * heads(inputs["r"]).sigmoid().unsqueeze(-1)
    theta, anchor, ys = (w1, w2), (w1, w2), []
    s1 = s2 = g1 = g2 = torch.zeros_like(w1)
    for t in range(T):
        if t % chunk == 0:
            anchor = theta
        before = theta
        a1, a2 = anchor
        h = torch.tanh(mv(a1, k[:, :, t]))
        e = k[:, :, t] + mv(a2, h) - v[:, :, t]
        g1 = g1 + outer(mv(a2.mT, e) * (1 - h.square()), k[:, :, t])
        g2 = g2 + outer(e, h)
        if (t + 1) % every == 0:
            s1, s2 = 0.5 * s1 - rate[:, :, t] * g1, 0.5 * s2 - rate[:, :, t] * g2
            theta = (0.9 * theta[0] + s1, 0.9 * theta[1] + s2)
            g1 = g2 = torch.zeros_like(w1)
        m1, m2 = {"after": theta, "before": before, "chunk_start": anchor}[read]
        ys.append(q[:, :, t] + mv(m2, torch.tanh(mv(m1, q[:, :, t]))))
    same(ref(**inputs), merged(torch.stack(ys, 2)), [*inputs.values(), *ref.weights.values()])


@pytest.mark.parametrize("window", [None, 3])
def test_a_cache_is_softmax_attention(window: int | None) -> None:
    inputs = streams()
    got = reference(bare(f"memory cache{'' if window is None else f'(window = {window})'}; {SPLIT}"))(**inputs)
    k, v, q = (heads(inputs[n]) for n in "kvq")
    far = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    seen = (far >= 0) & (far < (window or T))
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    same(got, merged(want), list(inputs.values()))


def test_gradient_stop_keeps_only_what_init_and_retain_carry() -> None:
    """The steps are constants: keys and values get no gradient, the gate and the learned start do."""
    inputs = streams("k", "v", "q", "r")
    graph = bare(
        f"memory mlp(depth = 2, expand = 1); r_ = split_heads(r); {SPLIT}; objective l2; update gd(0.1); "
        "retain sigmoid(r_); gradient stop",
        ("k", "v", "q", "r"),
    )
    ref = reference(graph)
    leaves = [*inputs.values(), *ref.weights.values()]
    k, v, *others = torch.autograd.grad(ref(**inputs).sum(), leaves, allow_unused=True, materialize_grads=True)
    assert k.abs().max() == 0 and v.abs().max() == 0
    assert all(g.abs().max() > 0 for g in others)


def test_recalls_in_names_see_the_chunks_first_state_and_stay_constant_in_the_error() -> None:
    """Value m(v): the memory makes its own target from θ_a, and ∇ℓ goes through M(key) alone."""
    inputs = streams("k", "v", "q")
    ref = reference(
        bare(
            "chunk 2; memory mlp(depth = 1); key split_heads(k); value M(split_heads(v)); "
            "query split_heads(q); objective l2; update gd(0.1)"
        )
    )
    k, v, q = (heads(inputs[n]) for n in "kvq")
    (start,) = ref.weights.values()
    w = anchor = start.expand(B, H, D, D)
    ys = []
    for t in range(T):
        anchor = w if t % 2 == 0 else anchor
        w = w - 0.1 * outer(mv(anchor, k[:, :, t]) - mv(anchor, v[:, :, t]), k[:, :, t])
        ys.append(mv(w, q[:, :, t]))
    same(ref(**inputs), merged(torch.stack(ys, 2)), [*inputs.values(), start])


def test_an_objective_of_its_own() -> None:
    """RWKV-7's form: a name is constant in ℓ, so that the erasing term is linear in θ."""
    inputs = streams("k", "v", "q", "f")
    text = (
        "memory matrix; kept = split_heads(k); a = sigmoid(split_heads(f)); erased = memory(kept); key kept; "
        "value split_heads(v); query split_heads(q); objective inner(erased, M(a * kept)) - inner(M(kept), value); "
        "update gd(0.2)"
    )
    gate = heads(inputs["f"]).sigmoid()

    def step(w: Tensor, k: Tensor, v: Tensor, t: int) -> Tensor:
        return w - 0.2 * (outer(mv(w, k), gate[:, :, t] * k) - outer(v, k))

    same(reference(bare(text, ("k", "v", "q", "f")))(**inputs), loop(step, inputs), list(inputs.values()))
