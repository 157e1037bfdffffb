"""The implementations under test: each a function from (chunk, device) to a module of x [B,T,dim]."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.same import apart

DIM, HEADS, EXPAND = 256, 4, 2
SPEC = Path(__file__).with_name("titans_memory.nl")


def nestflow_layer(chunk: int, device: str, execution: dict[str, Any] | None = None) -> nn.Module:
    """The compiled spec."""
    import nestflow

    return nestflow.compile(str(SPEC), chunk_size=chunk, execution=execution).module.to(device)


def checkpointed_layer(chunk: int, device: str) -> nn.Module:
    """The same; segments of chunks keep nothing for the backward pass and run again there."""
    return nestflow_layer(chunk, device, {"checkpointing": "auto"})


def compiled_layer(chunk: int, device: str) -> nn.Module:
    """The same; four chunks are one call of code by `torch.compile`, which takes tens of seconds the first time."""
    return nestflow_layer(chunk, device, {"compile": True})


def plain_layer(chunk: int, device: str) -> nn.Module:
    """The careful loop in plain torch."""
    from benchmarks.plain_titans import PlainTitans

    return PlainTitans(DIM, HEADS, EXPAND, chunk).to(device)


class _First(nn.Module):
    """titans-pytorch returns (output, state)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def titans_pytorch(chunk: int, refreshed: bool) -> nn.Module:
    """Its layer as this benchmark runs it; called it gives (output, state)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from titans_pytorch import MemoryMLP, NeuralMemory
    layer = NeuralMemory(
        dim=DIM,
        heads=HEADS,
        dim_head=DIM // HEADS,
        chunk_size=chunk,
        batch_size=chunk if refreshed else None,
        model=MemoryMLP(DIM // HEADS, depth=2, expansion_factor=float(EXPAND)),
        mem_model_norm_add_residual=False,
        default_step_transform_max_lr=0.1,
    )
    # its per-head parameters are one expanded view on CPU, which no optimiser step accepts: give each head its own
    for p in layer.parameters():
        p.data = p.data.clone()
    return layer


def peer_layer(chunk: int, device: str) -> nn.Module:
    """titans-pytorch with its gradient refreshed at every chunk (batch_size = chunk_size): the comparable model."""
    return _First(titans_pytorch(chunk, refreshed=True)).to(device)


def peer_default_layer(chunk: int, device: str) -> nn.Module:
    """titans-pytorch as its README runs it: every gradient at the sequence's first weights, another model."""
    return _First(titans_pytorch(chunk, refreshed=False)).to(device)


CASES: dict[str, Callable[..., nn.Module]] = {
    "nestflow": nestflow_layer,
    "nestflow, checkpointing auto": checkpointed_layer,
    "nestflow, compiled": compiled_layer,
    "plain torch": plain_layer,
    "titans-pytorch": peer_layer,
    "titans-pytorch, first weights": peer_default_layer,
}
NEEDS = {"titans-pytorch": "titans-pytorch", "titans-pytorch, first weights": "titans-pytorch"}  # packages
DEFAULT = tuple(n for n in CASES if n != "titans-pytorch, first weights")
WARM = ("nestflow, compiled",)  # compiled for the very shapes and strides that are timed


def same_numbers(chunk: int, ticks: int = 70) -> float:
    """The largest difference of nestflow and plain torch in float64 on the same weights, outputs of order one."""
    from benchmarks.plain_titans import PlainTitans

    ours = nestflow_layer(chunk, "cpu").double()
    plain = PlainTitans(DIM, HEADS, EXPAND, chunk).double()
    plain.copy_from(dict(ours.named_weights()))
    x = torch.randn(2, ticks, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return (ours(x=x) - plain(x)).abs().max().item()


def same_by_options(ours: nn.Module, others: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    """How far the options of `execution` are from the plain module, in float32: outputs and gradients of the
    weights, each as a share of its largest number."""

    def numbers(layer: nn.Module) -> list[Tensor]:
        layer.zero_grad(set_to_none=True)
        y = layer(x)
        y.square().mean().backward()
        return [y.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)]

    want = numbers(ours)
    return {name: apart(numbers(layer), want) for name, layer in others.items()}


def forward_pass(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """One inference pass."""

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def training_pass(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward into the weights and into x, as inside a deeper model."""
    x = x.detach().requires_grad_()

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).square().mean().backward()

    return run


def passes_of(case: str, chunk: int, length: int, batch: int, device: str) -> tuple[Callable[[], None], ...]:
    """For `benchmarks.peak`: a short training pass, and the one that counts."""
    layer = CASES[case](chunk, device)
    x = torch.randn(batch, length, DIM, device=device)
    return training_pass(layer, x[:, : 2 * chunk]), training_pass(layer, x)
