"""Random memories and fields of a level, as lines of `.nl`. Rates stay below 0.02 and retains above 0.9.

Everything is drawn with `one(options)`, the simplest option first: hypothesis shrinks towards it, and a plain
`random.Random` can drive the same code without hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

One = Callable[[Sequence[Any]], Any]

DIM = 12

FLOWS = {  # memories that are flows: (z: the key's width, n: the value's)
    "net": "flow net(z, n) { return linear(z, 5) |> silu |> linear(n) }",
    "gated": 'flow gated(z, n) { return linear(silu(linear(z, 5, name = "gate")) * linear(z, 5, name = "up"), n) }',
    "biased": "flow biased(z, n) { return linear(z, n, bias = true) |> tanh }",
    "normed": "flow normed(z, n) { return rmsnorm(linear(z, n)) + linear(z, n) }",
    "centred": "flow centred(z, n) { return layernorm(linear(tanh(linear(z, 4)), n)) }",
    "scaled": "flow scaled(z, n) { h = linear(z, n); return h * learned(n, init = ones) + learned(n) }",
    "mixed": "flow mixed(z, n) { return softmax(linear(z, 4)) |> linear(n) }",
}

OPTIMIZERS = {
    "mean_of": "optimizer mean_of(lr) { memory m : like(w) { value g; update gd(0.2); retain 0.8 }; "
    "step -lr * debias(m) }",
    "lagged": "optimizer lagged(lr) { memory s : like(w) { value g; update gd(1); retain 0.7 }; "
    "step -lr * (g + before(s)) }",
    "slowly": "optimizer slowly(lr) { memory s : like(w) { value g; update gd(0.5); retain 0.5; "
    "every 2 ticks }; step -lr * (s + g) }",
    "two_steps": "optimizer two_steps(lr) { step -lr * 0.5 * w; memory s : like(w) { value g; "
    "update gd(1); retain 0.5 }; step -lr * s }",
    "pulled": "optimizer pulled(lr) { memory s : like(w) { value w; update gd(0.1); retain 0.9; "
    "init w }; step -lr * g + 0.02 * (s - w) }",
    "counted": "optimizer counted(lr) { step -lr * g / (t + 1) }",
}


@dataclass
class Part:
    """A memory of a level as it is being drawn: its name, widths, clock, and the lines of its fields."""

    name: str
    kind: str
    key: int
    value: int
    every: int
    chunk: int
    fields: list[str] = field(default_factory=list)


HELPERS = {"turned": "flow turned(z, n) { h = linear(z, n); return h * sigmoid(linear(z, n)) + short_conv(h, 2) }"}


def stages(one: One, width: int, unit: bool = True) -> str:
    """What a projection goes through: a flow, look-back, activation, rotation, norm."""
    parts = [one(["", "", "", "", "", f" |> turned({width})"])]
    parts += [one(["", "", " |> short_conv(2)", " |> short_conv(3)", " |> previous", " |> previous(2)"])]
    parts.append(one(["", " |> silu", " |> tanh", " |> elu1"]))
    if width % 2 == 0:
        parts.append(one(["", "", "", " |> rope", " |> rope(reset = 3)"]))
    if unit:
        parts.append(one([" |> l2norm", " |> l2norm", " |> rmsnorm |> l2norm", " |> softmax"]))
    return "".join(parts)


def projected(one: One, width: int, heads: int | None, unit: bool = True) -> str:
    """An expression of the level's input with this width (per head)."""
    starts = [f"x |> linear({width})"]
    if heads and DIM // heads == width:
        starts += ["x |> split_heads", "x |> linear"]
    if width == DIM and not heads:
        starts += ["x"]
    return one(starts) + stages(one, width, unit)


def memory_kind(one: One, key: int, value: int, flows: set[str]) -> str:
    kind = one(["matrix", "mlp", "mlp", "flow"])
    if kind == "matrix":
        return f"matrix({value}, {key})"
    if kind == "mlp":
        depth = one([2, 1, 3])
        options = [f"depth = {depth}", f"expand = {one([1, 2])}" if depth > 1 else "", f"out = {value}"]
        options.append(f"act = {one(['tanh', 'gelu', 'silu', 'sigmoid', 'softplus'])}" if depth > 1 else "")
        if key == value:
            options.append(one(["", "residual = true"]))
        options.append(one(["", "", "bias = true"]))
        return f"mlp({', '.join(o for o in options if o)})"
    name = one(list(FLOWS))
    flows.add(name)
    return f"{name}(n = {value})"


