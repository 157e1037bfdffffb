"""What stands on what in a drawing: texts on texts, labels on boxes and arrowheads, edges through texts and boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nestflow.view import primitives as s
from nestflow.view import words
from nestflow.view.route import at

Extent = tuple[float, float, float, float]  # left, top, right, bottom
SLACK = 1.0  # touching by so much is not seen
APART = 6.0  # two labels in one line are read as one if they stand nearer


@dataclass(frozen=True)
class Drawn:
    """A primitive, and the groups that it stands in, outermost first."""

    item: Any
    groups: tuple[s.Group, ...]

    @property
    def kind(self) -> str:
        return self.groups[-1].kind if self.groups else ""


def flat(items: list[s.Item] | tuple[s.Item, ...], groups: tuple[s.Group, ...] = ()) -> Iterator[Drawn]:
    for i in items:
        if isinstance(i, s.Group):
            yield from flat(i.items, (*groups, i))
        else:
            yield Drawn(i, groups)


def extent(scene: s.Scene, t: s.Text) -> Extent:
    """Where a text's letters are."""
    style = scene.styles[t.style]
    w = words.width(words.clean(t.text), style.size, style.mono)
    left = t.x - {"start": 0.0, "middle": w / 2, "end": w}[t.anchor]
    return left, t.y - 0.75 * style.size, left + w, t.y + 0.22 * style.size


def meet(a: Extent, b: Extent, slack: float = SLACK) -> bool:
    return a[0] + slack < b[2] and b[0] + slack < a[2] and a[1] + slack < b[3] and b[1] + slack < a[3]


def _inside(p: tuple[float, float], b: Extent) -> bool:
    return b[0] + SLACK < p[0] < b[2] - SLACK and b[1] + SLACK < p[1] < b[3] - SLACK


def overlaps(scene: s.Scene) -> list[str]:
    """Each overlap in words; none in a clear picture."""
    drawn = list(flat(scene.items))
    texts = [(d, extent(scene, d.item)) for d in drawn if isinstance(d.item, s.Text)]
    boxes = [(d, _rect(d.item)) for d in drawn if isinstance(d.item, s.Rect) and d.kind == "box" and d.item.h > 24]
    heads = [(d, _hull(d.item)) for d in drawn if isinstance(d.item, s.Poly) and d.kind == "edge"]
    labels = [(d, e) for d, e in texts if d.item.style.startswith("label-") and d.groups]
    found = []
    for i, (a, ea) in enumerate(labels):
        for b, eb in labels[i + 1 :]:
            if not meet(ea, eb) and meet((ea[0] - APART, ea[1], ea[2] + APART, ea[3]), eb):
                found.append(f"the labels `{a.item.text}` and `{b.item.text}` stand side by side")
    for i, (a, ea) in enumerate(texts):
        for b, eb in texts[i + 1 :]:
            if meet(ea, eb):
                found.append(f"the texts `{a.item.text}` and `{b.item.text}` overlap")
        if ea[0] < 0 or ea[2] > scene.width or ea[3] > scene.height:
            found.append(f"the text `{a.item.text}` leaves the picture")
    for a, ea in labels:
        found += [f"the label `{a.item.text}` covers the box {name(b)}" for b, eb in boxes if meet(ea, eb)]
        found += [f"the label `{a.item.text}` covers an arrowhead" for _, eb in heads if meet(ea, eb)]
    plain = [(d, e) for d, e in texts if not (d.item.style.startswith("label-") and d.groups)]
    for d in drawn:
        if not isinstance(d.item, s.Path) or d.kind != "edge":
            continue
        points = [at(c, n / 24) for c in d.item.curves for n in range(25)]
        ends = points[0], points[-1]
        for t, e in plain:
            if any(_inside(p, e) for p in points):
                found.append(f"an edge ({d.groups[-1].tip}) runs through the text `{t.item.text}`")
        for b, e in boxes:
            touches = any(_inside(p, _grown(e)) for p in ends)
            if not touches and any(_inside(p, e) for p in points):
                found.append(f"an edge ({d.groups[-1].tip}) runs through the box {name(b)}")
    return found


def name(d: Drawn) -> str:
    return dict(d.groups[-1].data).get("level", "?")


def _rect(r: s.Rect) -> Extent:
    return r.x, r.y, r.x + r.w, r.y + r.h


def _hull(p: s.Poly) -> Extent:
    xs, ys = [x for x, _ in p.points], [y for _, y in p.points]
    return min(xs), min(ys), max(xs), max(ys)


def _grown(e: Extent) -> Extent:
    return e[0] - 4, e[1] - 4, e[2] + 4, e[3] + 4
