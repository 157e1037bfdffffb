"""What a picture is made of: primitives with styles, so that SVG and PNG are the same drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nestflow.view import theme
from nestflow.view.layout import Lane
from nestflow.view.route import Curve, Point


@dataclass(frozen=True)
class Style:
    """How a primitive looks; colours are (light, dark) or None. size: of a text."""

    fill: tuple[str, str] | None = None
    stroke: tuple[str, str] | None = None
    width: float = 1.0
    dash: tuple[float, float] | None = None
    opacity: float = 1.0
    size: float = 12.0
    bold: bool = False
    mono: bool = False
    halo: bool = False


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    w: float
    h: float
    r: float
    style: str


@dataclass(frozen=True)
class Path:
    curves: tuple[Curve, ...]
    style: str


@dataclass(frozen=True)
class Poly:
    points: tuple[Point, ...]
    style: str


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    style: str
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True)
class Group:
    """Primitives that belong together. data: attributes for the HTML page. tip: a tooltip of several lines."""

    items: tuple[Item, ...]
    kind: str
    data: tuple[tuple[str, str], ...] = ()
    tip: str = ""


Item = Rect | Path | Poly | Text | Group


@dataclass
class Scene:
    title: str
    width: float
    height: float
    items: list[Item] = field(default_factory=list)
    styles: dict[str, Style] = field(default_factory=dict)


def _pair(colour: Mapping[Any, str]) -> tuple[str, str]:
    return colour["light"], colour["dark"]


INK, SOFT, FAINT, CARD, PAPER = (_pair(c) for c in (theme.INK, theme.SOFT, theme.FAINT, theme.CARD, theme.PAPER))
BASE = {
    "paper": Style(fill=PAPER),
    "heading": Style(fill=INK, size=26, bold=True),
    "sub": Style(fill=SOFT, size=13),
    "mono": Style(fill=SOFT, size=12, mono=True),
    "title": Style(fill=INK, size=14, bold=True),
    "code": Style(fill=INK, size=11, mono=True, opacity=0.86),
    "soft": Style(fill=SOFT, size=10.5),
    "chiptitle": Style(fill=INK, size=12, bold=True),
    "chipcode": Style(fill=SOFT, size=10, mono=True),
    "lanenote": Style(fill=SOFT, size=10.5),
    "divider": Style(stroke=SOFT, width=1.2, dash=(2, 5)),
    "dividertext": Style(fill=SOFT, size=11.5, bold=True, halo=True),
    "legend": Style(fill=SOFT, size=11.5),
    "badgetext": Style(fill=PAPER, size=10.5, bold=True),
    "flow": Style(fill=CARD, stroke=FAINT, width=1),
    "flowtext": Style(fill=SOFT, size=11, mono=True),
    "flowcount": Style(fill=INK, size=11, bold=True),
    "flowline": Style(stroke=SOFT, width=1.2, opacity=0.7),
}


def lane_styles(lanes: list[Lane], styles: dict[str, Style]) -> dict[int, str]:
    """Adds the styles of each lane, of edges and of pills; gives each lane's prefix by its id."""
    names = {}
    for i, lane in enumerate(lanes):
        accent = (
            theme.lane_colour(lane.clock, lane.every, lane.index, "light"),
            theme.lane_colour(lane.clock, lane.every, lane.index, "dark"),
        )

        def on(ground: tuple[str, str], amount: float, accent: tuple[str, str] = accent) -> tuple[str, str]:
            return theme.blend(accent[0], ground[0], amount), theme.blend(accent[1], ground[1], amount)

        names[id(lane)] = f"lane{i}"
        styles[f"lane{i}"] = Style(fill=on(PAPER, 0.055))
        styles[f"lane{i}-tick"] = Style(stroke=accent, width=1.6, opacity=0.8)
        styles[f"lane{i}-rule"] = Style(stroke=on(PAPER, 0.35), width=1)
        styles[f"lane{i}-name"] = Style(fill=on(INK, 0.82), size=15, bold=True)
        styles[f"lane{i}-box"] = Style(fill=CARD, stroke=on(CARD, 0.7), width=1.3)
        styles[f"lane{i}-under"] = Style(fill=on(CARD, 0.1), stroke=on(CARD, 0.45), width=1)
        styles[f"lane{i}-bar"] = Style(fill=accent)
        styles[f"lane{i}-chip"] = Style(fill=on(CARD, 0.1), stroke=on(CARD, 0.45), width=1)
        styles[f"lane{i}-group"] = Style(fill=on(PAPER, 0.1), stroke=on(PAPER, 0.6), width=1.4)
        styles[f"lane{i}-served"] = Style(fill=on(PAPER, 0.06), stroke=on(PAPER, 0.5), width=1.1, dash=(4, 3))
    styles["flow-level"] = Style(fill=CARD, stroke=SOFT, width=1.3)
    styles["flow-network"] = Style(fill=CARD, stroke=SOFT, width=1.3, dash=(4, 3))
    for kind, (_, light, dark) in theme.EDGES.items():
        styles[f"edge-{kind}"] = Style(stroke=(light, dark), width=1.8)
        styles[f"head-{kind}"] = Style(fill=(light, dark))
        styles[f"label-{kind}"] = Style(fill=(light, dark), size=11, bold=True, halo=True)
    return names
