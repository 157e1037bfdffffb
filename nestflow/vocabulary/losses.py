"""Objectives and losses; distributions; schedules; words of update rules."""

from __future__ import annotations

from typing import Any

from nestflow.ir import ops
from nestflow.ir.construct import number
from nestflow.ir.node import Node, Type, make
from nestflow.vocabulary.record import describe, parse_signature, word

# --- objectives of a level: they take the prediction and the value -----------------------------------------


@word("dot()", kind="objective", also="hebbian")
def dot(site: Any, p: Node, v: Node) -> Node:
    """−⟨p, v⟩: the gradient in the prediction is −v. Linear attention; the default of key-less memories."""
    return ops.unary("neg", ops.inner(p, v) if p.type.shape else ops.binary("mul", p, v))


@word(
    "l2(p = none, v = none)",
    kind="objective",
    also="mse MSELoss squared_error",
    paper="½‖p − v‖², so that gd is the delta rule",
)
def l2(site: Any, p: Node, v: Node) -> Node:
    """½‖p − v‖² summed over features: the gradient in the prediction is p − v."""
    e = ops.binary("sub", p, v)
    return ops.binary("mul", ops.const(0.5), ops.reduce("sum", ops.unary("square", e)))


describe(
    "windowed(objective, window, weight = 1)",
    "objective",
    "Σ over the pairs of the last ticks, all at one state, each as it was at its tick and times its own `weight`. "
    "`weight` here is an expression in `age` (0 is this tick): "
    "`windowed(l2, 16, weight = learned(16, init = ones)[age])`.",
    "Atlas (Omega rule)",
    also="omega sliding",
)


@word("lp(p in [1, inf))", kind="objective", paper="MIRAS (Moneta), without the factor p")
def lp(site: Any, p: Node, v: Node, power: Any = None) -> Node:
    """Σ |p − v|^p / p: gradient sign(e)|e|^(p−1)."""
    n = float(site.number(power, "p"))
    e = ops.unary("abs", ops.binary("sub", p, v))
    return ops.binary("div", ops.reduce("sum", ops.binary("pow", e, ops.const(n))), ops.const(n))


@word(
    "huber(delta in (0, inf), form = each)", kind="objective", paper="MIRAS eq. 14-16 (Yaad)", options="each norm mixed"
)
def huber(site: Any, p: Node, v: Node, delta: Any = None, form: Any = None) -> Node:
    """`each` coordinate: ½e² inside δ, δ(|e| − δ/2) outside, gradient clip(e, ±δ). `norm`: the same of ‖e‖, gradient
    e · min(1, δ/‖e‖). `mixed`: ½‖e‖² where ‖e‖ ≤ δ, else δ Σ|e|, gradient e or δ · sign(e) (Yaad as printed);
    a vector δ chooses for each coordinate."""
    d = site.node(delta, "huber")
    shape = site.word_text(form) or "each"
    if shape not in ("each", "norm", "mixed"):
        site.fail("NF309", f"huber knows no form `{shape}`", "`form = each`, `form = norm` or `form = mixed`")
    e = ops.binary("sub", p, v)
    if shape == "norm" and e.type.shape and not d.type.is_number:
        site.fail("NF301", f"delta of `huber(form = {shape})` is one number, and this is {d.type}", "`linear(x, 1)`")
    half = ops.const(0.5)
    if shape == "each" or not e.type.shape:
        size = ops.unary("abs", e)
        outside = ops.binary("mul", d, ops.binary("sub", size, ops.binary("mul", half, d)))
        return ops.reduce("sum", ops.where(ops.binary("le", size, d), squared(e), outside))
    d = number(d) if d.type.is_number and d.type.shape else d
    size = ops.root(ops.reduce("sum", ops.unary("square", e)))
    if d.type.shape:  # `mixed` with a threshold for each coordinate
        each = ops.where(ops.binary("le", size, d), squared(e), ops.binary("mul", d, ops.unary("abs", e)))
        return ops.reduce("sum", each)
    if shape == "norm":
        outside = ops.binary("mul", d, ops.binary("sub", size, ops.binary("mul", half, d)))
    else:
        outside = ops.binary("mul", d, ops.reduce("sum", ops.unary("abs", e)))
    return ops.where(ops.binary("le", size, d), ops.reduce("sum", squared(e)), outside)


