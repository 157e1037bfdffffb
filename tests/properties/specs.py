"""Random small specs: levels with one memory or several that recall each other, in flows with `repeat`."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.properties.memories import (
    DIM,
    FLOWS,
    HELPERS,
    OPTIMIZERS,
    WHEN,
    One,
    Part,
    axis_update,
    gate,
    link,
    listed,
    memory_kind,
    objective,
    projected,
    projection,
    update,
    weight,
    windowed,
)  # fmt: skip

NAMES = ("store", "aim", "pace")


@dataclass(frozen=True)
class Spec:
    """text: `.nl`. levels: names of its levels. tokens: its input is integers, one a tick. batch, ticks: sizes of the
    inputs. cuts: where a call is split. seed: of weights and inputs."""

    text: str
    levels: tuple[str, ...]
    tokens: bool
    batch: int
    ticks: int
    cuts: tuple[int, ...]
    seed: int

    def __repr__(self) -> str:
        sizes = f"batch {self.batch}, {self.ticks} ticks cut at {list(self.cuts)}, seed {self.seed}"
        return f"{sizes}, {'tokens' if self.tokens else 'floats'}\n{self.text}"


class Level:
    """One level as it is being drawn: lines of names, parts, fields."""

    def __init__(self, one: One, name: str, flows: set[str], optimizers: set[str]) -> None:
        self.one, self.name, self.flows, self.optimizers = one, name, flows, optimizers
        self.heads: int | None = one([None, 2, 1, 3])
        per_head = DIM // (self.heads or 1)
        self.key = one([4, 3, per_head])
        self.value = one([self.key, 3, per_head])
        self.lines: list[str] = [f"k = {projected(one, self.key, self.heads)}"]

    def text(self) -> str:
        one, count = self.one, self.one([1, 1, 2, 3])
        if one([False, False, False, True]):  # a name that nothing uses: its look-back moves all the same
            self.lines.append("spare = x |> linear(3) |> short_conv(2)")
        body = self.cache() if count == 1 and one([False, False, False, True]) else self.memories(count)
        heads = f" heads {self.heads};" if self.heads else ""
        lines = "\n".join(f"  {line}" for line in [*self.lines, *body])
        return f"level {self.name}(x) {{\n {heads}\n{lines}\n}}"

    def projection(self, width: int, unit: bool = True) -> str:
        return projected(self.one, width, self.heads, unit)

    def join(self, y: str, width: int) -> str:
        """The level's `return`: whole, of width DIM."""
        norm = self.one(["", " |> rmsnorm", " |> short_conv(2)", " |> previous"])
        if width * (self.heads or 1) == DIM and self.one([True, False]):
            return f"return {y}{norm}" + (" |> merge_heads" if self.heads else "")
        return f"return {y}{norm}" + (" |> merge_heads" if self.heads else "") + f" |> linear({DIM})"

    def cache_kind(self) -> str:
        options = ["", "window = 3", "segment = 4", "window = 2, sink = 1", "segment = 3, sink = 2", "scale = 0.5"]
        chosen = self.one(options)
        return f"cache({chosen})" if chosen else "cache"

    def cache(self) -> list[str]:
        fields = [
            "every 1 token",
            f"memory {self.cache_kind()}",
            "key k",
            f"value {self.projection(self.value, unit=False)}",
        ]
        return [*fields, f"query {self.projection(self.key)}", self.join("y", self.value)]

    def clock(self) -> tuple[int, int]:
        every = self.one([1, 1, 2, 3, 4])
        return every, every * self.one([1, 2, 3, 4])

    def memories(self, count: int) -> list[str]:
        one = self.one
        if count == 1:
            return self.alone()
        self.lines += [f"u = {self.projection(self.key)}", f"q = {self.projection(self.key)}"]
        every, chunk = self.clock()
        parts = []
        for i, name in enumerate(NAMES[:count]):
            own = one([False, False, True])  # a clock of its own
            e, c = self.clock() if own else (every, chunk)
            width = self.value if i < 2 else 1
            kind = memory_kind(one, self.key, width, self.flows)
            if i == 1 and one([False, False, False, False, True]):
                kind = self.cache_kind()
            parts.append(Part(name, kind, self.key, width, e, c))
        self.lines += [f"every {every} tokens", f"chunk {chunk}"]
        for p in parts:
            self.fields(p, parts)
        body = []
        for p in parts:
            if (p.every, p.chunk) != (every, chunk) and not p.kind.startswith("cache"):
                p.fields[:0] = [f"every {p.every} tokens", f"chunk {p.chunk}"]
            body.append(f"memory {p.name} : {p.kind} {{ {'; '.join(p.fields)} }}")
        whole = [p for p in parts if p.value == self.value]
        y = one([f"{whole[0].name}(q)", " + ".join(f"{p.name}(q)" for p in whole)])
        return [*body, self.join(y if y.endswith("(q)") and "+" not in y else f"({y})", self.value)]

    def number(self, parts: list[Part]) -> str | None:
        """A recall that is one number, for rates and gates."""
        numbers = [f"{p.name}(u)" for p in parts if p.value == 1]
        return self.one(numbers) if numbers else None

    def fields(self, p: Part, parts: list[Part]) -> None:
        """Key and value may recall the other memories and this one, at their chunks' first states."""
        one = self.one
        vectors = [m.name for m in parts if m.value == p.value and not m.kind.startswith("cache")]
        keys = [m.name for m in parts if m.value == p.key and not m.kind.startswith("cache")]
        key = one(["k", "k", "u", *[f"({m}(u) + k) |> l2norm" for m in keys if m != p.name]])
        # its own recall at another place than the key: the error would be zero, and rounding all that is left
        value = one([self.projection(p.value, unit=False), *[f"{m}({'q' if m == p.name else 'u'})" for m in vectors],
                     *[f"{m}(q) |> {look}" for m in vectors for look in ("short_conv(2)", "previous")],
                     *[f"stop({m}(q))" for m in vectors if m != p.name],
                     *[f"{m}({'q' if m == p.name else 'k'}) + ({self.projection(p.value)})" for m in vectors],
                     ])  # fmt: skip
        if not p.kind.startswith("cache"):
            value = listed(one, p, value, self.projection(p.value))
        p.fields += [f"key {key}", f"value {value}"]
        if p.kind.startswith("cache"):
            return
        self.learning(p, self.number(parts), "u")

    def learning(self, p: Part, number: str | None, other: str | None) -> None:
        one = self.one
        rule = axis_update(one, p) if one([False] * 7 + [True]) else update(one, number, self.heads, self.optimizers)
        goal = objective(one, other, p.value)
        plain = not any(f.startswith("value [") for f in p.fields)
        if not plain:
            rule = rule.replace("w_chunk", "w0")  # not built in rounds
        if plain and "dgd" not in rule and one([False] * 9 + [True]):
            goal = windowed(one, goal)
        p.fields += [f"objective {goal}", f"update {rule}"]
        if plain and one([False] * 7 + [True]):
            p.fields.append(f"when {one(WHEN)}")
        if one([False] * 7 + [True]):
            p.fields.append(f"project {projection(one, p)}")
        own = weight(one, number, p)
        if own and not (own.startswith("{") and goal.startswith("windowed")):  # not built
            p.fields.append(f"weight {own}")
        retain = link(one, p) if plain and one([False] * 9 + [True]) else gate(one, number, p)
        if retain:
            p.fields.append(f"retain {retain}")
        p.fields.append(one(["", "", "read before", "read chunk_start"]))
        p.fields.append(one(["", "", "", "gradient stop"]))
        if p.kind.startswith("matrix"):
            p.fields.append(one(["", "init learned", "init learned(normal(0.3))"]))
        p.fields[:] = [f for f in p.fields if f]

    def alone(self) -> list[str]:
        one = self.one
        every, chunk = self.clock()
        p = Part("memory", memory_kind(one, self.key, self.value, self.flows), self.key, self.value, every, chunk)
        number = one([None, None, "linear(memory(k), 1)"])
        p.fields += [f"key {one(['k', 'k * 0.5'])}"]
        p.fields.append("value " + one([self.projection(self.value, unit=False)]))
        p.fields.append("query " + one(["k", self.projection(self.key)]))
        other = one([None, "other"])
        if other:
            self.lines.append(f"other = {self.projection(self.key)}")
        self.learning(p, number, other)
        clock = [f"every {every} tokens", f"chunk {chunk}"]
        return [*clock, f"memory {p.kind}", *p.fields, self.join("y", self.value)]


