"""The shapes of a level graph as text, for `nestflow check --shapes`. No torch is loaded."""

from __future__ import annotations

from nestflow.graph.model import Instance, LevelGraph, Memory


def shape_lines(graph: LevelGraph) -> list[str]:
    """Inputs, then each instance with what goes in, its weights, its memories and what comes out."""
    lines = ["inputs"] + [f"  {i.name:<24} {i.type}{_bounds(i.low, i.high)}" for i in graph.inputs]
    for instance in graph.root.walk():
        lines += _instance(instance)
    if graph.output is not None and graph.output.op == "outputs":
        for name, node in zip(graph.output["names"], graph.output.args):
            lines.append(f"output {name:<19} {node.type}")
    elif graph.output_type is not None:
        lines.append(f"output{'':<20} {graph.output_type}")
    return lines


def _instance(i: Instance) -> list[str]:
    rows = [f"  in  {name:<20} {type}" for name, type in i.slots]
    rows += [
        f"  {'weight' if w.role == 'weight' else 'start':<6} {w.path:<30} {_dims(w.full_shape)}" for w in i.weights
    ]
    rows += [line for m in i.memories for line in _memory(m)]
    rows += [f"  keeps {t.path:<22} the last {t.length} of {t.type}" for t in i.tails]
    if i.result is not None and i.kind != "root":
        rows.append(f"  out {'':<20} {i.result.type}")
    return [f"{i.path or i.name} ({i.kind})", *rows] if rows and i.kind != "root" else rows if i.weights else []


def _memory(m: Memory) -> list[str]:
    heads = f" × {m.heads} heads" if m.heads else ""
    lines = [f"  memory {m.name} : {m.kind}{heads}"]
    for name, node in (("key", m.key), ("value", m.value), ("query", m.query)):
        if node is not None:
            lines.append(f"    {name:<20} {node.type}")
    if m.function is not None:
        lines += [f"    {t.path:<20} {_dims(t.shape)}" for t in m.function.tensors]
    return lines


def _dims(shape: tuple[int, ...]) -> str:
    return " × ".join(str(n) for n in shape) if shape else "number"


def _bounds(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f" in [{'' if low is None else f'{low:g}'}, {'' if high is None else f'{high:g}'}]"
