"""LevelGraph + Plan to the source of a module: one function for each distinct flow or level, tables, entry points.

    def block(c, p, x_BTD):      c: nestflow.ops.runtime.Context, p: path of the instance ("model.block.0.")
    forward(c, inputs...)        the spec's output
    losses(c, inputs...)         {name: the objective}, one for each distinct objective of the step-clock levels
    objective_NAME(c, inputs...) each of them alone, where there are several
    metrics(c, inputs...)        the same, and for each cross entropy how many classes were right, of how many
    WEIGHTS, STATE, INPUTS       tables

The code is pure: weights and state in (`c.w`, `c.s`), outputs and state out (`c.n`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nestflow.diagnostics.core import fail
from nestflow.emit.evolution import emit_estimates
from nestflow.emit.expr import Emitter, Letters
from nestflow.emit.inner import emit_inner, inner_levels, prelude
from nestflow.emit.layout import ABREAST, axes
from nestflow.emit.levels.reads import emit_pieces, emit_read
from nestflow.emit.ops import hits
from nestflow.emit.repeat import Rolled
from nestflow.emit.starts import emit_starts, has_starts
from nestflow.emit.workers import emit_worker
from nestflow.emit.writer import Writer, identifier, place, plain, short_name
from nestflow.graph.model import Instance, LevelGraph, StateSlot, StepLevel
from nestflow.graph.state import state_slots
from nestflow.ir.node import Node, Type, walk
from nestflow.lowering.pieces import piece_size

ENTRY = ("forward", "losses", "metrics", "starts", "initial_state")


def emit_model(graph: LevelGraph, plan: Any, one_token: bool = False) -> str:
    """The source of the module that computes the graph. Raises NestflowError NF508 where a start cannot be made.
    one_token: the output alone, of calls that bring one token (`nestflow.emit.token`)."""
    writer = Writer(one_token)
    letters = letters_of(graph)
    _emit_instances(graph.root, plan, writer, letters)
    _emit_entry_points(graph, writer, letters)
    body = writer.text()
    return "\n".join([_header(graph, writer, letters), _tables(graph), body])


def letters_of(graph: LevelGraph) -> Letters:
    """Letters for the widths that the spec's params name, so that `x_BTD` means the same in every function."""
    known: dict[int, str] = {}
    for param in graph.params:
        letter = {"dim": "D", "width": "D", "vocab": "V", "classes": "V"}.get(param.name)
        if letter and isinstance(param.value, int) and param.value > 1 and letter not in known.values():
            known.setdefault(param.value, letter)
    return Letters(known)


def objectives(graph: LevelGraph) -> dict[str, tuple[StepLevel, ...]]:
    """The distinct objectives of the levels without slots that learn and live on, in the order in which they run: name
    of the first such level -> all."""
    groups: dict[Any, list[StepLevel]] = {}
    for level in graph.step_levels:
        if level.objective is not None and level.rule is not None and level.inner is None:
            groups.setdefault(level.shares, []).append(level)
    return {levels[0].name: tuple(levels) for levels in groups.values()}


def losses_of(graph: LevelGraph) -> dict[str, tuple[StepLevel, ...]]:
    """Those that are written as an objective and belong to a step: what a loop shows as its losses. Where there is
    none, how far memories are from their values."""
    steps = {n: g for n, g in objectives(graph).items() if g[0].clock.name == "step"}
    return {n: g for n, g in steps.items() if not g[0].texts.value} or steps


def objective_name(level: str) -> str:
    """The function of an objective, where there are several."""
    return identifier(f"objective_{level}")


def condition_name(level: str) -> str:
    """The function of a level's `when`."""
    return identifier(f"when_{level}")


# ---- functions


def body_key(instance: Instance, memo: dict[int, Any]) -> Any:
    """Instances with equal keys compute the same: they share a function."""
    if id(instance) not in memo:
        children = tuple((path, body_key(child, memo)) for path, child in instance.children)
        memo[id(instance)] = (
            instance.kind,
            instance.slots,
            instance.result,
            instance.memories,
            instance.heads,
            tuple(t.path for t in instance.tails),
            instance.seen,
            children,
        )
    return memo[id(instance)]