def squared(e: Node) -> Node:
    """½e²"""
    return ops.binary("mul", ops.const(0.5), ops.unary("square", e))


# --- losses of outputs --------------------------------------------------------------------------------


@word(
    "cross_entropy(p, y, mask = none, smoothing = 0 in [0, 1], reduce = mean)",
    kind="loss",
    also="CrossEntropyLoss nll ce",
)
def cross_entropy(site: Any, p: Any, y: Any, mask: Any, smoothing: Any, reduce: Any) -> Node:
    """−log softmax(p)[y], classes on the last axis; the mean over the unmasked terms of the whole batch (natural
    logarithm). mask: true, or a weight, where the term counts. smoothing: this share of the target is spread over all
    classes. `reduce = none`: one term per tick or example, 0 where it is masked."""
    how = site.word_text(reduce)
    if how not in (None, "none", "mean"):
        site.fail("NF309", f"cross_entropy cannot be reduced by `{how}`", "`reduce = none`, or leave it out: the mean")
    return ops.cross_entropy(
        site.node(p, "cross_entropy"),
        site.node(y, "cross_entropy"),
        None if mask is None else site.node(mask, "cross_entropy"),
        float(site.number(smoothing, "smoothing")),
        site.span,
        terms=how != "mean",
    )


describe(
    "emitted(name)",
    "loss",
    "Σ over the instances of what they publish by `emit name = e`: one value a tick, to be added to an objective.",
    also="aux_loss auxiliary_loss",
)

describe(
    "es(e, sigma, pairs)",
    "loss",
    "The objective e, whose gradient is estimated from its values alone: Σ (e(w + σε) − e(w − σε)) ε / (2σ·pairs) over "
    "the pairs, ε normal by counter (seed, weight, step, pair), all else in a step the same for all of them. For "
    "objectives that have no useful gradient, or none at all. It costs 2·pairs + 1 forward passes and no backward one.",
    "Salimans et al. 2017 (evolution strategies)",
    also="evolution evolution_strategies openai_es",
)

describe(
    "average(level)",
    "loss",
    "The mean over the copies of a level, one for each task or worker: Reptile's `value average(task)`, DiLoCo's "
    "`value average(worker)`.",
    also="mean_over_tasks mean_over_workers",
)

# --- distributions ------------------------------------------------------------------------------------


def _distribution(signature: str, doc: str) -> None:
    name = signature.partition("(")[0]

    def build(site: Any, *args: Any) -> Any:
        ends = tuple(float(site.number(a, name)) for a in args)
        if len(ends) == 2 and ends[0] > ends[1]:
            site.fail("NF325", f"no number is between {ends[0]:g} and {ends[1]:g}", "the lower end comes first")
        return site.distribution(name, ends)

    word(signature, kind="distribution", doc=doc)(build)


_distribution("normal(std in [0, inf))", "mean 0, standard deviation std")
_distribution("uniform(a, b)", "flat between a and b")
_distribution("log_uniform(a in (0, inf), b in (0, inf))", "log x flat between log a and log b")
_distribution("constant(c)", "always c")


# --- schedules ----------------------------------------------------------------------------------------


def _schedule(name: str, signature: str, doc: str) -> None:
    names = [s.name for s in parse_signature(signature)[1]]

    def build(site: Any, *args: Any) -> Node:
        values = {n: (None if a is None else float(site.number(a, n))) for n, a in zip(names, args, strict=True)}
        return make("schedule", (), Type(), site.span, kind=name, **values)

    word(signature, kind="schedule", doc=doc)(build)


_schedule(
    "cosine",
    "cosine(peak, warmup = 0 in [0, inf), total = none in [1, inf), floor = 0 in [0, inf))",
    "peak · s/warmup up to warmup, then half a cosine to floor at total + N; total is the run's length by default",
)
_schedule(
    "linear_decay",
    "linear_decay(peak, warmup = 0 in [0, inf), total = none in [1, inf), floor = 0 in [0, inf))",
    "as cosine, straight",
)
_schedule(
    "wsd",
    "wsd(peak, warmup in [0, inf), stable in [0, inf), decay in [0, inf))",
    "up over warmup ticks, peak for stable, straight to 0 over decay",
)


