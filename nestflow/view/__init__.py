"""Pictures of a level graph: `render(graph, format)`; lanes by update frequency, fastest on top."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestflow.graph.model import LevelGraph

SUFFIXES = {
    ".svg": "svg",
    ".html": "html",
    ".htm": "html",
    ".png": "png",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".dot": "dot",
    ".gv": "dot",
}

__all__ = ["SUFFIXES", "render", "save", "write_html", "write_png", "write_svg"]


def render(graph: LevelGraph, format: str = "terminal") -> Any:
    """The picture as svg, html, mermaid or dot (text), or for the terminal (something rich can print).

    A PNG is bytes in a file: see `save`. Raises NestflowError NF030 for a format that is not known.
    """
    if format == "svg":
        from nestflow.view.svg import to_svg as draw
    elif format == "html":
        from nestflow.view.html import to_html as draw
    elif format == "mermaid":
        from nestflow.view.mermaid import to_mermaid as draw
    elif format == "dot":
        from nestflow.view.dot import to_dot as draw
    elif format == "terminal":
        from nestflow.view.terminal import render as draw
    else:
        raise _unknown(f"`{format}` is not a format of pictures")
    return draw(graph)


def save(graph: LevelGraph, path: str | Path) -> Path:
    """Writes the picture; the end of the name says the format (.svg .html .png .mmd .dot).

    Raises NestflowError NF030 for another end, NF031 for a PNG without matplotlib.
    """
    path = Path(path)
    format = SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise _unknown(f"the end of `{path}` says no format of pictures")
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "png":
        from nestflow.view.png import to_png

        to_png(graph, path)
    else:
        path.write_text(render(graph, format), encoding="utf-8")
    return path


def write_svg(graph: LevelGraph, path: str | Path) -> None:
    """The picture as an SVG file."""
    Path(path).write_text(render(graph, "svg"), encoding="utf-8")


def write_html(graph: LevelGraph, path: str | Path) -> None:
    """The picture as one HTML page."""
    Path(path).write_text(render(graph, "html"), encoding="utf-8")


def write_png(graph: LevelGraph, path: str | Path) -> None:
    """The picture as a PNG. Raises NestflowError NF031 without matplotlib."""
    from nestflow.view.png import to_png

    to_png(graph, path)


def _unknown(message: str) -> Exception:
    from nestflow.diagnostics.core import fail

    return fail("NF030", message, help="pictures are .svg, .html, .png, .mmd (Mermaid) or .dot (Graphviz)")