def _emit_instances(root: Instance, plan: Any, writer: Writer, letters: Letters) -> None:
    memo: dict[int, Any] = {}
    known: dict[Any, str] = {}

    def visit(instance: Instance) -> None:
        for _, child in instance.children:
            visit(child)
        if instance.kind == "root" or instance.result is None:
            return
        key = body_key(instance, memo)
        if key not in known:
            if instance.kind == "level":
                from nestflow.emit.levels.level import emit_level

                known[key] = emit_level(instance, plan.levels[instance.path], writer, letters)
            elif instance.kind == "read":
                known[key] = emit_read(instance, writer, letters)
            else:
                known[key] = _emit_flow(instance, writer, letters)
        writer.register(instance, known[key])

    visit(root)


def _emit_flow(instance: Instance, writer: Writer, letters: Letters) -> str:
    """One flow: its statements, named as in the text."""
    assert instance.result is not None
    name = writer.function_name(instance.name.split(".")[-1])
    slots = [
        (slot_node(n, t), identifier(n + letters.suffix(t)) if axes(t) else identifier(n), t) for n, t in instance.slots
    ]
    ticks, batch = sizes((v, t) for _, v, t in slots)
    em = Emitter(
        writer,
        {node: variable for node, variable, _ in slots},
        instance=instance,
        letters=letters,
        ticks=ticks,
        batch=batch,
        reuse=True,
    )
    em.special = Rolled(em, instance, writer).special
    em.plan(instance.result)
    size = piece_size(instance)
    inner = writer.function_name(f"{name}_piece") if size else name
    with writer.block(f"def {inner}({', '.join(['c', 'p', *(v for _, v, _ in slots)])}):{place(instance.span)}"):
        _doc(instance, writer)
        writer.line(f"return {em.value(instance.result)}")
    writer.line()
    writer.line()
    if size:
        emit_pieces(instance, writer, name, inner, size, [(v, t) for _, v, t in slots])
    return name


def slot_node(name: str, t: Type) -> Node:
    """The node that reads a slot (interned, so this is the one in the body)."""
    from nestflow.ir.ops import leaf

    return leaf("slot", t, name=name)


def sizes(slots: Iterable[tuple[str, Type]]) -> tuple[str, str]:
    """Expressions for the number of ticks and of rows, read from the first variable that has such an axis."""
    ticks, batch = "1", "1"
    for variable, t in slots:
        if t.batch and batch == "1":
            batch = f"{variable}.shape[0]"
        if t.clock and ticks == "1":
            ticks = f"{variable}.shape[{axes(t).index('T')}]"
    return ticks, batch


def _doc(instance: Instance, writer: Writer) -> None:
    if instance.doc:
        for line in plain(instance.doc.strip()).split("\n"):
            writer.line("# " + line.strip())


# ---- entry points


