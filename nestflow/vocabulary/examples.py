"""One right line for each word, and the small spec it stands in: documentation shows the line, tests run the spec.

A line is `PLACE: line`; the places are those of `SPECS`. A new word gets a line here (tests/vocabulary).
"""

from __future__ import annotations

import re

from nestflow.vocabulary.fields import SYNTAX
from nestflow.vocabulary.record import WORDS

_HEAD = """nestflow 1
input x : float[T, 8]
input i : int[T] in [0, 16)
"""
_LEVEL = {
    "every": "every 1 token", "memory": "memory matrix", "key": "key x |> linear |> l2norm",
    "value": "value x |> linear", "query": "query x |> linear |> l2norm", "objective": "objective l2",
    "update": "update gd(0.1)",
}  # fmt: skip
_TRAINED = "\nloss = mean(square(f(x) - x))\n"
SPECS = {
    "value": _HEAD + "output f(x, i)\nflow f(x, i) { return LINE }\n",
    "picture": "nestflow 1\ninput p : float[3, 8, 8]\noutput f(p)\nflow f(p) { return LINE }\n",
    "flow": _HEAD + "output f(x, i)\nflow f(x, i) {\n  LINE\n}\n",
    "level": _HEAD + "output a(x)\nlevel a(x) {\n  FIELDS\n  LINE\n}\n",
    "rule": _HEAD + "output f(x)\nflow f(x) { return linear(x) }" + _TRAINED + "optimizer o(lr) {\n  LINE\n}\n"
    "level outer { every 1 step; memory weights(f); objective loss; update o(0.1) }\n",
    "outer": _HEAD + "output f(x)\nflow f(x) { return linear(x) }" + _TRAINED + "level outer {\n  OUTER\n  LINE\n}\n",
    "loss": _HEAD + "output f(x)\nflow f(x) { return linear(x, 16) }\nLINE\n"
    "level outer { every 1 step; memory weights(f); objective loss; update gd(0.1) }\n",
    "top": _HEAD + "output f(x)\nLINE\nflow f(x) { return linear(x) }\n",
    "spec": "nestflow 1\nLINE\n",
    "copies": _HEAD + "output f(x)\nflow f(x) { return linear(x) }\n"
    "level near { per task; memory f; init hub; reset each(step); objective mean(near(x)); update gd(0.1) }\n"
    "level hub {\n  every 1 step; memory weights(f); update gd(0.1)\n  LINE\n}\n",
    "trained": _HEAD + "output f(x)\nLINE\n"
    "level outer { every 1 step; memory weights(f); objective loss; update gd(0.1) }\n",
}
_OUTER = {
    "every": "every 1 step", "memory": "memory weights(f)", "objective": "objective loss", "update": "update gd(0.1)",
}  # fmt: skip

