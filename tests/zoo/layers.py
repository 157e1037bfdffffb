"""Whole layers from x [B, T, dim], as the papers describe them: projections, gates, starts' places, output.

The weights come by path; nothing else of nestflow is used. `L` reads them: `lin` is W x (+ b), per head where W has
three axes, `conv` a causal depthwise convolution, own token first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from tests.oracles.attention import rope
from tests.zoo import deep, matrices

HEADS = 2
Layer = Callable[["L", Tensor], Tensor]


class L:
    """The weights below one path."""

    def __init__(self, weights: dict[str, Tensor], path: str) -> None:
        self.weights, self.path = weights, path

    def __call__(self, name: str) -> Tensor:
        return self.weights[f"{self.path}.{name}"]

    def below(self, name: str) -> L:
        return L(self.weights, f"{self.path}.{name}")

    def lin(self, x: Tensor, name: str) -> Tensor:
        """[B, T, in] -> [B, T, out], or [B, H, T, out] for W [H, out, in]."""
        w, bias = self(f"{name}.weight"), self.weights.get(f"{self.path}.{name}.bias")
        if w.ndim == 2:
            y = x @ w.T
            return y if bias is None else y + bias
        y = torch.einsum("btd,hod->bhto", x, w)
        return y if bias is None else y + bias[:, None]

    def conv(self, x: Tensor, name: str, copy: str = "") -> Tensor:
        """Σ_j w_j ⊙ x_{t−j} over four taps."""
        w = self(f"{name}.short_conv{copy}.weight")
        taps = [torch.nn.functional.pad(x, (0, 0, j, 0))[..., : x.shape[-2], :] for j in range(4)]
        return torch.stack([(w[..., j] if w.ndim == 2 else w[:, None, :, j]) * tap for j, tap in enumerate(taps)]).sum(
            0
        )

    def mixed(self, x: Tensor, name: str) -> Tensor:
        """silu(conv4(W x))"""
        return silu(self.conv(self.lin(x, f"{name}.linear"), name))

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm, a gain per head and channel."""
        gain = self(f"{name}.rmsnorm.weight")
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (gain if gain.ndim == 1 else gain[:, None])


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def head(x: Tensor) -> Tensor:
    """[H, D] beside [B, H, T, D]."""
    return x[:, None]


def retnet(w: L, x: Tensor) -> Tensor:
    k, q = rope(w.lin(x, "key.linear")), rope(w.lin(x, "query.linear"))
    y = matrices.retnet(k, w.lin(x, "value.linear"), q / q.shape[-1] ** 0.5)
    return w.lin(merge(w.norm(y, "out") * silu(w.lin(x, "out.linear"))), "out.linear_2")


def gla(w: L, x: Tensor) -> Tensor:
    low, w = w.lin(x, "linear"), w.below("gla")
    q = w.lin(x, "query.linear")
    a = torch.exp(torch.nn.functional.logsigmoid(w.lin(low, "retain.linear")) / 16)
    y = matrices.gla(w.lin(x, "key.linear"), w.lin(x, "value.linear"), q / q.shape[-1] ** 0.5, a)
    return w.lin(merge(w.norm(y, "out") * silu(w.lin(x, "out.linear"))), "out.linear_2")


def hgrn2(w: L, x: Tensor) -> Tensor:
    f = 0.5 + 0.5 * w.lin(x, "f.linear").sigmoid()
    y = matrices.hgrn2(f, w.lin(x, "value.linear"), silu(w.lin(x, "query.linear")))
    return w.lin(merge(w.norm(y, "out")), "out.linear")


def deltanet(w: L, x: Tensor) -> Tensor:
    k, v, q = unit(w.mixed(x, "key")), w.mixed(x, "value"), unit(w.mixed(x, "query"))
    y = matrices.deltanet(k, v, q / q.shape[-1] ** 0.5, w.lin(x, "update.linear").sigmoid())
    return w.lin(merge(w.norm(y, "out")), "out.linear")


def decay(w: L, step: Tensor) -> Tensor:
    """exp(−A softplus(step + b)), A = exp(a) per head."""
    return torch.exp(-head(w("a.learned").exp()) * softplus(step + head(w("b.learned"))))


