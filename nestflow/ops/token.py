"""What generated code calls where a call brings one token: the same functions with fewer launches.

Values have a token axis of size 1, [B, T = 1, ...] or [B, H, 1, ...]. Nothing here is differentiated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops import blocks

NARROW = (torch.float16, torch.bfloat16)  # computed in float32


_CONSTANTS: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}


def constant(value: float, like: Tensor) -> Tensor:
    """A number as a tensor without axes, made once."""
    key = value, like.dtype, like.device
    found = _CONSTANTS.get(key)
    if found is None:
        found = _CONSTANTS[key] = torch.tensor(value, dtype=like.dtype, device=like.device)
    return found


def rmsnorm(x: Tensor, gain: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """x / √(mean x² + eps) ⊙ gain over the last axis."""
    if x.dtype in NARROW:
        return blocks.rmsnorm(x, gain, eps)
    width = x.shape[-1]
    size = torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), constant((width * eps) ** 0.5, x))
    if gain is None:
        return torch.addcdiv(constant(0.0, x), x, size, value=width**0.5)
    return torch.addcmul(constant(0.0, x), x / size, gain, value=width**0.5)


def l2norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / √(Σ x² + eps) over the last axis."""
    if x.dtype in NARROW:
        return blocks.l2norm(x, eps)
    return x / torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), constant(eps**0.5, x))


def short_conv(x: Tensor, w: Tensor, tail: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y = Σ_j w[:, j] ⊙ x_{t−j} (+ bias), and the new tail. x [B, 1, D] or [B, H, 1, D]; w [D, n] or [H, D, n]."""
    padded = torch.cat([tail if tail.dtype == x.dtype else tail.to(x.dtype), x], -2)
    y = torch.sum(padded * w.mT.flip(-2), -2, True)
    return y if bias is None else y + bias.unsqueeze(-2), padded.narrow(-2, 1, tail.shape[-2])


def gelu(x: Tensor) -> Tensor:
    """GELU of values [B, H, 1, d]. Seen with other strides they are computed by torch's own loop: a library
    that is asked for the others takes longer to be called than to compute them."""
    return F.gelu(x.transpose(1, 3)).transpose(1, 3)


def gelu_backward(g: Tensor, x: Tensor) -> Tensor:
    """g · gelu'(x), likewise."""
    return torch.ops.aten.gelu_backward(g.transpose(1, 3), x.transpose(1, 3)).transpose(1, 3)
