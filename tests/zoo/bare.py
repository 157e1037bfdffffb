"""The memory lines of each shipped spec with its streams given from outside, beside the loop of its paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.zoo import deep, matrices

Tensors = dict[str, Tensor]
HEADS, WIDTH = 2, 4
FULL = HEADS * WIDTH


@dataclass(frozen=True)
class Bare:
    """streams: what is fed, by name: width of a head and kind. fields: the level's lines. loop: the streams by name,
    [B, H, T, D], and the weights by their last name or path -> [B, H, T, D]."""

    name: str
    streams: dict[str, tuple[int, str]]
    fields: str
    loop: Callable[[Tensors, Tensors], Tensor]
    before: str = ""

    @property
    def text(self) -> str:
        names = ", ".join(self.streams)
        inputs = "\n".join(f"input {n} : float[T, {HEADS * w}]" for n, (w, _) in self.streams.items())
        level = f"level mem({names}) {{ heads {HEADS}\n{self.fields}\n}}\n"
        return f"nestflow 1\n{inputs}\noutput mem({names})\n{self.before}\n{level}"

    def inputs(self, rows: int, ticks: int, seed: int) -> Tensors:
        """Float64 leaves."""
        source = torch.Generator().manual_seed(seed)
        made = {}
        for name, (width, kind) in self.streams.items():
            raw = torch.randn(rows, ticks, HEADS, width, generator=source, dtype=torch.float64)
            made[name] = KINDS[kind](raw).flatten(2).detach().requires_grad_()
        return made

    def expected(self, inputs: Tensors, weights: Tensors) -> Tensor:
        """The paper's output, [B, T, H·D]."""
        heads = {n: x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for n, x in inputs.items()}
        return self.loop(heads, weights).transpose(1, 2).flatten(2)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "free": lambda x: x,
    "unit": lambda x: x / x.norm(dim=-1, keepdim=True),
    "gate": lambda x: 0.8 + 0.2 * x.sigmoid(),
    "rate": lambda x: x.sigmoid(),
    "small": lambda x: 0.1 * x.sigmoid(),
    "positive": lambda x: 0.5 + x.abs(),
}
K, V, Q = {"k": (WIDTH, "unit")}, {"v": (WIDTH, "free")}, {"q": (WIDTH, "unit")}
KVQ = K | V | Q
SPLIT = "key split_heads(k); value split_heads(v); query split_heads(q);"
BETA, ALPHA, CHANNELS = {"b": (1, "rate")}, {"a": (1, "gate")}, {"a": (WIDTH, "gate")}
FAST = {"lr": (1, "small"), "a": (1, "gate")}
CHANNEL_FAST = {"lr": (WIDTH, "small"), "a": (WIDTH, "gate")}
CHANNEL_LEARN = (
    "update gd({linear: split_heads(lr), linear_2: on_value(split_heads(lr))}); "
    "retain {linear: split_heads(a), linear_2: on_value(split_heads(a))}"
)
LEARN = "update gd(split_heads(lr)); retain split_heads(a)"

