"""`nestflow.compile`, `nestflow.check`: from what names a spec to a bundle, through every room in order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nestflow.graph.model import LevelGraph

if TYPE_CHECKING:
    import torch

    from nestflow.bundle.bundle import Bundle

Target = str | os.PathLike[str] | Mapping[str, Any]


def compile(
    target: Target,
    *,
    device: Any = None,
    dtype: Any = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    **params: Any,
) -> Bundle:
    """Compile a spec: `nestflow.compile("hope", dim=256)`.

    target: a shipped name, a file (.nl, .yaml, .yml), the text of a spec, or a dict of YAML's shape. params: the spec's
    params; `overrides` takes them as a mapping, for names like `seed` that this function has itself.
    dtype: a floating type of torch or its name ("float32" by default). seed: of the weights, drawn from (seed, path).
    Raises NestflowError with every mistake that was found.
    """
    from nestflow.bundle.settings import dtype_of, whole

    return compile_program(
        target, {**(overrides or {}), **params}, dtype=dtype_of(dtype), device=device, seed=whole(seed, "`seed`")
    )


def check(target: Target, **params: Any) -> LevelGraph:
    """The level graph of a spec, without compiling it. Raises NestflowError with every mistake that was found."""
    from nestflow.graph.build import build
    from nestflow.language.resolve import load

    return build(load(target, params))


def compile_program(
    target: Target, overrides: Mapping[str, Any], *, dtype: torch.dtype, device: Any, seed: int, name: str | None = None
) -> Bundle:
    """`compile` with the params in one mapping. name: of the bundle, where the target is a text without one."""
    import torch

    from nestflow.bundle.bundle import Bundle
    from nestflow.bundle.settings import device_of
    from nestflow.emit.model import emit_model
    from nestflow.graph.build import build
    from nestflow.language.printer import print_nl
    from nestflow.language.resolve import load
    from nestflow.lowering.plan import lower

    device = device_of(device)
    program = load(target, overrides)
    graph = build(program)
    if name is not None:
        graph = replace(graph, name=name)
    plan = lower(graph)
    source = emit_model(graph, plan)
    # used parts are printed in place of `use`, so that the text needs no other file
    text = print_nl(replace(program.spec, body=program.body))
    with torch.inference_mode(False):  # weights made under it could never learn
        return Bundle(graph, plan, source, spec=text, overrides=overrides, seed=seed, dtype=dtype, device=device)
