"""The yardsticks of `benchmarks.layers`: two one-block models in plain torch, without a line of nestflow.

`PlainAttention` is softmax attention by `F.scaled_dot_product_attention`, `PlainLinear` linear attention by chunks.
They take the weights of the shipped `transformer` and `linear_attention`, and must give the same numbers before they
are timed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rmsnorm(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), None, 1e-6) * gain


def rope(x: Tensor) -> Tensor:
    """Rotary positions from 0; the pair (i, i + d/2) turns together. x [B,H,T,d]."""
    half = x.shape[-1] // 2
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    at = torch.arange(x.shape[-2], device=x.device, dtype=kind)[:, None]
    angle = at * 10000.0 ** (-torch.arange(half, device=x.device, dtype=kind) / half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class PlainBlock(nn.Module, ABC):
    """Embedding, one pre-norm block of a mixer and SwiGLU, and the tied head. weights: those of the compiled spec."""

    def __init__(self, weights: Mapping[str, Tensor], heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, weights["model.emb.weight"].shape[1] ** 0.5
        self.own = nn.ParameterDict({p.replace(".", "_"): nn.Parameter(w.detach().clone()) for p, w in weights.items()})
        self.mixer = next(p.split(".")[3] for p in weights if p.endswith("key.linear.weight"))

    def w(self, path: str) -> Tensor:
        return self.own[f"model.{path}.weight".replace(".", "_")]

    def of_mixer(self, path: str) -> Tensor:
        return self.w(f"block.0.{self.mixer}.{path}")

    def in_heads(self, x_BTD: Tensor, path: str) -> Tensor:
        """[B,H,T,d]."""
        return F.linear(x_BTD, self.of_mixer(path).flatten(0, 1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @abstractmethod
    def mix(self, x_BTD: Tensor) -> Tensor:
        """What the heads recall, side by side. x, result [B,T,dim]."""

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Scores [B,T,V]."""
        x = F.embedding(tokens_BT, self.w("emb")) * self.scale
        x = x + F.linear(self.mix(rmsnorm(x, self.w("block.0.rmsnorm"))), self.of_mixer("out.linear"))
        z = rmsnorm(x, self.w("block.0.rmsnorm_2"))
        gate, up = (F.linear(z, self.w(f"block.0.swiglu.{n}")) for n in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, self.w("block.0.swiglu.down"))
        return F.linear(rmsnorm(x, self.w("rmsnorm")), self.w("emb"))


class PlainAttention(PlainBlock):
    """The shipped `transformer`, one block."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        q, k = (rope(self.in_heads(x_BTD, f"{n}.linear")) for n in ("query", "key"))
        v = self.in_heads(x_BTD, "value.linear")
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class PlainLinear(PlainBlock):
    """The shipped `linear_attention`, one block: all chunks at once, their sums carried by a cumulative sum."""

    chunk = 64

    def stream(self, x_BTD: Tensor, name: str) -> Tensor:
        """A projection, a causal convolution of each channel, and unit length."""
        h_BHTd = self.in_heads(x_BTD, f"{name}.linear")
        taps = self.of_mixer(f"{name}.short_conv").flatten(0, 1).flip(-1).unsqueeze(1)  # ours count back from the token
        flat = F.pad(h_BHTd.transpose(2, 3).flatten(1, 2), (taps.shape[-1] - 1, 0))
        h = F.conv1d(flat, taps, groups=flat.shape[1]).unflatten(1, (self.heads, -1)).transpose(2, 3)
        return h * torch.rsqrt(h.square().sum(-1, keepdim=True) + 1e-6)

    def mix(self, x_BTD: Tensor) -> Tensor:
        ticks = x_BTD.shape[1]
        streams = self.stream(x_BTD, "query"), self.stream(x_BTD, "key"), self.in_heads(x_BTD, "value.linear")
        q, k, v = (F.pad(x, (0, 0, 0, -ticks % self.chunk)).unflatten(2, (-1, self.chunk)) for x in streams)
        states = k.mT @ v
        before = states.cumsum(2) - states
        y = (q @ before + (q @ k.mT).tril() @ v).flatten(2, 3)[:, :, :ticks]
        return rmsnorm(y, self.of_mixer("out.rmsnorm").unsqueeze(1)).transpose(1, 2).flatten(2)
