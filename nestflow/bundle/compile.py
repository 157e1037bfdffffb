"""`nestflow.compile`, `nestflow.check`: from what names a spec to a bundle, through every room in order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nestflow._python import allowed, allowing
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
    allow_python: bool = False,
    allow_large: bool = False,
    execution: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    **params: Any,
) -> Bundle:
    """Compile a spec: `nestflow.compile("hope", dim=256)`.

    target: a shipped name, a file (.nl, .yaml, .yml), the text of a spec, or a dict of YAML's shape.
    params: the spec's params, and the networks it declares (`extern net` takes `net=model`); `overrides` takes them as
    a mapping, for names like `seed` that this function has itself.
    dtype: a floating type of torch or its name (by default what the spec's `execution` says, else the network's where
    one is given, else "float32").
    seed: of the weights, drawn from (seed, path).
    allow_python: the spec may run the Python functions that it names, `py("pkg.mod:fn")`; not if it is a stranger's.
    execution: settings of `execution { … }` by name, or a file of them as `nestflow tune` writes; they come before the
    spec's own.
    allow_large: weights and state over 1 GB are made; without it they are an error (NF539) before any is.
    Raises NestflowError with every mistake that was found.
    """
    from nestflow.bundle.networks import split
    from nestflow.bundle.settings import dtype_of, whole
    from nestflow.bundle.tuned import told

    given, networks = split({**(overrides or {}), **params})
    kind = None if dtype is None else dtype_of(dtype)
    with allowing(allow_python or allowed()):
        return compile_program(
            target,
            given,
            dtype=kind,
            device=device,
            seed=whole(seed, "`seed`"),
            networks=networks,
            small=not allow_large,
            execution=told(execution),
        )


def check(target: Target, *, allow_python: bool = False, **params: Any) -> LevelGraph:
    """The level graph of a spec, without compiling it. Raises NestflowError with every mistake that was found.

    params: the spec's, and its networks (`net=model`): without them what depends on their parameters is not checked.
    """
    import sys

    from nestflow.graph.build import build
    from nestflow.language.resolve import load

    with allowing(allow_python or allowed()):
        if "torch" not in sys.modules:  # then none of the values is a network
            return build(load(target, params))
        from nestflow.bundle.networks import facts_of, split

        given, networks = split(params)
        return build(load(target, given), facts_of(networks))


def compile_program(
    target: Target,
    overrides: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    device: Any,
    seed: int,
    name: str | None = None,
    networks: Mapping[str, Any] | None = None,
    small: bool = False,
    execution: Mapping[str, Any] | None = None,
    saved: bool = False,
) -> Bundle:
    """`compile` with the params in one mapping. name: of the bundle, where the target is a text without one.
    small: refuse what is over the budget of `nestflow.bundle.budget`. execution: settings that come before those of
    the spec's own `execution`, which also say type and device where these are not given here. saved: of a bundle that
    was saved; then they do not.

    dtype: None is float32, or the type of the first network. networks: the caller's, by name."""
    import torch

    from nestflow.bundle.budget import check_size
    from nestflow.bundle.bundle import Bundle
    from nestflow.bundle.networks import facts_of, kind_of, needed, same_kind, settle
    from nestflow.bundle.settings import backend_of, device_of, dtype_of, for_capture
    from nestflow.emit.model import emit_model
    from nestflow.graph.build import build
    from nestflow.graph.execution import at_setting, fitting
    from nestflow.language.printer import print_nl
    from nestflow.language.resolve import load
    from nestflow.lowering.plan import lower

    device = device_of(device)
    program = load(target, overrides)
    networks = dict(networks or {})
    graph = build(program, facts_of(networks))
    needed(graph, networks)
    said = {**dict(graph.execution), **(execution or {})}

    def at(name: str) -> Any:  # what the caller has set stands nowhere in the spec
        return nullcontext() if name in (execution or {}) else at_setting(program.body, name)

    graph = fitting(replace(graph, execution=tuple(said.items())))
    if not saved:
        dtype = dtype or (dtype_of(said["dtype"]) if "dtype" in said else None)
        with at("device"):
            device = device or device_of(said.get("device"))
    if networks:
        known, place = kind_of(networks.values())
        same_kind(networks, dtype, device)
        dtype, device = dtype or known, device or place
        settle(graph, networks)
    if small:
        check_size(graph, (dtype or torch.float32).itemsize)
    if name is not None:
        graph = replace(graph, name=name)
    told = not saved or "backend" in (execution or {})  # what a saved spec asks for may not be on this machine
    if said.get("capture", False) and (not saved or "capture" in (execution or {})):
        with at("capture"):
            for_capture(device)
    with at("backend"):
        backend = backend_of(said.get("backend", "auto"), device, strict=told)
    plan = lower(replace(graph, execution=tuple({**said, "backend": backend}.items())))
    source = emit_model(graph, plan)
    # used parts are printed in place of `use`, so that the text needs no other file
    text = print_nl(replace(program.spec, body=program.body))
    with torch.inference_mode(False):  # weights made under it could never learn
        return Bundle(
            graph,
            plan,
            source,
            spec=text,
            overrides=overrides,
            seed=seed,
            dtype=dtype or torch.float32,
            device=device,
            networks=networks,
        )
