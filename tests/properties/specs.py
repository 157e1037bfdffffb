"""Random small specs: levels in flows with `repeat`, shared and read levels, weights that learn while reading."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.properties.levels import Level
from tests.properties.memories import FLOWS, HELPERS, Allowed
from tests.properties.rules import OPTIMIZERS, One

RULES = ["gd(0.05)", "momentum(0.05, 0.5)", "adam(0.01)", "g |> clip_norm(1) |> sgd(0.05, weight_decay = 0.1)",
         "(g / n_ticks) |> gd(0.1)", "gd(0.1 / (t + 1))", "muon(0.01)", "lion(0.005)"]  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """text: `.nl`. levels: names of its levels. tokens: its input is integers, one a tick. batch, ticks: sizes of the
    inputs. cuts: where a call is split. seed: of weights and inputs. training: the mode of the module."""

    text: str
    levels: tuple[str, ...]
    tokens: bool
    batch: int
    ticks: int
    cuts: tuple[int, ...]
    seed: int
    training: bool = False

    def __repr__(self) -> str:
        sizes = f"batch {self.batch}, {self.ticks} ticks cut at {list(self.cuts)}, seed {self.seed}"
        mode = ", training" if self.training else ""
        return f"{sizes}, {'tokens' if self.tokens else 'floats'}{mode}\n{self.text}"


def layout_of(one: One, levels: list[Level]) -> tuple[list[str], list[str]]:
    """Statements of the model, and the flows that they call."""
    names = [x.name for x in levels]
    ones = ("decay_first", "value [", "rounds", "reset")
    fits = not any(word in x.text() for x in levels for word in ones)
    calls = [
        f"x = x + {n}({one(['rmsnorm(x)', 'x'])}{one(['', '', '', ', chunk = 12']) if fits else ''})" for n in names
    ]
    layouts = ["once", "repeat", "mixers"] + (["read"] if levels[0].reads else [])
    layout = one([*layouts, "shared"])
    if layout == "repeat":
        block = f"flow block(x) {{ {'; '.join(calls)}; return x + swiglu(rmsnorm(x)) }}"
        return ["repeat 2 { x = block(x) }"], [block]
    if layout == "mixers":
        more = f"flow stack_of(x, mixers = [{', '.join(names)}]) {{ repeat 2 as i {{ x = x + mixers[i](rmsnorm(x)) }}"
        return ["x = stack_of(x)"], [more + "; return x }"]
    if layout == "read":  # what it has learned, of the input and of what follows from that
        again = one(["x + h", "x * sigmoid(h)", "h |> linear(12)"])
        read = [f"shared m = {names[0]}()", "h = m.read(rmsnorm(x))", f"x = {again}", "x = x + m(rmsnorm(x))"]
        return [*read, *calls[1:]], []
    if layout == "shared":  # one set of weights, a state for each call
        return [f"shared m = {names[0]}()", "x = x + m(x)", "x = x + m(rmsnorm(x))", *calls[1:]], []
    return calls, []


def learning(one: One, given: str) -> list[str]:
    """Levels on weights of the model that learn while it reads."""
    loss = f"loss = cross_entropy(model({given}), next({given}))" if given == "tokens" else "loss = square(model(x))"
    reset = one(["", "", "per stream; reset never"])
    every = one([2, 3, 4, 1])
    gates = ["", "when tokens > 2", "when loss > 1.5"] if given == "tokens" else ["", "when mean(x) > 0"]
    fields = one(["", "", "retain 0.95"]), reset, one(["", *gates]), one(["", "", "weight 0.5"])
    more = "; ".join(f for f in (*fields, one(["", "", "project ball(2)"])) if f)
    first = f'level reads {{ every {every} tokens; memory weights(model, "linear.**"); objective loss'
    lines = [loss, f"{first}; update {one(RULES)}; {more} }}"]
    if given == "tokens" and one([False, True]):
        second = f'level slower {{ every {every * one([1, 2])} tokens; memory weights(model, "embed.**")'
        lines.append(f"{second}; objective loss; update {one(RULES)}; {reset} }}")
    return [*lines, "level outer { every 1 step; memory weights(model); objective loss; update gd(0.1) }"]


def make(one: One) -> Spec:
    """Draw a spec."""
    flows: set[str] = set()
    optimizers: set[str] = set()
    tokens = one([False, True])
    reads = one([False] * 6 + [True])  # weights learn while the model reads: much is not built beside it
    allowed = Allowed(chance=one([False, False, False, True]), ahead=not reads and one([False] * 9 + [True]))
    per = one(["sequence"] * 6 + ["stream"] + ([] if reads else ["model"]))
    names = ("first", "second")[: one([1, 1, 2])]
    levels = [Level(one, n, flows, optimizers, allowed, per if n == "first" else "sequence") for n in names]
    body, more = layout_of(one, levels)
    emits = one([False, False, False, True])
    if emits:
        levels[0].publish()
        more = [f.replace("{ x = x", "{ emit size = mean(x); x = x", 1) for f in more]
    texts = [x.text() for x in levels]
    emits = any("emit size" in text for text in [*texts, *more])
    start = f"x = {'embed(tokens, 7, 12) * 12' if tokens else 'x |> linear(12)'}"
    given = "tokens" if tokens else "x"
    end = f"return rmsnorm(x) |> linear({7 if reads and tokens else 3})"
    lines = [
        "nestflow 1",
        "input tokens : int[T] in [0, 7)" if tokens else "input x : float[T, 5]",
        f"output model({given})",
        *[text for n, text in HELPERS.items() if any(f"{n}(" in level for level in texts)],
        *[FLOWS[f] for f in sorted(flows)],
        *[OPTIMIZERS[o] for o in sorted(optimizers)],
        *texts,
        *more,
        f"flow model({given}) {{ {'; '.join([start, *body, end])} }}",
    ]
    if reads:
        lines += learning(one, given)
    if emits and not reads:
        lines.append(
            f"level outer {{ every 1 step; memory weights(model); objective mean(square(model({given}))) "
            "+ 0.1 * mean(emitted(size)); update gd(0.1) }"
        )
    ticks = one([9, 5, 2, 1, 7, 13])
    cuts = tuple(sorted({one(range(1, ticks)) for _ in range(one([1, 2, 4]))})) if ticks > 1 else ()
    training = allowed.chance and one([False, True])
    return Spec("\n".join(lines) + "\n", names, tokens, one([2, 1, 3]), ticks, cuts, one(range(1000)), training)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    return make(lambda options: draw(st.sampled_from(options)))


def seeded(seed: int) -> Spec:
    """The spec of a seed, without hypothesis."""
    return make(random.Random(seed).choice)
