"""What the trainer asks of a bundle. `nestflow.Bundle` is one; anything of this shape trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nestflow.diagnostics.core import fail


class Trainable(Protocol):
    """The part of a bundle that training uses."""

    module: Any  # nn.Module: module(tokens=x_BT int64) -> logits_BTV
    optimizer: Any  # torch.optim.Optimizer
    graph: Any  # LevelGraph

    def loss(self, batch: dict[str, Tensor]) -> Tensor: ...

    def step(self, batch: dict[str, Tensor]) -> Mapping[str, Any]: ...

    def stream(self, batch: int = 1) -> Any: ...

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> Any: ...


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are (the CPU if it has none)."""
    for p in module.parameters():
        return p.device
    return torch.device("cpu")


def token_input(bundle: Trainable) -> str:
    """The name of the one input that takes bytes. Raises NF527 if the spec has another kind of inputs.

    A byte stream goes into an input of integers `int[T] in [0, vocab)` with vocab of at least 256.
    """
    inputs = list(getattr(bundle.graph, "inputs", ()) or ())
    if not inputs:
        return "tokens"
    if len(inputs) > 1:
        names = ", ".join(f"`{i.name}`" for i in inputs)
        raise fail(
            "NF527",
            f"this spec has {len(inputs)} inputs ({names}), and text is one",
            inputs[1].span,
            "give examples with a column for each input: `--data FILE.npz` (.csv, .jsonl, .safetensors)",
        )
    only = inputs[0]
    output = getattr(bundle.graph, "output", None)
    if output is not None and output.op == "outputs":
        raise fail(
            "NF527",
            "this spec has several outputs, and which of them scores the next byte is not said",
            output.span,
            "`output model(tokens)` alone, or a loop of your own with `bundle.step(batch)`",
        )
    if only.low is None and only.high is None:
        raise fail(
            "NF527",
            f"the input `{only.name}` is not a stream of token numbers, and text is bytes",
            only.span,
            "examples come from a file: `--data FILE.npz` (.csv, .jsonl, …); bytes want `int[T] in [0, 256)`",
        )
    return only.name


def reads_bytes(bundle: Trainable) -> bool:
    """Whether the one input takes any byte."""
    inputs = list(getattr(bundle.graph, "inputs", ()) or ())
    return len(inputs) == 1 and inputs[0].low == 0 and (inputs[0].high or 0) >= 255


def require_vocab(bundle: Trainable, highest: int) -> None:
    """NF527 if the text has bytes above what the input takes. highest: the largest byte of the text."""
    for i in list(getattr(bundle.graph, "inputs", ()) or ())[:1]:
        if i.high is not None and highest > i.high:
            raise fail(
                "NF527",
                f"the text has a byte of value {highest}, and `{i.name}` takes 0 to {int(i.high)}",
                i.span,
                "set `vocab = 256` to read any bytes",
            )
