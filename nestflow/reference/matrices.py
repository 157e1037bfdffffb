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
        return Eigenvectors.apply(a)
    if op == "qr":  # of zeros the identity, and no gradient
        zero = (a == 0).flatten(-2).all(-1)[..., None, None]
        q, r = torch.linalg.qr(
            torch.where(zero, torch.eye(a.shape[-2], a.shape[-1], dtype=a.dtype, device=a.device), a)
        )
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


def raised(values: Tensor) -> Tensor:
    """Eigenvalues of a positive matrix: those lost in the rounding of the largest stand at that rounding."""
    least = max(1e-14, torch.finfo(values.dtype).eps) * values.amax(-1, keepdim=True)
    return torch.where(values < least, least.detach(), values)


class Root(torch.autograd.Function):
    """A^(1/p); its derivative from divided differences, f' where eigenvalues are equal, 0 of those that were raised."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(a)
        ctx.p = p
        values, vectors = eigen(a)
        return vectors @ torch.diag_embed(raised(values) ** (1 / p)) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        (a,) = ctx.saved_tensors
        found, vectors = eigen(a)
        values = raised(found)
        i, j = values.unsqueeze(-1), values.unsqueeze(-2)
        same = (i - j).abs() <= 1e-9 * values.abs().amax(-1)[..., None, None]
        slope = (values ** (1 / ctx.p - 1) / ctx.p).masked_fill(found < values, 0.0)
        slope = (slope.unsqueeze(-1) + slope.unsqueeze(-2)) / 2
        divided = (i ** (1 / ctx.p) - j ** (1 / ctx.p)) / torch.where(same, 1, i - j)
        inside = torch.where(same, slope, divided) * (vectors.mT @ g @ vectors)
        return vectors @ inside @ vectors.mT, None


def equal(values: Tensor) -> Tensor:
    """Which eigenvalues, in ascending order, count as equal: [..., n, n]. Neighbours that are so are of one space."""
    near = torch.finfo(values.dtype).eps ** 0.6 * values.abs().amax(-1, keepdim=True)
    space = torch.cat([torch.zeros_like(near), (values[..., 1:] - values[..., :-1] > near).cumsum(-1)], -1)
    return space.unsqueeze(-1) == space.unsqueeze(-2)


def basis(a: Tensor) -> Tensor:
    """Eigenvectors of one matrix [n, n] by the rule of the word: space by space."""
    values, vectors = eigen(a)
    weight = torch.arange(1, len(a) + 1, dtype=a.dtype, device=a.device) ** 0.5
    spaces, columns = equal(values), []
    first = 0
    while first < len(a):
        size = int(spaces[first].sum())
        own = vectors[:, first : first + size]
        if size > 1:
            own = own @ eigen(own.mT @ torch.diag(weight) @ own)[1]
        columns.append(own * torch.where(weight @ own < 0, -1, 1))
        first += size
    return torch.cat(columns, -1)


class Eigenvectors(torch.autograd.Function):
    """By ascending eigenvalue. Equal ones: their space has the eigenvectors of diag(√1, √2, …) in it; each column has a
    positive product with (√1, √2, …). Backwards nothing turns inside such a space."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        if not a.numel():
            return torch.empty_like(a)
        return torch.stack([basis(x) for x in a.flatten(0, -3)]).view(a.shape) if a.ndim > 2 else basis(a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (g,) = grads
        (a,) = ctx.saved_tensors
        v = Eigenvectors.apply(a)
        values = torch.diagonal(v.mT @ a @ v, dim1=-2, dim2=-1)
        still = equal(values.detach())
        gaps = (values.unsqueeze(-2) - values.unsqueeze(-1)).masked_fill(still, 1)
        return v @ (v.mT @ g / gaps).masked_fill(still, 0) @ v.mT
