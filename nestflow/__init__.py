"""nestflow: models, their fast memories and their optimisers as one nest of levels, compiled to PyTorch.

    import nestflow

    b = nestflow.compile("hope", dim=128)      # a shipped spec, a file, the text of a spec, or a dict
    b.module, b.optimizer                      # an nn.Module and a torch.optim.Optimizer
    b.step({"tokens": x})                      # one step of training
    print(b)                                   # the level table

This file is the whole public surface. torch is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nestflow._version import __version__
from nestflow.diagnostics.core import Diagnostic, NestflowError

if TYPE_CHECKING:
    from nestflow.bundle.bundle import Bundle, Stream
    from nestflow.bundle.compile import check, compile
    from nestflow.bundle.files import load
    from nestflow.bundle.module import Module
    from nestflow.bundle.optimizer import optimizer
    from nestflow.bundle.state import State
    from nestflow.bundle.tune import tune
    from nestflow.graph.model import LevelGraph
    from nestflow.train.sampling import generate

_HOMES = {
    "Bundle": "bundle.bundle",
    "Stream": "bundle.bundle",
    "Module": "bundle.module",
    "State": "bundle.state",
    "compile": "bundle.compile",
    "check": "bundle.compile",
    "load": "bundle.files",
    "optimizer": "bundle.optimizer",
    "LevelGraph": "graph.model",
    "generate": "train.sampling",
    "tune": "bundle.tune",
}

__all__ = [
    "Bundle",
    "Diagnostic",
    "LevelGraph",
    "Module",
    "NestflowError",
    "State",
    "Stream",
    "__version__",
    "check",
    "compile",
    "generate",
    "load",
    "optimizer",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"nestflow.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nestflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