def rate(one: One, number: str | None, heads: int | None) -> str:
    """At most 0.02. number: a recall of one number, or None."""
    options = [
        "0.01", "0.02 * sigmoid(linear(x, 1))", "0.03 / (t + 2)", "0.02 * sigmoid(x |> linear(1) |> short_conv(2))",
        "(0.02 if t % 3 == 1 else 0.005)", "0.02 * sigmoid(mean(x |> linear(3)))",
    ]  # fmt: skip
    if heads:
        options.append("0.01 if head == 0 else 0.02")
    if number:
        options = [f"0.02 * sigmoid({number})", *options]
    return one(options)


def gate(one: One, number: str | None, part: Part) -> str:
    """What `retain` says, 0.9 at least; "" for nothing."""
    numbers = ["0.95", "0.9 + 0.1 * sigmoid(linear(x, 1))", "1 - 0.1 / (t + 1)",
               "0.9 + 0.1 * sigmoid(x |> linear(1) |> previous)", "1 if t % 2 == 0 else 0.9"]  # fmt: skip
    if number:
        numbers = [f"0.9 + 0.1 * sigmoid({number})", *numbers]
    options = ["", *numbers]
    if part.kind.startswith("matrix"):
        options += [
            f"0.9 + 0.1 * sigmoid(linear(x, {part.key}))",
            f"on_value(0.9 + 0.1 * sigmoid(linear(x, {part.value})))",
            f"0.9 + 0.1 * sigmoid(outer_product(linear(x, {part.value}), linear(x, {part.key})))",
        ]
    chosen = one(options)
    if chosen and part.every == part.chunk == 1 and one([False, True]):
        return f"decay_first({chosen})"
    return chosen


def objective(one: One, other: str | None, width: int) -> str:
    """other: a second name of the key's width. width: the value's."""
    options = [
        "l2", "l2", "dot", "huber(0.5)", "lp(3)", "lp(p = 4)",
        "0.5 * sum(square(M(key) - value))", "inner(M(key), M(key)) * 0.1 - inner(M(key), value)",
        "sum(log(1 + square(M(key) - value)))", "-inner(tanh(M(key)), value)", "-inner(log(softmax(M(key))), value)",
        "0.5 * sum(square(M(key) - value)) * sigmoid(linear(x, 1))", "0.5 * sum(square(rmsnorm(M(key)) - value))",
        "sum(abs(M(key) - value) * 0.5 + square(M(key)))",
        "inner(clamp(M(key), -0.5, 0.5), -value)", "sum(max(M(key), value))", "-sum(exp(-square(M(key) - value)))",
        "sum(where(value > 0, square(M(key) - value), -M(key) * value))",
    ]  # fmt: skip
    if width > 1:  # the gradient of a norm of one number is ±1, and sums of these are zero up to rounding
        options += ["norm(M(key) - value)", "rms(M(key) - value)"]
    if other:
        options += [
            f"0.5 * sum(square(M(key) - value)) + 0.1 * sum(square(M({other})))",
            f"inner(M({other}), M(key)) - inner(M(key), value)",
            f"-inner(M({other} * key), value)",
        ]
    return one(options)


def windowed(one: One, chosen: str) -> str:
    """The objective over the pairs of the last ticks."""
    more = one(["", ", weight = 1 / (1 + age)", ", weight = learned(4, init = ones)[age] * sigmoid(linear(x, 1))"])
    return f"windowed({chosen}, {one([2, 4])}{more})"


def link(one: One, part: Part) -> str:
    """A `retain` that a memory is read through; the norm of `lq` must not start at zero."""
    options = ["kl(0.95)", "kl(0.9 + 0.1 * sigmoid(linear(x, 1)), scale = 3)"]
    if not part.kind.startswith("matrix"):
        options += ["lq(0.95, 3)", "lq(0.9 + 0.1 * sigmoid(linear(x, 1)))"]
    return one(options)


def projection(one: One, part: Part) -> str:
    """What `project` says."""
    options = ["w |> ball(1.5)", "ball(2)", "w / max(norm(w, axis = -1), 1)", "clamp(w, -1, 1)"]
    if not part.kind.startswith("matrix"):
        options.append("w * norm(w0) / norm(w)")
    return one(options)


