"""Random rates, gates, links and update rules of a memory. Rates stay below 0.02 and retains above 0.9.

Everything is drawn with `one(options)`, the simplest option first: hypothesis shrinks towards it, and a plain
`random.Random` can drive the same code without hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

One = Callable[[Sequence[Any]], Any]

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
    "chunk_sum": "optimizer chunk_sum(lr) { memory s : like(w) { value g; update gd(1); reset each(chunk) }; "
    "set w_chunk - lr * s }",
}


@dataclass
class Part:
    """A memory of a level as it is being drawn: its name, widths, clock, and the lines of its fields.

    anew: it starts anew where a condition holds. shared: one copy serves all rows, so its rates and gates are numbers.
    of_sequence: it begins anew with each sequence; such alone may look at a window of ticks."""

    name: str
    kind: str
    key: int
    value: int
    every: int
    chunk: int
    fields: list[str] = field(default_factory=list)
    anew: bool = False
    shared: bool = False
    of_sequence: bool = True

    @property
    def at_once(self) -> bool:
        """Whether it learns from each tick's own state: rounds and `decay_first` can be."""
        return self.every == self.chunk == 1

    @property
    def is_matrix(self) -> bool:
        return self.kind.startswith("matrix")

    def tensors(self) -> list[str]:
        """How a record names this memory's tensors, where one may be written."""
        if "slow" in self.kind:
            return []
        if self.kind.startswith("gated"):
            return ["gate", "up", "linear"]
        two = self.kind.startswith("net") or ("depth = 2" in self.kind and "bias" not in self.kind)
        return ["linear", "linear_2"] if two else []

    def has(self, word: str) -> bool:
        return any(f.startswith(word) for f in self.fields)


def rate(one: One, number: str | None, heads: int | None, p: Part) -> str:
    """At most 0.02. number: a recall of one number, or None."""
    options = ["0.01"] if p.shared else [
        "0.01", "0.02 * sigmoid(linear(x, 1))", "0.02 * sigmoid(x |> linear(1) |> short_conv(2))",
        "0.02 * sigmoid(mean(x |> linear(3)))",
    ]  # fmt: skip
    options += ["0.03 / (t + 2)", "(0.02 if t % 3 == 1 else 0.005)"]
    if heads:
        options.append("0.01 if head == 0 else 0.02")
    if p.every > 1 and p.of_sequence and not p.anew:
        options.append("0.02 * mean(ticks(sigmoid(linear(x, 1))), axis = 0)")
    if number:
        options = [f"0.02 * sigmoid({number})", *options]
    return one(options)


def gate(one: One, number: str | None, p: Part) -> str:
    """What `retain` says, 0.9 at least; "" for nothing."""
    numbers = ["0.95"] if p.shared else [
        "0.95", "0.9 + 0.1 * sigmoid(linear(x, 1))", "0.9 + 0.1 * sigmoid(x |> linear(1) |> previous)",
    ]  # fmt: skip
    numbers += [] if p.anew else ["1 - 0.1 / (t + 1)", "1 if t % 2 == 0 else 0.9"]
    if number:
        numbers = [f"0.9 + 0.1 * sigmoid({number})", *numbers]
    options = ["", *numbers]
    if p.every > 1 and p.of_sequence and not p.anew:
        options.append("0.9 + 0.1 * mean(ticks(sigmoid(linear(x, 1))), axis = 0)")
    if p.is_matrix and not p.shared:
        options += [
            f"0.9 + 0.1 * sigmoid(linear(x, {p.key}))",
            f"on_value(0.9 + 0.1 * sigmoid(linear(x, {p.value})))",
            f"0.9 + 0.1 * sigmoid(outer_product(linear(x, {p.value}), linear(x, {p.key})))",
        ]
    chosen = one(options)
    names = p.tensors()
    if names and one([False] * 5 + [True]):
        each = ["0.95", "0.9" if p.anew else "1 - 0.1 / (t + 1)"]
        each += [] if p.shared else ["0.9 + 0.1 * sigmoid(linear(x, 1))"]
        chosen = "{" + ", ".join(f"{n}: {one(each)}" for n in names) + "}"
    if chosen and p.at_once and one([False, True]):
        return f"decay_first({chosen})"
    return chosen


