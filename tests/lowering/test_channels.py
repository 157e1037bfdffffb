"""A gate for each key channel in closed form: the loop over ticks, for gates of every kind, lengths and splits."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.lowering.plan import lower
from nestflow.ops.recurrence import Channels, channels, channels_after, channels_at, channels_in_pieces
from tests.lowering.compiled import Compiled, gradients

D, HEADS = 6, 2
NAMES = ("k", "v", "q", "lr", "a", "c")
INPUTS = "".join(f"input {n} : float[T, {1 if n in ('lr', 'c') else D}]\n" for n in NAMES)
SHAPES = {n: 1 if n in ("lr", "c") else D for n in NAMES}
Inputs = dict[str, Tensor]

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "near 1": lambda a: (a + 3).sigmoid(),
    "strong": lambda a: (-8 * a.sigmoid()).exp(),
    "zeros": lambda a: torch.where(a > 0.8, torch.zeros_like(a), a.sigmoid()),
    "any sign": lambda a: 1.1 * torch.tanh(a),
    "above 1": lambda a: 1 + 0.05 * a.abs(),
}


def text(objective: str, retain: str = "a", read: str = "after", more: str = "", level: str = "") -> str:
    fields = (
        f"memory matrix; key k; value v; query q; objective {objective}; update gd(lr); retain {retain}; read {read};"
    )
    return (
        f"nestflow 1\n{INPUTS}output mem({', '.join(NAMES)})\n{more}\n"
        f"level mem({', '.join(NAMES)}) {{ {fields} {level} }}\n"
    )


def inputs(ticks: int, gate: str, seed: int = 0, batch: int = 2) -> Inputs:
    source = torch.Generator().manual_seed(seed)
    x = {n: torch.randn(batch, ticks, SHAPES[n], generator=source, dtype=torch.float64) for n in NAMES}
    x["a"] = GATES[gate](x["a"])
    x["lr"] = x["lr"].sigmoid()
    x["k"], x["q"] = (torch.nn.functional.normalize(x[n], dim=-1) for n in "kq")
    return {n: y.requires_grad_() for n, y in x.items()}


def loop(x: Inputs, objective: str, first: bool, read: str) -> Tensor:
    """W_t = W_{t−1} diag(a_t) − lr_t ∇ℓ, the gradient taken at W_{t−1} or (decay_first) at the decayed."""
    w = x["k"].new_zeros(x["k"].shape[0], D, D)
    ys = []
    for t in range(x["k"].shape[1]):
        k, v, q, lr, a = (x[n][:, t] for n in ("k", "v", "q", "lr", "a"))
        before, kept = w, w * a[:, None]
        p = ((kept if first else w) @ k[..., None])[..., 0]
        e = -v if objective == "dot" else p - v
        w = kept - lr[..., None] * e[..., :, None] * k[..., None, :]
        ys.append(((w if read == "after" else before) @ q[..., None])[..., 0])
    return torch.stack(ys, 1)


def same(got: Tensor, want: Tensor, x: Inputs, limit: float = 1e-11) -> None:
    assert (got - want).abs().max() <= limit * max(1.0, want.abs().max().item())
    for n, a, b in zip(x, gradients(got, list(x.values())), gradients(want, list(x.values()))):
        assert a.isfinite().all(), n
        assert (a - b).abs().max() <= limit * max(1.0, b.abs().max().item()), n


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("objective", ["dot", "l2"])
def test_closed_form_is_the_loop(objective: str, gate: str) -> None:
    rng = random.Random(f"{objective} {gate}")
    for retain, read in (("a", "after"), ("decay_first(a)", "after"), ("a", "before"), ("decay_first(a)", "before")):
        compiled = Compiled(text(objective, retain, read))
        assert compiled.patterns == ["recurrence" if objective == "dot" else "delta"]
        for ticks in (1, rng.randrange(2, 9), rng.randrange(65, 100)):
            x = inputs(ticks, gate, ticks)
            same(compiled(x, {}), loop(x, objective, "first" in retain, read), x)


@pytest.mark.parametrize("objective", ["dot", "l2"])
def test_any_split_and_any_block(objective: str) -> None:
    """Streams that are cut anywhere, pieces of any length."""
    rng = random.Random(objective)
    x = inputs(75, "zeros", 3)
    for block in (2, 3, 7, 16, 48, 64, 100):
        compiled = Compiled(text(objective, "decay_first(a)", more=f"execution {{ block {block} }}"))
        (level,) = lower(compiled.graph).levels.values()
        assert level.size == block
        cuts = [0, *sorted(rng.sample(range(1, 75), 4)), 75]
        same(compiled(x, {}, [b - a for a, b in pairwise(cuts)]), loop(x, objective, True, "after"), x)


@pytest.mark.parametrize(
    ("retain", "more"),
    [
        ("learned(6, init = ones) * 0.9", ""),  # one gate for all ticks
        ("split_heads(a)", "heads 3; "),
        ("0.5 + 0.5 * sigmoid(split_heads(q))", "heads 2; "),
        ("sigmoid(learned(2, init = ones))", "heads 3; "),
        ("a", "when lr > 0.5; "),
        ("decay_first(a)", "gradient stop; "),
        ("a", "chunk 4; "),
        ("a", "return m * 2 @ q; "),
    ],
)
@pytest.mark.parametrize("objective", ["dot", "l2"])
def test_closed_form_is_the_scan(retain: str, more: str, objective: str) -> None:
    """Gates that are constants, of heads, of ticks that learn, chunks: against the same memory tick by tick."""
    one = text(objective, retain)
    if "heads" in more:
        one = one.replace("key k; value v; query q", "key split_heads(k); value split_heads(v); query split_heads(q)")
    if "return" in more:
        one, more = one.replace("memory matrix;", "memory m : matrix {").replace("query q;", ""), more
        one = one.replace("read after;", "read after }")
    one = one.replace("{ memory", "{ " + more + "memory")
    closed, scanned = Compiled(one), Compiled(one, ("frozen", "scan"))
    assert closed.patterns != ["scan"] or ("chunk" in more and objective == "l2" and "first" in retain), closed.plan
    assert scanned.patterns == ["scan"]
    w = closed.weights()
    for ticks in (3, 21):
        x = inputs(ticks, "zeros", 7)
        same(closed(x, w), scanned(x, w), {**x, **w})


def test_gates_that_another_memory_recalls() -> None:
    """Nothing can be prepared before the loop: x, h and gates are joined piece by piece."""
    source = (
        f"nestflow 1\n{INPUTS}output mem({', '.join(NAMES)})\n"
        f"level mem({', '.join(NAMES)}) {{ chunk 4; objective dot\n"
        "  memory gates : matrix { key k; value v; update gd(0.1) }\n"
        "  memory m : matrix { key k; value v; query gates(q); update gd(lr); retain a }\n  return m }\n"
    )
    closed, scanned = Compiled(source), Compiled(source, ("frozen", "scan"))
    assert "channels(" in closed.source
    x = inputs(22, "any sign", 1)
    same(closed(x, {}), scanned(x, {}), x)


def random_pair(n: int, d: int, rng: random.Random, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    source = torch.Generator().manual_seed(rng.randrange(1 << 30))
    x, h, a, e = (torch.randn(2, n, d, generator=source, dtype=torch.float64) for _ in range(4))
    return tuple(y.to(dtype).requires_grad_() for y in (x, h, GATES[rng.choice(list(GATES))](a), e))


def products(x: Tensor, h: Tensor, a: Tensor, before: bool) -> Channels:
    """What the fields of Channels say, product by product."""
    n = x.shape[-2]
    rows = [[x.new_zeros(2)] * n for _ in range(n)]
    for t in range(n):
        for s in range(t + (not before)):
            rows[t][s] = (x[:, t] * h[:, s] * a[:, s + 1 : t + (not before)].prod(1)).sum(-1)
    scores = torch.stack([torch.stack(r, -1) for r in rows], -2)
    old = torch.stack([x[:, t] * a[:, : t + (not before)].prod(1) for t in range(n)], 1)
    new = torch.stack([h[:, s] * a[:, s + 1 :].prod(1) for s in range(n)], 1)
    return Channels(scores, old, new, a.prod(1, keepdim=True))


@pytest.mark.parametrize("seed", range(12))
def test_products_of_gates(seed: int) -> None:
    rng = random.Random(seed)
    n, before = rng.randrange(1, 20), rng.random() < 0.5
    x, h, a, _ = random_pair(n, rng.randrange(1, 5), rng)
    got, want = channels(x, h, a, n, before), products(x, h, a, before)
    for field, mine, theirs in zip(Channels._fields, got, want, strict=True):
        assert (mine - theirs).abs().max() < 1e-12 * max(1.0, theirs.abs().max().item()), field
        wanted = torch.autograd.grad(theirs.sum(), (x, h, a), retain_graph=True, materialize_grads=True)
        found = torch.autograd.grad(mine.sum(), (x, h, a), retain_graph=True, materialize_grads=True)
        for b, c in zip(found, wanted, strict=True):
            assert (b - c).abs().max() < 1e-11 * max(1.0, c.abs().max().item()), field


@pytest.mark.parametrize("seed", range(6))
def test_pieces_are_made_one_by_one_or_together(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice([3, 8, 16])
    sizes = [rng.randrange(1, size + 1), *[size] * rng.randrange(3), rng.randrange(1, size + 1)]
    x, h, a, _ = random_pair(sum(sizes), 3, rng)
    for gate in (a, a[0, 0], a[:, :1]):  # at every tick, without ticks
        found = channels_in_pieces(x, h, gate, sizes, size)
        cut = [y.expand(2, sum(sizes), 3).split(sizes, 1) for y in (x, h, gate)]
        for got, n, *own in zip(found, sizes, *cut, strict=True):
            for mine, theirs in zip(got, channels(*own, n), strict=True):
                torch.testing.assert_close(mine.expand_as(theirs), theirs)


@pytest.mark.parametrize("gate", ["near 1", "strong", "zeros", "any sign"])
def test_long_sequences_in_float32(gate: str) -> None:
    """8192 ticks in float32 against float64: errors do not grow with the length, nothing overflows."""
    source = torch.Generator().manual_seed(0)
    n, d, size = 8192, 8, 64
    x, h, a, e = (torch.randn(1, n, d, generator=source) for _ in range(4))
    a = GATES[gate](a).clamp(-1, 1)

    def run(dtype: torch.dtype) -> Tensor:
        given = [y.to(dtype) for y in (x, h, a)]
        w, ys = given[0].new_zeros(1, d, d), []
        pairs = zip(channels_in_pieces(*given, [size] * (n // size), size), e.to(dtype).split(size, 1), strict=True)
        for at, error in pairs:
            ys.append(channels_at(w, (at, error)))
            w = channels_after(w, (at, error))
        return torch.cat(ys, 1)

    got, want = run(torch.float32), run(torch.float64)
    assert got.isfinite().all()
    assert (got - want).abs().max() / want.abs().max() < 2e-6


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("objective", ["dot", "l2"])
def test_what_is_not_finite_stays_with_later_ticks(objective: str, number: float) -> None:
    compiled, bad = Compiled(text(objective)), 5
    x = inputs(20, "zeros", 3)
    clean = compiled(x, {})
    for name in NAMES[:5]:
        given = {n: y.detach().clone() for n, y in x.items()}
        given[name][0, bad, 0] = number
        got, want = compiled(given, {}), loop(given, objective, False, "after")
        assert torch.equal(got[0, :bad], clean[0, :bad]), name
        assert torch.equal(got[1], clean[1]), name
        assert not (got.isfinite() & ~want.isfinite()).any(), name


@pytest.mark.parametrize("ticks", [7, 11, 40])
@pytest.mark.parametrize("objective", ["dot", "l2"])
def test_gradients_before_what_is_not_finite(objective: str, ticks: int) -> None:
    """Those of a clean run to the bit, in pieces that are not filled too."""
    module, bad = nestflow.compile(text(objective), dtype="float64").module, 5
    x = inputs(ticks, "zeros", 3)

    def of(x: Inputs) -> list[Tensor]:
        y = module(**x)
        early = torch.cat([y[0, :bad].flatten(), y[1].flatten()])
        return list(torch.autograd.grad((early * early.detach().cos()).sum(), list(x.values()), materialize_grads=True))

    want = of(x)
    for name in NAMES[:5]:
        given = {n: y.detach().clone() for n, y in x.items()}
        given[name][0, bad, 0] = torch.nan
        for a, b in zip(of({n: y.requires_grad_() for n, y in given.items()}), want, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("rule", ["gd(0.3)", "momentum(0.3, 0.5)", "momentum(lr, 0.5)"])
@pytest.mark.parametrize("every", [1, 3])
def test_constant_gates_are_made_once(rule: str, every: int) -> None:
    """Rows of numbers that are the same at all ticks are those of every piece: long calls, cut anywhere."""
    source = text("dot", "1 - 2 ^ (-3 - head)", level=f"heads 2; every {every} tokens").replace("gd(lr)", rule)
    source = source.replace("key k; value v; query q", "key split_heads(k); value split_heads(v); query split_heads(q)")
    closed, scanned = Compiled(source), Compiled(source, ("frozen", "scan"))
    assert closed.patterns == ["recurrence"]
    x = inputs(150, "near 1", 2)
    same(closed(x, {}, [30, 120]), scanned(x, {}), x)
