"""Specs of bare memories, fed from outside, each beside the oracle that computes the same numbers.

A case's ``expected`` takes the spec's inputs by name, [B,T,width], and the model's weights by path, and returns the
output [B,T,width]. Rates stay below 0.1 and retains above 0.9, so that a difference is a mistake and not chaos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles.attention import attention, rope
from tests.oracles.hope import FIVE_MEMORIES, dgd_memory, l2norm, self_modifying
from tests.oracles.matrix import delta_rule, gated_delta, linear_attention, momentum_delta
from tests.oracles.titans import dot, huber, l2, titans_memory

Tensors = dict[str, Tensor]
Expected = Callable[[Tensors, Tensors], Tensor]
WIDTH = 8


@dataclass(frozen=True)
class Stream:
    """An input of the spec: its width, and how a normal draw becomes its values."""

    width: int
    make: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """``fields`` are the level's statements after ``every``; ``before``: definitions above the level."""

    name: str
    streams: dict[str, Stream]
    fields: str
    expected: Expected
    every: str = "1 token"
    before: str = ""

    @property
    def text(self) -> str:
        """The spec."""
        names = ", ".join(self.streams)
        inputs = "\n".join(f"input {n} : float[T, {s.width}]" for n, s in self.streams.items())
        return (
            f"nestflow 1\n{inputs}\noutput mem({names})\n{self.before}"
            f"level mem({names}) {{ every {self.every}; {self.fields} }}\n"
        )

    def inputs(self, batch: int, ticks: int, seed: int = 0) -> Tensors:
        """Fresh float64 leaves, one for each input."""
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for name, stream in self.streams.items():
            raw = torch.randn(batch, ticks, stream.width, generator=generator, dtype=torch.float64)
            made[name] = stream.make(raw).detach().requires_grad_()
        return made


def unit(heads: int = 1) -> Callable[[Tensor], Tensor]:
    """Unit length per head."""
    return lambda x: l2norm(x.unflatten(-1, (heads, -1))).flatten(-2)