def _emit_entry_points(graph: LevelGraph, writer: Writer, letters: Letters) -> None:
    slots = [(slot_node(i.name, i.type), identifier(i.name + letters.suffix(i.type)), i.type) for i in graph.inputs]
    arguments = ", ".join(["c", *(v for _, v, _ in slots)])
    variables = {n["name"]: v for n, v, _ in slots}
    inner = inner_levels(graph)
    estimates: dict[Node, str] = {}

    def plain_emitter(*roots: Node | None, inside: str = "") -> Emitter:
        read = graph.read_by(*roots)
        ticks, batch = sizes((v, t) for n, v, t in slots if n["name"] in read)
        em = Emitter(
            writer,
            {n: v for n, v, _ in slots},
            instance=graph.root,
            letters=letters,
            ticks=ticks,
            batch=batch,
            prefix="",
            reuse=False,
        )
        em.special = lambda node: estimates.get(node)
        em.copies = frozenset(n for n, x in inner.items() if x.inner and x.inner.copies == "task" and n != inside)
        em.workers = {x.name: x.copies for x in graph.step_levels if x.copies and x.name != inside}
        return em

    emitter: Callable[..., Emitter] = plain_emitter
    for level in inner.values():
        emit_inner(graph, writer, emitter, variables, level)
    groups = {} if writer.one_token else objectives(graph)

    def opening(node: Node) -> None:
        shared_weights(graph, writer)
        prelude(graph, writer, variables, node)

    nodes = {name: levels[0].objective for name, levels in groups.items()}
    estimates = emit_estimates(graph, writer, plain_emitter, variables, nodes, opening)
    shown = losses_of(graph)
    reading = None
    if graph.reading:
        from nestflow.emit.reading import ReadingCode

        reading = ReadingCode(graph, writer, letters, slots)
        whens = [level.when for level in graph.step_levels if level.when is not None and level.inner is None]
        reading.write((graph.output,), *((n,) for n in nodes.values()), (*nodes.values(), *whens))
        emitter = reading.opened
    with writer.block(f"def forward({arguments}):"):
        writer.line("# the output of the spec")
        shared_weights(graph, writer)
        prelude(graph, writer, variables, graph.output)
        writer.line(
            f"return {emitter(graph.output).value(graph.output)}" if graph.output is not None else "return None"
        )
    writer.line()
    writer.line()
    if writer.one_token:
        emit_starts(graph, writer, letters)
        return
    values: list[str] = []
    for name, node in nodes.items():
        if node is None:
            continue
        copied = groups[name][0] if groups[name][0].copies else None
        if copied is not None:
            emit_worker(graph, writer, emitter, variables, copied, objective_name(name), opening)
            if name in shown:
                values.append(f'"{name}": {objective_name(name)}({arguments}).mean()')
            continue
        if len(groups) == 1:
            break
        with writer.block(f"def {objective_name(name)}({arguments}):"):
            writer.line(f"# what {' and '.join(level.name for level in groups[name])} minimise")
            shared_weights(graph, writer)
            prelude(graph, writer, variables, node)
            writer.line(f"return {emitter(node).value(node)}")
        writer.line()
        writer.line()
        if name in shown:
            values.append(f'"{name}": {objective_name(name)}({arguments})')
    for level in graph.step_levels:
        if level.when is not None and level.inner is None:
            with writer.block(f"def {condition_name(level.name)}({arguments}):"):
                writer.line(f"# when {level.name} takes a gradient")
                shared_weights(graph, writer)
                prelude(graph, writer, variables, level.when)
                writer.line(f"return {emitter(level.when).value(level.when)}")
            writer.line()
            writer.line()
    with writer.block(f"def losses({arguments}):"):
        writer.line("# what the levels of the step clock minimise, one entry for each distinct objective")
        shared_weights(graph, writer)
        if len(groups) == 1 and not values:
            prelude(graph, writer, variables, *nodes.values())
            em = emitter(*nodes.values())
            values = [f'"{name}": {em.value(node)}' for name, node in nodes.items() if node is not None]
        writer.line("return {" + ", ".join(values) + "}")
    writer.line()
    writer.line()
    copied = frozenset(n for n, g in groups.items() if g[0].copies)
    _emit_metrics(graph, {n: x for n, x in nodes.items() if n in shown}, variables, emitter, writer, copied)
    if reading is not None:
        reading.finish()
    emit_starts(graph, writer, letters)


def _emit_metrics(
    graph: LevelGraph,
    nodes: Mapping[str, Node | None],
    variables: Mapping[str, str],
    emitter: Callable[..., Emitter],
    writer: Writer,
    copied: frozenset[str] = frozenset(),
) -> None:
    """The losses, and hits and number of the classes of every cross entropy. Nothing where there is none."""
    scored = {name: scores(node) for name, node in nodes.items()}
    if not any(scored.values()):
        return
    with writer.block(f"def metrics({', '.join(['c', *variables.values()])}):"):
        writer.line("# the losses, and of each cross entropy how many classes had the largest score, of how many")
        shared_weights(graph, writer)
        prelude(graph, writer, variables, *nodes.values(), *(a for n in scored.values() for s in n for a in s.args))
        em = emitter(*nodes.values())
        whole = {name: node for name, node in nodes.items() if node is not None and name not in copied}
        em.plan(*whole.values(), *(a for n in scored.values() for s in n for a in s.args))
        values = [f'"{name}": {em.value(node)}' for name, node in whole.items()]
        given = ", ".join(["c", *variables.values()])
        values += [f'"{name}": {objective_name(name)}({given}).mean()' for name in nodes if name in copied]
        for name, found in scored.items():
            for i, node in enumerate(found):
                for a in node.args:
                    em.expression(a)
                label = name if len(found) == 1 else f"{name} {i + 1}"
                values.append(f'"accuracy of {label}": {hits(em, node)}')
        writer.line("return {" + ", ".join(values) + "}")
    writer.line()
    writer.line()


def scores(objective: Node | None) -> list[Node]:
    """The cross entropies of an objective, in the order of the text."""
    return [n for n in walk(objective) if n.op.startswith("cross_entropy")] if objective is not None else []


def shared_weights(graph: LevelGraph, writer: Writer) -> None:
    """Starts that are computed lie among the weights; further calls of a shared instance find its weights at their own
    paths."""
    if has_starts(graph):
        writer.line("c.w = {**c.w, **starts(c)}")
    if shared_paths(graph.root):
        writer.line(f"c.w = {writer.use('nestflow.ops.runtime', 'with_shared')}(c.w, SHARED)")