# --- words of update rules ----------------------------------------------------------------------------


@word("clip_norm(g, c in (0, inf))", kind="update", also="clip_grad_norm clip_grad_norm_ grad_clip")
def clip_norm(site: Any, g: Any, c: Any) -> Node:
    """g · min(1, c/(‖g‖ + 1e-6)), ‖g‖ over the level's whole gradient, one copy at a time."""
    g, bound = site.node(g, "clip_norm"), site.node(c, "clip_norm")
    norm = make("norm_all", (g,), g.type.with_(like=False, shape=()), site.span)
    ratio = ops.binary("div", bound, ops.binary("add", norm, ops.const(1e-6)))
    return ops.binary("mul", g, ops.binary("min", ops.const(1.0), ratio), site.span)


@word("norm_all(e)", kind="update")
def norm_all(site: Any, e: Any) -> Node:
    """√Σ e² over all weights of the level that learn at this tick by the same update."""
    e = site.node(e, "norm_all")
    return make("norm_all", (e,), e.type.with_(like=False, shape=()), site.span)


@word("total(e)", kind="update")
def total(site: Any, e: Any) -> Node:
    """Σ e over all tensors of a record; in an optimiser over all weights of the level."""
    e = site.node(e, "total")
    return make("total", (e,), e.type.with_(like=False, shape=()), site.span)


@word("trust(d, c in (0, inf))", kind="update")
def trust(site: Any, d: Any, c: Any) -> Node:
    """d · min(1, c‖w‖/‖d‖)."""
    d, bound = site.node(d, "trust"), site.node(c, "trust")
    number = d.type.with_(like=False, shape=())
    w = ops.leaf("w", d.type.with_(batch=False, clock=None))
    size = make("norm_w", (w,), number)
    own = make("norm_w", (d,), number)
    ratio = ops.binary("div", ops.binary("mul", bound, size), ops.binary("max", own, ops.const(1e-12)))
    return ops.binary("mul", d, ops.binary("min", ops.const(1.0), ratio), site.span)


@word("ball(w, r in (0, inf))", kind="projection", also="max_norm clip_weight")
def ball(site: Any, w: Any, r: Any) -> Node:
    """w · min(1, r/‖w‖), each tensor on its own: `project ball(10)`."""
    w, radius = site.node(w, "ball"), site.node(r, "ball")
    size = make("norm_w", (w,), w.type.with_(like=False, shape=()), site.span)
    ratio = ops.binary("div", radius, ops.binary("max", size, ops.const(1e-12)))
    return ops.binary("mul", w, ops.binary("min", ops.const(1.0), ratio), site.span)


@word("precondition(g)", kind="update", paper="Nested Learning eq. 48-49 (P)")
def precondition(site: Any, g: Any) -> Node:
    """What delta momentum maps the gradient's rows to: the identity, rows × rows. An optimiser of your own writes its
    own in place of it."""
    site.node(g, "precondition")
    return make("eye_of", (ops.leaf("fact", Type("int"), name="rows"),), Type(like=True), site.span)


def _fact(name: str, doc: str) -> None:
    def build(site: Any, w: Any) -> Node:
        return ops.leaf("fact", Type("int"), site.span, name=name)

    word(f"{name}(w)", kind="update", doc=doc)(build)


_fact("ndim", "the number of axes of the weight (a head axis is not seen)")
_fact("rows", "the first axis of the weight")
_fact("cols", "the product of the other axes (a vector: 1)")


# --- words whose meaning is in the elaborator ---------------------------------------------------------------

