"""A matrix memory as its recurrence, tick by tick, and memories drawn at random: what kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from nestflow.ops.whole import Memory

BY_KERNEL = {"retnet", "gla", "hgrn2", "mamba2", "deltanet", "gated_deltanet", "kda", "comba"}  # of tests.zoo.bare
GATES = ("one", "constant", "number", "channel")


def drawn(ticks: int, gate: str, looks: bool, rows: int = 2, n_in: int = 5, n_out: int = 7) -> Memory:
    """Leaves that ask for gradients. Gates are 0 at some tick and negative at another; keys repeat."""
    source = torch.Generator().manual_seed(ticks)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    h = torch.nn.functional.normalize(normal(rows, ticks, n_in), dim=-1)
    h[:, 1::3] = h[:, :1]
    gates: Tensor | float = 0.8 if gate == "constant" else 1.0
    if gate in ("number", "channel"):
        gates = torch.rand(rows, ticks, *([n_in] if gate == "channel" else []), generator=source)
        gates[0, ticks // 2], gates[1, ticks // 3] = 0.0, -0.5
        gates.requires_grad_()
    look = (h + 0.1 * normal(rows, ticks, n_in)).requires_grad_() if looks else None
    scale = torch.rand(rows, ticks, generator=source).requires_grad_() if looks else 1.0
    rate = (-torch.rand(rows, ticks, generator=source)).requires_grad_()
    vectors = (normal(rows, n_out, n_in), normal(rows, ticks, n_in), h, normal(rows, ticks, n_out))
    return Memory(*(v.requires_grad_() for v in vectors), gates, rate, look, scale)


def tick_by_tick(m: Memory) -> tuple[Tensor, Tensor]:
    """(W at the end, y): W_t = W_{t−1} ⊙ a_t + e_t h_tᵀ, e_t = r_t (s_t W_{t−1} p_t + b_t), y_t = W_t x_t."""

    def number(v: Tensor | float, t: int) -> Tensor | float:
        return v[:, t, None] if isinstance(v, Tensor) else v

    w, ys = m.start, []
    for t in range(m.x.shape[1]):
        e = m.error[:, t]
        if m.look is not None:
            e = e + number(m.scale, t) * torch.einsum("roi,ri->ro", w, m.look[:, t])
        e = number(m.rate, t) * e
        gate = m.gate
        if isinstance(gate, Tensor):
            gate = gate[:, t, None, None] if gate.dim() == 2 else gate[:, t, None, :]
        w = gate * w + torch.einsum("ro,ri->roi", e, m.h[:, t])
        ys.append(torch.einsum("roi,ri->ro", w, m.x[:, t]))
    return w, torch.stack(ys, 1)


def compared(m: Memory, got: tuple[Tensor, Tensor], tolerance: float) -> None:
    """State, outputs and the gradients of all leaves: `got` against the recurrence, by the size of each."""
    want = tick_by_tick(m)
    leaves = {n: v for n, v in m._asdict().items() if isinstance(v, Tensor) and v.is_leaf}
    near(got[0], want[0], tolerance, "state")
    near(got[1], want[1], tolerance, "output")
    pulled = []
    for state, y in (got, want):
        loss = (state.sin() + 0.1 * state.square()).sum() + (y.cos() + 0.1 * y.square()).sum()
        pulled.append(torch.autograd.grad(loss, list(leaves.values())))
    for name, a, b in zip(leaves, *pulled, strict=True):
        near(a, b, tolerance, f"gradient of {name}")


def near(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    assert got.shape == want.shape, what
    error = (got - want).abs().max().item()
    assert error <= tolerance * (1 + want.abs().max().item()), f"{what}: off by {error:.1e}"
