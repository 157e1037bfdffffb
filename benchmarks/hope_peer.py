"""The block of the package nested-learning (HOPE's self-modifying memory and two MLPs), and ours with its numbers.

Its self-modifying memory has one head as wide as the model. The local convolution is off (its state is not carried from
call to call), and so are the skips of the rates' and gates' memories. Its memories learn in `torch.no_grad`: no
gradient of an outer loss passes through what they did, so its training step is a reading pass without updates, forward
and backward, and a pass in which the memories and the MLPs learn, as in its own training loop.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nestflow
from benchmarks.same import apart
from benchmarks.timing import Run
from nestflow.bundle.bundle import Bundle

SPEC = Path(__file__).with_name("hope_block.nl")
PACKAGE = "nested-learning"
PERIODS = {"cms_1": 16, "cms_4": 64}  # tokens after which an MLP of its learns in the second pass
MEMORIES = {"keys": "m_k", "values": "m_v", "rates": "m_eta", "gates": "m_alpha", "store": "m_memory"}


def ours(dim: int, chunk: int, heads: int = 1, device: str = "cpu", execution: dict[str, Any] | None = None) -> Bundle:
    """hope_block.nl; with one head it computes what the peer computes."""
    return nestflow.compile(str(SPEC), dim=dim, n_heads=heads, chunk=chunk, device=device, execution=execution or None)


def theirs(dim: int, chunk: int, device: str = "cpu") -> Any:
    """Its block; gradients at each chunk's first state, as ours. Raises ImportError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nested_learning.hope.block import HOPESelfModBlock, HOPESelfModBlockConfig
        from nested_learning.levels import LevelSpec
    config = HOPESelfModBlockConfig(
        dim=dim,
        cms_levels=[LevelSpec(n, period) for n, period in PERIODS.items()],
        selfmod_chunk_size=chunk,
        selfmod_use_skip=False,
        selfmod_local_conv_window=None,
    )
    return HOPESelfModBlock(config).to(device).eval()  # its train mode clips what the MLPs say


def fresh(block: Any) -> Any:
    """The state that a sequence begins with."""
    from nested_learning.fast_state import build_block_fast_state

    return build_block_fast_state(
        titan_module=None,
        cms_blocks=dict(block.cms.blocks),
        selfmod_module=block.selfmod,
        specs=block.config.cms_levels,
        optimizer_configs={},
        default_lr=block.config.self_mod_lr,
    )


@torch.no_grad()
def copy_weights(bundle: Bundle, block: nn.Module) -> None:
    """Give the peer our weights (one head)."""
    w = {n.removeprefix("block."): p for n, p in bundle.module.named_weights()}
    where = {"selfmod.w_q.weight": "self_modifying.q.linear.weight"}
    for name, theirs_ in MEMORIES.items():
        where[f"selfmod.{theirs_}.w2.weight"] = f"self_modifying.{name}.linear.weight"
        where[f"selfmod.{theirs_}.w1.weight"] = f"self_modifying.{name}.linear_2.weight"
    for name in PERIODS:
        for at, part in ((0, "layernorm"), (1, "linear"), (3, "linear_2")):
            where |= {f"cms.blocks.{name}.net.{at}.{k}": f"{name}.{part}.{k}" for k in ("weight", "bias")}
    for name, p in block.named_parameters():
        if name in where:
            p.copy_(w[where[name]].reshape(p.shape))


def reading(block: Any, x: Tensor, state: Any) -> Tensor:
    """The block reads x, its memories learn, its MLPs (taught by nobody) do not. [B,T,dim]."""
    block.config.cms_online_updates = False  # the MLPs read all tokens at once
    return block(x, teach_signal=torch.zeros_like(x), fast_state=state)


def same_numbers(dim: int = 32, chunk: int = 4, ticks: int = 30) -> float:
    """The largest difference of the two blocks in float64 on the same weights, as a share of the largest output.

    What is left is the norm of keys and queries, where ours adds 1e-6 to the squared length."""
    torch.manual_seed(0)
    bundle, block = ours(dim, chunk), theirs(dim, chunk).double()
    bundle.module.double()
    copy_weights(bundle, block)
    x = torch.randn(1, ticks, dim, dtype=torch.float64)
    with torch.no_grad():
        return apart([bundle.module(x=x)], [reading(block, x, fresh(block))])


def stepper(block: Any) -> Callable[[Any, Tensor], tuple[Tensor, Any]]:
    """(state or None, x) -> output and state. It writes into a state, so a call works on a copy."""

    def step(state: Any, x: Tensor) -> tuple[Tensor, Any]:
        now = fresh(block) if state is None else copy.copy(state)
        if now.selfmod_state is not None:
            now.selfmod_state = copy.copy(now.selfmod_state)
            for name, memory in vars(now.selfmod_state).items():
                setattr(now.selfmod_state, name, copy.copy(memory))
        return reading(block, x, now), now

    return step


def their_forward(block: Any, x: Tensor) -> Run:
    """One pass that learns while it reads."""

    def run() -> None:
        with torch.no_grad():
            reading(block, x, fresh(block))

    return run


def their_training(block: Any, x: Tensor, target: Tensor) -> Run:
    """A reading pass without updates, forward and backward, then a pass in which everything learns."""

    def run() -> None:
        state = fresh(block)
        block.zero_grad(set_to_none=True)
        y = block(x, fast_state=state)
        signal = torch.autograd.grad((y - target).square().mean(), y, retain_graph=True)[0]
        y.backward(signal)
        block.config.cms_online_updates = True
        with torch.no_grad():
            block(x, teach_signal=signal, fast_state=state)

    return run


def our_forward(bundle: Bundle, x: Tensor) -> Run:
    """One pass that learns while it reads."""

    def run() -> None:
        with torch.no_grad():
            bundle.module(x=x)

    return run


def our_training(bundle: Bundle, x: Tensor, target: Tensor) -> Run:
    """A whole step: forward, backward through every update, and the optimizers of all levels."""

    def run() -> None:
        bundle.step({"x": x, "target": target})

    return run
