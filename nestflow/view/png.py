"""The same drawing as a PNG, by matplotlib (the `view` extra); no browser and no system library is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nestflow.diagnostics.core import fail
from nestflow.graph.model import LevelGraph
from nestflow.view import primitives as s
from nestflow.view import theme, words
from nestflow.view.scene import build


def to_png(graph: LevelGraph, path: str | Path, *, mode: theme.Theme = "light", scale: float = 2.0) -> None:
    """Writes the picture; scale 2 is two pixels for one of the SVG's.

    Raises NestflowError NF031 where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise fail(
            "NF031",
            "a PNG picture needs matplotlib, which is not installed",
            help="pip install 'nestflow[view]', or write .svg or .html, which need nothing",
        ) from None
    drawing = build(graph)
    side = 0 if mode == "light" else 1
    figure = Figure(figsize=(drawing.width / 100, drawing.height / 100), dpi=100 * scale)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    axes.axis("off")
    for order, item in enumerate(_flat(drawing.items)):
        _draw(axes, item, drawing.styles[item.style], side, order)
    figure.savefig(path, format="png", facecolor=s.PAPER[side])


def _flat(items: list[s.Item] | tuple[s.Item, ...]) -> list[Any]:
    out: list[Any] = []
    for i in items:
        out += _flat(i.items) if isinstance(i, s.Group) else [i]
    return out


def _draw(axes: Any, item: Any, style: s.Style, side: int, order: int) -> None:
    from matplotlib import patches
    from matplotlib.path import Path as Way

    fill = style.fill[side] if style.fill else "none"
    stroke = style.stroke[side] if style.stroke else "none"
    look = {
        "facecolor": fill,
        "edgecolor": stroke,
        "linewidth": style.width * 0.72 if style.stroke else 0,
        "alpha": style.opacity,
        "zorder": order,
        "capstyle": "round",
    }
    if style.dash:
        look["linestyle"] = (0, tuple(d / style.width for d in style.dash))
    if isinstance(item, s.Rect):
        radius = min(item.r, item.w / 2, item.h / 2)
        box = f"round,pad=0,rounding_size={radius}" if radius else "square,pad=0"
        axes.add_patch(patches.FancyBboxPatch((item.x, item.y), item.w, item.h, boxstyle=box, **look))
    elif isinstance(item, s.Poly):
        axes.add_patch(patches.Polygon(item.points, closed=True, **look))
    elif isinstance(item, s.Path):
        points: list[tuple[float, float]] = []
        codes: list[Any] = []
        for a, b, c, d in item.curves:
            joined = bool(points) and points[-1] == a
            points += [b, c, d] if joined else [a, b, c, d]
            codes += [Way.CURVE4] * 3 if joined else [Way.MOVETO] + [Way.CURVE4] * 3
        axes.add_patch(patches.PathPatch(Way(points, codes), **{**look, "facecolor": "none"}))
    else:
        _text(axes, item, style, side, order)


def _text(axes: Any, item: s.Text, style: s.Style, side: int, order: int) -> None:
    from matplotlib import patheffects

    # DejaVu, which comes with matplotlib, is wider than the fonts that the layout is made for
    size = style.size * 0.72 * (0.97 if style.mono else 0.94)
    text = axes.text(
        item.x,
        item.y,
        words.clean(item.text),
        color=style.fill[side] if style.fill else "none",
        fontsize=size,
        fontweight="bold" if style.bold else "normal",
        alpha=style.opacity,
        zorder=order,
        va="baseline",
        family="DejaVu Sans Mono" if style.mono else "DejaVu Sans",
        parse_math=False,
        ha={"start": "left", "middle": "center", "end": "right"}[item.anchor],
    )
    if style.halo:
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground=s.PAPER[side])])
