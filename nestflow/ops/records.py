"""Records: one tensor for each weight of a level. Arithmetic and torch's functions act on all of them, name by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.ops.runtime import Context


def _act(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator of two records, or of a record and what is the same for all its tensors."""
    return lambda self, other: self.each(function, other)


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.each(lambda x, o: function(o, x), other)


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: self.each(function)


class Record(dict[str, Tensor]):
    """Tensors by name. `a * b`, `torch.sqrt(a)`, `a.sum()` are done tensor by tensor; beside a record, a number or a
    tensor without axes is the same for all of its tensors."""

    __add__: Any = _act(operator.add)
    __radd__: Any = _reflected(operator.add)
    __sub__: Any = _act(operator.sub)
    __rsub__: Any = _reflected(operator.sub)
    __mul__: Any = _act(operator.mul)
    __rmul__: Any = _reflected(operator.mul)
    __truediv__: Any = _act(operator.truediv)
    __rtruediv__: Any = _reflected(operator.truediv)
    __pow__: Any = _act(operator.pow)
    __rpow__: Any = _reflected(operator.pow)
    __mod__: Any = _act(operator.mod)
    __rmod__: Any = _reflected(operator.mod)
    __floordiv__: Any = _act(operator.floordiv)
    __rfloordiv__: Any = _reflected(operator.floordiv)
    __lt__: Any = _act(operator.lt)
    __le__: Any = _act(operator.le)
    __gt__: Any = _act(operator.gt)
    __ge__: Any = _act(operator.ge)
    __eq__: Any = _act(operator.eq)
    __ne__: Any = _act(operator.ne)
    __and__: Any = _act(operator.and_)
    __or__: Any = _act(operator.or_)
    __neg__: Any = _alone(operator.neg)
    __invert__: Any = _alone(operator.invert)
    __hash__: Any = None

    def each(self, function: Callable[..., Any], *others: Any) -> Record:
        """function(tensor, other, ...) for each name; others: records, or the same value for all."""
        return Record(
            {n: function(x, *(o[n] if isinstance(o, Record) else o for o in others)) for n, x in self.items()}
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = next(a for a in args if isinstance(a, Record))
        return Record({n: func(*(a[n] if isinstance(a, Record) else a for a in args), **(kwargs or {})) for n in names})

    def sum(self) -> Record:
        """Σ of each tensor."""
        return self.each(torch.sum)

    def mean(self) -> Record:
        return self.each(torch.mean)

    def detach(self) -> Record:
        return self.each(torch.Tensor.detach)

    def to(self, dtype: torch.dtype) -> Record:
        return self.each(lambda x: x.to(dtype))

    def filled(self, value: float) -> Record:
        """The same shapes, all of one number."""
        return self.each(lambda x: torch.full_like(x, value))

    def number(self, value: float) -> Tensor:
        """A number of the tensors' kind."""
        first = next(iter(self.values()))
        return torch.tensor(float(value), dtype=first.dtype, device=first.device)

    def fact(self, name: str) -> Record:
        """ndim, rows or cols of each tensor."""
        known: dict[str, Callable[[Tensor], int]] = {
            "ndim": lambda x: x.ndim,
            "rows": lambda x: x.shape[0] if x.ndim else 1,
            "cols": lambda x: x[0].numel() if x.ndim else 1,
        }
        return self.each(lambda x: torch.tensor(known[name](x), device=x.device))


def record(c: Context, level: tuple[str, Sequence[str]], what: str = "") -> Record:
    """The tensors of a level: as they are; `before(NAME).` the tick; or `gradient(NAME).` that it took in it (zeros
    where it took none)."""
    prefix, names = level
    now = {n: c.w[prefix + n] for n in names}
    if not what:
        return Record(now)
    absent: Callable[[Tensor], Tensor] = torch.zeros_like if what.startswith("gradient") else (lambda x: x)
    return Record({n: c.w[what + n] if what + n in c.w else absent(x) for n, x in now.items()})


def total(x: Record | Tensor) -> Tensor:
    """Σ over all tensors."""
    if not isinstance(x, Record):
        return x.sum()
    return torch.stack([v.sum() for v in x.values()]).sum()


def norm_all(x: Record) -> Tensor:
    """√Σ x² over all tensors, with the derivative 0 where all are 0."""
    squares = total(x.each(torch.square))
    none = squares == 0
    return torch.where(none, 0.0, torch.where(none, 1.0, squares).sqrt())


def norm_each(x: Record) -> Record:
    """The norm of each tensor."""
    return x.each(lambda v: torch.linalg.vector_norm(v) if v.ndim else v.abs())


def safe_sqrt(x: Any) -> Any:
    """√x with the derivative 0 where x = 0."""
    if isinstance(x, Record):
        return x.each(safe_sqrt)
    none = x == 0
    return torch.where(none, 0.0, torch.where(none, 1.0, x).sqrt())


def choice(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b; each a record, a tensor or a number."""
    if isinstance(condition, bool):
        return a if condition else b
    names = next(x for x in (condition, a, b) if isinstance(x, Record))

    def at(x: Any, n: str) -> Tensor:
        x = x[n] if isinstance(x, Record) else x
        return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)

    return Record({n: torch.where(at(condition, n).bool(), at(a, n), at(b, n)) for n in names})


def average(x: Record) -> Record:
    """The mean over the copies of a level, one for each task: the first axis."""
    return x.each(lambda v: v.mean(0))


def by_prefix(prefix: str, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a record by absolute path."""
    return {prefix + n: v for n, v in x.items()}


__all__ = ["Record", "average", "by_prefix", "choice", "norm_all", "norm_each", "record", "safe_sqrt", "total"]


def of_all(g: Tensor, w: Tensor) -> Tensor:
    """Gradients [B, ...] of the rows' copies of one state w [B, ...], summed over the rows; each row holds the sum."""
    g = g if g.ndim == w.ndim else g.unsqueeze(0)
    return g.expand(w.shape[0], *g.shape[1:]).sum(0, keepdim=True).expand(w.shape[0], *g.shape[1:])