def make(one: One) -> Spec:
    """Draw a spec."""
    flows: set[str] = set()
    optimizers: set[str] = set()
    names = ("first", "second")[: one([1, 1, 2])]
    levels = [Level(one, n, flows, optimizers).text() for n in names]
    tokens = one([False, True])
    start = f"x = {'embed(tokens, 7, 12) * 12' if tokens else 'x |> linear(12)'}"
    fits = not any("decay_first" in level or "value [" in level for level in levels)
    calls = [
        f"x = x + {n}({one(['rmsnorm(x)', 'x'])}{one(['', '', '', ', chunk = 12']) if fits else ''})" for n in names
    ]
    layout = one(["once", "repeat", "mixers"])
    if layout == "once":
        body, more = calls, []
    elif layout == "repeat":
        body, more = (
            ["repeat 2 { x = block(x) }"],
            [f"flow block(x) {{ {'; '.join(calls)}; return x + swiglu(rmsnorm(x)) }}"],
        )
    else:
        listed = ", ".join(names)
        more = [
            f"flow stack_of(x, mixers = [{listed}]) {{ repeat 2 as i {{ x = x + mixers[i](rmsnorm(x)) }}; return x }}"
        ]
        body = ["x = stack_of(x)"]
    given = "tokens" if tokens else "x"
    lines = [
        "nestflow 1",
        "input tokens : int[T] in [0, 7)" if tokens else "input x : float[T, 5]",
        f"output model({given})",
        *[text for n, text in HELPERS.items() if any(f"{n}(" in level for level in levels)],
        *[FLOWS[f] for f in sorted(flows)],
        *[OPTIMIZERS[o] for o in sorted(optimizers)],
        *levels,
        *more,
        f"flow model({given}) {{ {'; '.join([start, *body])}; return rmsnorm(x) |> linear(3) }}",
    ]
    ticks = one([9, 5, 2, 1, 7, 13])
    cuts = tuple(sorted({one(range(1, ticks)) for _ in range(one([1, 2, 4]))})) if ticks > 1 else ()
    return Spec("\n".join(lines) + "\n", names, tokens, one([2, 1, 3]), ticks, cuts, one(range(1000)))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    return make(lambda options: draw(st.sampled_from(options)))


def seeded(seed: int) -> Spec:
    """The spec of a seed, without hypothesis."""
    return make(random.Random(seed).choice)
