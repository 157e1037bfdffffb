"""The matmul floor: every matrix product of the closed form, in its own shape and number, and nothing else.

One chunk of C tokens, G = batch × heads memories of width d and hidden width m, two slots a weight (θ and
momentum): keys forward and back, scores, recall after every token, new state. Their operands are the same buffers for
every chunk, so caches are as warm as they can be. A training step is three forward passes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Shape = tuple[int, int, int]


def chunk_products(chunk: int, width: int, hidden: int) -> list[Shape]:
    """(rows, inner, columns) of each batched product of one chunk."""
    c, d, m = chunk, width, hidden
    return [
        (c, d, m),  # keys through the first matrix
        (c, m, d),  # and the second
        (c, d, m),  # the error back through the second
        (c, c, c),  # decay times momentum
        (c, d, c),  # queries · keys
        (c, 2 * d + c, m),  # recall, first layer: [q, q, scores] @ [W, S, e]
        (c, m, c),  # hidden · hidden
        (c, 2 * m + c, d),  # recall, second layer
        (2 * d, c, m),  # state of the first matrix and its momentum
        (2 * m, c, d),  # of the second
    ]


def multiply_adds(batch: int, ticks: int, chunk: int, dim: int, heads: int, expand: int) -> int:
    """Of one forward pass of the layer."""
    width = dim // heads
    per_chunk = sum(r * i * c for r, i, c in chunk_products(chunk, width, expand * width)) * batch * heads
    return per_chunk * -(-ticks // chunk) + batch * ticks * (4 * dim * dim + 3 * dim * heads)


def floor(batch: int, ticks: int, chunk: int, dim: int, heads: int, expand: int, device: str) -> Callable[[], None]:
    """A function that runs the forward floor once."""
    width = dim // heads

    def product(count: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, inner, columns = shape
        a = torch.randn(count, rows, inner, device=device)
        b = torch.randn(count, inner, columns, device=device)
        return a, b, torch.empty(count, rows, columns, device=device)

    small = [product(batch * heads, s) for s in chunk_products(chunk, width, expand * width)]
    large = [product(1, (batch * ticks, dim, n)) for n in (dim, dim, dim, dim, heads, heads, heads)]
    chunks = -(-ticks // chunk)

    def run() -> None:
        for a, b, out in large:
            torch.bmm(a, b, out=out)
        for _ in range(chunks):
            for a, b, out in small:
                torch.bmm(a, b, out=out)

    return run