MATRICES = [
    Bare("retnet", KVQ, f"memory matrix; {SPLIT} objective dot; update gd(1); retain 1 - 2 ^ (-5 - head)",
         lambda x, w: matrices.retnet(x["k"], x["v"], x["q"])),
    Bare("gla", KVQ | CHANNELS, f"memory matrix; {SPLIT} objective dot; update gd(1); retain split_heads(a)",
         lambda x, w: matrices.gla(x["k"], x["v"], x["q"], x["a"])),
    Bare("hgrn2", {"f": (WIDTH, "rate")} | V | Q,
         "memory matrix; key 1 - split_heads(f); value split_heads(v); query split_heads(q); objective dot;"
         "update gd(1); retain split_heads(f)",
         lambda x, w: matrices.hgrn2(x["f"], x["v"], x["q"])),
    Bare("mamba2", KVQ | {"dt": (1, "rate")},
         f"memory matrix; {SPLIT} objective dot; update gd(split_heads(dt))\n"
         "a = learned(1, init = log(uniform(1, 16)))\n"
         "retain exp(-exp(a) * split_heads(dt)); skip = learned(1, init = ones) * split_heads(v)\n"
         "return merge_heads(y + skip)",
         lambda x, w: matrices.mamba2(
             x["k"], x["v"], x["q"], x["dt"], w["mem.a.learned"].exp(), w["mem.skip.learned"])),
    Bare("deltanet", KVQ | BETA, f"memory matrix; {SPLIT} objective l2; update gd(split_heads(b))",
         lambda x, w: matrices.deltanet(x["k"], x["v"], x["q"], x["b"])),
    Bare("gated_deltanet", KVQ | BETA | ALPHA,
         f"memory matrix; {SPLIT} objective l2; update gd(split_heads(b)); retain decay_first(split_heads(a))",
         lambda x, w: matrices.gated_deltanet(x["k"], x["v"], x["q"], x["b"], x["a"])),
    Bare("kda", KVQ | BETA | CHANNELS,
         f"memory matrix; {SPLIT} objective l2; update gd(split_heads(b)); retain decay_first(split_heads(a))",
         lambda x, w: matrices.kda(x["k"], x["v"], x["q"], x["b"], x["a"])),
    Bare("deltaproduct", KVQ | BETA | ALPHA | {"k2": (WIDTH, "unit"), "v2": (WIDTH, "free"), "c": (1, "rate")},
         "memory matrix; key [split_heads(k), split_heads(k2)]; value [split_heads(v), split_heads(v2)]\n"
         "query split_heads(q); objective l2; update gd([split_heads(b), split_heads(c)])\n"
         "retain decay_first(split_heads(a))",
         lambda x, w: matrices.deltaproduct([x["k"], x["k2"]], [x["v"], x["v2"]], x["q"], [x["b"], x["c"]], x["a"])),
    Bare("comba", KVQ | BETA | ALPHA | {"c": (1, "rate")},
         f"memory matrix; {SPLIT} update gd(split_heads(b)); retain decay_first(split_heads(a))\n"
         "objective 0.5 * split_heads(c) * inner(M(key), M(key)) - inner(M(key), value)",
         lambda x, w: matrices.comba(x["k"], x["c"] * x["k"], x["v"], x["q"], x["b"], x["a"])),
    Bare("rwkv7", KVQ | CHANNELS | {"gone": (WIDTH, "unit"), "f": (WIDTH, "rate")},
         "gone_h = split_heads(gone); erased = state(gone_h)\n"
         "memory state : matrix { key split_heads(k); value split_heads(v); update gd(1); retain split_heads(a)\n"
         "  objective inner(erased, M(split_heads(f) * gone_h)) - inner(M(key), value) }\n"
         "return merge_heads(state(split_heads(q)))",
         lambda x, w: matrices.rwkv7(x["q"], x["a"], x["k"], x["v"], x["gone"], x["f"])),
    Bare("longhorn", KVQ | {"b": (WIDTH, "rate")},
         f"memory matrix; {SPLIT} s = split_heads(b) / (1 + split_heads(b) * inner(split_heads(k), split_heads(k)))\n"
         "objective dot; update gd(on_value(s)); retain 1 - outer_product(s, split_heads(k) * split_heads(k))",
         lambda x, w: matrices.longhorn(x["k"], x["v"], x["q"], x["b"], exact=False)),
    Bare("longhorn exact", KVQ | {"b": (WIDTH, "rate")},
         f"memory matrix; {SPLIT} objective l2; update prox(on_value(split_heads(b)))",
         lambda x, w: matrices.longhorn(x["k"], x["v"], x["q"], x["b"], exact=True)),
    Bare("mesa", KVQ | BETA | ALPHA,
         f"k_h = split_heads(k); ridge = softplus(learned({WIDTH}, init = ones)) + 0.25; objective dot\n"
         "update gd(split_heads(b)); retain split_heads(a)\n"
         "memory kk : matrix { key k_h; value k_h }\nmemory kv : matrix { key k_h; value split_heads(v) }\n"
         "return merge_heads(kv(solve(kk + diag(ridge), split_heads(q), method = cg, iters = 12)))",
         lambda x, w: matrices.mesa(x["k"], x["v"], x["q"], x["b"], x["a"],
                                    torch.nn.functional.softplus(w["mem.ridge.learned"]) + 0.25)),
    Bare("normalized", {"k": (WIDTH, "positive")} | V | {"q": (WIDTH, "positive")},
         "k_h = split_heads(k); q_h = split_heads(q); objective dot; update gd(1)\n"
         "memory kv : matrix { key k_h; value split_heads(v) }\nmemory z : vector { value k_h }\n"
         "return merge_heads(kv(q_h) / (inner(z, q_h) + 1e-6))",
         lambda x, w: matrices.normalized(x["k"], x["v"], x["q"])),
    Bare("swa", KVQ, f"memory cache(window = 3); {SPLIT}", lambda x, w: matrices.attention(x["k"], x["v"], x["q"], 3)),
]  # fmt: skip


