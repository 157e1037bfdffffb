"""`execution { … }`: how a spec is computed, never what. Its settings stand where `compile` is told nothing."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.suggest import did_you_mean
from nestflow.language import tree

DTYPES = ("float32", "float64", "bfloat16", "float16")
LATER = ("backend", "block", "checkpointing", "compile", "microbatch")


def settings(elab: Any, s: tree.Execution) -> list[tuple[str, Any]]:
    """The settings of a block. Raises NF217 (no field), NF221 (unknown), NF222 (twice), NF325 (no such value)."""
    found: dict[str, tuple[Any, tree.Field]] = {}
    for f in s.body:
        if not isinstance(f, tree.Field):
            raise elab.failure("NF217", "this statement cannot stand in `execution`", f.span, "it has fields only")
        if f.name in LATER:
            raise elab.not_yet(f"`{f.name}` of `execution`", f.span)
        if f.name not in ("dtype", "device"):
            help_ = did_you_mean(f.name, ("dtype", "device")) or "its fields are dtype and device"
            raise elab.failure("NF221", f"`execution` has no field `{f.name}`", f.name_span or f.span, help_)
        if f.name in found:
            raise elab.failure("NF222", f"`{f.name}` is given twice", f.span, "keep one of them")
        found[f.name] = (_value(elab, f), f)
    return [(name, value) for name, (value, _) in found.items()]


def _value(elab: Any, f: tree.Field) -> str:
    text = f.value.value if isinstance(f.value, tree.String) else getattr(f.value, "name", None)
    if not isinstance(text, str):
        raise elab.failure("NF325", f"`{f.name}` of `execution` is a name or a text", f.span, f"`{f.name} float32`")
    if f.name == "dtype" and text not in DTYPES:
        help_ = did_you_mean(text, DTYPES) or "one of " + ", ".join(DTYPES)
        raise elab.failure("NF325", f"`{text}` is no floating type of weights", f.value.span, help_)
    return text
