"""Functions that generated code calls have a name each: in one file, a second would take the place of the first."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

from nestflow import ops
from nestflow.emit.writer import Writer


def functions(module: str) -> dict[str, object]:
    found = vars(importlib.import_module(module))
    return {n: f for n, f in found.items() if inspect.isfunction(f) and not n.startswith("_")}


def test_what_optimizers_call_is_nowhere_else_another_thing() -> None:
    rules = functions("nestflow.ops.rules")
    generated = [f"nestflow.ops.{m.name}" for m in pkgutil.iter_modules(ops.__path__) if m.name != "rules"]
    unlike = {
        (n, module): f for module in generated for n, f in functions(module).items() if n in rules and rules[n] is not f
    }
    assert sorted(unlike) == [("copy_of", "nestflow.ops.workers"), ("drawn", "nestflow.ops.evolution")]  # no code's


def test_a_name_that_is_two_things_is_no_silent_matter() -> None:
    writer = Writer()
    assert writer.use("nestflow.ops.matrices", "eigenvectors") == "eigenvectors"
    assert writer.use("nestflow.ops.rules", "eigenvectors") == "eigenvectors"  # the same
    writer.use("nestflow.ops.chunk", "look")
    with pytest.raises(AssertionError, match="another"):
        writer.use("nestflow.ops.stack", "look")
