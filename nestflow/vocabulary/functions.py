"""Block functions: what flows and token-level fields compute with. Last axis unless said otherwise."""

from __future__ import annotations

from typing import Any

from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make
from nestflow.vocabulary.record import word

# --- linear maps and tables --------------------------------------------------------------------------


@word("linear(x, n = none, bias = false, init = none)", also="dense fc proj projection Linear")
def linear(site: Any, x: Any, n: Any, bias: Any, init: Any) -> Node:
    """W x (+ b). Without n the input's width, divided by the heads if the input is whole and the level has heads.
    Under heads it gives n features per head."""
    x = site.real(x, "linear")
    heads = site.weight_heads(x)
    width = x.type.shape[-1]
    if n is None:
        if heads and not x.type.heads:
            shares = site.env.shares or heads
            if width % shares:
                site.fail(
                    "NF307",
                    f"{shares} heads do not divide a width of {width}",
                    f"choose a width that is a multiple of {shares}, other `heads`, or say how wide a head is: "
                    f"`linear({max(1, width // shares)})`",
                )
            out = width // shares
        else:
            out = width
    else:
        out = site.size(n, "the width of linear")
    w = site.weight("weight", (out, width), site.init(init, fan_in=width), heads, multiplies=True)
    y = ops.linear(x, w, site.span)
    if site.flag(bias, "bias"):
        y = ops.binary("add", y, site.weight("bias", (out,), site.init("zeros"), heads), site.span)
    return y


@word("embed(i, vocab, dim, init = none)", also="embedding Embedding lookup")
def embed(site: Any, i: Any, vocab: Any, dim: Any, init: Any) -> Node:
    """Row i of a table of vocab × dim. An index out of range is a data error."""
    i = site.node(i, "embed")
    rows, width = site.size(vocab, "the vocabulary of embed"), site.size(dim, "the width of embed")
    w = site.weight(
        "weight",
        (rows, width),
        site.init(init, std=0.02),
        site.weight_heads(i) if i.type.heads else None,
        multiplies=True,
    )
    return ops.embed(i, w, site.span)


@word("short_conv(x, n, bias = false, init = none)", also="conv1d causal_conv conv", paper="Titans 4.4, kernel 4")
def short_conv(site: Any, x: Any, n: Any, bias: Any, init: Any) -> Node:
    """Along tokens, each feature on its own: Σ over j < n of w_j ⊙ x_{t−j}, own token included, zeros before the
    sequence's start."""
    x = site.real(x, "short_conv")
    taps, width = site.size(n, "the taps of short_conv"), x.type.shape[-1]
    w = site.weight("weight", (width, taps), site.init(init, fan_in=taps), x.type.heads, multiplies=False)
    b = site.weight("bias", (width,), site.init("zeros"), x.type.heads) if site.flag(bias, "bias") else None
    return ops.short_conv(x, w, b, taps, site.tail("tail", x.type, taps - 1), site.span)


@word("previous(x, n = 1)", also="shift lag token_shift")
def previous(site: Any, x: Any, n: Any) -> Node:
    """x_{t−n}; zeros before the sequence's start."""
    x = site.node(x, "previous")
    lag = site.size(n, "the lag of previous")
    return ops.previous(x, lag, site.tail("tail", x.type, lag), site.span)


@word("rope(x, base = 10000 in (0, inf), reset = none)", also="rotary RoPE", paper="Su et al. 2021")
def rope(site: Any, x: Any, base: Any, reset: Any) -> Node:
    """Turns the pairs (i, i + d/2) by p · base^(−2i/d), p = t − 1 (or (t − 1) mod reset)."""
    x = site.real(x, "rope")
    return ops.rope(
        x, float(site.number(base, "base")), None if reset is None else site.size(reset, "reset"), site.span
    )


# --- norms -------------------------------------------------------------------------------------------


@word("rmsnorm(x, eps = 1e-6 in [0, inf))", also="RMSNorm rms_norm")
def rmsnorm(site: Any, x: Any, eps: Any) -> Node:
    """x / √(mean x² + eps) ⊙ gain."""
    x = site.real(x, "rmsnorm")
    gain = site.weight("weight", (x.type.shape[-1],), site.init("ones"), x.type.heads)
    return ops.rowwise("rmsnorm", x, gain, span=site.span, eps=float(site.number(eps, "eps")))


