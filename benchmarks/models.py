"""The shipped architectures as one-layer models of one size, and the same meaning as a per-token loop."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import nestflow
from benchmarks.same import apart
from nestflow.bundle.bundle import Bundle
from nestflow.bundle.module import Module
from nestflow.bundle.source import load_source
from nestflow.emit.model import emit_model
from nestflow.lowering.explain import explanations
from nestflow.lowering.patterns import PATTERNS
from nestflow.lowering.plan import lower

DIM, HEADS, VOCAB = 256, 4, 16  # a small vocabulary: what is timed is the layer
PER_TOKEN = ("cache", "scan")  # nothing is computed for several ticks at once but attention
DEEPEST = 4  # blocks that are tried to meet every mixer of a model


@functools.cache
def depth_of(name: str, **sizes: Any) -> int:
    """The fewest blocks that have every kind of level of the model: 1, but for those whose blocks differ in turn."""
    kinds = [
        len({i.name for i in nestflow.check(name, depth=d, **sizes).root.walk() if i.kind == "level"})
        for d in range(1, DEEPEST + 1)
    ]
    return kinds.index(max(kinds)) + 1


def one_layer(name: str, dim: int = DIM, heads: int = HEADS, execution: dict[str, Any] | None = None) -> Bundle:
    """The shipped spec with one block (`depth_of`), as it is compiled by default."""
    sizes = {"dim": dim, "n_heads": heads, "vocab": VOCAB}
    return nestflow.compile(name, depth=depth_of(name, **sizes), execution=execution, **sizes)


def per_token(bundle: Bundle) -> Module:
    """The same spec and weights, each memory advanced tick by tick on the tensors themselves: our own eager loop."""
    plan = lower(bundle.graph, {n: PATTERNS[n] for n in PER_TOKEN})
    program = load_source(emit_model(bundle.graph, plan), f"{bundle.graph.name}_loop")
    loop = Module(bundle.graph, program, bundle.seed, bundle.module.dtype, bundle.module.device)
    loop.load_state_dict(bundle.module.state_dict())
    loop.__dict__["_token"] = False  # one token goes through this loop too, and not through code of its own
    return loop


def lowering(bundle: Bundle) -> list[str]:
    """The patterns of its memories, each once."""
    return list(dict.fromkeys(e.pattern for e in explanations(bundle)))


def sees_all(graph: Any) -> bool:
    """Whether an attention of it has neither window nor segment."""
    caches = (m.cache for i in graph.root.walk() for m in i.memories if m.cache is not None)
    return any(c.window is None and c.segment is None for c in caches)


def some_tokens(ticks: int, batch: int = 1, device: str = "cpu") -> Tensor:
    """[batch, ticks], the same each time."""
    return torch.randint(VOCAB, (batch, ticks), generator=torch.Generator().manual_seed(0)).to(device)


@torch.no_grad()
def difference(a: Any, b: Any, ticks: int = 70) -> float:
    """The largest difference of two modules of tokens in float64, as a share of the outputs' largest value.

    They are given back in float32, with the weights they had."""
    tokens = some_tokens(ticks, 2, str(next(a.parameters()).device))
    try:
        return apart([a.double()(tokens)], [b.double()(tokens)])
    finally:
        a.float(), b.float()
