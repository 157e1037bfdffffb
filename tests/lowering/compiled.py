"""Compile a spec's text to a function of inputs, weights and state, by all patterns or by those that are named."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from nestflow.bundle.source import load_source
from nestflow.emit.model import emit_model
from nestflow.graph.build import build
from nestflow.graph.model import LevelGraph
from nestflow.language.resolve import load
from nestflow.lowering.patterns import PATTERNS
from nestflow.lowering.plan import Plan, lower
from nestflow.ops.runtime import Context
from nestflow.reference.model import Reference

CPU = torch.device("cpu")


class Compiled:
    """graph, plan, source; `weights` drawn in float64; calls in one piece or in several with the state carried."""

    def __init__(self, text: str, patterns: Sequence[str] = tuple(PATTERNS)) -> None:
        self.graph: LevelGraph = build(load(text))
        self.plan: Plan = lower(self.graph, {n: PATTERNS[n] for n in patterns})
        self.source: str = emit_model(self.graph, self.plan)
        self.module: ModuleType = load_source(self.source, "generated.py")

    @property
    def patterns(self) -> list[str]:
        return [m.pattern for level in self.plan.levels.values() for m in level.memories]

    def weights(self, seed: int = 0, scale: float = 0.4) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = {w.path: torch.randn(w.full_shape, generator=generator, dtype=torch.float64) for w in self.graph.weights}
        return {p: (scale * x).requires_grad_() for p, x in draw.items()}

    def __call__(self, x: dict[str, Tensor], w: dict[str, Tensor], sizes: Sequence[int] | None = None) -> Tensor:
        return self.run(x, w, sizes)[0]

    def run(
        self, x: dict[str, Tensor], w: dict[str, Tensor], sizes: Sequence[int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The output and the state after it; sizes: lengths of the calls."""
        first = next(iter(x.values()))
        batch, ticks, dtype = first.shape[0], first.shape[1], first.dtype
        state, t0, ys = self.module.initial_state(w, batch, dtype, CPU), 0, []
        keys = set(state)
        for n in sizes or [ticks]:
            c = Context(w, state, t0, True, dtype, CPU)
            ys.append(self.module.forward(c, *(i[:, t0 : t0 + n] for i in x.values())))
            assert set(c.n) == keys, "every kept tensor is given back"
            state, t0 = c.n, t0 + n
        return torch.cat(ys, 1), state


def gradients(y: Tensor, leaves: Sequence[Tensor], seed: int = 7) -> list[Tensor]:
    """∂⟨y, random⟩/∂leaf."""
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(y.dtype)
    return list(torch.autograd.grad((y * probe).sum(), list(leaves), allow_unused=True, materialize_grads=True))


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the larger of 1 and the largest value."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item() if a.numel() else 0.0


def same(got: Tensor, want: Tensor, x: dict[str, Tensor], w: dict[str, Tensor]) -> None:
    """Two ways to one output: equal values, and gradients in the inputs and weights."""
    assert error(got, want) < 1e-10
    leaves = [*x.values(), *w.values()]
    for path, a, b in zip([*x, *w], gradients(got, leaves), gradients(want, leaves), strict=True):
        assert error(a, b) < 1e-9, path


def as_interpreted(fast: Compiled, x: dict[str, Tensor]) -> None:
    """The compiled level is the interpreted one."""
    w = fast.weights()
    same(fast(x, w), Reference(fast.graph, w)(**x), x, w)


def as_scanned(fast: Compiled, slow: Compiled, x: dict[str, Tensor], first: int) -> None:
    """A closed form is the scan: outputs, gradients, and the state at the end, also of two calls (`first` ticks in the
    first one)."""
    w, ticks = fast.weights(), next(iter(x.values())).shape[1]
    got = fast(x, w)
    same(got, slow(x, w), x, w)
    y, state = fast.run(x, w, [first, ticks - first])
    assert error(y, got) < 1e-11
    for key, kept in slow.run(x, w, [ticks])[1].items():
        assert error(state[key], kept) < 1e-9, key