@word("l2norm(x, eps = 1e-6 in [0, inf))", also="normalize normalise unit")
def l2norm(site: Any, x: Any, eps: Any) -> Node:
    """x / √(Σ x² + eps)."""
    return ops.rowwise("l2norm", site.real(x, "l2norm"), span=site.span, eps=float(site.number(eps, "eps")))


@word("layernorm(x, eps = 1e-5 in [0, inf))", also="LayerNorm layer_norm")
def layernorm(site: Any, x: Any, eps: Any) -> Node:
    """Biased variance, gain and bias."""
    x = site.real(x, "layernorm")
    gain = site.weight("weight", (x.type.shape[-1],), site.init("ones"), x.type.heads)
    bias = site.weight("bias", (x.type.shape[-1],), site.init("zeros"), x.type.heads)
    return ops.rowwise("layernorm", x, gain, bias, span=site.span, eps=float(site.number(eps, "eps")))


@word("softmax(x, axis = -1)")
def softmax(site: Any, x: Any, axis: Any) -> Node:
    """exp x over its sum, on the last axis."""
    x = site.real(x, "softmax")
    if site.number(axis, "axis") not in (-1, len(x.type.shape) - 1):
        site.fail("NF308", "softmax acts on the last axis", "transpose first")
    return ops.rowwise("softmax", x, span=site.span)


@word(
    "poly(x, p in [1, 16])",
    also="polynomial monomials feature_map",
    paper="Atlas: polynomial features of keys and queries",
)
def poly(site: Any, x: Any, p: Any) -> Node:
    """All monomials of degree 0 … p of the features, each once, in lexicographic order; those of degree i times
    `weight`[i], which starts at 1/i!. The width is binom(d + p, p)."""
    x, degree = site.vector(x, "poly"), site.size(p, "the degree of poly")
    w = site.weight("weight", (degree + 1,), site.inverse_factorials(), x.type.heads)
    return ops.poly(x, w, degree, site.span)


# --- elementwise -------------------------------------------------------------------------------------

_UNARY_DOCS = {
    "silu": "x · sigmoid(x)",
    "sigmoid": "1 / (1 + e^(−x))",
    "tanh": "hyperbolic tangent",
    "exp": "eˣ",
    "log": "ln x",
    "sqrt": "√x",
    "abs": "|x|, derivative 0 at 0",
    "sign": "−1, 0 or 1",
    "square": "x²",
    "relu": "max(x, 0), derivative 0 at 0",
    "softplus": "ln(1 + eˣ)",
    "inverse_softplus": "ln(eˣ − 1)",
    "elu1": "elu(x) + 1",
}
_ALSO = {"silu": "swish SiLU", "sigmoid": "sigma logistic", "relu": "ReLU", "exp": "e"}


def _unary(op: str) -> None:
    def build(site: Any, x: Any) -> Any:
        if site.is_distribution(x):
            return site.map_distribution(x, op)
        return ops.unary(op, site.node(x, op), site.span)

    word(f"{op}(x)", doc=_UNARY_DOCS[op], also=_ALSO.get(op, ""), elementwise=True)(build)


for _op in _UNARY_DOCS:
    _unary(_op)


@word("gelu(x, approx = none)", also="GELU", elementwise=True)
def gelu(site: Any, x: Any, approx: Any) -> Node:
    """x Φ(x), exact erf; `approx = tanh` for the tanh form."""
    kind = site.word_text(approx)
    if kind not in (None, "none", "tanh"):
        site.fail("NF309", f"gelu knows no approximation `{kind}`", "write `approx = tanh`, or leave it out")
    return ops.unary("gelu_tanh" if kind == "tanh" else "gelu", site.node(x, "gelu"), site.span)


def _binary(name: str, op: str, doc: str) -> None:
    def build(site: Any, a: Any, b: Any) -> Node:
        return ops.binary(op, site.node(a, name), site.node(b, name), site.span)

    word(f"{name}(a, b)", doc=doc, elementwise=True)(build)


for _name, _op2, _doc in [
    ("add", "add", "a + b"),
    ("sub", "sub", "a − b"),
    ("mul", "mul", "a · b"),
    ("div", "div", "a / b"),
    ("scale", "mul", "a · b, as a pipe stage"),
]:
    _binary(_name, _op2, _doc)


