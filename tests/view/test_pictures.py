"""The renderers: well-formed, self-contained, nothing escapes, every level and edge is there."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import graphs
import pytest
from rich.console import Console

from nestflow import view
from nestflow.diagnostics.core import NestflowError
from nestflow.view.svg import to_svg
from nestflow.view.table import level_table

ALL = [graphs.hope, graphs.hybrid, graphs.hostile, graphs.large]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("make", ALL)
def test_svg_is_well_formed_and_has_every_level(make):
    root = ElementTree.fromstring(to_svg(make()))
    boxes = [g.get("data-level") for g in root.iter(f"{SVG}g") if g.get("class") == "box"]
    assert len(boxes) == len(make().levels)
    assert not list(root.iter(f"{SVG}script")) and not list(root.iter(f"{SVG}image"))
    for number in re.findall(r' (?:x|y|width|height)="([^"]+)"', to_svg(make())):
        assert float(number) == float(number)  # no nan


def test_svg_says_what_the_levels_are_and_how_often():
    text = " ".join(" ".join(ElementTree.fromstring(to_svg(graphs.hope())).itertext()).split())
    for part in [
        "every 16 steps",
        "one step = the tokens of one batch",
        "self_modifying",
        "×2",
        "generates",
        "initialises",
        "dim = 128",
        "objective: l2",
        "retain: sigmoid(gates(u) + 8)",
    ]:
        assert part in text, part


def test_svg_follows_light_and_dark():
    auto, light, dark = (to_svg(graphs.hope(), mode=m) for m in ("auto", "light", "dark"))
    assert "prefers-color-scheme:dark" in auto and "prefers-color-scheme" not in light + dark
    assert light != dark and "#12151c" in dark and "#12151c" not in light


class _Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href")]


def test_html_is_one_file_and_hostile_names_stay_text():
    page = _Outline()
    text = view.render(graphs.hostile(), "html")
    page.feed(text)
    assert page.tags.count("script") == 2 and page.tags.count("svg") == 1 and page.links == []
    assert "alert(" in text and '<script>alert("x")' not in text
    assert "\x1b" not in text and "\x00" not in text
    body = re.sub(r"http://www\.w3\.org/2000/svg", "", text)
    assert "http" not in body.replace("http-equiv", "")


def test_html_carries_every_field():
    text = view.render(graphs.hope(), "html")
    assert '"objective", "l2"' in text and '"parameters", "16,384"' in text and '"query", "q"' in text


@pytest.mark.parametrize("make", ALL)
def test_mermaid_and_dot_name_every_edge(make):
    g = make()
    mermaid, dot = view.render(g, "mermaid"), view.render(g, "dot")
    assert mermaid.startswith("flowchart TB\n")
    assert len(re.findall(r"^  n\d+ \S+\|", mermaid, re.MULTILINE)) == len(g.edges)
    assert dot.count("constraint=false") == len(g.edges)
    assert dot.count("subgraph cluster_") == mermaid.count("subgraph ") == len({(v.clock, v.every) for v in g.levels})


def test_hostile_names_end_no_string():
    mermaid = view.render(graphs.hostile(), "mermaid")
    labels = re.findall(r'\["(.*)"\]|\|"(.*)"\|', mermaid)
    assert labels and not any('"' in part or "<script" in part for label in labels for part in label)
    dot = view.render(graphs.hostile(), "dot")
    for line in dot.splitlines():
        assert len(re.findall(r'(?<!\\)"', line)) % 2 == 0


def _printed(renderable: object, width: int = 100, **options: object) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **options).print(renderable)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("make", ALL)
def test_terminal_fits(make, width):
    """Every box and line is drawn for the width of the console, 98 at most; only sentences may go on in a next line."""
    text = _printed(view.render(make()), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= min(width, 98)
    assert not [line for line in text.splitlines() if line and not line.strip("─╌")]  # rules do not wrap
    assert "\x1b" not in text  # hostile names too
    for v in make().levels:
        assert v.title[:8].split("\x1b")[0] in text


def test_terminal_says_edges_in_words_and_needs_no_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = _printed(view.render(graphs.hope()), force_terminal=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text)
    assert "──▶ every memory of self_modifying" in text and "outer (start) ──▶ self_modifying" in text
    assert "····" in text and "one step = the tokens of one batch" in text


def test_png_is_the_same_drawing(tmp_path):
    pytest.importorskip("matplotlib")
    import struct

    view.save(graphs.hostile(), tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    w, h = struct.unpack(">II", data[16:24])
    size = re.search(r'width="(\d+)" height="(\d+)"', to_svg(graphs.hostile()))
    assert size and abs(w - 2 * int(size[1])) <= 2 and abs(h - 2 * int(size[2])) <= 2


@pytest.mark.parametrize("name", ["g.svg", "g.html", "g.mmd", "g.dot", "deep/er/g.SVG"])
def test_save_reads_the_format_off_the_name(name, tmp_path):
    path = view.save(graphs.hybrid(), tmp_path / name)
    assert path.read_text(encoding="utf-8")


def test_an_unknown_format_is_a_diagnostic(tmp_path):
    for call in (lambda: view.save(graphs.hope(), tmp_path / "g.gif"), lambda: view.render(graphs.hope(), "gif")):  # type: ignore[arg-type]
        with pytest.raises(NestflowError) as e:
            call()
        assert e.value.diagnostics[0].code == "NF030"


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("width", [80, 98, 118])
def test_level_table_fits(make, width):
    lowered = {v.name: "chunk-parallel factors" for v in make().levels}
    for given in (None, lowered):
        lines = _printed(level_table(make(), given, width), width + 2).rstrip().splitlines()
        assert len(lines) <= 20
        assert max(len(line.rstrip()) for line in lines) <= width
    assert "chu" in _printed(level_table(make(), lowered, width), width + 2)


def test_level_table_has_one_row_a_level_fastest_first():
    text = _printed(level_table(graphs.hybrid()))
    rows = text.splitlines()[3:]
    assert [r.split()[0] for r in rows] == [
        "window",
        "titans",
        "titans.s",
        "lact",
        "outer",
        "outer.m",
        "meta",
        "frozen",
    ]
    assert "131k" in rows[1] and "every 512 tokens" in rows[3]


def test_level_table_folds_what_does_not_fit():
    text = _printed(level_table(graphs.hope()))
    assert "outer.{m, v}" in text and "480k" in text
    assert "… 45 more levels" in _printed(level_table(graphs.large(60)))
