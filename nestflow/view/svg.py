"""The level graph as one SVG file: no script, no network, light and dark by the reader's preference."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from nestflow.graph.model import LevelGraph
from nestflow.view import primitives as s
from nestflow.view import theme, words
from nestflow.view.scene import build

if TYPE_CHECKING:
    from nestflow.view.route import Curve

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', 'Cascadia Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def to_svg(graph: LevelGraph, *, mode: str = "auto") -> str:
    """The picture as SVG text. mode: "auto" follows the reader's light or dark preference, or "light", "dark"."""
    return render_scene(build(graph), mode)


def render_scene(scene: s.Scene, mode: str = "auto") -> str:
    """SVG text of a drawing; each box and edge is a group with `data-` attributes that the HTML page reads."""
    w, h = f"{scene.width:.0f}", f"{scene.height:.0f}"
    body = "\n".join(_item(i) for i in scene.items)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        f'class="nestflow" role="img" '
        f'aria-label="{escape(f"level graph of {scene.title}")}">\n<title>{escape(scene.title)}</title>\n'
        f"<style>{_css(scene, mode)}</style>\n{body}\n</svg>\n"
    )


def _css(scene: s.Scene, mode: str) -> str:
    """Rules with plain colours (no variables), so that any SVG reader shows them."""
    first, second = (0, 1) if mode != "dark" else (1, 0)
    rules = [f".nestflow text{{font-family:{SANS}}}", ".nestflow .m{font-family:" + MONO + "}"]
    dark = []
    for name, st in scene.styles.items():
        rules.append(f".nestflow .{name}{{{_rule(st, first)}}}")
        dark.append(f".nestflow .{name}{{{_colours(st, second)}}}")
    css = "".join(rules)
    return css + ("@media (prefers-color-scheme:dark){" + "".join(dark) + "}" if mode == "auto" else "")


def _colours(st: s.Style, side: int) -> str:
    parts = [f"fill:{st.fill[side] if st.fill else 'none'}"]
    if st.stroke:
        parts.append(f"stroke:{st.stroke[side]}")
    if st.halo:
        parts.append(f"stroke:{s.PAPER[side]}")
    return ";".join(parts)


def _rule(st: s.Style, side: int) -> str:
    parts = [_colours(st, side)]
    if st.stroke:
        parts += [f"stroke-width:{st.width:g}", "stroke-linecap:round"]
    if st.halo:
        parts.append("stroke-width:4px;stroke-linejoin:round;paint-order:stroke")
    if st.dash:
        parts.append(f"stroke-dasharray:{st.dash[0]:g} {st.dash[1]:g}")
    if st.opacity != 1:
        parts.append(f"opacity:{st.opacity:g}")
    parts.append(f"font-size:{st.size:g}px")
    if st.bold:
        parts.append("font-weight:600")
    return ";".join(parts)


def _item(item: s.Item) -> str:
    if isinstance(item, s.Rect):
        return (
            f'<rect x="{item.x:.1f}" y="{item.y:.1f}" width="{item.w:.1f}" height="{item.h:.1f}" rx="{item.r:g}" '
            f'class="{item.style}"/>'
        )
    if isinstance(item, s.Path):
        return f'<path d="{_path(item.curves)}" class="{item.style}"/>'
    if isinstance(item, s.Poly):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in item.points)
        return f'<polygon points="{points}" class="{item.style}"/>'
    if isinstance(item, s.Text):
        anchor = "" if item.anchor == "start" else f' text-anchor="{item.anchor}"'
        mono = " m" if s.BASE.get(item.style, s.Style()).mono else ""
        text = escape(words.clean(item.text))
        return f'<text x="{item.x:.1f}" y="{item.y:.1f}" class="{item.style}{mono}"{anchor}>{text}</text>'
    data = "".join(f' data-{k}="{escape(v)}"' for k, v in item.data)
    tip = f"<title>{escape(_tip(item.tip))}</title>" if item.tip else ""
    return f'<g class="{item.kind}"{data}>{tip}{"".join(_item(i) for i in item.items)}</g>'


def _tip(text: str) -> str:
    return "\n".join(words.clean(line) for line in text.split("\n") if line.strip())


def _path(curves: tuple[Curve, ...]) -> str:
    parts, last = [], None
    for a, b, c, d in curves:
        if a != last:
            parts.append(f"M{a[0]:.1f} {a[1]:.1f}")
        parts.append(f"C{b[0]:.1f} {b[1]:.1f} {c[0]:.1f} {c[1]:.1f} {d[0]:.1f} {d[1]:.1f}")
        last = d
    return "".join(parts)


def ground(mode: theme.Theme) -> str:
    """The colour behind the picture."""
    return theme.PAPER[mode]