def between(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """A sigmoid onto [low, high]."""
    return lambda x: low + (high - low) * x.sigmoid()


def free(x: Tensor) -> Tensor:
    """As drawn."""
    return x


def split(x: Tensor, heads: int = 1) -> Tensor:
    """[B,T,H·D] as [B,H,T,D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(y: Tensor) -> Tensor:
    """[B,H,T,D] as [B,T,H·D]."""
    return y.transpose(1, 2).flatten(2)


def start(weights: Tensors, memory: str, depth: int) -> list[Tensor]:
    """The learned start of an mlp memory, [heads,out,in] each."""
    names = [f"mem.{memory}.linear.weight", *[f"mem.{memory}.linear_{i}.weight" for i in range(2, depth + 1)]]
    return [w if w.ndim == 3 else w[None] for w in (weights[n] for n in names)]


def kvq(width: int = WIDTH, heads: int = 1) -> dict[str, Stream]:
    """The context flow: key and query of unit length, value free."""
    return {"k": Stream(width, unit(heads)), "v": Stream(width, free), "q": Stream(width, unit(heads))}


RATE = Stream(1, between(0.0, 0.1))
BETA = Stream(1, between(0.0, 0.9))
GATE = Stream(1, between(0.9, 1.0))
GATES = Stream(WIDTH, between(0.9, 1.0))
KVQ = "key k; value v; query q;"
KVQ2 = "heads 2; key split_heads(k); value split_heads(v); query split_heads(q);"


def on(recurrence: Callable[..., tuple[Tensor, ...]], heads: int = 1, **gates: str) -> Expected:
    """The oracle of a matrix memory from zeros; ``gates`` maps its slots to the inputs."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        k, v, q = (split(x[n], heads) for n in "kvq")
        return merge(recurrence(k, v, q, **{slot: split(x[name], heads) for slot, name in gates.items()})[0])

    return expected


def matrix_with_start(x: Tensors, weights: Tensors) -> Tensor:
    """The delta rule from a learned start, one per head."""
    k, v, q, lr = (split(x[n], 2) for n in ("k", "v", "q", "lr"))
    return merge(delta_rule(k, v, q, rate=lr, initial=weights["mem.memory.weight"])[0])


def titans(depth: int = 2, heads: int = 1, beta: bool = True, **settings: object) -> Expected:
    """The oracle of an mlp memory under momentum (or gd), with lr, b, a as inputs."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        k, v, q, lr, a = (split(x[n], heads) for n in ("k", "v", "q", "lr", "a"))
        b = split(x["b"], heads) if beta else None
        memory = start(weights, "memory", depth)
        return merge(titans_memory(k, v, q, memory, rate=lr, beta=b, retain=a, **settings)[0])  # type: ignore[arg-type]

    return expected


def dgd(depth: int, chunk: int, exact: bool, objective: Callable[[Tensor, Tensor], Tensor]) -> Expected:
    """One memory that learns by dgd."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        k, v, q, lr, a = (split(x[n]) for n in ("k", "v", "q", "lr", "a"))
        memory = start(weights, "memory", depth)
        return merge(dgd_memory(k, v, q, memory, rate=lr, retain=a, chunk=chunk, exact=exact, objective=objective)[0])

    return expected


def dgd_matrix(x: Tensors, weights: Tensors) -> Tensor:
    """The same on a matrix from zeros."""
    k, v, q, lr, a = (split(x[n]) for n in ("k", "v", "q", "lr", "a"))
    zero = [k.new_zeros(1, WIDTH, WIDTH)]
    return merge(dgd_memory(k, v, q, zero, rate=lr, retain=a)[0])


def hope(heads: int, chunk: int, read: str) -> Expected:
    """The five memories."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        a, u, q = (split(x[n], heads) for n in ("a", "u", "q"))
        y, _ = self_modifying(
            a, u, q, {m: start(weights, m, 2) for m in FIVE_MEMORIES}, chunk=chunk, read=read,
            rate=lambda r: 1.2 / chunk * r.sigmoid(), retain=lambda r: (r + 5).sigmoid(),
        )  # fmt: skip
        return merge(y)

    return expected


def attend(heads: int = 1, turn: bool = False, **settings: object) -> Expected:
    """The oracle of a cache."""

    def expected(x: Tensors, weights: Tensors) -> Tensor:
        k, v, q = (split(x[n], heads) for n in "kvq")
        k, q = (rope(k), rope(q)) if turn else (k, q)
        return merge(attention(k, v, q, **settings))  # type: ignore[arg-type]

    return expected


def hope_fields(chunk: int, heads: int, read: str) -> str:
    """The recommended level with its inputs given: statements after ``every``."""
    split_all = (
        "heads 2; ka = split_heads(a); vu = split_heads(u); q1 = split_heads(q);"
        if heads == 2
        else "ka = a; vu = u; q1 = q;"
    )
    back = "merge_heads(store(q1))" if heads == 2 else "store(q1)"
    return f"""chunk {chunk}; read {read}; {split_all}
  k = keys(ka) |> l2norm
  v = values(vu) |> l2norm
  for m in [keys, values, store] {{ memory m : mlp(depth = 2, expand = 1, residual = true) {{ key k; value m(v) }} }}
  for m in [rates, gates] {{ memory m : mlp(depth = 2, expand = 1, out = 1) {{ key k; value m(v) }} }}
  objective l2
  update dgd(lr = 1.2 / {chunk} * sigmoid(rates(vu)))
  retain sigmoid(gates(vu) + 5)
  return {back}
"""


LR, LRA, LRAB = {"lr": RATE}, {"lr": RATE, "a": GATE}, {"lr": RATE, "b": BETA, "a": GATE}
TWO_RATES, TWO_GATES = Stream(2, between(0.0, 0.1)), Stream(2, between(0.9, 1.0))
MOMENTUM = "update momentum(lr = lr, beta = b); retain a"
MLP = "memory mlp(depth = 2, expand = 2);"
HOPE_STREAMS = {n: Stream(WIDTH, unit(2)) for n in ("a", "u", "q")}

MATRIX = [
    Case("linear attention", kvq(), f"memory matrix; {KVQ} objective dot; update gd(1)", on(linear_attention)),
    Case(
        "gated linear attention", {**kvq(), **LRA}, f"memory matrix; {KVQ} objective dot; update gd(lr); retain a",
        on(linear_attention, rate="lr", retain="a"),
    ),
    Case(
        "linear attention, channel gates", {**kvq(), "a": GATES},
        f"memory matrix; {KVQ} objective dot; update gd(1); retain a", on(linear_attention, retain="a"),
    ),
    Case(
        "linear attention, heads", {**kvq(heads=2), "a": TWO_GATES},
        f"memory matrix; {KVQ2} objective dot; update gd(1); retain split_heads(a)",
        on(linear_attention, 2, retain="a"),
    ),
    Case("delta rule", {**kvq(), **LR}, f"memory matrix; {KVQ} objective l2; update gd(lr)", on(delta_rule, rate="lr")),
    Case(
        "delta rule, gate after the error", {**kvq(), **LRA},
        f"memory matrix; {KVQ} objective l2; update gd(lr); retain a", on(delta_rule, rate="lr", retain="a"),
    ),
    Case(
        "delta rule, channel gates after the error", {**kvq(), **LR, "a": GATES},
        f"memory matrix; {KVQ} objective l2; update gd(lr); retain a", on(delta_rule, rate="lr", retain="a"),
    ),
    Case(
        "delta rule, heads", {**kvq(heads=2), "lr": TWO_RATES, "a": TWO_GATES},
        f"memory matrix; {KVQ2} objective l2; update gd(split_heads(lr)); retain split_heads(a)",
        on(delta_rule, 2, rate="lr", retain="a"),
    ),
    Case(
        "delta rule, learned start per head", {**kvq(heads=2), "lr": TWO_RATES},
        f"memory matrix; {KVQ2} objective l2; update gd(split_heads(lr)); init learned(normal(0.3))", matrix_with_start,
    ),
    Case(
        "gated delta", {**kvq(), **LRA}, f"memory matrix; {KVQ} objective l2; update gd(lr); retain decay_first(a)",
        on(gated_delta, rate="lr", retain="a"),
    ),
    Case(
        "gated delta, channel gates", {**kvq(), **LR, "a": GATES},
        f"memory matrix; {KVQ} objective l2; update gd(lr); retain decay_first(a)",
        on(gated_delta, rate="lr", retain="a"),
    ),
    Case(
        "momentum delta", {**kvq(), **LRAB}, f"memory matrix; {KVQ} objective l2; {MOMENTUM}",
        on(momentum_delta, rate="lr", beta="b", retain="a"),
    ),
    Case("dgd matrix", {**kvq(), **LRA}, f"memory matrix; {KVQ} objective l2; update dgd(lr); retain a", dgd_matrix),
]  # fmt: skip


def titans_case(name: str, fields: str, expected: Expected, heads: int = 1, every: str = "1 token") -> Case:
    """Titans on an mlp with its streams and gates given."""
    gates = {n: Stream(heads * s.width, s.make) for n, s in LRAB.items()}
    return Case(name, {**kvq(heads=heads), **gates}, fields, expected, every)


TITANS = [
    titans_case("titans, chunk 4", f"chunk 4; {MLP} {KVQ} objective l2; {MOMENTUM}", titans(chunk=4)),
    titans_case("titans, chunk 1", f"{MLP} {KVQ} objective l2; {MOMENTUM}", titans()),
    titans_case(
        "titans, heads", f"chunk 4; {MLP} {KVQ2} objective l2;"
        " update momentum(lr = split_heads(lr), beta = split_heads(b)); retain split_heads(a)",
        titans(chunk=4, heads=2), heads=2,
    ),
    titans_case(
        "titans, residual",
        f"chunk 4; memory mlp(depth = 2, expand = 2, residual = true); {KVQ} objective l2; {MOMENTUM}",
        titans(chunk=4, residual=True),
    ),
    titans_case(
        "titans, depth 1", f"chunk 4; memory mlp(depth = 1); {KVQ} objective l2; {MOMENTUM}", titans(depth=1, chunk=4),
    ),
    titans_case(
        "titans, depth 3, silu",
        f"chunk 4; memory mlp(depth = 3, expand = 1, act = silu); {KVQ} objective l2; {MOMENTUM}",
        titans(depth=3, chunk=4, act="silu"),
    ),
    titans_case(
        "titans, read before", f"chunk 4; read before; {MLP} {KVQ} objective l2; {MOMENTUM}",
        titans(chunk=4, read="before"),
    ),
    titans_case(
        "titans, read chunk_start", f"chunk 4; read chunk_start; {MLP} {KVQ} objective l2; {MOMENTUM}",
        titans(chunk=4, read="chunk_start"),
    ),
    titans_case(
        "titans, dot", f"chunk 4; {MLP} {KVQ} objective dot; {MOMENTUM}", titans(chunk=4, objective=dot),
    ),
    titans_case(
        "titans, huber", f"chunk 4; {MLP} {KVQ} objective huber(0.5); {MOMENTUM}",
        titans(chunk=4, objective=huber(0.5)),
    ),
    titans_case(
        "titans, every 2, chunk 4", f"chunk 4; {MLP} {KVQ} objective l2; {MOMENTUM}", titans(chunk=4, every=2),
        every="2 tokens",
    ),
    titans_case(
        "titans, every 4", f"{MLP} {KVQ} objective l2; {MOMENTUM}", titans(chunk=4, every=4), every="4 tokens",
    ),
    Case(
        "mlp memory, gd", {**kvq(), **LRA}, f"chunk 4; {MLP} {KVQ} objective l2; update gd(lr); retain a",
        titans(chunk=4, beta=False),
    ),
]  # fmt: skip

HOPE = [
    Case("hope, chunk 4", HOPE_STREAMS, hope_fields(4, 1, "after"), hope(1, 4, "after")),
    Case("hope, heads", HOPE_STREAMS, hope_fields(4, 2, "after"), hope(2, 4, "after")),
    Case("hope, chunk 1", HOPE_STREAMS, hope_fields(1, 1, "after"), hope(1, 1, "after")),
    Case("hope, read chunk_start", HOPE_STREAMS, hope_fields(4, 1, "chunk_start"), hope(1, 4, "chunk_start")),
    Case(
        "dgd mlp, chunk 4", {**kvq(), **LRA}, f"chunk 4; {MLP} {KVQ} objective l2; update dgd(lr); retain a",
        dgd(2, 4, True, l2),
    ),
    Case(
        "dgd mlp, printed form, dot", {**kvq(), **LRA},
        f"chunk 4; {MLP} {KVQ} objective dot; update dgd(lr, exact = false); retain a", dgd(2, 4, False, dot),
    ),
]  # fmt: skip

ATTENTION = [
    Case("attention", kvq(), f"memory cache; {KVQ}", attend()),
    Case("attention, heads", kvq(heads=2), f"memory cache; {KVQ2}", attend(2)),
    Case("attention, window", kvq(), f"memory cache(window = 3); {KVQ}", attend(window=3)),
    Case("attention, segment", kvq(), f"memory cache(segment = 4); {KVQ}", attend(segment=4)),
    Case("attention, window and sink", kvq(), f"memory cache(window = 3, sink = 1); {KVQ}", attend(window=3, sink=1)),
    Case("attention, rope", kvq(), "memory cache; key rope(k); value v; query rope(q);", attend(turn=True)),
]

CASES = [*MATRIX, *TITANS, *HOPE, *ATTENTION]
