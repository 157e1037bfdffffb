"""What a level with a copy for each worker minimises: of one copy on its part of the batch, and of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nestflow.emit.expr import Emitter
from nestflow.emit.writer import Writer, identifier, place
from nestflow.graph.model import LevelGraph, StepLevel
from nestflow.ir.node import Node


def emit_worker(
    graph: LevelGraph,
    writer: Writer,
    emitter: Callable[..., Emitter],
    variables: Mapping[str, str],
    level: StepLevel,
    name: str,
    opening: Callable[[Node], None],
) -> None:
    """The two functions of one level; the second, of this name, gives a number for each copy.

    emitter(roots, inside=level): an emitter inside one copy of it. opening: writes what functions of the root begin
    with."""
    assert level.objective is not None
    read = graph.read_by(level.objective)
    inputs = [v for n, v in variables.items() if n in read]
    error = identifier(f"error_{level.name}")
    with writer.block(f"def {error}({', '.join(['c', *inputs])}):{place(level.span)}"):
        writer.line(f"# what {level.name} minimises, for one worker")
        writer.line(f"return {emitter(level.objective, inside=level.name).value(level.objective)}")
    writer.line()
    writer.line()
    writer.use("nestflow.ops.workers", "each_worker")
    with writer.block(f"def {name}({', '.join(['c', *variables.values()])}):"):
        writer.line(f"# the same for each of {level.copies} workers")
        opening(level.objective)
        given = ", ".join(inputs)
        writer.line(f'return each_worker({error}, c, LEVELS["{level.name}"], {level.copies}, [{given}])')
    writer.line()
    writer.line()


__all__ = ["emit_worker"]
