"""How much a pass may keep for its backward pass where `execution` does not say: a quarter of the memory that there is.

The second piece of a loop is watched (the first may begin at what asks for no gradient): what autograd saves of it,
times the pieces, is what the loop would keep. A loop for which that is too much goes in segments, as with
`checkpointing auto`, from there on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
Made = TypeVar("Made")


class Room:
    """What is left of it in one call of a module: loop by loop it gets less. None: not asked yet."""

    def __init__(self, left: int | None = None) -> None:
        self.left = left

    def holds(self, bytes_: int, device: torch.device) -> bool:
        """Whether so much more can be kept; if so, it is."""
        if self.left is None:
            self.left = memory_of(device) // 4
        fits = bytes_ <= self.left
        self.left -= bytes_ if fits else 0
        return fits


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory, in a container of those that it may have."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        return 1 << 62
    try:
        return min(found, int(LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return found


def watched() -> bool:
    """Whether something else looks at what autograd saves: then nothing is counted here, which would hide it."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)  # pyright: ignore[reportAttributeAccessIssue]
    return hooks is not None


def counted(run: Callable[[], Made], known: Iterable[Tensor]) -> tuple[Made, int]:
    """What `run` gives, and the bytes that autograd saves for it, without tensors that are kept all the same."""
    own = {x.untyped_storage().data_ptr() for x in known}
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        made = run()
    return made, sum(seen.values())