def start(w: Tensors, *names: str) -> list[Tensor]:
    return [w[f"mem.memory.{n}"] for n in names]


TWO = ("linear.weight", "linear_2.weight")
BIASED = ("linear.weight", "linear.bias", "linear_2.weight", "linear_2.bias")
LAYERS = "every 1 token; chunk 4; memory mlp(depth = 2, expand = 2, act = gelu, residual = true);"
MIRAS = """flow net(x) {
  z = x |> linear(2 * width(x)) |> gelu |> linear(width(x))
  return x + (z - mean(z)) / sqrt(mean(square(z - mean(z))) + 1e-5)
}"""
UNIT = "return (z - mean(z)) / sqrt(mean(square(z - mean(z))) + 1e-5) }"
TTT_LINES = f"""every 1 token; chunk 4; memory net; {SPLIT}
gain = learned({WIDTH}, init = ones); bias = learned({WIDTH}, init = normal(0.1))
objective l2(key + gain * M(key) + bias, value)
i = (t - 1) % 4 + 1
update (w_chunk - w) / i - split_heads(b) / ({WIDTH} * i) * g
return merge_heads(split_heads(q) + gain * y + bias)"""


def anchored(net: deep.Net, loss: deep.Loss, *names: str, **more: object) -> Callable[[Tensors, Tensors], Tensor]:
    """deep.chunked with chunk 4; a stream's name as `extra` or `beta` is put in."""

    def loop(x: Tensors, w: Tensors) -> Tensor:
        given = {n: x[s] if isinstance(s, str) else s for n, s in more.items()}
        return deep.chunked(net, loss, start(w, *names), (x["k"], x["v"], x["q"]), x["lr"], x["a"], 4, **given)  # type: ignore[arg-type]

    return loop


def ttt(net: deep.Net, *names: str) -> Callable[[Tensors, Tensors], Tensor]:
    return lambda x, w: deep.ttt(
        net, start(w, *names), x["k"], x["v"], x["q"], x["b"] / WIDTH, 4, w["mem.gain.learned"], w["mem.bias.learned"]
    )


