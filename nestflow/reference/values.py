"""What each stateless operation of the IR does to plain tensors.

Every value is a tensor `[B, H, *features]` (in a loss of the whole model `[B, T, *features]`): two carried axes, of
size 1 where a value does not vary along them, then the feature axes. So broadcasting is: line the feature axes up on
the right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.diagnostics.core import fail
from nestflow.ir.node import Node
from nestflow.reference import images
from nestflow.reference.matrices import MATRICES, matrices
from nestflow.reference.python import python


def align(*xs: Tensor) -> list[Tensor]:
    """The same tensors with feature axes of size 1 put in front, so that they broadcast."""
    rank = max(x.ndim for x in xs)
    return [x.reshape(*x.shape[:2], *[1] * (rank - x.ndim), *x.shape[2:]) for x in xs]


def number(x: Tensor) -> Tensor:
    """A value of size 1 as one number per copy: [B, H]. Others pass (a vector or matrix gate)."""
    return x.reshape(x.shape[:2]) if math.prod(x.shape[2:]) == 1 else x


def features(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "square": torch.square,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "cos": torch.cos,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "log_sigmoid": F.logsigmoid,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "elu1": lambda x: F.elu(x) + 1,
    "inverse_softplus": lambda x: x + torch.log(-torch.expm1(-x)),
    "not": torch.logical_not,
}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.true_divide,
    "pow": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
    "mod": torch.remainder,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
}


def linear(x: Tensor, w: Tensor) -> Tensor:
    """W x on the last axis; w [.., out, in]."""
    rows = x.reshape(*x.shape[:2], math.prod(x.shape[2:-1]), x.shape[-1]) @ w.mT
    return rows.reshape(*rows.shape[:2], *x.shape[2:-1], w.shape[-2])


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a's last axis with b's last but one (a vector: its only one)."""
    if b.ndim == 3:
        a, b = align(a, b)
        return (a * b).sum(-1)
    if a.ndim == 3:
        return torch.squeeze(align(a.unsqueeze(-2), b)[0] @ b, -2)
    return linear(a, b.mT)


def embed(i: Tensor, w: Tensor, node: Node) -> Tensor:
    """Row i of the table w [.., rows, width]."""
    rows, width = w.shape[-2:]
    if i.numel() and not 0 <= int(i.min()) <= int(i.max()) < rows:
        raise fail(
            "NF506",
            f"embed has {rows} rows, and the indices run from {int(i.min())} to {int(i.max())}",
            node.span,
            f"an index is at least 0 and at most {rows - 1}",
        )
    copies = torch.broadcast_shapes(i.shape[:2], w.shape[:2])
    flat = i.expand(*copies, *i.shape[2:]).reshape(*copies, -1, 1).expand(-1, -1, -1, width)
    return w.expand(*copies, rows, width).gather(2, flat).reshape(*copies, *i.shape[2:], width)


