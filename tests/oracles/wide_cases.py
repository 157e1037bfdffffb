"""What MIRAS, Atlas, LaCT and TNT add to a memory, each beside its recurrence (tests/oracles/wide.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.oracles.cases import (
    GATE,
    GATES,
    KVQ,
    KVQ2,
    LR,
    LRA,
    LRAB,
    MLP,
    MOMENTUM,
    WIDTH,
    Case,
    Expected,
    Stream,
    Tensors,
    free,
    kvq,
    merge,
    split,
    start,
)
from tests.oracles.titans import dot
from tests.oracles.wide import Learner, in_ball, kl_link, lq_link, rows_restored


def cubed(p: Tensor, v: Tensor) -> Tensor:
    """Σ |e|³ / 3"""
    return (p - v).abs().pow(3).sum() / 3


def zeros(expected: Expected) -> Expected:
    """The same from a matrix of zeros."""
    empty = {"mem.memory.weight": torch.zeros(1, WIDTH, WIDTH, dtype=torch.float64)}
    return lambda x, weights: expected(x, empty)


MATRIX = "memory matrix; init learned(normal(0.3));"
SIGN = Stream(1, free)


def learner(
    depth: int = 2, heads: int = 1, streams: str = "lr a",
    make: Callable[[Tensors, Tensors], dict[str, object]] | None = None, **settings: object,
) -> Expected:  # fmt: skip
    """The oracle of a memory of that depth (0: a matrix); make: settings that come from inputs and weights."""
    slots = {"lr": "rate", "a": "retain", "b": "beta", "r": "weight"}

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        k, v, q = (split(x[n], heads) for n in "kvq")
        memory = (
            [w if w.ndim == 3 else w[None] for w in (weights["mem.memory.weight"],)]
            if not depth
            else start(weights, "memory", depth)
        )
        given = {slots[n]: split(x[n], heads) for n in streams.split()}
        more = make(x, weights) if make is not None else {}
        return merge(Learner(**given, **settings, **more).run(k, v, q, memory))  # type: ignore[arg-type]

    return expected


PROJECT = [
    Case(
        "rows keep their length", {**kvq(), **LRA},
        f"{MLP} {KVQ} objective l2; update gd(lr); retain a; project w * norm(w0, axis = -1) / norm(w, axis = -1)",
        learner(project=rows_restored, chunk=2, every=2), every="2 tokens",
    ),
    Case(
        "momentum in a ball, heads", {**kvq(heads=2), **{n: Stream(2, s.make) for n, s in LRAB.items()}},
        f"chunk 4; {MLP} {KVQ2} objective l2; update momentum(lr = split_heads(lr), beta = split_heads(b));"
        " retain split_heads(a); project ball(2.5)",
        learner(heads=2, streams="lr a b", project=in_ball(2.5), chunk=4),
    ),
    Case(
        "delta rule in a ball", {**kvq(), **LRA},
        f"{MATRIX} {KVQ} objective l2; update gd(lr); retain a; project w |> ball(1.5)",
        learner(0, project=in_ball(1.5)),
    ),
]  # fmt: skip

LINKS = [
    Case(
        "moneta", {**kvq(), **LRA}, f"chunk 4; {MLP} {KVQ} objective lp(3); update gd(lr); retain lq(a, 4)",
        learner(chunk=4, link=lq_link(4), objective=cubed),
    ),
    Case(
        "moneta, one matrix from zeros", {**kvq(), **LRA},
        f"memory matrix; {KVQ} objective l2; update gd(lr); retain lq(a, q = 3)", zeros(learner(0, link=lq_link(3))),
    ),
    Case(
        "memora", {**kvq(), **LRA}, f"{MLP} {KVQ} objective l2; update gd(lr); retain kl(a)",
        learner(link=kl_link()),
    ),
    Case(
        "memora, chunk 4, heads, scale", {**kvq(heads=2), **{n: Stream(2, s.make) for n, s in LRA.items()}},
        f"chunk 4; {MLP} {KVQ2} objective l2; update gd(split_heads(lr)); retain kl(split_heads(a), scale = 3)",
        learner(heads=2, chunk=4, link=kl_link(3)),
    ),
]  # fmt: skip

WINDOWS = [
    Case(
        "omega rule, chunk 4", {**kvq(), **LRA},
        f"chunk 4; {MLP} {KVQ} objective windowed(l2, 3); update gd(lr); retain a", learner(chunk=4, window=3),
    ),
    Case(
        "omega rule, ages and weights", {**kvq(), **LRAB, "r": GATE},
        f"{MLP} {KVQ} weight r; objective windowed(l2, 5, weight = 1 / (1 + age)); "
        "update momentum(lr = lr, beta = b); retain a",
        learner(streams="lr a b r", window=5, aged=[1 / (1 + i) for i in range(5)]),
    ),
    Case(
        "omega rule, learned ages, heads, every 2", {**kvq(heads=2), **{n: Stream(2, s.make) for n, s in LRA.items()}},
        f"chunk 4; {MLP} {KVQ2} objective windowed(l2, 3, weight = learned(3, init = ones)[age]);"
        " update gd(split_heads(lr)); retain split_heads(a)",
        learner(heads=2, chunk=4, every=2, window=3,
                make=lambda x, w: {"aged": list(w["mem.objective.learned"].T[..., None, None])}), every="2 tokens",
    ),
    Case(
        "sliding window linear attention", {**kvq(), **LRA},
        f"{MATRIX} {KVQ} objective windowed(dot, 3); update gd(lr); retain a", learner(0, window=3, objective=dot),
    ),
]  # fmt: skip


def sometimes(x: Tensors, weights: Tensors) -> dict[str, object]:
    """Pairs where the input `on` is above zero."""
    return {"when": x["on"][..., 0] > 0}


WHEN = [
    Case(
        "delta rule, when", {**kvq(), **LRA, "on": SIGN},
        f"memory matrix; {KVQ} objective l2; update gd(lr); retain a; when on > 0",
        zeros(learner(0, make=sometimes)),
    ),
    Case(
        "titans, when, chunk 4", {**kvq(), **LRAB, "on": SIGN},
        f"chunk 4; {MLP} {KVQ} objective l2; {MOMENTUM}; when on > 0",
        learner(streams="lr a b", make=sometimes, chunk=4),
    ),
    Case(
        "titans, when, every 2", {**kvq(), **LRAB, "on": SIGN},
        f"chunk 4; {MLP} {KVQ} objective windowed(l2, 3); {MOMENTUM}; when on > 0",
        learner(streams="lr a b", make=sometimes, chunk=4, every=2, window=3), every="2 tokens",
    ),
]  # fmt: skip


def monomials(x: Tensors, weights: Tensors) -> Tensor:
    """Linear attention on φ(k), φ(q): 1, k_i, k_i k_j (i ≤ j), times the weights of their degree."""

    def phi(z: Tensor, w: Tensor) -> Tensor:
        rows, cols = torch.triu_indices(z.shape[-1], z.shape[-1])
        squares = (z[..., :, None] * z[..., None, :])[..., rows, cols]
        return torch.cat([w[0].expand(*z.shape[:-1], 1), w[1] * z, w[2] * squares], -1)

    k, q = phi(x["k"], weights["mem.key.poly.weight"]), phi(x["q"], weights["mem.query.poly.weight"])
    seen = torch.tril(torch.einsum("btd,bsd->bts", q, k))
    return torch.einsum("bts,bso->bto", seen, x["v"])


def normalised(x: Tensors, weights: Tensors) -> Tensor:
    """y = W φ(q) / (z·φ(q)), z the sum of all φ(k)."""
    k, q = (torch.where(x[n] > 0, x[n] + 1, x[n].exp()) for n in "kq")
    seen = torch.tril(torch.einsum("btd,bsd->bts", q, k))
    return torch.einsum("bts,bso->bto", seen, x["v"]) / seen.sum(-1, keepdim=True)


def tracked(x: Tensors, weights: Tensors) -> Tensor:
    """A vector that follows its value with a gate per channel, and a mean of numbers that starts at a learned one."""
    z, c, out = torch.zeros_like(x["v"][:, 0]), weights["mem.mean.state"].expand(x["v"].shape[0]), []
    for t in range(x["v"].shape[1]):
        z = x["a"][:, t] * z - x["lr"][:, t] * (z - x["v"][:, t])
        c = c - x["lr"][:, t, 0] * (c - x["k"][:, t].sum(-1))
        out.append(z + c[:, None])
    return torch.stack(out, 1)


KEYLESS = [
    Case(
        "linear attention, normalised", kvq(),
        "update gd(1); memory s : matrix { key elu1(k); value v; objective dot }; memory z : vector { value elu1(k) };"
        " return s(elu1(q)) / inner(z, elu1(q))", normalised,
    ),
    Case(
        "a vector and a number", {**kvq(), **LR, "a": GATES},
        "objective l2; update gd(lr); memory z : vector { value v; retain a };"
        " memory mean : scalar { value sum(k); init learned }; return z() + mean", tracked,
    ),
]  # fmt: skip

POLY = [
    Case(
        "linear attention on polynomial features", kvq(4),
        "memory matrix; key poly(k, 2); value v; query poly(q, 2); objective dot; update gd(1)", monomials,
    ),
]  # fmt: skip


def tnt(x: Tensors, weights: Tensors) -> Tensor:
    """TNT: what the local memory has learned since the global one's last update, beside the global one."""
    k, v, q, lr, a = (split(x[n]) for n in ("k", "v", "q", "lr", "a"))
    slow = Learner(lr, chunk=6, every=6).run(k, v, q, [weights["mem.slow.weight"][None]])
    begins = (torch.arange(k.shape[2]) % 6 == 0).expand(k.shape[0], -1)
    fast = Learner(lr, a, chunk=2, begins=begins).run(k, v, q, [weights["mem.fast.weight"][None]])
    return merge(slow + fast)


