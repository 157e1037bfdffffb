"""The level graph as one HTML page: pan, zoom, fields of a level on hover, and a clock that shows who learns when."""

from __future__ import annotations

import json
from html import escape

from nestflow.graph.model import LevelGraph
from nestflow.view import scene as s
from nestflow.view import theme, words
from nestflow.view.svg import MONO, SANS, render_scene


def to_html(graph: LevelGraph) -> str:
    """One file without network access; light and dark by the reader's preference."""
    drawing = s.build(graph)
    levels = {words.clean(v.name): {"title": words.clean(v.title), "doc": words.clean(v.doc or ""), "fields": words.fields(v)}
              for v in graph.levels}
    # "<" is escaped so that no text can end the script element
    data = json.dumps(levels, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
            f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; '
            f'script-src \'unsafe-inline\'">\n'
            f"<title>{escape(drawing.title)} · nestflow</title>\n<style>{_CSS}</style></head>\n<body>\n"
            f'<div id="stage">{render_scene(drawing)}</div>\n'
            '<div id="bar"><button id="play" title="run the clock: every level lights up when it learns">▶ run the clock</button>'
            '<span id="clock"></span><button id="fit" title="show everything">fit</button>'
            '<span id="hint">drag to move · scroll to zoom · hover a level</span></div>\n'
            f'<aside id="card" hidden></aside>\n<script type="application/json" id="levels">{data}</script>\n'
            f"<script>{_JS}</script>\n</body></html>\n")


_CSS = f"""
:root{{--paper:{theme.PAPER["light"]};--card:{theme.CARD["light"]};--ink:{theme.INK["light"]};--soft:{theme.SOFT["light"]};--faint:{theme.FAINT["light"]}}}
@media (prefers-color-scheme:dark){{:root{{--paper:{theme.PAPER["dark"]};--card:{theme.CARD["dark"]};--ink:{theme.INK["dark"]};--soft:{theme.SOFT["dark"]};--faint:{theme.FAINT["dark"]}}}}}
html,body{{margin:0;height:100%;background:var(--paper);color:var(--ink);font-family:{SANS};overflow:hidden}}
#stage{{position:fixed;inset:0;cursor:grab;touch-action:none}} #stage.drag{{cursor:grabbing}}
#stage svg{{position:absolute;left:0;top:0;transform-origin:0 0;user-select:none}}
#bar{{position:fixed;left:16px;bottom:14px;display:flex;gap:10px;align-items:center;background:var(--card);border:1px solid var(--faint);
border-radius:10px;padding:7px 10px;box-shadow:0 4px 18px #0002;font-size:13px}}
#bar button{{font:inherit;color:var(--ink);background:transparent;border:1px solid var(--faint);border-radius:7px;padding:4px 10px;cursor:pointer}}
#bar button:hover{{border-color:var(--soft)}} #clock{{font-family:{MONO};color:var(--soft);white-space:pre}} #hint{{color:var(--soft)}}
#card{{position:fixed;right:16px;top:16px;width:min(400px,42vw);max-height:84vh;overflow:auto;background:var(--card);border:1px solid var(--faint);
border-radius:12px;padding:14px 16px;box-shadow:0 8px 30px #0003;font-size:13px;pointer-events:none}}
#card h2{{margin:0 0 6px;font-size:17px}} #card p{{margin:0 0 10px;color:var(--soft)}}
#card dl{{display:grid;grid-template-columns:auto 1fr;gap:5px 14px;margin:0}} #card dt{{color:var(--soft)}}
#card dd{{margin:0;font-family:{MONO};font-size:12px;overflow-wrap:anywhere}}
#stage .box{{cursor:default}} #stage .edge,#stage .label,#stage .box,#stage .pill{{transition:opacity .15s}}
#stage.focus .edge,#stage.focus .label{{opacity:.1}} #stage.focus .box{{opacity:.45}}
#stage.focus .edge.on,#stage.focus .label.on,#stage.focus .box.on{{opacity:1}}
@keyframes pulse{{0%{{filter:brightness(1.25) drop-shadow(0 0 9px #ffb02e)}}100%{{filter:none}}}}
#stage .box.tick{{animation:pulse .42s ease-out}} @media (max-width:760px){{#hint{{display:none}}}}
"""

