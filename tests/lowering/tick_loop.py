"""The meaning of a memory written once more, token by token, for random settings: torch.autograd takes every error.

θ_a: the state as the chunk began    G_t = weight · ∇ℓ(M(k_t; θ_a), v_t)    at multiples of N: the rule, from Σ G
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

D = 6  # width of keys and values


@dataclass(frozen=True)
class Setting:
    """One random memory. `text` is its spec; `run` its meaning."""

    memory: str = "mlp2"
    objective: str = "l2"
    rule: str = "momentum"
    chunk: int = 1
    every: int = 1
    read: str = "after"
    retain: str = "a"
    gradient: str = "through"

    @property
    def text(self) -> str:
        memory, _, _ = MEMORIES[self.memory]
        rule, _ = RULES[self.rule]
        retain = {"a": "retain a;", "none": "", "first": "retain decay_first(a);"}[self.retain]
        fields = (
            f"every {self.every} tokens; chunk {self.chunk}; read {self.read}; memory {memory}; key k; value v;"
            f" query q; objective {OBJECTIVES[self.objective][0]}; update {rule}; {retain} gradient {self.gradient}"
        )
        return (
            f"nestflow 1\n{FLOWS}\n"
            + "".join(f"input {n} : float[T, {D if n in 'kvq' else 1}]\n" for n in NAMES)
            + f"output mem({', '.join(NAMES)})\nlevel mem({', '.join(NAMES)}) {{ {fields} }}\n"
        )


NAMES = ("k", "v", "q", "lr", "b", "a")
FLOWS = """flow gated(x) {
  h = x |> linear(8)
  m = silu(h) * (x |> linear(8, bias = true))
  return x + (m |> rmsnorm |> linear(6))
}
flow deep(x) { return x |> linear(7) |> tanh |> linear(5, bias = true) |> gelu |> linear(6) |> l2norm }
optimizer lagged(lr) {
  memory s : like(w) { value g; update gd(1); retain 0.8 }
  step -lr * before(s) - 0.1 * lr * w
}"""
Weights = dict[str, Tensor]  # [B, *shape] each


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = (w[f"{name}.weight"] @ x[..., None])[..., 0]
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def mlp2(w: Weights, x: Tensor) -> Tensor:
    return x + linear(w, "linear_2", F.gelu(linear(w, "linear", x)))


def gated(w: Weights, x: Tensor) -> Tensor:
    h = F.silu(linear(w, "linear", x)) * linear(w, "linear_2", x)
    return x + linear(w, "linear_3", h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w["rmsnorm.weight"])


def deep(w: Weights, x: Tensor) -> Tensor:
    h = F.gelu(linear(w, "linear_2", torch.tanh(linear(w, "linear", x))))
    y = linear(w, "linear_3", h)
    return y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def matrix(w: Weights, x: Tensor) -> Tensor:
    return (w["weight"] @ x[..., None])[..., 0]


MEMORIES: dict[str, tuple[str, Callable[[Weights, Tensor], Tensor], bool]] = {
    "matrix": ("matrix", matrix, False),
    "mlp2": ("mlp(depth = 2, expand = 2, residual = true)", mlp2, True),
    "gated": ("gated", gated, True),
    "deep": ("deep", deep, True),
}
OBJECTIVES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "l2": ("l2", lambda p, v: 0.5 * (p - v).square().sum()),
    "dot": ("dot", lambda p, v: -(p * v).sum()),
    "lp": ("lp(3)", lambda p, v: (p - v).abs().pow(3).sum() / 3),
    "huber": ("huber(0.3)", lambda p, v: F.huber_loss(p, v, delta=0.3, reduction="sum")),
}


def _gd(s: Weights, n: str, g: Tensor, w: Tensor, lr: Tensor, b: Tensor, t: int) -> Tensor:
    return -lr * g


def _momentum(s: Weights, n: str, g: Tensor, w: Tensor, lr: Tensor, b: Tensor, t: int) -> Tensor:
    s[n] = b * s.get(n, 0) - lr * g
    return s[n]


def _nesterov(s: Weights, n: str, g: Tensor, w: Tensor, lr: Tensor, b: Tensor, t: int) -> Tensor:
    s[n] = b * s.get(n, 0) + g
    return -lr * (g + b * s[n])


def _lagged(s: Weights, n: str, g: Tensor, w: Tensor, lr: Tensor, b: Tensor, t: int) -> Tensor:
    old = s.get(n, torch.zeros_like(g))
    s[n] = 0.8 * old + g
    return -lr * old - 0.1 * lr * w


def _adam(s: Weights, n: str, g: Tensor, w: Tensor, lr: Tensor, b: Tensor, t: int) -> Tensor:
    s[n] = 0.9 * s.get(n, 0) + (1 - 0.9) * g
    s[n + "v"] = 0.99 * s.get(n + "v", 0) + (1 - 0.99) * g * g
    return -0.01 * (s[n] / (1 - 0.9**t)) / ((s[n + "v"] / (1 - 0.99**t)).sqrt() + 1e-2)


def _muon(s: Weights, n: str, g: Tensor, w: Tensor, lr: Tensor, b: Tensor, t: int) -> Tensor:
    s[n] = 0.5 * s.get(n, 0) + 0.5 * g
    x = s[n]
    if x.ndim < 3:  # a vector passes; it has as many rows as numbers, and one column
        return -0.01 * x.shape[-1] ** 0.5 * x
    rows, cols = x.shape[-2:]
    x = x.mT if rows > cols else x
    x = x / x.flatten(1).norm(dim=-1)[:, None, None].clamp(min=1e-7)
    for _ in range(2):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.mT if rows > cols else x
    return -0.01 * max(1.0, rows / cols) ** 0.5 * x


Step = Callable[[Weights, str, Tensor, Tensor, Tensor, Tensor, int], Tensor]
RULES: dict[str, tuple[str, Step]] = {
    "gd": ("gd(lr)", _gd),
    "momentum": ("momentum(lr = lr, beta = b)", _momentum),
    "nesterov": ("nesterov(lr, b)", _nesterov),
    "lagged": ("lagged(lr)", _lagged),
    "clip": ("g |> clip_norm(0.5) |> gd(lr)", _gd),
    "adam": ("adam(lr = 0.01, beta1 = 0.9, beta2 = 0.99, eps = 0.01)", _adam),
    "dgd": ("dgd(lr)", _gd),
    "muon": ("muon(lr = 0.01, beta = 0.5, iters = 2, nesterov = false)", _muon),
}


def erase_and_write(w: Tensor, grams: Tensor, g: Tensor, lr: Tensor) -> Tensor:
    """dgd on a matrix: −η(W K + G), η = lr/(1 + lr tr K), K = Σ k kᵀ."""
    trace = grams.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    return -lr / (1 + lr * trace) * (w @ grams + g)


def run(setting: Setting, x: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
    """The output [B, T, D], one token at a time."""
    _, function, _ = MEMORIES[setting.memory]
    loss, (_, step) = OBJECTIVES[setting.objective][1], RULES[setting.rule]
    batch, ticks = x["k"].shape[:2]
    prefix = "mem.memory."
    if setting.memory == "matrix":
        theta = {"weight": x["k"].new_zeros(batch, D, D)}
    else:
        theta = {n.removeprefix(prefix): w.expand(batch, *w.shape) for n, w in weights.items()}
    anchor, slots, total, ys, keys = theta, {}, None, [], []
    for t in range(1, ticks + 1):
        now = {n: i[:, t - 1] for n, i in x.items()}
        if (t - 1) % setting.chunk == 0:
            anchor = theta
        before = theta

        def number(name: str, w: Tensor, now: dict[str, Tensor] = now) -> Tensor:
            return now[name].reshape(batch, *[1] * (w.ndim - 1))

        at = anchor
        if setting.retain == "first":
            at = {n: number("a", w) * w for n, w in theta.items()}
        with torch.enable_grad():
            leaves = {n: w.clone() if w.requires_grad else w.clone().requires_grad_() for n, w in at.items()}
            error = loss(function(leaves, now["k"]), now["v"])
            g = dict(zip(leaves, torch.autograd.grad(error, list(leaves.values()), create_graph=True)))
        total = g if total is None else {n: total[n] + g[n] for n in g}
        keys.append(now["k"])
        if t % setting.every == 0:
            grams = torch.stack([k[..., :, None] * k[..., None, :] for k in keys]).sum(0)
            keys = []
            if setting.rule == "clip":
                norm = torch.cat([u.flatten(1) for u in total.values()], 1).norm(dim=1)
                scale = (0.5 / (norm + 1e-6)).clamp(max=1)
                total = {n: scale.reshape(batch, *[1] * (u.ndim - 1)) * u for n, u in total.items()}
            new = {}
            for n, w in theta.items():
                delta = step(slots, n, total[n], w, number("lr", w), number("b", w), t // setting.every)
                if setting.rule == "dgd":
                    delta = erase_and_write(w, grams, total[n], number("lr", w))
                if setting.gradient == "stop":
                    delta = delta.detach()
                base = w if setting.retain == "none" else number("a", w) * w
                new[n] = base + delta
            theta, total = new, None
        state = {"after": theta, "before": before, "chunk_start": anchor}[setting.read]
        ys.append(function(state, now["q"]))
    return torch.stack(ys, 1)