describe(
    "matrix(m = none, n = none)",
    "memory",
    "W q. State: `weight`, out × in, zeros. in = key's width, out = value's.",
    also="linear_memory",
)
describe(
    "vector(n = none)",
    "memory",
    "M() is the state, a vector, zeros; n is the value's width. Its bare name is the state too.",
)
describe(
    "py(target, inputs...)",
    "special",
    'A Python function of yours, "pkg.mod:fn", if you allow it: its tensors have rows first, then features.',
)
describe("scalar()", "memory", "M() is the state, a number, zero.")
describe("like(w)", "memory", "M() is the state, of w's shape, zeros: what optimisers keep.")
describe(
    "cache(window = none, segment = none, sink = 0, prefix = 0, causal = true, scale = none)",
    "memory",
    "The context itself: keeps (k, v) and gives Σ softmax(scale · q·k) v; scale = 1/√width. A query sees the pairs of "
    "the last `window` ticks, of its own `segment` of ticks, those of the first `sink` ticks and `prefix` learned "
    "pairs (weights). `causal = false` sees later ticks too (a window then reaches both ways) and forbids streaming. "
    "Lists as `key` and `value` bring several pairs a tick. `reset where(e)` in the level: documents that do not "
    "see each other; segments and sinks count from there.",
    "softmax attention",
    also="attention kv_cache sdpa softmax_attention sliding_window sliding_window_attention local_attention swa",
)
describe(
    "weights(F, globs..., except = none)",
    "memory",
    "The weights of flow F whose path matches.",
    also="parameters params",
)
describe("rest(F)", "memory", "The weights of F that no other level of that clock owns.")
describe(
    "dgd(lr, normalize = false, exact = true, only = **)",
    "update",
    "Delta gradient descent: −η(A K + g), K = Σ k kᵀ over the inputs of each weight; η = lr/(1 + lr tr K) if exact. "
    "`only` is a glob: the other tensors take `gd(lr)`. lr is a number, or, as any rate of a memory, by channel.",
    "Nested Learning eq. 56-57, 88",
    also="delta_gd",
)
describe("decay_first(gate)", "retention", "Decay before the error: the gated delta rule.", "Gated DeltaNet")
describe(
    "lq(alpha, q = 4 in (1, inf))",
    "retention",
    "A ← αA + step, read through θ = A / ‖A‖_q^(q−2), the norm over the whole tensor (0 where A = 0). `init` gives A.",
    "MIRAS (Moneta)",
)
describe("replace()", "update", "A = v: the memory becomes its value (a memory without a key).", also="copy assign")
describe(
    "prox(lr in (0, inf))",
    "update",
    "The exact proximal step of l2 on a matrix: A = argmin ℓ + ‖A − A_(t−1)‖²/(2 lr). lr is a number, or `on_value`.",
    "Longhorn",
    also="implicit proximal",
)
describe(
    "grouped(e, n)",
    "special",
    "e, evaluated once for each of n groups of heads, with weights for each; head i of h uses group i·n // h "
    "(grouped-query attention). A `cache` keeps the pairs of groups.",
    "GQA",
    also="repeat_kv kv_heads grouped_query",
)
describe("on_value(e)", "special", "A vector that acts on the value (out) axis of a matrix.")
describe(
    "gram(x, normalize = false)",
    "update",
    "`gram(w_in)`: Σ x xᵀ over the inputs x of w in the objective, over the pairs that g sums, weighted as g is; "
    "normalize: over x/‖x‖. cols × cols, zeros for a weight that multiplies no input. On the step clock it trains a "
    "compiled module.",
    "Nested Learning eq. 56-57",
    also="covariance kfac",
)
describe(
    "curvature(kind)",
    "update",
    "`curvature(hutchinson)`: z ⊙ Hz, z = ±1 drawn by (seed, path, update), H the second derivatives of the level's "
    "objective at this batch: an estimate of the diagonal. It needs the objective, so it trains a compiled module.",
    "Sophia",
    also="hessian hutchinson hvp",
)
describe(
    "ticks(e)",
    "special",
    "In `update`, `retain` and `project` of a memory of every N tokens: e at the N ticks since the last update, oldest "
    "first, along a new first axis: `update momentum(lr, mean(ticks(sigmoid(linear(x, 1))), axis = 0))`.",
    "LaCT: rates averaged over a chunk",
)
describe("before(m)", "special", "The state of a memory before this tick.")
describe("debias(m)", "update", "m / (1 − the product of its retains).", "Adam")
