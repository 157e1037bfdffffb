"""The MLP that Titans and Hope store in: a list of matrices, with GELU between, one copy per (batch, head)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "relu": torch.relu}


def mlp(weights: list[Tensor], x: Tensor, *, act: str = "gelu", residual: bool = False) -> Tensor:
    """W_n act(… act(W_1 x)), plus x when ``residual``. ``weights[i]`` [..., out, in], ``x`` [..., in]."""
    out = x
    for index, weight in enumerate(weights):
        out = torch.einsum("...oi,...i->...o", weight, out if index == 0 else ACTIVATIONS[act](out))
    return out + x if residual else out


def inputs_of(weights: list[Tensor], x: Tensor, *, act: str = "gelu") -> list[Tensor]:
    """What each matrix of the MLP multiplies at the input ``x``."""
    seen, out = [], x
    for index, weight in enumerate(weights):
        fed = out if index == 0 else ACTIVATIONS[act](out)
        seen.append(fed)
        out = torch.einsum("...oi,...i->...o", weight, fed)
    return seen


def init_mlp(
    width: int, hidden: int, out: int, depth: int, *, heads: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random start weights, ``[heads, out, in]`` each, normal(fan_in^−½)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [width, *[hidden] * (depth - 1), out]
    return [torch.randn(heads, m, d, generator=generator, dtype=dtype) * d**-0.5 for d, m in itertools.pairwise(sizes)]


def alias(weights: list[Tensor]) -> list[Tensor]:
    """Fresh graph nodes equal to ``weights``: a gradient in them goes through nothing else that used the weights."""
    return [w.view_as(w) if w.requires_grad else w.detach().requires_grad_() for w in weights]
