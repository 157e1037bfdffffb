"""A matrix memory by the chunk kernels of flash-linear-attention, where that is installed.

Its conventions: [rows, ticks, heads, width], the state as [in, out] (W is [out, in] here), gates as logarithms, a scale
on queries that is 1 here, and a delta rule S_t = a_t S + β_t k (v − kᵀ a_t S)ᵀ, so β is minus our rate and v minus our
b. A gate of 0 is a logarithm without end: what comes of it is not finite, and the level runs again in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from nestflow.ops.whole import Memory


def computed(m: Memory, kernels: dict[str, Callable[..., Any]] | None = None) -> tuple[Tensor, Tensor]:
    """(W after the last tick [R, out, in], y [R, T, out]). kernels: what is called, by name (by default fla's own)."""
    kernel = (kernels or _kernels())[_name(m)]
    rate = m.rate if isinstance(m.rate, Tensor) else m.error.new_full(m.error.shape[:2], m.rate)
    values = rate[..., None] * m.error if m.look is None else -m.error
    given = {"q": m.x, "k": m.h, "v": values}
    if m.look is not None:
        given["beta"] = -rate
    gate = m.gate if isinstance(m.gate, Tensor) else m.error.new_full(m.error.shape[:2], m.gate)
    given["g"] = gate.float().log()
    heads = {n: x.unsqueeze(2).contiguous() for n, x in given.items()}
    start = m.start.mT.float().unsqueeze(1).contiguous()
    y, end = kernel(**heads, scale=1.0, initial_state=start, output_final_state=True)
    return end.squeeze(1).mT.to(m.x.dtype), y.squeeze(2).to(m.x.dtype)


def _name(m: Memory) -> str:
    channels = isinstance(m.gate, Tensor) and m.gate.dim() == 3
    if m.look is None:
        return "gla" if channels else "simple_gla"
    return "kda" if channels else "gated_delta"


def _kernels() -> dict[str, Callable[..., Any]]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # pyright: ignore[reportMissingImports]
    from fla.ops.gla import chunk_gla  # pyright: ignore[reportMissingImports]
    from fla.ops.kda import chunk_kda  # pyright: ignore[reportMissingImports]
    from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]

    gated, channels = chunk_gated_delta_rule, chunk_gla
    return {"simple_gla": chunk_simple_gla, "gla": channels, "gated_delta": gated, "kda": chunk_kda}