def link(one: One, p: Part) -> str:
    """A `retain` that a memory is read through; the norm of `lq` must not start at zero."""
    options = ["kl(0.95)"] if p.shared else ["kl(0.95)", "kl(0.9 + 0.1 * sigmoid(linear(x, 1)), scale = 3)"]
    if not p.is_matrix:
        options += ["lq(0.95, 3)"] if p.shared else ["lq(0.95, 3)", "lq(0.9 + 0.1 * sigmoid(linear(x, 1)))"]
    return one(options)


def projection(one: One, p: Part) -> str:
    """What `project` says."""
    options = ["w |> ball(1.5)", "ball(2)", "w / max(norm(w, axis = -1), 1)", "clamp(w, -1, 1)"]
    if not p.shared:
        options.append("w * (0.9 + 0.1 * sigmoid(linear(x, 1)))")
    if p.every > 1 and p.of_sequence and not p.anew:
        options.append("w * (0.9 + 0.1 * mean(ticks(sigmoid(linear(x, 1))), axis = 0))")
    options.append("0.5 * (w + w_chunk)")
    if not p.is_matrix:
        options.append("w * norm(w0) / norm(w)")
    return one(options)


def axis_update(one: One, p: Part) -> str:
    """A rule with a rate that is no number: on an axis of a matrix, elementwise, or for each tensor."""
    names = p.tensors()
    if p.is_matrix and not p.shared:
        a, b = f"0.02 * sigmoid(linear(x, {p.key}))", f"0.02 * sigmoid(linear(x, {p.value}))"
        full = f"0.02 * sigmoid(outer_product(linear(x, {p.value}), linear(x, {p.key})))"
        r = one([a, f"on_value({b})", full])
    elif names:
        each = ["0.01", "0.02"] + ([] if p.shared else ["0.02 * sigmoid(linear(x, 1))"])
        r = "{" + ", ".join(f"{n}: {one(each)}" for n in names) + "}"
        return one([f"gd({r})", f"momentum({r}, 0.5)", f"dgd({r})"])
    else:
        r = "0.01"
    return one([f"gd({r})", f"momentum({r}, 0.5)", f"-({r}) * g"])


def update(one: One, number: str | None, heads: int | None, optimizers: set[str], p: Part) -> str:
    """A rule, its rates drawn with `rate`."""
    r = rate(one, number, heads, p)
    b = one(["0.5", "0.9"] if p.shared else ["0.5", "sigmoid(linear(x, 1))", "0.9"])
    name = one(list(OPTIMIZERS))
    options = [
        f"gd({r})", f"momentum({r}, {b})", f"nesterov({r}, 0.9)", f"dgd({r})", f"-({r}) * g",
        "adam(0.005)", "adamw(0.005, weight_decay = 0.1)", "rmsprop(0.005)", "lion(0.005)", "amsgrad(0.005)",
        "adagrad(0.005)", "muon(0.01)", "muon(0.01, nesterov = false, weight_decay = 0.1)",
        f"sgd({r}, momentum = 0.9, dampening = 0.1, weight_decay = 0.01)",
        f"sgd({r}, momentum = 0.5, nesterov = true)", f"sgd({r}, weight_decay = 0.1)",
        "m3(0.005, 0.5, 0.1, 0.2, 0.5, period = 2)", f"schedule_free({r})", f"lookahead(gd({r}), period = 2)",
        f"dgd({r}, normalize = true)", f"dgd({r}, exact = false)", f"g |> clip_norm(1) |> dgd({r})",
        f"(g / n_ticks) |> gd({r})", f"g |> clip_norm(1) |> gd({r})",
        f"g |> clip_norm(0.1) |> momentum({r}, {b})", "g |> clip_norm(1) |> adam(0.005) |> trust(0.1)",
        f"-({r}) * g / (1 + norm(g))", f"-({r}) * (g + 0.1 * w)", f"0.01 * (w0 - w) - {r} * g",
        f"-({r}) * (g + 0.1 * (w - w_chunk))", f"(g * 0.5) |> dgd({r})", f"momentum({r}, {b}) |> gd(-0.5)",
        f"(2 * g) |> gd({r}) |> gd(-0.5)", "g |> clip_norm(1) |> adam(0.01) |> momentum(-0.5, 0.5)",
        f"-({r}) * g / (0.1 + rms(g))", f"-({r}) * tanh(g)", f"-({r}) * where(g > 0, g, 0.5 * g)",
        "adam(cosine(0.01, warmup = 3, total = 20))",
    ]  # fmt: skip
    chosen = one([*options, name, name])
    if chosen == name:
        optimizers.add(name)
        return f"{name}({r})"
    return chosen
