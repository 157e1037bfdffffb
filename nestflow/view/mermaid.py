"""The level graph as Mermaid text: a subgraph per update frequency."""

from __future__ import annotations

import re

from nestflow.graph.model import LevelGraph
from nestflow.view import theme, words
from nestflow.view.layout import lanes_of

_ARROWS = {"context": "-->", "generates": "-.->", "optimises": "==>", "initialises": "--o"}


def to_mermaid(graph: LevelGraph) -> str:
    """A `flowchart TB`, fastest levels on top; texts are escaped as entities."""
    ids = {v.name: f"n{i}" for i, v in enumerate(graph.levels)}
    lines = ["flowchart TB"]
    for i, lane in enumerate(lanes_of(graph)):
        lines.append(f'  subgraph lane{i}["{_text(lane.name)}"]')
        for v in lane.levels(graph):
            count = f" ×{v.count}" if v.count > 1 else ""
            rows = [
                f"<b>{_text(v.title)}{count}</b>",
                _text(v.texts.memory),
                _text(words.learning(v)),
                _text(words.sizes(v)),
            ]
            lines.append(f'    {ids[v.name]}["{"<br/>".join(r for r in rows if r)}"]')
        lines.append("  end")
    for i, n in enumerate(graph.networks):
        lines.append(f'  net{i}[["<b>{_text(n.name)}</b><br/>a network of yours"]]')
    edges = [e for e in graph.edges if e.source in ids and e.target in ids]
    for e in edges:
        label = f'|"{_text(e.label or e.kind)}"|'
        lines.append(f"  {ids[e.source]} {_ARROWS[e.kind]}{label} {ids[e.target]}")
    for kind, (_, light, _) in theme.EDGES.items():
        if found := [str(i) for i, e in enumerate(edges) if e.kind == kind]:
            lines.append(f"  linkStyle {','.join(found)} stroke:{light},color:{light}")
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """Everything but letters, digits and a few harmless signs as a numeric entity: nothing can end the string."""
    return re.sub(r"[^\w .,:()=*+/·×-]", lambda m: f"#{ord(m.group())};", words.short(words.clean(text), 60))