_LINES = """
linear       value: x |> linear(4)
embed        value: embed(i, 16, 8)
short_conv   value: x |> short_conv(4) |> silu
previous     value: x - previous(x)
rope         value: x |> rope
rmsnorm      value: x + swiglu(rmsnorm(x))
l2norm       value: x |> linear |> l2norm
layernorm    value: x |> layernorm
groupnorm    value: groupnorm(x, groups = 2)
softmax      value: softmax(x)
poly         value: x |> linear(3) |> poly(2)
silu         value: x |> linear |> silu
sigmoid      value: x * sigmoid(linear(x))
tanh         value: tanh(x)
exp          value: exp(-square(x))
log          value: log(1 + square(x))
sqrt         value: sqrt(1 + square(x))
abs          value: abs(x)
sign         value: sign(x)
square       value: x |> linear |> relu |> square
relu         value: relu(x)
softplus     value: softplus(x)
inverse_softplus value: softplus(x + inverse_softplus(0.1))
elu1         level: key x |> linear |> elu1
gelu         value: gelu(x, approx = tanh)
add          value: linear(x) |> add(x)
sub          value: linear(x) |> sub(x)
mul          value: linear(x) |> mul(x)
div          value: x |> div(2)
scale        value: linear(x) |> scale(0.5)
max          value: max(x, 0)
min          value: min(x, 1)
lerp         value: lerp(x, previous(x), 0.5)
clamp        value: clamp(x, -1, 1)
where        value: where(x > 0, x, 0)
sum          value: x * sum(x)
mean         value: x - mean(x)
norm         value: x / max(norm(x), 1)
rms          value: x / (rms(x) + 1)
inner        value: x * inner(x, linear(x))
outer_product value: outer_product(x, linear(x)) @ x
transpose    value: transpose(outer_product(x, linear(x))) @ x
concat       value: concat(x, previous(x)) |> linear(8)
stack        value: mean(stack(x, previous(x)), axis = -1)
reshape      value: x |> reshape(2, 4) |> softmax |> flatten
flatten      value: x |> reshape(2, 4) |> flatten
width        value: linear(x, 2 * width(x))
learned      value: x * learned(8, init = ones)
split_heads  level: heads 2; value split_heads(x); return merge_heads(y) |> linear(8)
merge_heads  level: heads 2; return y |> rmsnorm |> merge_heads |> linear(8)
next         loss: loss = cross_entropy(f(x), next(i))
stop         value: x + stop(linear(x))
newton_schulz outer: update g |> newton_schulz |> scale(-0.02)
zeros        value: max(x, zeros(8))
ones         value: max(x, ones(8))
eye          value: (eye(8) + outer_product(x, x)) @ x
diag         value: diag(x) @ x
trace        value: x * trace(outer_product(x, x))
solve        value: solve(eye(8) + outer_product(x, x), x)
root         value: root(eye(8) + outer_product(x, x), -2) @ x
eigenvectors value: eigenvectors(eye(8) + outer_product(x, x)) @ x
qr           value: qr(eye(8) + outer_product(x, x)) @ x
dot          level: objective dot
l2           level: objective l2
windowed     level: objective windowed(l2, 4)
lp           level: objective lp(3)
huber        level: objective huber(1)
cross_entropy loss: loss = cross_entropy(f(x), next(i))
emitted      trained: flow f(x) { emit size = mean(x * x); return linear(x) }; loss = mean(f(x)) + emitted(size)
log_prob     loss: loss = mean(-log_prob(f(x), i))
kl           loss: loss = mean(kl(f(x), stop(f(x)))) + mean(square(f(x)))
square_distance loss: loss = mean(square_distance(f(x), 1))
normal       value: x |> linear(init = normal(0.02))
uniform      value: x * learned(8, init = uniform(0, 1))
log_uniform  value: x * learned(8, init = log_uniform(1e-3, 0.1))
constant     value: x * learned(8, init = constant(0.5))
cosine       outer: update adamw(lr = cosine(3e-4, warmup = 10, total = 100))
linear_decay outer: update adamw(lr = linear_decay(3e-4, warmup = 10, total = 100))
wsd          outer: update adamw(lr = wsd(3e-4, warmup = 10, stable = 80, decay = 10))
clip_norm    outer: update g |> clip_norm(1) |> adamw(3e-4)
norm_all     outer: update -0.1 * g / (norm_all(g) + 1)
es           outer: objective es(loss, sigma = 0.05, pairs = 4)
average      copies: value average(near); objective l2
total        rule: step -lr * g / (1 + total(g * g))
trust        outer: update adam(1e-3) |> trust(0.1)
ball         level: project ball(10)
ndim         outer: update adamw(lr = 1e-3, weight_decay = 0.1 if ndim(w) >= 2 else 0)
rows         rule: step -lr * g / rows(w)
cols         rule: step -lr * g / cols(w)
matrix       level: memory matrix
vector       level: memory vector; key; query; objective; retain 0.9
scalar       level: memory scalar; key; query; objective; value mean(x); retain 0.9; return x * y
like         rule: memory m : like(w) { value g; update gd(1); retain 0.9 }; step -lr * m
cache        level: memory cache(window = 16); objective; update; every
weights      outer: memory weights(f, "linear.**")
rest         outer: memory rest(f)
dgd          level: update dgd(0.1)
decay_first  level: retain decay_first(0.9)
lq           level: retain lq(0.9); init learned(normal(0.1))
replace      level: memory vector; key; query; objective; update replace
prox         level: update prox(0.5)
grouped      level: heads 4; memory cache; key grouped(linear(x), 2); value grouped(linear(x), 2); objective; update
on_value     level: update gd(on_value(sigmoid(linear(x))))
before       rule: memory m : like(w) { value g; update gd(0.1); retain 0.9 }; step -lr * sign(before(m) + g)
gram         rule: step -lr * (w @ gram(w_in) + g)
curvature    rule: memory h : like(w) { value curvature(hutchinson); update gd(1) }; step -lr * g / (1 + abs(h))
precondition rule: step -lr * precondition(g) @ g
debias       rule: memory m : like(w) { value g; update gd(0.1); retain 0.9 }; step -lr * debias(m)
patches      picture: patches(p, 4) |> linear(8)
conv2d       picture: conv2d(p, 4, 3) |> flatten
max_pool     picture: max_pool(p, 2) |> flatten
upsample     picture: upsample(p, 2) |> flatten
dropout      value: dropout(linear(x), 0.1)
noise        value: x + 0.1 * noise(8)
bernoulli    value: x * bernoulli(0.9, like = x)
ticks        level: every 4 tokens; update gd(0.1 * mean(ticks(sigmoid(linear(x, 1)))))
memory       level: memory mlp(depth = 2, expand = 4)
key          level: key x |> linear |> l2norm
value        level: value x |> linear
query        level: query x |> linear |> l2norm
weight       level: weight sigmoid(linear(x, 1))
when         level: when norm(M(key) - value) > 0.1
objective    level: objective l2
update       outer: update g |> clip_norm(1) |> adamw(3e-4)
retain       level: retain sigmoid(linear(x, 1) + 6)
project      level: project w / max(norm(w), 1)
every        level: every 4 tokens
chunk        level: chunk 16
rounds       level: rounds 2
heads        level: heads 4
read         level: read before
init         level: init learned(normal(0.02))
gradient     level: gradient stop
return       level: return y |> rmsnorm |> linear(8)
reset        level: chunk 4; reset each(chunk, keep = rule)
keep         level: chunk 4; reset each(chunk, keep = rule)
step         rule: step -lr * g
set          rule: set w - lr * g
eval         rule: memory a : like(w) { value w; objective l2; update gd(0.1); init w }; step -lr * g; eval a
use          top: use titans of titans
param        top: param dim = 256 in [1, 65536]
input        spec: input tokens : int[T] in [0, 256); output embed(tokens, 256, 8)
output       spec: input x : float[T, 8]; output swiglu(x)
level        top: level a(x) { memory matrix; key x; value x; query x; objective l2; update gd(0.1) }
flow         top: flow block(x) { x = x + swiglu(rmsnorm(x)); return x }
optimizer    top: optimizer plain(lr = 0.1) { step -lr * g }
shared       flow: shared emb = embed(16, 8); return x + emb(i)
repeat       flow: repeat 2 { x = x + swiglu(rmsnorm(x)) }; return x
for          flow: for p in [1, 4] { x = x + mlp(x, name = "mlp_{p}") }; return x
if           flow: if width(x) > 4 { x = rmsnorm(x) }; return x
clock        top: clock task
assert       top: assert 8 % 2 == 0, "two must divide eight"
emit         flow: emit size = mean(square(x)); return x
clock        top: clock round = 500 steps
execution    top: execution { dtype float32; checkpointing auto }
dtype        top: execution { dtype float32 }
device       top: execution { device cpu }
compile      top: execution { compile false }
checkpointing top: execution { checkpointing auto }
block        top: execution { block 32 }
microbatch   top: execution { microbatch 2 }
backend      top: execution { backend torch }
capture      top: execution { capture false }
extends      spec: extends titans { level titans { chunk 64 } }
y            level: return y |> linear(8)
M            level: objective sum(square(M(key) - value))
head         level: heads 2; retain 1 - 2 ^ (-5 - head)
t            level: update gd(0.5 / t)
g            outer: update -0.1 * g
n_ticks      outer: every 4 steps; update (g / n_ticks) |> sgd(0.1)
w            rule: step -lr * (g + 0.1 * w)
w0           rule: step -lr * (g + 0.1 * (w - w0))
w_chunk      level: chunk 4; project w_chunk + 0.5 * (w - w_chunk)
age          level: objective windowed(l2, 4, weight = learned(4, init = ones)[age])
training     flow: return x if training else 2 * x
"""


