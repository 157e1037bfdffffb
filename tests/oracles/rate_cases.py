"""Specs of memories with weights, rates per channel and per tensor, and several writes a tick, beside their oracles."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles.attention import attention
from tests.oracles.cases import (
    BETA,
    GATE,
    GATES,
    KVQ,
    RATE,
    WIDTH,
    Case,
    Expected,
    Stream,
    Tensors,
    between,
    free,
    kvq,
    merge,
    split,
    unit,
)  # fmt: skip
from tests.oracles.matrix import delta_rule, linear_attention, momentum_delta
from tests.oracles.rates import (
    channel_delta,
    delta_product,
    fast_swiglu,
    inner_steps,
    longhorn,
    longhorn_diagonal,
    rwkv7,
    weighted_dgd,
)

WEIGHT = Stream(1, between(0.2, 1.0))
SIGNED = Stream(1, between(-1.0, 1.0))
RATES = Stream(WIDTH, between(0.0, 0.1))


def given(recurrence: object, **slots: str) -> Expected:
    """An oracle [B,H,T,D] of one head; ``slots`` maps its arguments to inputs (k, v, q are given)."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        k, v, q = (split(x[n]) for n in "kvq")
        return merge(recurrence(k, v, q, **{slot: split(x[name]) for slot, name in slots.items()}))  # type: ignore[operator]

    return expected


def weighted(recurrence: object, rate: str = "rate", **slots: str) -> Expected:
    """A weight multiplies the tick's gradient, as its rate does."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        k, v, q = (split(x[n]) for n in "kvq")
        gates = {slot: split(x[name]) for slot, name in slots.items()}
        return merge(recurrence(k, v, q, **{rate: split(x["lr"]) * split(x["o"])}, **gates)[0])  # type: ignore[operator]

    return expected


def lact(every: int = 1, retains: bool = False) -> Expected:
    """Three rates, by tensor."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        k, v, q = (split(x[n]) for n in "kvq")
        theta = [weights[f"mem.memory.{n}.weight"][None] for n in ("gate", "up", "down")]
        rates = [split(x[n]) for n in ("r0", "r2", "r1")]
        gates = [split(x[n]) for n in ("a0", "a2", "a1")] if retains else None
        return merge(fast_swiglu(k, v, q, theta, rates=rates, retains=gates, every=every))

    return expected


def product(beta: bool = False) -> Expected:
    """Two writes a token."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        keys, values, rates = ([split(x[f"{n}{j}"]) for j in (1, 2)] for n in ("k", "v", "r"))
        b = split(x["b"]) if beta else None
        return merge(delta_product(keys, values, split(x["q"]), rates=rates, retain=split(x["a"]), beta=b))

    return expected


def three_rounds(x: Tensors, weights: Tensors) -> Tensor:
    """Three steps on each token's pair."""
    k, v, q, lr, a = (split(x[n]) for n in ("k", "v", "q", "lr", "a"))
    return merge(inner_steps(k, v, q, rate=lr, retain=a, rounds=3))


def held(x: Tensors, weights: Tensors) -> Tensor:
    """The value of the last tick that is a multiple of 4 (zeros before the first), and k."""
    k = x["k"].tanh()
    shown = [k[:, t - t % 4 - 1] if t >= 4 else torch.zeros_like(k[:, 0]) for t in range(1, k.shape[1] + 1)]
    return torch.stack(shown, 1) + x["k"]


def grouped_attention(x: Tensors, weights: Tensors) -> Tensor:
    """Four heads of queries, two of keys and values: head i sees those of i // 2."""
    k, v = (split(x[n], 2).repeat_interleave(2, 1) for n in "kv")
    return merge(attention(k, v, split(x["q"], 4), window=5))


def one_key(x: Tensors, weights: Tensors) -> Tensor:
    """Four heads of values and gates, one key and one query for all."""
    k, q = (split(x[n]).expand(-1, 4, -1, -1) for n in "kq")
    return merge(linear_attention(k, split(x["v"], 4), q, retain=split(x["a"], 4))[0])


FAST = """flow fast(z, n) {
  return linear(silu(linear(z, 6, name = "gate")) * linear(z, 6, name = "up"), n, name = "down")
}
"""
THREE = {f"r{i}": RATE for i in range(3)}
GATES3 = {f"a{i}": GATE for i in range(3)}
BY_TENSOR = "{gate: r0, up: r2, down: r1}"
NET = f"memory fast(n = {WIDTH}); {KVQ} objective dot;"
RWKV = {**kvq(), "gone": Stream(WIDTH, unit()), "r": Stream(WIDTH, between(0.0, 1.0)), "a": GATES}
BIG = Stream(1, between(0.0, 1.9))
WRITES = {
    **{f"k{j}": Stream(WIDTH, unit()) for j in (1, 2)}, **{f"v{j}": Stream(WIDTH, free) for j in (1, 2)},
    "q": Stream(WIDTH, unit()), "r1": BIG, "r2": BIG, "a": GATE,
}  # fmt: skip
PAIRS = "key [k1, k2]; value [v1, v2]; query q;"