def _extremum(name: str) -> None:
    def build(site: Any, a: Any, b: Any, axis: Any) -> Node:
        if b is not None:
            return ops.binary(name, site.node(a, name), site.node(b, name), site.span)
        x = site.node(a, name)
        if name == "max":
            return site.reduce("amax", x, site.axis(axis))
        return ops.unary("neg", site.reduce("amax", ops.unary("neg", x), site.axis(axis)), site.span)

    word(f"{name}(a, b = none, axis = none)", doc=f"the {name} of two values, or of one value over its axes")(build)


_extremum("max")
_extremum("min")


@word("lerp(a, b, c)")
def lerp(site: Any, a: Any, b: Any, c: Any) -> Node:
    """a + c (b − a)."""
    a, b, c = site.node(a, "lerp"), site.node(b, "lerp"), site.node(c, "lerp")
    return ops.binary("add", a, ops.binary("mul", c, ops.binary("sub", b, a)), site.span)


@word("clamp(x, a, b)", also="clip")
def clamp(site: Any, x: Any, a: Any, b: Any) -> Node:
    """x kept between a and b."""
    low, high = site.node(a, "clamp"), site.node(b, "clamp")
    if low.op == high.op == "const" and low.value > high.value:
        site.fail("NF325", f"no number is between {low.value} and {high.value}", "the lower end comes first")
    return ops.binary("min", ops.binary("max", site.node(x, "clamp"), low), high, site.span)


@word("where(c, a, b)")
def where(site: Any, c: Any, a: Any, b: Any) -> Node:
    """a where c, else b, elementwise."""
    return ops.where(site.node(c, "where"), site.node(a, "where"), site.node(b, "where"), site.span)


# --- reductions and products ---------------------------------------------------------------------------


def _reduction(name: str, doc: str) -> None:
    def build(site: Any, x: Any, axis: Any) -> Node:
        return site.reduce(name, site.node(x, name), site.axis(axis))

    word(f"{name}(x, axis = none)", doc=doc)(build)


_reduction("sum", "Σ over a feature axis (dropped), or over all of them")
_reduction(
    "mean",
    "mean over a feature axis (dropped), or over all; outside flows and token-level fields over batch and ticks too",
)


@word("norm(x, axis = none)")
def norm(site: Any, x: Any, axis: Any) -> Node:
    """The l2 norm over the last axis, kept at size 1; in an optimiser and in `project` over the whole weight, a
    number, and with `axis = -1` over each row."""
    x = site.node(x, "norm")
    if axis is not None and site.number(axis, "axis") not in (-1, len(x.type.shape) - 1):
        site.fail("NF308", "norm acts on the last axis, or on a whole weight", "`axis = -1`, or transpose first")
    if x.type.like and axis is not None:
        return make("norm_rows", (x,), x.type, site.span)
    if x.type.like:
        return make("norm_w", (x,), x.type.with_(like=False, shape=()), site.span)
    squares = ops.reduce("sum", ops.unary("square", x), -1, keep=True)
    return ops.root(squares, site.span)


@word("rms(x)")
def rms(site: Any, x: Any) -> Node:
    """√mean x² over the last axis, kept at size 1; in an optimiser over the whole weight, a number."""
    x = site.node(x, "rms")
    squares = ops.reduce("mean", ops.unary("square", x), None if x.type.like else -1, keep=True)
    return ops.unary("sqrt", squares, site.span) if x.type.like else ops.root(squares, site.span)


@word("inner(a, b)", also="dot_product")
def inner(site: Any, a: Any, b: Any) -> Node:
    """Σ a b over the last axis: a number (`dot` is an objective's name)."""
    return ops.inner(site.node(a, "inner"), site.node(b, "inner"), site.span)


@word("outer_product(a, b)", also="outer")
def outer_product(site: Any, a: Any, b: Any) -> Node:
    """a bᵀ."""
    return ops.outer(site.vector(a, "outer_product"), site.vector(b, "outer_product"), site.span)


@word("transpose(x)", also="T permute")
def transpose(site: Any, x: Any) -> Node:
    """The last two feature axes exchanged."""
    return ops.transpose(site.node(x, "transpose"), site.span)


@word("concat(xs...)", also="cat")
def concat(site: Any, *xs: Any) -> Node:
    """Joined along the last axis."""
    return ops.concat(tuple(site.node(x, "concat") for x in xs), site.span)


@word("stack(xs...)")
def stack(site: Any, *xs: Any) -> Node:
    """Along a new last axis."""
    return ops.stack(tuple(site.node(x, "stack") for x in xs), site.span)


