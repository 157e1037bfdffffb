"""Square matrices and classes in the interpreter, on `[B, H, *features]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nestflow.diagnostics.core import fail
from nestflow.ir.node import Node

MATRICES = frozenset(("diag", "diagonal", "solve", "matrix_root", "eigenvectors", "qr", "one_hot"))


def eigen(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors by ascending eigenvalue. A matrix that is not finite has NaN for both, and leaves
    the matrices beside it alone."""
    sound = a.isfinite().flatten(-2).all(-1)
    values, vectors = torch.linalg.eigh(a.masked_fill(~sound[..., None, None], 0.0))
    return values.masked_fill(~sound[..., None], torch.nan), vectors.masked_fill(~sound[..., None, None], torch.nan)


def matrices(node: Node, xs: list[Tensor]) -> Tensor:
    """The value of one of these operations."""
    a, op = xs[0], node.op
    if op == "diag":
        return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) * a.unsqueeze(-1)
    if op == "diagonal":
        return torch.diagonal(a, dim1=-2, dim2=-1)
    if op == "solve":
        b = xs[1] if xs[1].ndim == 4 else xs[1].unsqueeze(-1)
        x = Iterated.apply(a, b, node["iters"]) if node["method"] == "cg" else exact(a, b)
        return x if xs[1].ndim == 4 else x.squeeze(-1)
    if op == "matrix_root":
        return Root.apply(a, node["p"])
    if op == "eigenvectors":
        return eigen(a)[1]
    if op == "qr":
        q, r = torch.linalg.qr(a)
        return q * torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1, 1).unsqueeze(-2)
    classes = torch.arange(node["n"], device=a.device)
    if a.numel() and not 0 <= int(a.min()) <= int(a.max()) < node["n"]:
        message = f"there are {node['n']} classes, and these run from {int(a.min())} to {int(a.max())}"
        raise fail("NF506", message, node.span, f"a class is at least 0 and at most {node['n'] - 1}")
    return a.unsqueeze(-1) == classes


def exact(a: Tensor, b: Tensor) -> Tensor:
    """A⁻¹ b by the inverse of each matrix; a singular one gives inf or NaN where torch raises."""
    lead = torch.broadcast_shapes(a.shape[:2], b.shape[:2])
    a, b = a.expand(*lead, *a.shape[2:]), b.expand(*lead, *b.shape[2:])
    inverse, _ = torch.linalg.inv_ex(a)
    return inverse @ b


class Iterated(torch.autograd.Function):
    """Conjugate gradients column by column; backwards another solve: the derivative of A⁻¹ b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, iters: int) -> Tensor:
        lead = torch.broadcast_shapes(a.shape[:2], b.shape[:2])
        whole, sides = a.expand(*lead, *a.shape[2:]), b.expand(*lead, *b.shape[2:])
        columns = [one_column(whole, sides[..., j], iters) for j in range(b.shape[-1])]
        x = torch.stack(columns, -1)
        ctx.save_for_backward(a, x)  # the argument itself: its gradient has a gradient
        ctx.shapes, ctx.iters = (a.shape, b.shape), iters
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = grads
        a, x = ctx.saved_tensors
        u = Iterated.apply(a, g, ctx.iters)
        return (-(u @ x.mT)).sum_to_size(ctx.shapes[0]), u.sum_to_size(ctx.shapes[1]), None


def one_column(a: Tensor, b: Tensor, iters: int) -> Tensor:
    """x from b / diag A, along conjugate directions; it stays where nothing is left to do."""
    x = b / torch.diagonal(a, dim1=-2, dim2=-1)
    left = b - (a @ x.unsqueeze(-1)).squeeze(-1)
    way = left
    for _ in range(iters):
        seen = (a @ way.unsqueeze(-1)).squeeze(-1)
        rr, curved = (left * left).sum(-1, keepdim=True), (way * seen).sum(-1, keepdim=True)
        moves = curved > 0
        far = torch.where(moves, rr / torch.where(moves, curved, 1), 0)
        x, after = x + far * way, left - far * seen
        turn = torch.where(rr > 0, (after * after).sum(-1, keepdim=True) / torch.where(rr > 0, rr, 1), 0)
        left, way = after, after + turn * way
    return x


class Root(torch.autograd.Function):
    """A^(1/p); its derivative from divided differences, f' where eigenvalues are equal."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(a)
        ctx.p = p
        values, vectors = eigen(a)
        return vectors @ torch.diag_embed(values ** (1 / p)) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        (a,) = ctx.saved_tensors
        values, vectors = eigen(a)
        i, j = values.unsqueeze(-1), values.unsqueeze(-2)
        same = (i - j).abs() <= 1e-9 * values.abs().amax(-1)[..., None, None]
        slope = (i ** (1 / ctx.p - 1) + j ** (1 / ctx.p - 1)) / (2 * ctx.p)
        divided = (i ** (1 / ctx.p) - j ** (1 / ctx.p)) / torch.where(same, 1, i - j)
        inside = torch.where(same, slope, divided) * (vectors.mT @ g @ vectors)
        return vectors @ inside @ vectors.mT, None
