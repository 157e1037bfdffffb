"""Nested Python data with tensors in it, as JSON beside a table of tensors. Numbers come back bit for bit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

PLAIN = (str, int, float, bool, type(None))


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """JSON data of a value; its tensors go into `tensors`. Raises TypeError for what is no data."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return {k: pack(v, tensors, f"{path}/{k}") for k, v in value.items()}
        return {"$items": [[pack(k, tensors), pack(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    if isinstance(value, PLAIN):
        return value
    raise TypeError(
        f"{path or 'it'} is a {type(value).__name__}: numbers, texts, lists, dicts and tensors can be saved"
    )


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo of `pack`."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$items" in value:
        return {unpack(k, tensors): unpack(v, tensors) for k, v in value["$items"]}
    if "$tuple" in value:
        return tuple(unpack(v, tensors) for v in value["$tuple"])
    return {k: unpack(v, tensors) for k, v in value.items()}