def shared_paths(root: Instance) -> list[tuple[str, str]]:
    """(path of a further call, path of the instance whose weights it uses), the highest instances of each."""
    found: list[tuple[str, str]] = []

    def visit(i: Instance, outer: tuple[str, str] | None) -> None:
        if i.shares is not None and (outer is None or i.shares != outer[1] + i.path[len(outer[0]) :]):
            outer = i.path, i.shares
            found.append(outer)
        for _, child in i.children:
            visit(child, outer)

    visit(root, None)
    return found


# ---- tables


def _header(graph: LevelGraph, writer: Writer, letters: Letters) -> str:
    from nestflow._version import __version__

    params = ", ".join(f"{p.name} = {p.value!r}" for p in graph.params)
    lines = [
        f'"""{plain(graph.name)}, generated by nestflow {__version__} from {short_name(graph.source.name)}.',
        "",
        "Edit the spec, not this file.",
    ]
    if graph.doc:
        lines += ["", plain(graph.doc.strip())]
    if params:
        lines += ["", plain(f"Params: {params}")]
    legend = letters.legend()
    one = ", G rows and heads as one" if "folded" in writer.imports.get("nestflow.ops.stack", ()) else ""
    abreast = f", {ABREAST} memories side by side" if writer.imports.get("nestflow.ops.abreast") else ""
    lines += [
        "",
        f"Shapes: B batch, H heads, T tokens, C tokens of a chunk{one}{abreast}{'; ' + legend if legend else ''}.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        *(f"import {m}" for m in sorted(writer.modules)),
        "import torch",
        "import torch.nn.functional as F",
    ]
    imports = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(writer.imports.items())]
    return "\n".join([*lines, "", *imports, ""])


def _tables(graph: LevelGraph) -> str:
    lines = ["# input, shape behind [B, T] (or [B]), type"]
    lines += ["INPUTS = ["] + [f"    ({i.name!r}, {i.type.shape!r}, {i.type.dtype!r})," for i in graph.inputs] + ["]"]
    lines += ["# weight, shape, how it starts: kind, its two numbers, functions of the draw", "WEIGHTS = ["]
    lines += [
        f"    ({w.path!r}, {w.full_shape!r}, {w.init.kind!r}, {w.init.a!r}, {w.init.b!r}, {w.init.maps!r}),"
        for w in graph.weights
    ]
    lines += ["]", "# state of a row, shape, the weight it starts from or None, else its value, type", "STATE = ["]
    lines += [f"    {_state_row(s)!r}," for s in graph.state]
    inner = [s for i in graph.root.begun_anew() for s in state_slots(i)]
    if any(i.ticks for i in graph.root.walk()):
        lines += ["]", "# the same of what runs along patches and begins anew in each example", "INNER = ["]
        lines += [f"    {_state_row(s)!r}," for s in inner]
    shared = shared_paths(graph.root)
    if shared:
        lines += ["]", "# further calls of a shared level or flow, and where their weights are", "SHARED = ["]
        lines += [f"    {(a + '.', b + '.')!r}," for a, b in shared]
    lines += ["]"]
    read = [n for x in graph.step_levels for n in (x.objective, x.when) if n is not None]
    if inner_levels(graph) or any(x.copies for x in graph.step_levels) or any(n.op == "record" for n in walk(*read)):
        lines += ["# level without slots, what the paths of its tensors begin with, their names", "LEVELS = {"]
        lines += [f"    {x.name!r}: ({x.prefix!r}, {x.names!r})," for x in graph.step_levels]
        lines += ["}"]
    return "\n".join([*lines, "", ""])


def _state_row(s: StateSlot) -> tuple[str, tuple[int, ...], str | None, float | tuple[Any, ...], str]:
    return s.path, ((s.heads,) if s.heads else ()) + s.shape, s.init, _start(s), s.dtype


def _start(s: StateSlot) -> float | tuple[Any, ...]:
    init, path = s.start, s.path
    if s.drawn:
        return "draw", s.drawn, bool(s.heads), (init.kind, init.a, init.b, init.maps)
    if init.kind in ("zeros", "ones"):
        return 0.0 if init.kind == "zeros" else 1.0
    if init.kind == "constant" and not init.maps:
        return float(init.a)
    if init.kind == "eye":
        return "eye", init.a or 1.0
    raise fail(
        "NF508",
        f"the state `{path}` starts from a draw ({init.kind}), and states start from weights or constants",
        help="write `init = learned(...)` for a start that is drawn once and learned",
    )