RATE_CASES = [
    Case(
        "weight, delta", {**kvq(), "lr": RATE, "o": SIGNED},
        f"memory matrix; {KVQ} weight o; objective l2; update gd(lr)", weighted(delta_rule),
    ),
    Case(
        "weight, momentum delta", {**kvq(), "lr": RATE, "o": WEIGHT, "b": BETA, "a": GATE},
        f"memory matrix; {KVQ} weight o; objective l2; update momentum(lr, b); retain a",
        weighted(momentum_delta, beta="b", retain="a"),
    ),
    Case(
        "weight, dgd", {**kvq(), "lr": RATE, "o": SIGNED, "a": GATE},
        f"memory matrix; {KVQ} weight o; objective l2; update dgd(lr); retain a",
        given(weighted_dgd, rate="lr", weight="o", retain="a"),
    ),
    Case(
        "LaCT, a weight for each tensor", {**kvq(), **THREE}, f"{NET} weight {BY_TENSOR}; update gd(1)", lact(),
        before=FAST,
    ),
    Case(
        "LaCT, every 4 tokens", {**kvq(), **THREE}, f"{NET} weight {BY_TENSOR}; update gd(1)", lact(every=4),
        every="4 tokens", before=FAST,
    ),
    Case(
        "a rate and a gate for each tensor", {**kvq(), **THREE, **GATES3},
        f"{NET} update gd({BY_TENSOR}); retain {{gate: a0, up: a2, down: a1}}",
        lact(retains=True), before=FAST,
    ),
    Case(
        "a rate for each key channel", {**kvq(), "r": RATES, "a": GATE},
        f"memory matrix; {KVQ} objective l2; update gd(r); retain a", given(channel_delta, rate="r", retain="a"),
    ),
    Case(
        "a rate for each value channel", {**kvq(), "r": RATES},
        f"memory matrix; {KVQ} objective l2; update gd(on_value(r))",
        lambda x, w: merge(channel_delta(*(split(x[n]) for n in "kvq"), rate=split(x["r"]), on="value")),
    ),
    Case(
        "Longhorn, diagonal", {**kvq(), "r": RATES},
        f"memory matrix; {KVQ} objective dot; update gd(on_value(r)); retain 1 - outer_product(r, key * key)",
        given(longhorn_diagonal, rate="r"),
    ),
    Case(
        "Longhorn, exact", {**kvq(), "r": Stream(1, between(0.1, 1.0))},
        f"memory matrix; {KVQ} objective l2; update prox(r)", given(longhorn, rate="r"),
    ),
    Case(
        "Longhorn, exact, a rate for each value channel", {**kvq(), "r": Stream(WIDTH, between(0.1, 1.0))},
        f"memory matrix; {KVQ} objective l2; update prox(on_value(r))", given(longhorn, rate="r"),
    ),
    Case(
        "Longhorn, exact, weighted", {**kvq(), "r": Stream(1, between(0.1, 1.0)), "o": WEIGHT},
        f"memory matrix; {KVQ} objective l2; weight o; update prox(r)",
        lambda x, w: merge(longhorn(*(split(x[n]) for n in "kvq"), rate=split(x["r"]) * split(x["o"]))),
    ),
    Case(
        "replace", {"k": Stream(WIDTH, free)}, "memory vector; value 2 * k; update replace", lambda x, w: 2 * x["k"],
    ),
    Case(
        "replace, every 4 tokens", {"k": Stream(WIDTH, free)},
        "memory like(k); value tanh(k); update replace; retain 0.5; return y + k", held, every="4 tokens",
    ),
    Case(
        "RWKV-7", RWKV,
        f"memory matrix; {KVQ} erased = memory(gone); objective inner(erased, M(r * gone)) - inner(M(key), value);"
        " update gd(1); retain a",
        given(rwkv7, gone="gone", rate="r", retain="a"),
    ),
    Case(
        "DeltaProduct", WRITES,
        f"memory matrix; {PAIRS} objective l2; update gd([r1, r2]); retain decay_first(a)", product(),
    ),
    Case(
        "DeltaProduct, momentum", {**WRITES, "b": BETA},
        f"memory matrix; {PAIRS} objective l2; update momentum([r1, r2], b); retain decay_first(a)", product(beta=True),
    ),
    Case(
        "attention, grouped heads", {"k": Stream(4, unit(2)), "v": Stream(4, free), "q": Stream(WIDTH, unit(4))},
        "heads 4; memory cache(window = 5); key grouped(split_heads(k), 2); value grouped(split_heads(v), 2);"
        " query split_heads(q)", grouped_attention,
    ),
    Case(
        "linear attention, one key for all heads",
        {"k": Stream(4, unit()), "v": Stream(WIDTH, free), "q": Stream(4, unit()), "a": Stream(4, between(0.9, 1.0))},
        "heads 4; memory matrix; key grouped(split_heads(k), 1); value split_heads(v);"
        " query grouped(split_heads(q), n = 1); objective dot; update gd(1); retain split_heads(a)", one_key,
    ),
    Case(
        "rounds", {**kvq(), "lr": Stream(1, between(0.0, 0.9)), "a": GATE},
        f"memory matrix; rounds 3; {KVQ} objective l2; update -lr / t * g; retain decay_first(a)", three_rounds,
    ),
]  # fmt: skip