def gated_deltanet(w: L, x: Tensor) -> Tensor:
    k, v, q = unit(w.mixed(x, "key")), w.mixed(x, "value"), unit(w.mixed(x, "query"))
    a = decay(w, w.lin(x, "retain.linear"))
    y = matrices.gated_deltanet(k, v, q / q.shape[-1] ** 0.5, w.lin(x, "update.linear").sigmoid(), a)
    return w.lin(merge(w.norm(y, "out") * silu(w.lin(x, "out.linear"))), "out.linear_2")


def kda(w: L, x: Tensor) -> Tensor:
    low, low_gate, w = w.lin(x, "linear"), w.lin(x, "linear_2"), w.below("kda")
    k, v, q = unit(w.mixed(x, "key")), w.mixed(x, "value"), unit(w.mixed(x, "query"))
    a = decay(w, w.lin(low, "retain.linear"))
    y = matrices.kda(k, v, q / q.shape[-1] ** 0.5, w.lin(x, "update.linear").sigmoid(), a)
    return w.lin(merge(w.norm(y, "out") * w.lin(low_gate, "out.linear").sigmoid()), "out.linear_2")


def comba(w: L, x: Tensor) -> Tensor:
    k, v, q = w.mixed(x, "k"), w.mixed(x, "value"), w.mixed(x, "q")
    c = head(w("c.learned")).sigmoid()
    a, b = decay(w, w.lin(x, "retain.linear")), w.lin(x, "update.linear").sigmoid()
    q = unit(q - head(w("query.learned")) * c * k) / q.shape[-1] ** 0.5
    y = matrices.comba(unit(k), c * unit(k), v, q, b, a)
    return w.lin(merge(w.norm(y, "out") * w.lin(x, "out.linear").sigmoid()), "out.linear_2")


def deltaproduct(w: L, x: Tensor) -> Tensor:
    def twice(name: str) -> list[Tensor]:
        return [silu(w.conv(w.lin(x, f"{name}.linear{i}"), name, i)) for i in ("", "_2")]

    q = unit(w.mixed(x, "query"))
    betas = [2 * w.lin(x, f"update.linear{i}").sigmoid() for i in ("", "_2")]
    a = decay(w, w.lin(x, "retain.linear"))
    keys = [unit(k) for k in twice("key")]
    y = matrices.deltaproduct(keys, twice("value"), q / q.shape[-1] ** 0.5, betas, a)
    return w.lin(merge(w.norm(y, "out") * silu(w.lin(x, "out.linear"))), "out.linear_2")