def rowwise(op: str, x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    """Norms and softmax over the last axis, eps inside the root."""
    if op == "softmax":
        return x.softmax(-1)
    if op == "log_softmax":
        return x.log_softmax(-1)
    if op == "l2norm":
        return x / torch.sqrt(x.square().sum(-1, keepdim=True) + eps)
    if op == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    for w, combine in zip(weights, (torch.mul, torch.add)):
        y = combine(*align(y, w))
    return y


def rope(x: Tensor, position: Tensor, base: float, reset: int | None) -> Tensor:
    """Pairs (i, i + d/2) turned by p·base^(−2i/d), p = t − 1 or (t − 1) mod reset; position t [B, 1]."""
    p = (position - 1) if reset is None else (position - 1) % reset
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    x, angle = align(x, p.to(x.dtype).unsqueeze(-1) * rates)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def newton_schulz(x: Tensor, iters: int, coefficients: Sequence[Any], eps: float, dtype: str | None) -> Tensor:
    """X / max(‖X‖_F, eps), then iters times aX + (bA + cA²)X, A = XXᵀ on the shorter side. Below rank 2: unchanged.
    coefficients: (a, b, c), or one such triple for each iteration."""
    if x.ndim < 4:
        return x
    m = x.flatten(3).to(getattr(torch, dtype) if dtype else x.dtype)
    m = m / torch.linalg.vector_norm(m, dim=(2, 3), keepdim=True).clamp(min=eps)
    tall = m.shape[-2] > m.shape[-1]
    m = m.mT if tall else m
    for i in range(iters):
        a, b, c = coefficients[i] if isinstance(coefficients[0], tuple) else coefficients
        gram = m @ m.mT
        m = a * m + (b * gram + c * gram @ gram) @ m
    return (m.mT if tall else m).reshape(x.shape).to(x.dtype)


def poly(x: Tensor, w: Tensor, p: int) -> Tensor:
    """Monomials of degree 0 … p, each once, in lexicographic order, those of degree i times w[i]."""
    x, w = align(x, w)
    terms = []
    for degree in range(p + 1):
        for chosen in itertools.combinations_with_replacement(range(x.shape[-1]), degree):
            one = w[..., degree] * torch.ones_like(x[..., 0])
            for i in chosen:
                one = one * x[..., i]
            terms.append(one)
    return torch.stack(terms, -1)


def reduce(op: str, x: Tensor, node: Node) -> Tensor:
    """sum, mean, amax, amin over feature axes (of a tensor like w: over all of them)."""
    axes = node["axes"]
    if node.args[0].type.like:
        dims = tuple(axes) or features(x)  # counted from the end
    else:
        dims = tuple(2 + a for a in axes)
    return getattr(torch, op)(x, dim=dims, keepdim=node["keep"]) if dims else x


def regroup(node: Node, xs: list[Tensor]) -> Tensor:
    """Operations that only move features about."""
    x, op = xs[0], node.op
    if op in ("concat", "stack"):
        xs = align(*xs) if op == "stack" else xs
        lead = torch.broadcast_shapes(*(y.shape[:2] if op == "concat" else y.shape for y in xs))
        xs = [y.expand(*lead, *y.shape[len(lead) :]) for y in xs]
        return torch.cat(xs, -1) if op == "concat" else torch.stack(xs, -1)
    if op == "index":
        item = node["item"]
        return x[:, :, item] if isinstance(item, int) else x[:, :, item[0] : item[1]]
    if op == "reshape":
        return x.reshape(*x.shape[:2], *node["shape"])
    if op == "spread":
        return x.expand(-1, node.type.heads or 1, *[-1] * (x.ndim - 2))
    if op == "split_heads":  # head i has the features [i·d/h, (i+1)·d/h)
        return x[:, 0].unflatten(-1, (node.type.heads or 1, -1)).movedim(-2, 1)
    if op == "grouped":
        return x if x.shape[1] == 1 else x.repeat_interleave((node.type.heads or 1) // x.shape[1], 1)
    heads = node.args[0].type.heads or x.shape[1]  # merge_heads: joined in head order
    return x.expand(-1, heads, -1).flatten(1).unsqueeze(1)


def apply(node: Node, xs: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The value of a stateless node from the values of its arguments. dtype: what numbers of the text become."""
    op = node.op
    if node.type.like:  # inside a rule a number is one number beside a tensor of any rank
        xs = [x if a.type.like else number(x) for a, x in zip(node.args, xs)]
    if op in UNARY:
        return UNARY[op](xs[0] if op == "not" or node.type.dtype != "float" else as_float(xs[0], dtype))
    if op in BINARY:
        a, b = align(*xs)
        return BINARY[op](*((as_float(x, dtype) for x in (a, b)) if node.type.dtype == "float" else (a, b)))
    if op == "where":
        c, a, b = align(*xs)
        return torch.where(c.bool(), a, b)
    if op in ("sum", "mean", "amax", "amin"):
        return reduce(op, as_float(xs[0], dtype) if op == "mean" else xs[0], node)
    if op in ("softmax", "log_softmax", "l2norm", "rmsnorm", "layernorm"):
        return rowwise(op, xs[0], xs[1:], node.get("eps", 0.0))
    if op in ("concat", "stack", "index", "reshape", "spread", "split_heads", "merge_heads", "grouped"):
        return regroup(node, xs)
    if op in MATRICES:
        return matrices(node, xs if op == "one_hot" else [as_float(x, dtype) for x in xs])
    if op == "inner":
        a, b = align(*xs)
        return (a * b).sum(-1)
    if op == "outer":
        return xs[0].unsqueeze(-1) * xs[1].unsqueeze(-2)
    if op == "embed":
        return embed(xs[0], xs[1], node)
    if op == "poly":
        return poly(as_float(xs[0], dtype), xs[1], node["p"])
    if op == "py":
        return python(node, xs)
    if op == "newton_schulz":
        return newton_schulz(xs[0], node["iters"], node["coefficients"], node["eps"], node.get("dtype"))
    if op in ("patches", "conv2d", "max_pool", "upsample"):
        return images.apply(node, xs)
    simple = {"linear": linear, "matmul": matmul, "transpose": lambda x: x.mT, "stop": torch.Tensor.detach}
    if op in simple:
        return simple[op](*xs)
    raise LookupError(f"the interpreter does not know the operation `{op}`")


def as_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.is_floating_point() else x.to(dtype)


def leaf(node: Node, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """`const`, `fill` and `count`; None for any other node."""
    kinds = {"float": dtype, "int": torch.int64, "bool": torch.bool}
    if node.op == "const":
        return torch.tensor(node.value, dtype=kinds[node.type.dtype], device=device).reshape(1, 1)
    if node.op == "fill":
        shape = node.type.shape
        x = torch.eye(*shape) if node["kind"] == "eye" else getattr(torch, node["kind"])(shape)
        return x.to(dtype).to(device)[None, None]
    if node.op == "count":
        return torch.arange(1, node["n"] + 1, device=device)[None, None]
    return None
