"""Nothing assumes the CPU: the meta device makes every mix of devices an error; CUDA gives the numbers of the CPU."""

from __future__ import annotations

import pytest
import torch

import nestflow
from tests.bundle.specs import LM, MEMORY

SPECS = [
    LM,
    MEMORY,
    "linear_attention",
    "titans",
    "titans_mac",
    "titans_mag",
    "titans_mal",
    "hope",
    "hope_attention",
    "transformer",
    "hybrid",
]


def small(spec: str, **settings: object) -> nestflow.Bundle:
    params = {} if "\n" in spec else {"dim": 16, "n_heads": 2}
    return nestflow.compile(spec, **params, **settings)


def test_the_meta_device_finds_a_stray_cpu_tensor() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(2, device="meta") + torch.arange(2)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s if "\n" not in s else str(SPECS.index(s)))
def test_no_tensor_is_made_on_another_device(spec: str) -> None:
    module = small(spec).module.to("meta")
    x = torch.zeros(2, 40, dtype=torch.long, device="meta")
    # below the checks, which read values
    losses, state = module._compute("losses", {"tokens": x}, module.initial_state(2).tensors, 0, True)
    (loss,) = losses.values()
    grads = torch.autograd.grad(loss, [w for w in module.parameters() if w.requires_grad], allow_unused=True)
    assert {t.device.type for t in [loss, *state.values(), *(g for g in grads if g is not None)]} == {"meta"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s if "\n" not in s else str(SPECS.index(s)))
def test_cuda_gives_the_numbers_of_the_cpu(spec: str) -> None:
    cpu, gpu = small(spec, dtype="float64"), small(spec, dtype="float64", device="cuda")
    x = torch.randint(0, 11, (2, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gpu.module(tokens=x.cuda()).cpu(), cpu.module(tokens=x), rtol=1e-9, atol=1e-9)
    for b in (cpu, gpu):
        b.set_total_steps(10)
    for _ in range(2):
        assert abs(cpu.step({"tokens": x})["loss"] - gpu.step({"tokens": x})["loss"]) < 1e-8
