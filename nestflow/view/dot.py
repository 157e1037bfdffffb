"""The level graph as Graphviz text: a cluster per update frequency."""

from __future__ import annotations

from nestflow.graph.model import LevelGraph
from nestflow.view import theme, words
from nestflow.view.layout import lanes_of


def to_dot(graph: LevelGraph) -> str:
    """A `digraph`, fastest levels on top."""
    ids = {v.name: f"n{i}" for i, v in enumerate(graph.levels)}
    lines = [
        f"digraph {_text(graph.name)} {{",
        '  rankdir=TB; compound=true; newrank=true; fontname="sans-serif";',
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="sans-serif", fontsize=11];',
        '  edge [fontname="sans-serif", fontsize=10];',
    ]
    heads = []
    for i, lane in enumerate(lanes_of(graph)):
        colour = theme.lane_colour(lane.clock, lane.every, lane.index, "light")
        lines.append(
            f"  subgraph cluster_{i} {{ label={_text(lane.name)}; labeljust=l; style=filled; "
            f'fillcolor="{theme.blend(colour, "#ffffff", 0.08)}"; color="{colour}"; fontcolor="{colour}";'
        )
        mine = lane.levels(graph)
        for v in mine:
            count = f" ×{v.count}" if v.count > 1 else ""
            rows = [words.clean(v.title) + count, v.texts.memory, words.learning(v), words.sizes(v)]
            lines.append(f"    {ids[v.name]} [label={_text(*rows)}];")
        lines.append("  }")
        heads += [ids[v.name] for v in mine[:1]]
    if len(heads) > 1:
        lines.append(f"  {' -> '.join(heads)} [style=invis];")
    for i, n in enumerate(graph.networks):
        lines.append(f'  net{i} [label={_text(n.name, "a network of yours")}, style="rounded,filled,dashed"];')
    for e in graph.edges:
        if e.source in ids and e.target in ids:
            colour = theme.EDGES[e.kind][1]
            lines.append(
                f"  {ids[e.source]} -> {ids[e.target]} [label={_text(e.label or e.kind)}, "
                f'color="{colour}", fontcolor="{colour}", '
                "constraint=false];"
            )
    return "\n".join([*lines, "}"]) + "\n"


def _text(*rows: str) -> str:
    """A quoted string; rows that are empty are dropped."""
    clean = [words.short(words.clean(r), 60).replace("\\", "\\\\").replace('"', '\\"') for r in rows]
    return '"' + "\\n".join(r for r in clean if r) + '"'