def shared(x: Tensor, groups: int) -> Tensor:
    """[B, G, T, D] for every head: head i has group ⌊i·G/H⌋."""
    return x[:, [i * groups // HEADS for i in range(HEADS)]]


def mamba2(w: L, x: Tensor) -> Tensor:
    b, c = (shared(w.mixed(x, n), 1) for n in ("key", "query"))
    dt = softplus(w.lin(x, "delta.linear") + head(w("delta.learned")))
    y = matrices.mamba2(b, w.mixed(x, "v"), c, dt, w("a.learned").exp(), w("skip.learned"))
    return w.lin(w.norm(merge(y * silu(w.lin(x, "out.linear"))), "out"), "out.linear_2")


def gqa(w: L, x: Tensor) -> Tensor:
    k, v = shared(rope(w.lin(x, "key.linear")), 1), shared(w.lin(x, "value.linear"), 1)
    return w.lin(merge(matrices.attention(k, v, rope(w.lin(x, "query.linear")), x.shape[1])), "out.linear")


def tnt(w: L, x: Tensor) -> Tensor:
    wide, near = ([w(f"{n}.mlp.{m}.weight") for m in ("linear", "linear_2")] for n in ("wide", "near"))
    y = deep.tnt(wide, near, plain(w, x, "k"), plain(w, x, "value"), plain(w, x, "q"),
                 w.lin(x, "weight.linear").sigmoid(), 4, 2, (0.3, 0.3))  # fmt: skip
    return w.lin(merge(w.norm(y, "out")), "out.linear")


def rwkv7(w: L, x: Tensor) -> Tensor:
    before = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]

    def mix(name: str) -> Tensor:
        return x + (before - x) * w(f"{name}.learned")

    decay_in = torch.tanh(mix("lora.mix") @ w("lora.linear.weight").T) @ w("lora.linear_2.weight").T
    gate = (mix("lora_2.mix") @ w("lora_2.linear.weight").T).sigmoid() @ w("lora_2.linear_2.weight").T
    keep = split(torch.exp(-0.60653 * (decay_in + w("learned")).sigmoid()))
    a = split(w.lin(w.lin(mix("mix"), "linear"), "linear_2").sigmoid())
    r, k, v = (split(w.lin(mix(f"mix_{i}"), f"linear_{i + 1}")) for i in (2, 3, 4))
    w = w.below("rwkv7")
    gone = unit(k * head(w("gone.learned")))
    kept = k * (1 + (a - 1) * head(w("kept.learned")))
    y = matrices.rwkv7(r, keep, kept, v, gone, a)
    y = deep.norm(y, y.shape[-1] * 1e-5) * head(w("out.layernorm.weight")) + head(w("out.layernorm.bias"))
    y = y + (r * kept * head(w("bonus.learned"))).sum(-1, keepdim=True) * v
    return w.lin(merge(y * split(gate)), "out.linear")


def longhorn(w: L, x: Tensor) -> Tensor:
    v = w.lin(silu(w.conv(x, "value")), "value.linear")
    b = w.lin(x, "b.linear").sigmoid()
    y = matrices.longhorn(w.lin(x, "k.linear"), v, w.lin(x, "query.linear"), b, exact=False)
    return w.lin(merge(w.norm(y, "out") * silu(w.lin(x, "out.linear"))), "out.linear_2")


def swa(w: L, x: Tensor) -> Tensor:
    k, q = rope(w.lin(x, "key.linear")), rope(w.lin(x, "query.linear"))
    return w.lin(merge(matrices.attention(k, w.lin(x, "value.linear"), q, 4)), "out.linear")


def plain(w: L, x: Tensor, name: str) -> Tensor:
    """l2norm(conv4(W x))"""
    return unit(w.conv(w.lin(x, f"{name}.linear"), name))


NAMES = [("eta", "alpha"), ("lr", "retain"), ("update", "retain")]  # what a spec calls its rate and its gate


def network(
    net: deep.Net, loss: deep.Loss, most: float, bias: float = 6, **more: object
) -> Callable[[L, Tensor], Tensor]:
    """MIRAS and Atlas: rate most/16 · σ, gate σ(· + bias), output norm(y) ⊙ σ(W x)."""

    def layer(w: L, x: Tensor) -> Tensor:
        start = [w("memory.linear.weight"), w("memory.linear_2.weight")]
        given = {n: f(w, x) if callable(f) and n in ("extra", "beta", "ages") else f for n, f in more.items()}
        eta, alpha = next(n for n in NAMES if f"{w.path}.{n[0]}.linear.weight" in w.weights)
        y = deep.chunked(
            net, loss, start, (plain(w, x, "key"), plain(w, x, "value"), plain(w, x, "query")),
            most / 16 * w.lin(x, f"{eta}.linear").sigmoid(), (w.lin(x, f"{alpha}.linear") + bias).sigmoid(), 4, **given,  # type: ignore[arg-type]
        )  # fmt: skip
        return w.lin(merge(w.norm(y, "out") * w.lin(x, "out.linear").sigmoid()), "out.linear_2")

    return layer


def threshold(w: L, x: Tensor) -> Tensor:
    return softplus(w.lin(x, "delta.linear") + 2 * (x.shape[-1] // HEADS) ** 0.5)


def places(w: L, x: Tensor) -> Tensor:
    return w("objective.learned")


def ttt(net: deep.Net, base: float, *names: str) -> Layer:
    def layer(w: L, x: Tensor) -> Tensor:
        k, q = (rope(w.lin(x, f"{n}.linear"), reset=4) for n in ("key", "query"))
        rate = base * w.lin(x, "weight.linear").sigmoid() / k.shape[-1]
        norm = (w(f"memory.layernorm.{n}") for n in ("weight", "bias"))
        start = [w(f"memory.{n}") for n in names]
        y = deep.ttt(net, start, k, w.lin(x, "value.linear"), q, rate, 4, *norm, w("update.embed.weight")[:, 0])
        y = deep.norm(y) * head(w("out.layernorm.weight")) + head(w("out.layernorm.bias"))
        return w.lin(merge(y), "out.linear")

    return layer


def lact(w: L, x: Tensor) -> Tensor:
    near, w = swa(w.below("swa"), x), w.below("large_chunk")
    k, q = (rope(unit(silu(w.lin(x, f"{n}.linear")))) for n in ("key", "query"))
    start = [w(f"memory.{n}.weight") for n in ("gate", "up", "down")]
    rates = softplus(w.lin(x, "rates.linear") + torch.log(torch.expm1(torch.tensor(0.001, dtype=x.dtype))))
    y = deep.lact(start, k, unit(silu(w.lin(x, "value.linear"))), q, rates, w.lin(x, "update.linear").sigmoid(), 4)
    return w.lin(merge(w.norm(y, "out")), "out.linear") + near


def mesa(w: L, x: Tensor) -> Tensor:
    k, q = unit(w.mixed(x, "k")), unit(w.mixed(x, "q"))
    ridge = softplus(w("ridge.learned")) + 0.25
    beta, gamma = w.lin(x, "update.linear").sigmoid(), w.lin(x, "retain.linear").sigmoid()
    y = matrices.mesa(k, w.lin(x, "kv.value.linear"), q, beta, gamma, ridge)
    return w.lin(merge(w.norm(y, "out")), "out.linear")


def normalized(w: L, x: Tensor) -> Tensor:
    k, q = (torch.nn.functional.elu(w.conv(w.lin(x, f"{n}.linear"), n)) + 1 for n in ("k", "q"))
    return w.lin(merge(matrices.normalized(k, w.lin(x, "kv.value.linear"), q)), "out.linear")


RESIDUAL = deep.mlp(True)
ROOT = 2.0  # of a head's width in these tests
SMALL = {"chunk": 4, "expand": 2}
YAAD = network(deep.miras, deep.huber_mixture, 0.8, extra=threshold)
MONETA = network(deep.miras, deep.cubic, 4.8, link=deep.lq)
MEMORA = network(RESIDUAL, deep.l2, 9.6, link=lambda a: ROOT * a.softmax(-1))
# spec, and its reading: the level or flow around it, params, layer
LAYERS: dict[str, tuple[str, dict[str, int], Layer]] = {
    "retnet": ("retnet", {}, retnet),
    "gla": ("gated", {}, gla),
    "hgrn2": ("hgrn2", {}, hgrn2),
    "mamba2": ("mamba2", {"state": 3}, mamba2),
    "deltanet": ("deltanet", {}, deltanet),
    "gated_deltanet": ("gated_deltanet", {}, gated_deltanet),
    "kda": ("delta_attention", {}, kda),
    "comba": ("comba", {}, comba),
    "deltaproduct": ("deltaproduct", {}, deltaproduct),
    "rwkv7": ("time_mix", {}, rwkv7),
    "longhorn": ("longhorn", {}, longhorn),
    "mesanet": ("mesa", {}, mesa),
    "normalized_attention": ("normalized", {}, normalized),
    "swa": ("swa", {"window": 4}, swa),
    "gqa": ("gqa", {"kv_heads": 1}, gqa),
    "tnt": ("tnt", {"chunk": 2, "span": 4}, tnt),
    "dla": ("dla", SMALL, network(RESIDUAL, deep.dot, 0.8, 4)),
    "yaad": ("yaad", SMALL, YAAD),
    "yaad, channels": ("yaad", SMALL | {"channels": True}, YAAD),
    "moneta": ("moneta", SMALL, MONETA),
    "moneta, channels": ("moneta", SMALL | {"channels": True}, MONETA),
    "memora": ("memora", SMALL, MEMORA),
    "memora, channels": ("memora", SMALL | {"channels": True}, MEMORA),
    "omega": ("omega", {"chunk": 4, "span": 3, "expand": 2}, network(RESIDUAL, deep.l2, 1.2 / 3, span=3, ages=places)),
    "atlas": (
        "atlas", {"chunk": 4, "span": 3, "expand": 2},
        network(RESIDUAL, deep.l2, 0.8, span=3, ages=places, beta=lambda w, x: w.lin(x, "update.linear").sigmoid()),
    ),
    "ttt_linear": ("ttt_linear", {"chunk": 4}, ttt(deep.linear, 1.0, "linear.weight", "linear.bias")),
    "ttt_mlp": (
        "ttt_mlp", {"chunk": 4},
        ttt(deep.biased_mlp, 0.1, "linear.weight", "linear.bias", "linear_2.weight", "linear_2.bias"),
    ),
    "lact": ("both", {"chunk": 4, "window": 4}, lact),
}  # fmt: skip