@word("reshape(x, shape...)", also="view")
def reshape(site: Any, x: Any, *shape: Any) -> Node:
    """The same features in another shape."""
    return ops.reshape(site.node(x, "reshape"), tuple(site.size(n, "an axis of reshape") for n in shape), site.span)


@word("flatten(x)")
def flatten(site: Any, x: Any) -> Node:
    """All features on one axis."""
    x = site.node(x, "flatten")
    size = 1
    for n in x.type.shape:
        size *= n
    return ops.reshape(x, (size,), site.span)


@word("width(x)")
def width(site: Any, x: Any) -> Node:
    """The size of the last axis, an integer known when compiling."""
    x = site.node(x, "width")
    return ops.const(x.type.shape[-1] if x.type.shape else 1)


@word("learned(shape..., init = zeros)", also="parameter Parameter")
def learned(site: Any, *shape: Any, init: Any = "zeros") -> Node:
    """A tensor of its own, one per head under heads."""
    sizes = tuple(site.size(n, "an axis of learned") for n in shape)
    return site.weight("learned", sizes, site.init(init), site.level_heads(), bare=True)


# --- heads, time, gradient ---------------------------------------------------------------------------


@word("split_heads(x)", kind="special")
def split_heads(site: Any, x: Any) -> Node:
    """The head's share of x: features [i·d/h, (i+1)·d/h) of head i."""
    heads = site.level_heads()
    if not heads:
        site.fail("NF310", "split_heads stands outside a level with heads", "write `heads n` in the level")
    return ops.split_heads(site.vector(x, "split_heads"), heads, site.span)


@word("merge_heads(y)", kind="special")
def merge_heads(site: Any, y: Any) -> Node:
    """The heads joined in order; what follows is over the whole width."""
    return ops.merge_heads(site.vector(y, "merge_heads"), site.span)


@word("next(x)", kind="special", also="shift_left target")
def next_(site: Any, x: Any) -> Node:
    """x at t + 1; the last tick of a sequence has no term."""
    return ops.next_(site.node(x, "next"), site.span)


@word("stop(e)", kind="special", also="detach stop_gradient sg no_grad")
def stop(site: Any, e: Any) -> Node:
    """e, constant for every level."""
    return ops.stop(site.node(e, "stop"), site.span)


@word(
    "newton_schulz(x, iters = 5, coefficients = none, eps = 1e-7 in [0, inf), dtype = none)",
    also="zeropower orthogonalize",
    paper="Jordan et al. 2024 (Muon); Nested Learning eq. 42-44",
)
def newton_schulz(site: Any, x: Any, iters: Any, coefficients: Any, eps: Any, dtype: Any) -> Node:
    """X / max(‖X‖_F, eps), then iters times aX + (bA + cA²)X, A = XXᵀ on the shorter side. coefficients: [a, b, c], or
    such a list for each iteration."""
    x = site.node(x, "newton_schulz")
    times = site.size(iters, "iters")
    return make(
        "newton_schulz",
        (x,),
        x.type,
        site.span,
        iters=times,
        coefficients=(3.4445, -4.7750, 2.0315) if coefficients is None else _coefficients(site, coefficients, times),
        eps=float(site.number(eps, "eps")),
        dtype=site.word_text(dtype),
    )


def _coefficients(site: Any, given: Any, iters: int) -> tuple[Any, ...]:
    """Three numbers, or three for each iteration."""
    items: list[Any] = site.items(given, "coefficients")
    nested = bool(items) and all(isinstance(i, list) for i in items)
    rows: list[list[Any]] = items if nested else [items]
    if any(len(r) != 3 for r in rows) or (nested and len(rows) != iters):
        wanted = "three coefficients, or three for each iteration"
        site.fail("NF306", f"`newton_schulz` with {iters} iterations takes {wanted}")
    numbers = [tuple(float(site.number(c, "a coefficient")) for c in r) for r in rows]
    return tuple(numbers) if nested else numbers[0]


@word("zeros(shape...)", doc="zeros of the shape that is given or wanted there")
def zeros(site: Any, *shape: Any) -> Any:
    return site.fill("zeros", shape)


@word("ones(shape...)", doc="ones of the shape that is given or wanted there")
def ones(site: Any, *shape: Any) -> Any:
    return site.fill("ones", shape)


__all__ = ["Type"]
