"""The GEMM floor of any module: the matrix products that its forward pass executes, alone.

`recorded(run)` notes every product while `run()` computes. `replay(products)` runs the same shapes in the same order
and number, each as one `torch.bmm(out=)` into ready buffers: nothing is read that was not in the cache a moment ago,
nothing is allocated, and nothing else is computed. What is left above it is the price of everything that is no product.

It counts our own products: a form that needs fewer of them would have a lower floor. `benchmarks.floor` is the
other kind, written by hand from the equations of one memory. Attention is counted as its two products; a causal one
sees half of the pairs on average and is counted so. Triangular systems and convolutions are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Product(NamedTuple):
    """`count` products of [rows, inner] by [inner, columns]."""

    count: int
    rows: int
    inner: int
    columns: int

    @property
    def multiply_adds(self) -> int:
        return math.prod(self)


class Recorder(TorchDispatchMode):
    """Notes the products of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")  # `baddbmm_` is a product as `baddbmm` is
        if name in OPERANDS:
            self.products += OPERANDS[name](args)
        elif name.startswith("_scaled_dot_product") and not name.endswith("_backward"):
            self.products += attention(func, args, kwargs)
        return func(*args, **kwargs)


def _two(a: Tensor, b: Tensor) -> list[Product]:
    return [Product(1, a.shape[0], a.shape[1], b.shape[1])]


def _many(a: Tensor, b: Tensor) -> list[Product]:
    return [Product(a.shape[0], a.shape[1], a.shape[2], b.shape[2])]


OPERANDS: Mapping[str, Callable[[Sequence[Any]], list[Product]]] = {
    "mm": lambda args: _two(args[0], args[1]),
    "addmm": lambda args: _two(args[1], args[2]),
    "bmm": lambda args: _many(args[0], args[1]),
    "baddbmm": lambda args: _many(args[1], args[2]),
    "mv": lambda args: _two(args[0], args[1].unsqueeze(-1)),
    "addmv": lambda args: _two(args[1], args[2].unsqueeze(-1)),
    "dot": lambda args: _two(args[0].unsqueeze(0), args[1].unsqueeze(-1)),
}


def attention(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Product]:
    """Queries by keys, weights by values. A causal query sees (keys − queries) + half of the queries, on average."""
    names = [a.name for a in func._schema.arguments]
    given = {**dict(zip(names, args)), **kwargs}
    q, k, v = given["query"], given["key"], given["value"]
    count, queries, seen = math.prod(q.shape[:-2]), q.shape[-2], k.shape[-2]
    if given.get("is_causal"):
        seen -= (queries - 1) // 2
    return [Product(count, queries, q.shape[-1], seen), Product(count, queries, seen, v.shape[-1])]


def recorded(run: Callable[[], Any]) -> list[Product]:
    """The products of one run, in order; empty ones are left out."""
    with Recorder() as recorder:
        run()
    return [p for p in recorder.products if p.multiply_adds]


def multiply_adds(products: Sequence[Product]) -> int:
    """Of all of them."""
    return sum(p.multiply_adds for p in products)


def replay(products: Sequence[Product], device: str, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """A function that runs them once. Equal shapes share their buffers."""

    def buffers(p: Product) -> tuple[Tensor, Tensor, Tensor]:
        a = torch.randn(p.count, p.rows, p.inner, device=device, dtype=dtype)
        b = torch.randn(p.count, p.inner, p.columns, device=device, dtype=dtype)
        return a, b, torch.empty(p.count, p.rows, p.columns, device=device, dtype=dtype)

    ready = {p: buffers(p) for p in dict.fromkeys(products)}
    order = [ready[p] for p in products]

    def run() -> None:
        for a, b, out in order:
            torch.bmm(a, b, out=out)

    return run
