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
