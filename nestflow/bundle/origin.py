"""What a bundle was made from, which is what a pickle of it keeps beside its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nestflow._python import allowing

Origin = tuple[str, str, Mapping[str, Any], int, Mapping[str, nn.Module], bool]


def revive(origin: Origin) -> Any:
    """The bundle of a spec's text: (name, text, overrides, seed, networks, may it run Python)."""
    from nestflow.bundle.compile import compile_program

    name, text, overrides, seed, networks, python = origin
    with allowing(python):
        return compile_program(
            text, overrides, dtype=None, device=None, seed=seed, name=name, networks=networks, saved=True
        )


def revive_module(origin: Origin) -> nn.Module:
    """Its module."""
    return revive(origin).module
