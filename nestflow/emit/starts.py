"""How streams begin: the function that makes their first state, and starts that are computed from slow weights."""

from __future__ import annotations

from nestflow.emit.expr import Emitter, Letters
from nestflow.emit.writer import Writer
from nestflow.graph.model import Computed, LevelGraph


def has_starts(graph: LevelGraph) -> bool:
    return any(i.starts for i in graph.root.walk() if i.shares is None)


def emit_starts(graph: LevelGraph, writer: Writer, letters: Letters) -> None:
    """`starts(c)`, where the spec has such, and `initial_state`."""
    if has_starts(graph):
        _emit_computed(graph, writer, letters)
    fresh = writer.use("nestflow.ops.runtime", "fresh_state")
    with writer.block("def initial_state(w, batch, dtype, device, chance=(0, 0, None)):"):
        writer.line("# the state of streams that begin, [batch, ...] by path. chance: seed, step, rows")
        if has_starts(graph):
            context = writer.use("nestflow.ops.runtime", "Context")
            writer.line(f"w = {{**w, **starts({context}(w, {{}}, 0, False, dtype, device))}}")
        draw = ""
        if any(s.drawn for s in graph.state):
            draw = f", chance, {writer.use('nestflow.ops.chance', 'drawn_start')}"
        writer.line(f"return {fresh}(STATE, w, batch, dtype, device{draw})")


def _emit_computed(graph: LevelGraph, writer: Writer, letters: Letters) -> None:
    places: dict[tuple[Computed, ...], list[str]] = {}
    for i in graph.root.walk():
        if i.starts and i.shares is None:
            places.setdefault(i.starts, []).append(i.path + ".")
    with writer.block("def starts(c):"):
        writer.line("# what memories start from that is computed from weights")
        writer.line("found = {}")
        for starts, paths in places.items():
            with writer.block(f"for p in {tuple(paths)!r}:"):
                em = Emitter(writer, letters=letters, names=(), t0="0", ticks="1", batch="1")
                em.plan(*(s.node for s in starts))
                for s in starts:
                    full = ((s.heads,) if s.heads else ()) + s.shape
                    value = em.value(s.node)
                    if s.heads and not s.node.type.heads:
                        value = f"torch.as_tensor({value}, dtype=c.dtype, device=c.device)"
                    writer.line(f'found[p + "{s.path}"] = torch.broadcast_to({value}, {full!r})')
        writer.line("return found")
    writer.line()
    writer.line()


__all__ = ["emit_starts", "has_starts"]
