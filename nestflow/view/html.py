"""The level graph as one HTML page: pan, zoom, fields of a level on hover, and a clock that shows who learns when."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files

from nestflow.graph.model import LevelGraph
from nestflow.view import theme, words
from nestflow.view.scene import build
from nestflow.view.svg import MONO, SANS, render_scene

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title} · nestflow</title>
<style>{css}</style></head>
<body>
<div id="stage">{picture}</div>
<div id="bar"><button id="play" title="every level lights up when it learns">▶ run the clock</button>
<span id="clock"></span><button id="fit" title="show everything">fit</button>
<span id="hint">drag to move · scroll to zoom · hover a level</span></div>
<aside id="card" hidden></aside>
<script type="application/json" id="levels">{data}</script>
<script>{js}</script>
</body></html>
"""


def to_html(graph: LevelGraph) -> str:
    """One file without network access; light and dark by the reader's preference."""
    drawing = build(graph)
    levels = {
        words.clean(v.name): {"title": words.clean(v.title), "doc": words.clean(v.doc or ""), "fields": words.fields(v)}
        for v in graph.levels
    }
    # "<" is escaped so that no text can end the script element
    data = json.dumps(levels).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    here = files("nestflow.view")
    css, js = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    picture = render_scene(drawing)
    return PAGE.format(title=escape(drawing.title), css=_variables() + css, picture=picture, data=data, js=js)


def _variables() -> str:
    """The theme's colours and fonts as CSS variables."""
    colours = {"paper": theme.PAPER, "card": theme.CARD, "ink": theme.INK, "soft": theme.SOFT, "faint": theme.FAINT}
    light, dark = (";".join(f"--{name}:{c[mode]}" for name, c in colours.items()) for mode in ("light", "dark"))
    fonts = f"--sans:{SANS};--mono:{MONO}"
    return f":root{{{light};{fonts}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