TRIPLES = [list(row) for row in deep.LACT]
DEEP = [
    Bare("dla", KVQ | FAST, f"{LAYERS} {SPLIT} objective dot; {LEARN}", anchored(deep.mlp(True), deep.dot, *TWO)),
    Bare("yaad", KVQ | FAST | {"d": (1, "positive")},
         f"every 1 token; chunk 4; memory net; {SPLIT} delta = 1.5 * split_heads(d)\n"
         f"objective huber(delta, form = mixed); {LEARN}",
         anchored(deep.miras, lambda p, v, d: deep.huber_mixture(p, v, 1.5 * d), *TWO, extra="d"), MIRAS),
    Bare("yaad, channels", KVQ | CHANNEL_FAST | {"d": (WIDTH, "positive")},
         f"every 1 token; chunk 4; memory net; {SPLIT} delta = 1.5 * split_heads(d)\n"
         f"objective huber(delta, form = mixed); {CHANNEL_LEARN}",
         anchored(deep.miras, lambda p, v, d: deep.huber_mixture(p, v, 1.5 * d), *TWO, extra="d"), MIRAS),
    Bare("memora, channels", KVQ | CHANNEL_FAST,
         f"{LAYERS} {SPLIT} objective l2; {CHANNEL_LEARN.replace('retain', 'retain kl(')}, scale = 2)",
         anchored(deep.mlp(True), deep.l2, *TWO, link=lambda a: 2 * a.softmax(-1))),
    Bare("moneta", KVQ | FAST,
         f"every 1 token; chunk 4; memory net; {SPLIT} objective lp(3); update gd(split_heads(lr))\n"
         "retain lq(split_heads(a), 4)", anchored(deep.miras, deep.cubic, *TWO, link=deep.lq), MIRAS),
    Bare("memora", KVQ | FAST,
         f"{LAYERS} {SPLIT} objective l2; update gd(split_heads(lr)); retain kl(split_heads(a))",
         anchored(deep.mlp(True), deep.l2, *TWO, link=lambda a: a.softmax(-1))),
    Bare("omega", KVQ | FAST, f"{LAYERS} {SPLIT} objective windowed(l2, 3); {LEARN}",
         anchored(deep.mlp(True), deep.l2, *TWO, span=3)),
    Bare("atlas", KVQ | FAST | {"b": (1, "rate")},
         f"{LAYERS} {SPLIT} objective windowed(l2, 3); retain split_heads(a)\n"
         "update momentum(lr = 1, beta = split_heads(b)) |> newton_schulz |> scale(split_heads(lr))",
         anchored(deep.mlp(True), deep.l2, *TWO, span=3, beta="b")),
    Bare("ttt_linear", KVQ | BETA, TTT_LINES, ttt(deep.linear, "linear.weight", "linear.bias"),
         f"flow net(x) {{ z = linear(x, width(x), bias = true, init = normal(0.3)); {UNIT}"),
    Bare("ttt_mlp", KVQ | BETA, TTT_LINES, ttt(deep.biased_mlp, *BIASED),
         "flow net(x) { h = linear(x, 2 * width(x), bias = true) |> gelu\n z = linear(h, width(x), bias = true); "
         f"{UNIT}"),
    Bare("tnt", KVQ | {"r": (1, "rate")},
         "key split_heads(k); value split_heads(v); weight split_heads(r); q1 = split_heads(q); objective l2\n"
         "memory wide : mlp(depth = 2, expand = 2, residual = true) { every 4 tokens; read before; update gd(0.1) }\n"
         "memory near : mlp(depth = 2, expand = 2, residual = true) { chunk 2; reset each(wide); update gd(0.2) }\n"
         "memory seen : matrix { value split_heads(k); weight 1; objective dot; update gd(1); reset each(wide) }\n"
         "return merge_heads(wide(q1) + near(seen(q1)))",
         lambda x, w: deep.tnt([w[f"mem.wide.{n}"] for n in TWO], [w[f"mem.near.{n}"] for n in TWO],
                               x["k"], x["v"], x["q"], x["r"], 4, 2, (0.1, 0.2))),
    Bare("lact", KVQ | dict.fromkeys(("r1", "r2", "r3", "m"), (1, "rate")),
         f"every 4 tokens; read before; memory swiglu(hidden = 6); {SPLIT} objective dot\n"
         "weight {gate: split_heads(r1), up: split_heads(r2), down: split_heads(r3)}\n"
         f"update momentum(lr = 1, beta = mean(ticks(split_heads(m)), axis = 0)) "
         f"|> newton_schulz(coefficients = {TRIPLES})\n"
         "project w * norm(w0, axis = -1) / norm(w, axis = -1)",
         lambda x, w: deep.lact(start(w, "gate.weight", "up.weight", "down.weight"), x["k"], x["v"], x["q"],
                                torch.cat([x["r1"], x["r2"], x["r3"]], -1), x["m"], 4)),
]  # fmt: skip

CASES = [*MATRICES, *DEEP]
