"""What is handed to flash-linear-attention: its own plain forms stand in for its kernels, which run on a GPU alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nestflow.kernels.fla import _kernels, _name, computed
from nestflow.ops.whole import Memory
from tests.kernels.memories import GATES, compared, drawn

fla = pytest.importorskip("fla", reason="flash-linear-attention is not installed")


def plain() -> dict[str, Callable[..., Any]]:
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.kda.naive import naive_recurrent_kda
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    def gla(q: Tensor, g: Tensor, scale: float, **given: Any) -> Any:  # its plain form has a scale of its own
        return naive_recurrent_gla(q * q.shape[-1] ** 0.5 * scale, gk=g, **given)

    gated, simple = naive_recurrent_gated_delta_rule, naive_recurrent_simple_gla
    return {"simple_gla": simple, "gla": gla, "gated_delta": gated, "kda": naive_recurrent_kda}


def usual(m: Memory) -> Memory:
    """Gates above 0, and an error that looks with the key at what the gate has left."""
    gate = m.gate.detach().abs().clamp(min=0.1).requires_grad_() if isinstance(m.gate, Tensor) else m.gate
    if m.look is None:
        return m._replace(gate=gate)
    if isinstance(gate, Tensor) and gate.dim() == 3:
        return m._replace(gate=gate, look=gate * m.h, scale=1.0)
    return m._replace(gate=gate, look=m.h, scale=gate)


@pytest.mark.parametrize("looks", [False, True], ids=["recurrence", "delta"])
@pytest.mark.parametrize("gate", GATES)
def test_its_conventions(gate: str, looks: bool) -> None:
    m = usual(drawn(19, gate, looks))
    compared(m, computed(m, plain()), 1e-5)


@pytest.mark.parametrize("looks", [False, True], ids=["recurrence", "delta"])
@pytest.mark.parametrize("gate", GATES)
def test_its_kernels_take_what_they_are_given(gate: str, looks: bool) -> None:
    """By name: the shapes are those of the plain forms."""
    m, given = usual(drawn(5, gate, looks)), {}
    real = _kernels()

    def seen(**named: Any) -> Any:
        given.update(named)
        return named["v"], torch.zeros_like(named["initial_state"])

    computed(m, dict.fromkeys(real, seen))
    inspect.signature(real[_name(m)]).bind(**given)
    assert set(given) >= {"q", "k", "v", "g", "scale", "initial_state", "output_final_state"}
