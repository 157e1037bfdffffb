"""Random memories and the fields of what they read, as lines of `.nl`."""

from __future__ import annotations

from dataclasses import dataclass

from tests.properties.rules import One, Part

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
SLOW = {  # weights of them that may stay slow
    "net": "linear_2.**",
    "gated": "gate.**",
    "normed": "rmsnorm.**",
    "centred": "layernorm.**",
}
HELPERS = {"turned": "flow turned(z, n) { h = linear(z, n); return h * sigmoid(linear(z, n)) + short_conv(h, 2) }"}


@dataclass
class Allowed:
    """What the spec as a whole leaves room for. chance: draws by counter. ahead: attention to later ticks."""

    chance: bool = False
    ahead: bool = False


def stages(one: One, width: int, allowed: Allowed, unit: bool = True) -> str:
    """What a projection goes through: a flow, look-back, activation, rotation, norm."""
    parts = [one(["", "", "", "", "", f" |> turned({width})"])]
    parts += [one(["", "", " |> short_conv(2)", " |> short_conv(3)", " |> previous", " |> previous(2)"])]
    parts.append(one(["", " |> silu", " |> tanh", " |> elu1"]))
    if allowed.chance:
        noisy = f" |> add(0.1 * noise({width}))"
        parts.append(one(["", " |> dropout(0.3)", noisy, " |> mul(bernoulli(0.8))"]))
    if width % 2 == 0:
        parts.append(one(["", "", "", " |> rope", " |> rope(reset = 3)"]))
    if unit:
        parts.append(one([" |> l2norm", " |> l2norm", " |> rmsnorm |> l2norm", " |> softmax"]))
    return "".join(parts)


def projected(one: One, width: int, heads: int | None, allowed: Allowed, unit: bool = True) -> str:
    """An expression of the level's input with this width (per head)."""
    starts = [f"x |> linear({width})"]
    if heads and DIM // heads == width:
        starts += ["x |> split_heads", "x |> linear"]
    if width == DIM and not heads:
        starts += ["x"]
    return one(starts) + stages(one, width, allowed, unit)


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
    slow = f', slow = "{SLOW[name]}"' if name in SLOW and one([False, False, True]) else ""
    return f"{name}(n = {value}{slow})"


def cache_kind(one: One, allowed: Allowed) -> str:
    seen = one(["", "window = 3", "segment = 4", "window = 2, sink = 1", "segment = 3, sink = 2", "scale = 0.5"])
    options = [seen, one(["", "", "prefix = 2"])]
    if allowed.ahead:
        options.append("causal = false")
    chosen = ", ".join(o for o in options if o)
    return f"cache({chosen})" if chosen else "cache"


def objective(one: One, other: str | None, width: int, allowed: Allowed) -> str:
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
    if allowed.chance:
        options.append(f"0.5 * sum(square(M(key) - value)) + 0.1 * inner(M(key), noise({width}))")
    return one(options)


def windowed(one: One, chosen: str) -> str:
    """The objective over the pairs of the last ticks."""
    more = one(["", ", weight = 1 / (1 + age)", ", weight = learned(4, init = ones)[age] * sigmoid(linear(x, 1))"])
    return f"windowed({chosen}, {one([2, 4])}{more})"


WHEN = ["mean(x) > 0", "sum(key) > 0.2", "t % 3 > 0", "linear(x, 1) > 0", "sum(x |> linear(1) |> previous) > 0"]
WHERE = ["mean(x) > 0.3", "linear(x, 1) > 0.5", "sum(x |> linear(1) |> previous) > 0.4"]


def weight(one: One, number: str | None, p: Part, allowed: Allowed) -> str:
    """What `weight` says; "" for nothing."""
    options = ["", "", "", "0.5", "sigmoid(linear(x, 1))", "linear(x, 1)"]
    if p.tensors():
        a, *rest = p.tensors()
        options.append("{" + ", ".join([f"{a}: sigmoid(linear(x, 1))", *(f"{n}: 0.5" for n in rest)]) + "}")
    if allowed.chance:
        options.append("bernoulli(0.7)")
    return one([f"sigmoid({number})", *options] if number else options)


def start(one: One, p: Part, others: list[Part]) -> str:
    """What `init` says; "" for nothing. A draw is of a start that no rule and no projection looks back at."""
    taken = [o.name for o in others if o.kind == p.kind]
    options = ["", "", "", "learned", "learned(normal(0.3))", *taken]
    looks_back = any("w0" in f or "schedule_free" in f or "lookahead" in f for f in p.fields)
    if not (p.shared or looks_back or p.has("retain kl") or p.has("retain lq")):
        options += ["normal(0.3)", "uniform(-0.3, 0.3)"]
    if p.is_matrix:
        options += ["0.2", "0.5 * learned(normal(0.3))", "ones"]
        options += ["eye", "0.3 * eye + 0.1 * learned(normal(0.3))"] if p.key == p.value else []
    return one(options)


def reset(one: One, p: Part, others: list[Part]) -> str:
    """What `reset` says within a sequence."""
    options = ["each(chunk)", "each(chunk, keep = rule)"]
    options += [f"each({o.name})" for o in others if o.every % p.chunk == 0 and o.every > 1 and not is_cache(o)]
    return one(options)


def is_cache(p: Part) -> bool:
    return p.kind.startswith("cache")


def listed(one: One, p: Part, field: str, again: str) -> str:
    """A field with an entry for each of two rounds, where the level's clock allows rounds."""
    if p.at_once and one([False, False, False, False, True]):
        return f"[{field}, {again}]"
    return field