def periods(n: int) -> Callable[[Tensors, Tensors], dict[str, object]]:
    """A start at the first of every n ticks."""
    return lambda x, weights: {"begins": (torch.arange(x["k"].shape[1]) % n == 0).expand(x["k"].shape[:2])}


def marked(x: Tensors, weights: Tensors) -> dict[str, object]:
    """A start where the input `on` is above zero."""
    return {"begins": x["on"][..., 0] > 0}


RESET = [
    Case(
        "titans, a start at each chunk", {**kvq(), **LRAB},
        f"chunk 4; {MLP} {KVQ} objective l2; {MOMENTUM}; reset each(chunk)",
        learner(streams="lr a b", make=periods(4), chunk=4),
    ),
    Case(
        "titans, the momentum is kept", {**kvq(), **LRAB},
        f"chunk 4; {MLP} {KVQ} objective windowed(l2, 3); {MOMENTUM}; reset each(chunk, keep = rule)",
        learner(streams="lr a b", make=periods(4), chunk=4, window=3, keep_rule=True),
    ),
    Case(
        "delta rule, starts that are marked", {**kvq(), **LRAB, "on": SIGN},
        f"{MATRIX} {KVQ} objective l2; {MOMENTUM}; reset where(on > 0)", learner(0, streams="lr a b", make=marked),
    ),
    Case(
        "tnt: a local memory beside a global one", {**kvq(), **LRA},
        "objective l2; update gd(lr); init learned(normal(0.3)); key k; value v;"
        " memory slow : matrix { every 6 tokens }; memory fast : matrix { chunk 2; reset each(slow); retain a };"
        " return slow(q) + fast(q)", tnt,
    ),
]  # fmt: skip

WIDE = [*RESET, *KEYLESS, *POLY, *PROJECT, *LINKS, *WINDOWS, *WHEN]
