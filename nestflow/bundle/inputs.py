"""What a module accepts: names, types, shapes and bounds of its inputs, each mistake a coded sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nestflow.diagnostics.core import Diagnostic, NestflowError, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.model import InputSpec, LevelGraph


def by_name(
    specs: Sequence[InputSpec], args: tuple[Any, ...], named: Mapping[str, Any], needed: Collection[str] | None = None
) -> dict[str, Any]:
    """Inputs by name; one by position where one is wanted. needed: those that are read here (all by default); the
    others may be missing. Raises NF501 (unknown), NF502 (missing)."""
    names = [s.name for s in specs]
    wanted = names if needed is None else [n for n in names if n in needed]
    if not isinstance(named, Mapping):
        listed = ", ".join(f'"{n}": …' for n in names)
        raise fail(
            "NF501",
            f"a batch is a mapping from the spec's inputs to tensors, and this is a {type(named).__name__}",
            help=f"`b.step({{{listed}}})`",
        )
    values = dict(named)
    if args:
        if len(wanted) != 1 or len(args) != 1 or values:
            raise fail(
                "NF501",
                f"inputs are given by name here: {', '.join(f'`{n}`' for n in names) or 'none'}",
                help="only a single input may be given by position",
            )
        values[wanted[0]] = args[0]
    unknown = [n for n in values if n not in names]
    missing = [s for s in specs if s.name not in values and s.name in wanted]
    if not unknown and not missing:
        return {n: values[n] for n in names if n in values}
    found = [
        Diagnostic(
            "NF501",
            f"this spec has no input `{n}`",
            None,
            did_you_mean(str(n), names) or f"its inputs are {', '.join(f'`{x}`' for x in names) or 'none'}",
        )
        for n in unknown
    ]
    found += [Diagnostic("NF502", f"the input `{s.name}` is missing", s.span) for s in missing]
    raise NestflowError(found)


def checked(
    specs: Sequence[InputSpec], values: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """The inputs as tensors of the module's type and device.

    Raises NestflowError: NF503 type, NF504 rank or feature shape, NF505 rows or ticks differ or are none,
    NF506 out of bounds.
    """
    found: list[Diagnostic] = []
    tensors: dict[str, Tensor] = {}
    specs = [s for s in specs if s.name in values]
    for spec in specs:
        try:
            tensors[spec.name] = _one(spec, values[spec.name], dtype, device)
        except NestflowError as e:
            found += e.diagnostics
    if not found:
        found = _agree(specs, tensors)
    if found:
        raise NestflowError(found)
    return tensors


def _one(spec: InputSpec, value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as e:
            raise fail("NF503", f"the input `{spec.name}` is no tensor ({type(value).__name__})", spec.span) from e
    if value.layout is not torch.strided or (value.is_meta and device.type != "meta"):
        message = f"the input `{spec.name}` is a tensor without numbers or of another layout ({_layout(value)})"
        raise fail("NF503", message, spec.span, "a plain tensor is wanted: `x.to_dense()`")
    kind = (
        "bool"
        if value.dtype == torch.bool
        else "float"
        if value.is_floating_point()
        else "other"
        if value.is_complex()
        else "int"
    )
    if kind != spec.type.dtype:
        raise fail(
            "NF503",
            f"the input `{spec.name}` is {spec.type.dtype}, and this tensor is {_name(value.dtype)}",
            spec.span,
            f"convert it: `{spec.name}.{ {'int': 'long', 'float': 'float', 'bool': 'bool'}[spec.type.dtype] }()`",
        )
    lead = ["batch"] + ([spec.type.clock] if spec.type.clock else [])
    shape = tuple(value.shape)
    if len(shape) != len(lead) + len(spec.type.shape) or shape[len(lead) :] != spec.type.shape:
        wanted = ", ".join([*lead, *map(str, spec.type.shape)])
        raise fail(
            "NF504",
            f"the input `{spec.name}` has shape [{wanted}], and this tensor is {list(shape)}",
            spec.span,
            "the batch comes first" if len(shape) < len(lead) + len(spec.type.shape) else None,
        )
    _bounds(spec, value)
    want = dtype if kind == "float" else torch.int64 if kind == "int" else torch.bool
    return value.to(device=device, dtype=want)


def _layout(x: Tensor) -> str:
    return "meta" if x.is_meta else str(x.layout).removeprefix("torch.")


def _bounds(spec: InputSpec, value: Tensor) -> None:
    if (spec.low is None and spec.high is None) or value.is_meta or value.numel() == 0:
        return
    low, high = torch.stack(value.aminmax()).tolist()  # one answer to wait for
    for bad, side, limit in ((low, "least", spec.low), (high, "most", spec.high)):
        if limit is not None and (bad < limit if side == "least" else bad > limit):
            at = (value == bad).nonzero()[0].tolist()
            raise fail(
                "NF506",
                f"the input `{spec.name}` is at {side} {limit:g}, and element {at} is {_shown(bad)}",
                spec.span,
            )


def _agree(specs: Sequence[InputSpec], tensors: Mapping[str, Tensor]) -> list[Diagnostic]:
    found: list[Diagnostic] = []
    groups = [(0, "rows", list(specs)), (1, "ticks", [s for s in specs if s.type.clock and s.type.clock != "N"])]
    for group in dict.fromkeys(s.name.rpartition(".")[0] for s in specs if s.type.clock == "N"):
        # support and query may differ in their examples; what belongs together may not
        of = [s for s in specs if s.type.clock == "N" and s.name.rpartition(".")[0] == group]
        groups.append((1, "examples", of))
    for axis, what, having in groups:
        sizes = {s.name: tensors[s.name].shape[axis] for s in having}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"`{n}` {k}" for n, k in sizes.items())
            found.append(Diagnostic("NF505", f"the inputs differ in their number of {what}: {listed}"))
        elif sizes and not next(iter(sizes.values())):
            found.append(Diagnostic("NF505", f"the inputs have no {what}", having[0].span))
    return found


def unequal(graph: LevelGraph, rows: int, copies: int) -> NestflowError:
    """What to raise where so many workers cannot share a batch evenly."""
    level = next(x for x in graph.step_levels if x.copies == copies)
    return fail(
        "NF505",
        f"the batch has {rows} rows, and `{level.name}` has {copies} workers, each with as many",
        level.span,
        f"a batch of {max(rows // copies, 1) * copies} rows, or another number of workers",
    )


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
