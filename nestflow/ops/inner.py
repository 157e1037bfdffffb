"""Levels that begin anew in every step and learn before the others: one copy for the batch, or one for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.ops.records import Record, by_prefix, record
from nestflow.ops.runtime import Context

Level = tuple[str, Sequence[str]]
Error = Callable[..., Tensor]
Learn = Callable[..., tuple[Any, Any]]


def run_inner(
    c: Context,
    level: Level,
    start: Mapping[str, Tensor],
    error: Error,
    learn: Learn,
    inputs: Sequence[Tensor],
    *,
    rounds: int = 1,
    gradient: str = "through",
    keep: int = 0,
    copies: bool = False,
) -> Context:
    """The context in which the level's tensors stand, as `rounds` updates have made them of `start`.

    error(c, *inputs): its objective, one number. learn(c, w, g, state, t, hold): one update; hold: the step is fixed.
    gradient: how slower gradients go through: through, stop, truncate (the last `keep` updates), implicit (by `keep`
    iterations of cg). copies: a copy for each row of the inputs, learned apart; the tensors then have rows."""
    constant = gradient in ("stop", "implicit")
    held = rounds if constant else rounds - keep if gradient == "truncate" else 0

    def descend(c: Context, given: Sequence[Tensor]) -> dict[str, Tensor]:
        w, state = Record(start), None
        for t in range(1, rounds + 1):
            hold = t <= held
            w, state = learn(c, w, Record(slope(c, level, error, w, given, hold)), state, t, hold)
        return dict(w)

    with torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad():
        made = by_row(c, lambda one, rows, _: descend(one, rows), inputs) if copies else descend(c, inputs)
    if gradient == "implicit" and torch.is_grad_enabled():
        made = stationary(c, level, made, error, inputs, keep, copies)
    return c.beside(by_prefix(level[0], made))


def by_row(
    c: Context,
    function: Callable[[Context, Sequence[Tensor], dict[str, Tensor]], Any],
    inputs: Sequence[Tensor],
    own: Mapping[str, Tensor] | None = None,
) -> Any:
    """function(c, inputs, own) for each row: a batch of one, what its memories start from, and its tensors of `own`."""

    def one(state: dict[str, Tensor], own: dict[str, Tensor], *rows: Tensor) -> Any:
        alone = {n: x[None] for n, x in state.items()}
        return function(c.part(s=alone, n={}), [x[None] for x in rows], own)

    return torch.func.vmap(one, randomness="different")(dict(c.s), dict(own or {}), *inputs)


def slope(
    c: Context, level: Level, error: Error, w: Mapping[str, Tensor], inputs: Sequence[Tensor], hold: bool
) -> dict[str, Tensor]:
    """∇ of the objective in the level's own tensors; all else in it is constant inside the step."""
    at = {n: x.detach() for n, x in w.items()} if hold else dict(w)
    g = torch.func.grad(lambda own: error(c.beside(by_prefix(level[0], own)), *inputs))(at)
    return {n: x.detach() for n, x in g.items()} if hold else g


def moved(w: Record, step: Any, hold: bool) -> Record:
    """w + step; a step that is held is a constant for slower gradients."""
    return w + (step.detach() if hold and hasattr(step, "detach") else step)


def by_copy(function: Callable[..., Tensor], c: Context, level: Level, *rows: Tensor) -> Tensor:
    """function(c, prefix, row) for each task, with that task's copy of the level."""

    def one(own: dict[str, Tensor], *xs: Tensor) -> Tensor:
        return function(c.beside(by_prefix(level[0], own)), level[0], *(x[None] for x in xs))[0]

    return torch.func.vmap(one, randomness="different")(dict(record(c, level)), *rows)


# gradients at a stationary point -----------------------------------------------------------------------


def stationary(
    c: Context, level: Level, made: dict[str, Tensor], error: Error, inputs: Sequence[Tensor], iters: int, copies: bool
) -> dict[str, Tensor]:
    """The same tensors, whose derivative in everything else is that of a stationary point of the objective:
    dθ/dφ = −H⁻¹ ∂²ℓ/∂θ∂φ, H u = v by conjugate gradients."""
    paths = [p for p, x in c.w.items() if x.requires_grad]

    def gradients(own: dict[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        there = c.beside(others)
        if not copies:
            return slope(there, level, error, own, inputs, False)
        return by_row(there, lambda c, rows, w: slope(c, level, error, w, rows, False), inputs, own)

    names = list(made)
    tensors = _Stationary.apply(
        gradients, names, paths, iters, copies, *(made[n].detach() for n in names), *(c.w[p] for p in paths)
    )
    return dict(zip(names, tensors))


class _Stationary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: Any, names: Any, paths: Any, iters: int, copies: bool, *tensors: Tensor) -> Any:
        ctx.setting = gradients, names, paths, iters, copies
        ctx.save_for_backward(*tensors)
        return tuple(x.clone() for x in tensors[: len(names)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *v: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (once_differentiable has no types)
        gradients, names, paths, iters, copies = ctx.setting
        tensors = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        own, others = tensors[: len(names)], tensors[len(names) :]
        with torch.enable_grad():
            g = list(gradients(dict(zip(names, own)), dict(zip(paths, others))).values())

            def hessian(u: list[Tensor]) -> list[Tensor]:
                return _pulled(g, own, u)

            u = conjugate_gradients(hessian, list(v), iters, 1 if copies else 0)
            pulled = _pulled(g, others, u)
        return (None, None, None, None, None, *(None for _ in own), *(-x for x in pulled))


def _pulled(g: list[Tensor], wanted: list[Tensor], u: list[Tensor]) -> list[Tensor]:
    """Σ u ∂g/∂wanted."""
    paths = [(x, y) for x, y in zip(g, u) if x.requires_grad]
    if not wanted or not paths:
        return [torch.zeros_like(x) for x in wanted]
    found = torch.autograd.grad(
        [x for x, _ in paths], wanted, [y for _, y in paths], retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(x) if d is None else d for x, d in zip(wanted, found)]


def conjugate_gradients(
    product: Callable[[list[Tensor]], list[Tensor]], v: list[Tensor], iters: int, rows: int
) -> list[Tensor]:
    """u in H u = v from 0, one system for each row where rows is 1. H: symmetric, given by its products.

    A system whose residual is that of rounding is solved: a further step would divide one rounding error by another,
    as where H is singular (a bias before softmax)."""

    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).flatten(rows).sum(-1) for x, y in zip(a, b)]).sum(0)

    def add(a: list[Tensor], k: Tensor, b: list[Tensor]) -> list[Tensor]:
        return [x + k.reshape(*k.shape, *[1] * (y.ndim - rows)) * y for x, y in zip(a, b)]

    u = [torch.zeros_like(x) for x in v]
    r, p = v, v
    rr = dot(r, r)
    least = 1e3 * torch.finfo(rr.dtype).eps ** 2 * rr
    for _ in range(iters):
        hp = product(p)
        curvature = dot(p, hp)
        solved = (curvature == 0) | (rr <= least)
        k = torch.where(solved, 0.0, rr / torch.where(solved, 1.0, curvature))
        u, r = add(u, k, p), add(r, -k, hp)
        new = dot(r, r)
        p = add(r, torch.where(rr == 0, 0.0, new / torch.where(rr == 0, 1.0, rr)), p)
        rr = new
    return u


__all__ = ["by_copy", "conjugate_gradients", "moved", "run_inner", "slope", "stationary"]
