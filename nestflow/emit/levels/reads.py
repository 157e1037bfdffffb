"""`m.read(x)`: a level that is only read, and the flow around it, which goes through its input piece by piece.

What is read at a tick is the state that the level's chunk began with, and what the level learns may depend on what was
read. So the flow in which both stand is called for one piece of the stream after the other, each ending where a chunk
does, with the state carried: within a piece the state that is read stands still, and the level keeps its closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

from nestflow.emit.expr import Emitter, Letters
from nestflow.emit.layout import axes, tick_axis
from nestflow.emit.levels.facts import start_of
from nestflow.emit.levels.nodes import Nodes, keeps_anchor, shaped, state
from nestflow.emit.writer import Writer, identifier, place
from nestflow.graph.model import Instance, Memory
from nestflow.graph.published import published
from nestflow.graph.state import CHUNK, state_tensors
from nestflow.ir.construct import rewrite
from nestflow.ir.node import Node, Type, walk
from nestflow.lowering.plan import LevelPlan


def emit_pieces(
    instance: Instance, writer: Writer, name: str, piece: str, size: int, slots: Sequence[tuple[str, Type]]
) -> None:
    """The flow as its callers see it: a loop over pieces of its input."""
    assert instance.result is not None
    ticking = [(v, t) for v, t in slots if t.clock]
    first, type_ = ticking[0]
    sizes = writer.use("nestflow.ops.coefficients", "chunk_sizes")
    with writer.block(f"def {name}({', '.join(['c', 'p', *(v for v, _ in slots)])}):{place(instance.span)}"):
        writer.line("# what is read here is the state that a chunk began with: one piece of the stream after the other")
        writer.line(f"sizes, ys = {sizes}({first}.shape[{axes(type_).index('T')}], c.t0, {size}), []")
        parts = ", ".join(f"{v}.split(sizes, {tick_axis(t)})" for v, t in ticking)
        told = published(instance)
        if told:
            writer.line("whole, c, told = c, c.after(0), []")
        with writer.block(f"for n, {', '.join(v for v, _ in ticking)} in zip(sizes, {parts}):"):
            writer.line(f"ys.append({piece}({', '.join(['c', 'p', *(v for v, _ in slots)])}))")
            if told:
                writer.line("told.append(c.now)")
            writer.line("c = c.after(n)")
        for name, types in told.items():  # what was published in a piece, of all of them
            joined = any(t.clock for t in types)
            text = f'torch.cat([x["{name}"] for x in told], 1)' if joined else f'told[-1]["{name}"]'
            writer.line(f'whole.emit("{name}", {text})')
        result = instance.result.type
        writer.line(f"return torch.cat(ys, {tick_axis(result)})" if result.clock else "return ys[-1]")
    writer.line()
    writer.line()


def emit_read(instance: Instance, writer: Writer, letters: Letters) -> str:
    """A level that is only read: what it returns, its recalls at one state. m: the path of the level's own state."""
    from nestflow.emit.model import sizes, slot_node

    assert instance.result is not None
    name = writer.function_name(f"{instance.name.split('.')[-1]}_read")
    slots = [(slot_node(n, t), identifier(n + letters.suffix(t)), t) for n, t in instance.slots]
    ticks, batch = sizes((v, t) for _, v, t in slots)
    nodes, memories = Nodes(LevelPlan(instance, (), 0)), {m.name: m for m in instance.seen}

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op != "recall":
            return None
        m = memories[n["memory"]]
        return shaped(nodes.plain(m, args, "now" if m.rule is None else "chunk", n), n)

    names = [(text, x) for text, x in instance.names if x.args]
    result, *named = rewrite([instance.result, *(x for _, x in names)], change)
    em = Emitter(
        writer,
        {node: v for node, v, _ in slots},
        instance=instance,
        names=[(text, x) for (text, _), x in zip(names, named, strict=True)],
        letters=letters,
        ticks=ticks,
        batch=batch,
    )

    def special(n: Node) -> str | None:
        if n.op != "each_tick":
            return None
        x, axis = em.atom(n.args[0]), tick_axis(n.type)
        shape = ["-1"] * (len(axes(n.type)) + len(n.type.shape))
        shape[axis] = em.ticks
        return f"{x}.unsqueeze({axis}).expand({', '.join(shape)})"

    em.special = special
    with writer.block(f"def {name}({', '.join(['c', 'p', 'm', *(v for _, v, _ in slots)])}):{place(instance.span)}"):
        leaves = {n for n in walk(result) if n.op == "state"}
        for m in instance.seen:
            states(m, leaves, em, writer)
        em.plan(result)
        writer.line(f"return {em.value(result)}")
    writer.line()
    writer.line()
    return name


def states(m: Memory, leaves: set[Node], em: Emitter, writer: Writer) -> None:
    """Bring the tensors that are read into variables: as the open chunk began, or anew where a reset is due."""
    for t in state_tensors(m):
        anchored = m.rule is not None and keeps_anchor(m)
        leaf = state(m, t.path, "chunk" if anchored else "now", Type(shape=t.shape, heads=m.heads))
        if leaf not in leaves:
            continue
        variable = em.fresh(t.path.removesuffix(".weight"), leaf.type)
        writer.line(f'{variable} = c.s[m + "{m.name}.{t.path}{CHUNK if anchored else ""}"]')
        if m.reset is not None:
            start = start_of(writer, m, t, variable, "m", "c.t0")
            if t.source is not None:
                start = f'c.s[m + "{".".join(t.source)}"]'
            writer.line(f"{variable} = {start} if c.t0 % {m.reset} == 0 else {variable}")
        em.bind(leaf, variable)


__all__ = ["emit_pieces", "emit_read"]