_JS = r"""
(() => {
  const stage = document.getElementById('stage'), svg = stage.querySelector('svg'), card = document.getElementById('card');
  const levels = JSON.parse(document.getElementById('levels').textContent);
  const W = +svg.getAttribute('width'), H = +svg.getAttribute('height');
  let k = 1, x = 0, y = 0;
  const show = () => { svg.style.transform = `translate(${x}px,${y}px) scale(${k})`; };
  const fit = () => {
    k = Math.min(innerWidth / W, (innerHeight - 64) / H, 1.6);
    if (k * W < Math.min(innerWidth, W) * 0.7) k = Math.min(innerWidth / W, 1);
    x = Math.max(0, (innerWidth - k * W) / 2); y = Math.max(0, (innerHeight - 64 - k * H) / 2); show();
  };
  addEventListener('resize', fit); document.getElementById('fit').onclick = fit; fit();
  stage.addEventListener('wheel', e => {
    e.preventDefault();
    const f = Math.exp(-e.deltaY * (e.ctrlKey ? 0.01 : 0.0015)), n = Math.min(8, Math.max(0.1, k * f));
    x = e.clientX - (e.clientX - x) * n / k; y = e.clientY - (e.clientY - y) * n / k; k = n; show();
  }, { passive: false });
  let from = null;
  stage.addEventListener('pointerdown', e => { from = [e.clientX - x, e.clientY - y]; stage.setPointerCapture(e.pointerId); stage.classList.add('drag'); });
  stage.addEventListener('pointermove', e => { if (from) { x = e.clientX - from[0]; y = e.clientY - from[1]; show(); } });
  for (const end of ['pointerup', 'pointercancel']) stage.addEventListener(end, () => { from = null; stage.classList.remove('drag'); });

  const boxes = [...svg.querySelectorAll('.box')], links = [...svg.querySelectorAll('.edge,.label')];
  svg.querySelectorAll('.box > title').forEach(t => t.remove());
  const focus = names => {
    stage.classList.toggle('focus', names.size > 0);
    const near = new Set(names);
    for (const l of links) {
      const ends = l.dataset.ends.split('\t'), on = ends.some(n => names.has(n));
      l.classList.toggle('on', on); if (on) ends.forEach(n => near.add(n));
    }
    for (const b of boxes) b.classList.toggle('on', near.has(b.dataset.level));
  };
  const tell = name => {
    const v = levels[name]; card.hidden = !v; if (!v) return;
    const h = document.createElement('h2'); h.textContent = v.title;
    const p = document.createElement('p'); p.textContent = v.doc || name;
    const dl = document.createElement('dl');
    for (const [f, text] of v.fields) {
      const dt = document.createElement('dt'), dd = document.createElement('dd'); dt.textContent = f; dd.textContent = text; dl.append(dt, dd);
    }
    card.replaceChildren(h, p, dl);
  };
  for (const b of boxes) {
    b.addEventListener('pointerenter', () => { if (!from) { focus(new Set([b.dataset.level])); tell(b.dataset.level); } });
    b.addEventListener('pointerleave', () => { focus(new Set()); card.hidden = true; });
  }
  for (const f of svg.querySelectorAll('.pill[data-level]')) {
    const mine = new Set(boxes.filter(b => b.dataset.level === f.dataset.level || b.dataset.frame === f.dataset.level).map(b => b.dataset.level));
    f.addEventListener('pointerenter', () => focus(mine)); f.addEventListener('pointerleave', () => focus(new Set()));
  }

  // The clock of the picture: one step is drawn with 16 tokens, so that both clocks can be seen.
  const PER_STEP = 16, clock = document.getElementById('clock'), play = document.getElementById('play');
  let token = 0, step = 0, timer = null;
  const flash = (unit, n) => {
    for (const b of boxes) {
      const every = +b.dataset.every;
      if (b.dataset.clock === unit && every && n % Math.max(1, every) === 0) { b.classList.remove('tick'); void b.getBBox(); b.classList.add('tick'); }
    }
  };
  const tick = () => {
    token += 1; flash('token', token);
    if (token % PER_STEP === 0) { step += 1; flash('step', step); }
    clock.textContent = `token ${String(token).padStart(4)} · step ${String(step).padStart(3)}  (a step drawn as ${PER_STEP} tokens)`;
  };
  play.onclick = () => {
    if (timer) { clearInterval(timer); timer = null; play.textContent = '▶ run the clock'; }
    else { timer = setInterval(tick, 140); play.textContent = '❚❚ pause'; tick(); }
  };
})();
"""
