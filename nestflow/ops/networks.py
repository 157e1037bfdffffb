"""Calls of a network of the caller from generated code: its inputs by name, its own forward, its result as a tensor.

A network has no state that could be carried, so a stream keeps the inputs it has seen and reads them again: the ticks
of a call are the last ones of what the network gives for all of them. That is the whole sequence's result for every
network that does not look ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nestflow.diagnostics.core import fail


def network(
    c: Any, name: str, inputs: Mapping[str, Any], constants: Mapping[str, Any], tails: Mapping[str, str]
) -> Any:
    """What the network gives. inputs: tensors [B, T, ...] or [B, ...]. tails: input -> path of its earlier ticks."""
    run: Callable[..., Any] = c.networks[name]
    given = dict(inputs)
    rows = max(x.shape[0] for x in given.values())
    for key, path in tails.items():
        x = given[key]
        x = x.expand(rows, *x.shape[1:])
        if c.t0:
            x = torch.cat([c.s[path].to(x.dtype), x], 1)
        given[key] = c.n[path] = x
    net: Any = run
    if getattr(net, "training", c.training) == c.training:
        return net(**given, **constants)
    from nestflow.bundle.networks import mode

    with mode(net, c.training):
        return net(**given, **constants)


def network_result(
    result: Any, name: str, field: str, shape: tuple[int, ...], kind: str, rows: int, ticks: int | None, t0: int
) -> Tensor:
    """The result, or its `.logits` or `.loss`, as the tensor that the spec says. ticks: of this call, None where the
    result has no token axis. Raises NestflowError NF562 where it is another."""
    value = result if not field or (field == "logits" and isinstance(result, Tensor)) else getattr(result, field, None)
    part = f"`.{field}` of `{name}`" if field else f"what `{name}` gives"
    if isinstance(result, Mapping) and value is None and field:
        value = result.get(field)
    if not isinstance(value, Tensor):
        parts = [f for f in ("logits", "loss") if isinstance(getattr(result, f, None), Tensor)]
        help_ = f"`{name}(…).{parts[0]}` is one" if parts and not field else None
        raise fail("NF562", f"{part} is a {type(value).__name__}, and a tensor is wanted", help=help_)
    if field == "loss":
        if value.numel() != 1:
            raise fail("NF562", f"{part} is one number, and this is {list(value.shape)}")
        return value.reshape(())
    given = "float" if value.is_floating_point() else "bool" if value.dtype == torch.bool else "int"
    lead = (rows,) if ticks is None else (rows, t0 + ticks)
    if tuple(value.shape) != (*lead, *shape) or given != kind:
        axes = ", ".join([*(["T"] if ticks is not None else []), *map(str, shape)])
        raise fail(
            "NF562",
            f"{part} is {given} {list(value.shape)}, and {kind} {[*lead, *shape]} is what the spec says",
            help=f"its type is `{kind}[{axes}]` in the spec; the batch comes first",
        )
    return value if ticks is None or not t0 else value[:, -ticks:]
