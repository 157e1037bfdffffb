"""One token at a time by hand: the shipped `linear_attention` and `gated_deltanet`, one block, without nestflow.

What a careful engineer would write for decoding: the block's input projections as one product, convolutions on their
last inputs, the memory as one tensor. Weights are those of the compiled spec, whose numbers the streams must give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_blocks import rmsnorm

State = tuple[Tensor, Tensor]  # memory [B,H,dv,dk]; the last inputs of the convolutions [B,channels,taps − 1]


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class Steps(ABC):
    """Embedding, a pre-norm mixer, SwiGLU and the tied head, token by token: (state or None, tokens [B,n])."""

    convolved: tuple[str, ...] = ()  # streams of the mixer, in the order of their channels
    plain: tuple[str, ...] = ()

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        w = {n: x.detach() for n, x in weights.items()}
        prefix = next(n for n in w if n.endswith("key.linear.weight")).removesuffix("key.linear.weight")
        self.mixer = {n.removeprefix(prefix).removesuffix(".weight"): x for n, x in w.items() if n.startswith(prefix)}
        self.emb = next(x for n, x in w.items() if n.endswith("emb.weight"))
        self.first, self.second, self.last = norms(w, prefix)
        self.swiglu = [next(x for n, x in w.items() if n.endswith(f"{part}.weight")) for part in ("gate", "up", "down")]
        self.gate_up = torch.cat(self.swiglu[:2])
        rows = [self.mixer[n].flatten(0, 1) for n in (*self.convolved, *self.plain)]
        self.sizes, self.project = [len(r) for r in rows], torch.cat(rows)
        self.taps = torch.cat([self.mixer[n.replace("linear", "short_conv")].flatten(0, 1) for n in self.convolved])
        self.taps = self.taps.flip(-1)  # ours count back from the token
        self.heads = self.mixer["key.linear"].shape[0]

    def __call__(self, state: State | None, tokens: Tensor) -> tuple[Tensor, State]:
        """Scores [B,n,V]."""
        scores = []
        for token in tokens.unbind(1):
            y, state = self.one(state, token)
            scores.append(y)
        assert state is not None
        return torch.stack(scores, 1), state

    def one(self, state: State | None, token: Tensor) -> tuple[Tensor, State]:
        """token [B] -> scores [B,V]."""
        x = self.emb[token] * self.emb.shape[1] ** 0.5
        h = F.linear(rmsnorm(x, self.first), self.project)
        width = len(self.taps)
        if state is None:
            dk, dv = (self.mixer[f"{n}.linear"].shape[1] for n in ("key", "value"))
            state = h.new_zeros(len(h), self.heads, dv, dk), h.new_zeros(len(h), width, self.taps.shape[1] - 1)
        window = torch.cat([state[1], h[:, :width, None]], -1)
        streams = torch.cat([(window * self.taps).sum(-1), h[:, width:]], -1).split(self.sizes, -1)
        y, memory = self.mix(state[0], [s.unflatten(-1, (self.heads, -1)) for s in streams])
        x = x + y
        gate, up = F.linear(rmsnorm(x, self.second), self.gate_up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, self.swiglu[2])
        return F.linear(rmsnorm(x, self.last), self.emb), (memory, window[..., 1:])

    @abstractmethod
    def mix(self, memory: Tensor, streams: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The mixer's output [B,dim] and the new memory. streams [B,H,...], in the order of the class."""


def norms(w: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, ...]:
    """The gains before the mixer, before the SwiGLU and before the head: the last is that outside the block."""
    named = [n for n in w if "rmsnorm" in n and not n.startswith(prefix)]
    inside = [n for n in named if ".0." in n or n.endswith(".0.weight")]
    return tuple(w[n] for n in (*sorted(inside), *(n for n in named if n not in inside)))


class LinearAttentionSteps(Steps):
    """`linear_attention`: W += v kᵀ, y = W q."""

    convolved, plain = ("key.linear", "query.linear"), ("value.linear",)

    def mix(self, memory: Tensor, streams: list[Tensor]) -> tuple[Tensor, Tensor]:
        k, q, v = streams
        memory = memory + v[..., None] * unit(k)[..., None, :]
        y = rmsnorm((memory @ unit(q)[..., None]).squeeze(-1), self.mixer["out.rmsnorm"])
        return F.linear(y.flatten(1), self.mixer["out.linear"]), memory


class GatedDeltaSteps(Steps):
    """`gated_deltanet`: W ← αW − η(αW k − v)kᵀ, y = W q."""

    convolved = ("key.linear", "value.linear", "query.linear")
    plain = ("update.linear", "retain.linear", "out.linear")

    def mix(self, memory: Tensor, streams: list[Tensor]) -> tuple[Tensor, Tensor]:
        k, v, q, rate, gate, open_ = streams
        k, v, q = unit(F.silu(k)), F.silu(v), unit(F.silu(q)) * k.shape[-1] ** -0.5
        memory = (
            torch.exp(-self.mixer["a.learned"].exp() * F.softplus(gate + self.mixer["b.learned"]))[..., None] * memory
        )
        error = (memory @ k[..., None]).squeeze(-1) - v
        memory = memory - (rate.sigmoid() * error)[..., None] * k[..., None, :]
        y = rmsnorm((memory @ q[..., None]).squeeze(-1), self.mixer["out.rmsnorm"]) * F.silu(open_)
        return F.linear(y.flatten(1), self.mixer["out.linear_2"]), memory


BY_HAND: dict[str, type[Steps]] = {"linear_attention": LinearAttentionSteps, "gated_deltanet": GatedDeltaSteps}
