"""Square matrices that generated code calls: solves, roots, eigenvectors, Q of QR; and rows of classes.

Matrices are [..., n, n]; leading axes (rows, heads, ticks) broadcast. Computed in at least float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nestflow.ops.blocks import at_least_float32


def one_hot(i: Tensor | int, n: int) -> Tensor:
    """True at the class, [..., n]. A class outside 0 … n − 1 raises IndexError."""
    if not isinstance(i, Tensor):  # a class that the spec writes
        i = torch.tensor(i)
    return F.embedding(i, torch.eye(n, device=i.device)).bool()


def solve(a: Tensor, b: Tensor, method: str = "exact", iters: int = 30) -> Tensor:
    """A⁻¹ b: a [..., n, n], b columns [..., n, m]. cg: conjugate gradients, for a symmetric positive A.

    A singular matrix gives inf or NaN in its own row and no other."""
    x, y = at_least_float32(a), at_least_float32(b)
    lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = x.expand(*lead, *x.shape[-2:]), y.expand(*lead, *y.shape[-2:])
    if method == "exact":
        return torch.linalg.solve_ex(x, y)[0].to(b.dtype)
    return _ConjugateGradients.apply(x, y, iters).to(b.dtype)


def conjugate_gradients(a: Tensor, b: Tensor, iters: int) -> Tensor:
    """`iters` steps from b / diag A; a column that has arrived stays."""
    x = b / a.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    r = b - a @ x
    p, size = r, (r * r).sum(-2, keepdim=True)
    for _ in range(iters):
        ap = a @ p
        curved = (p * ap).sum(-2, keepdim=True)
        step = torch.where(curved > 0, size / torch.where(curved > 0, curved, 1.0), 0.0)
        x, r = x + step * p, r - step * ap
        now = (r * r).sum(-2, keepdim=True)
        p = r + torch.where(size > 0, now / torch.where(size > 0, size, 1.0), 0.0) * p
        size = now
    return x


class _ConjugateGradients(torch.autograd.Function):
    """Its derivative is that of A⁻¹ b, by the same method: b̄ = A⁻¹ x̄, Ā = −b̄ xᵀ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, iters: int) -> Tensor:
        return conjugate_gradients(a, b, iters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.iters = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = grads
        a, x = ctx.saved_tensors
        gb = _ConjugateGradients.apply(a, g, ctx.iters)
        return -gb @ x.mT, gb, None


def eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices, NaN of one that is not finite. LAPACK refuses such a matrix,
    and with it all others of the batch: a row would fall with its neighbour, a diverging run in a traceback."""
    finite = a.isfinite().all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, a, 0.0))
    return torch.where(finite[..., 0], values, torch.nan), torch.where(finite, vectors, torch.nan)


def floored(values: Tensor) -> Tensor:
    """Eigenvalues, those below the rounding of the greatest raised to it: what is less there is noise, 0 or below."""
    rounding = max(1e-14, torch.finfo(values.dtype).eps)
    return torch.maximum(values, rounding * values.detach().amax(-1, keepdim=True))


def matrix_root(a: Tensor, p: float) -> Tensor:
    """A^(1/p) of symmetric positive matrices, by their eigenvalues (`floored`)."""
    return _Root.apply(at_least_float32(a), p).to(a.dtype)


class _Root(torch.autograd.Function):
    """Equal eigenvalues have a derivative here, which that of their eigenvectors has not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, p: float) -> Tensor:
        values, vectors = eigh(a)
        return (vectors * floored(values).pow(1 / p).unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.p = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return matrix_root_backward(grads[0], ctx.saved_tensors[0], ctx.p), None


def matrix_root_backward(g: Tensor, a: Tensor, p: float) -> Tensor:
    """V (Γ ⊙ Vᵀ g V) Vᵀ, Γ_ij = (f_i − f_j)/(λ_i − λ_j), f' where the two are (nearly) equal; f(λ) = λ^(1/p), of
    which the eigenvalues at the floor have no slope."""
    found, v = eigh(at_least_float32(a))
    values = floored(found)
    f, slope = values.pow(1 / p), torch.where(found < values, 0.0, values.pow(1 / p - 1) / p)
    apart = values.unsqueeze(-1) - values.unsqueeze(-2)
    close = apart.abs() <= 1e-9 * values.abs().amax(-1)[..., None, None]
    between = (f.unsqueeze(-1) - f.unsqueeze(-2)) / torch.where(close, 1.0, apart)
    gamma = torch.where(close, (slope.unsqueeze(-1) + slope.unsqueeze(-2)) / 2, between)
    return (v @ (gamma * (v.mT @ at_least_float32(g) @ v)) @ v.mT).to(g.dtype)


def together(values: Tensor) -> Tensor:
    """How far eigenvalues lie apart, and still count as equal: [..., 1]."""
    return torch.finfo(values.dtype).eps ** 0.6 * values.abs().amax(-1, keepdim=True)


def eigenvectors(a: Tensor) -> Tensor:
    """Columns by ascending eigenvalue, a symmetric. Of (nearly) equal eigenvalues, by what √1, √2, … on the diagonal
    makes of their space; each column has a positive product with (√1, √2, …). So the result is a function of a."""
    return _Vectors.apply(at_least_float32(a)).to(a.dtype)


class _Vectors(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        values, v = eigh(a)
        n = a.shape[-1]
        if not n:
            return v
        mark = torch.arange(1, n + 1, dtype=a.dtype, device=a.device).sqrt()
        steps = values.diff(dim=-1, prepend=values[..., :1]) > together(values)
        group = steps.cumsum(-1).to(a.dtype)  # spaces of equal eigenvalues, counted from below
        same = group.unsqueeze(-1) == group.unsqueeze(-2)
        # one matrix for all spaces: far apart on its diagonal, they keep their order and do not mix
        inside = torch.where(same, v.mT @ (mark[:, None] * v), 0.0) + torch.diag_embed(2 * mark[-1] * group)
        v = v @ eigh((inside + inside.mT) / 2)[1]
        return v * torch.where(mark @ v < 0, -1.0, 1.0).to(a.dtype).unsqueeze(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return eigenvectors_backward(grads[0], ctx.saved_tensors[0])


def eigenvectors_backward(g: Tensor, a: Tensor) -> Tensor:
    """V ((Vᵀ g) / (λ_j − λ_i)) Vᵀ; nothing between (nearly) equal eigenvalues."""
    a = at_least_float32(a)
    v = eigenvectors(a)
    values = (v * (a @ v)).sum(-2)
    apart = values.unsqueeze(-2) - values.unsqueeze(-1)
    close = apart.abs() <= together(values).unsqueeze(-1)
    inside = torch.where(close, 0.0, (v.mT @ at_least_float32(g)) / torch.where(close, 1.0, apart))
    return (v @ inside @ v.mT).to(g.dtype)


def qr(a: Tensor) -> Tensor:
    """Q with a positive diagonal of R; of a matrix of zeros the identity, and no gradient."""
    q, r = torch.linalg.qr(_not_zero(at_least_float32(a)))
    d = r.diagonal(dim1=-2, dim2=-1)
    return (q * torch.where(d < 0, -1.0, 1.0).to(q.dtype).unsqueeze(-2)).to(a.dtype)


def _not_zero(a: Tensor) -> Tensor:
    """a, or the identity where all of it is zero."""
    one = torch.eye(a.shape[-2], a.shape[-1], dtype=a.dtype, device=a.device)
    return torch.where((a == 0).all(-1, True).all(-2, True), one, a)


def qr_backward(g: Tensor, a: Tensor) -> Tensor:
    """(g + Q copyltu(−gᵀ Q)) R^(−T), copyltu: the lower triangle on both sides."""
    zero, a, g = (a == 0).all(-1, True).all(-2, True), _not_zero(at_least_float32(a)), at_least_float32(g)
    q, g = qr(a), torch.where(zero, 0.0, g)
    r, m = q.mT @ a, -g.mT @ q
    both = m.tril() + m.tril(-1).mT
    return torch.linalg.solve_triangular(r, (g + q @ both).mT.contiguous(), upper=True).mT.to(g.dtype)