def _read() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for line in _LINES.strip().split("\n"):
        match = re.fullmatch(r"(\w+) +(\w+): (.*)", line)
        if match is None:
            raise ValueError(f"no example: {line!r}")
        name, place, text = match.groups()
        found[name] = (place, text)
    return found


EXAMPLES = _read()
"""By word: where its line stands, and the line."""


def example(name: str) -> str | None:
    """A right line that uses a word, or None where it has none yet."""
    found = EXAMPLES.get(name)
    if found is None:
        record = WORDS.get(name) or SYNTAX.get(name)
        return record.example or None if record else None
    place, line = found
    shown = [s for s in parts(line) if " " in s or "(" in s or place in ("value", "picture") or s in WORDS]
    return "; ".join(shown)


def parts(line: str) -> list[str]:
    """The statements of a line: `;` inside brackets does not part them."""
    found, depth = [""], 0
    for c in line:
        depth += (c in "([{") - (c in ")]}")
        if c == ";" and depth == 0:
            found.append("")
        else:
            found[-1] += c
    return [p.strip() for p in found]


def spec(name: str) -> str:
    """The text of a whole spec in which a word's line stands. Raises KeyError where it has none."""
    place, line = EXAMPLES[name]
    text = SPECS[place]
    fields = dict(_LEVEL if place == "level" else _OUTER)
    given = parts(line) if place in ("level", "outer") else []
    for g in given:  # a bare field's name leaves it out
        fields.pop(g.split()[0], None)
    mine = [g for g in given if " " in g] if given else [line]
    text = text.replace("FIELDS", "; ".join(fields.values())).replace("OUTER", "; ".join(fields.values()))
    return text.replace("LINE", "\n  ".join(mine) if given else "\n".join(parts(line)))