WHEN = ["mean(x) > 0", "sum(key) > 0.2", "t % 3 > 0", "linear(x, 1) > 0"]


def weight(one: One, number: str | None, part: Part) -> str:
    """What `weight` says; "" for nothing."""
    options = ["", "", "", "0.5", "sigmoid(linear(x, 1))", "linear(x, 1)"]
    if part.kind.startswith("gated"):
        options += ["{gate: 0.5, up: sigmoid(linear(x, 1)), linear: 1}"]
    return one([f"sigmoid({number})", *options] if number else options)


def axis_rate(one: One, part: Part) -> str:
    """A rate that is no number: on an axis of a matrix, elementwise, or for each tensor."""
    if part.kind.startswith("matrix"):
        a, b = f"0.02 * sigmoid(linear(x, {part.key}))", f"0.02 * sigmoid(linear(x, {part.value}))"
        return one(
            [a, f"on_value({b})", f"0.02 * sigmoid(outer_product(linear(x, {part.value}), linear(x, {part.key})))"]
        )
    if part.kind.startswith("gated"):
        return one(["{gate: 0.01, up: 0.02 * sigmoid(linear(x, 1)), linear: 0.02}"])
    return "0.01"


def axis_update(one: One, part: Part) -> str:
    """A rule with such a rate."""
    r = axis_rate(one, part)
    if r.startswith("{"):
        return one([f"gd({r})", f"momentum({r}, 0.5)", f"dgd({r})"])
    return one([f"gd({r})", f"momentum({r}, 0.5)", f"-({r}) * g"])


def listed(one: One, part: Part, field: str, again: str) -> str:
    """A field with an entry for each of two rounds, where the level's clock allows rounds."""
    if part.every == part.chunk == 1 and one([False, False, False, False, True]):
        return f"[{field}, {again}]"
    return field


def update(one: One, number: str | None, heads: int | None, optimizers: set[str]) -> str:
    """A rule, its rates drawn with `rate`."""
    r, b = rate(one, number, heads), one(["0.5", "sigmoid(linear(x, 1))", "0.9"])
    name = one(list(OPTIMIZERS))
    options = [
        f"gd({r})", f"momentum({r}, {b})", f"nesterov({r}, 0.9)", f"dgd({r})", f"-({r}) * g",
        "adam(0.005)", "adamw(0.005, weight_decay = 0.1)", "rmsprop(0.005)", "lion(0.005)", "amsgrad(0.005)",
        "adagrad(0.005)", "muon(0.01)", "muon(0.01, nesterov = false, weight_decay = 0.1)",
        f"sgd({r}, momentum = 0.9, dampening = 0.1, weight_decay = 0.01)",
        f"sgd({r}, momentum = 0.5, nesterov = true)", f"sgd({r}, weight_decay = 0.1)",
        "m3(0.005, 0.5, 0.1, 0.2, 0.5, period = 2)", f"schedule_free({r})", f"lookahead(gd({r}), period = 2)",
        f"dgd({r}, normalize = true)", f"dgd({r}, exact = false)", f"g |> clip_norm(1) |> dgd({r})",
        f"g / n_ticks |> gd({r})".replace("g / n_ticks", "(g / n_ticks)"), f"g |> clip_norm(1) |> gd({r})",
        f"g |> clip_norm(0.1) |> momentum({r}, {b})", "g |> clip_norm(1) |> adam(0.005) |> trust(0.1)",
        f"-({r}) * g / (1 + norm(g))", f"-({r}) * (g + 0.1 * w)", f"0.01 * (w0 - w) - {r} * g",
        f"-({r}) * (g + 0.1 * (w - w_chunk))", f"(g * 0.5) |> dgd({r})", f"momentum({r}, {b}) |> gd(-0.5)",
        f"(2 * g) |> gd({r}) |> gd(-0.5)", "g |> clip_norm(1) |> adam(0.01) |> momentum(-0.5, 0.5)",
        f"-({r}) * g / (0.1 + rms(g))", f"-({r}) * tanh(g)", f"-({r}) * where(g > 0, g, 0.5 * g)",
    ]  # fmt: skip
    chosen = one([*options, name, name])
    if chosen == name:
        optimizers.add(name)
        return f"{name}({r})"
    return chosen
