"""Random levels with one memory or several that recall each other."""

from __future__ import annotations

from tests.properties.memories import (
    DIM,
    WHEN,
    WHERE,
    Allowed,
    cache_kind,
    is_cache,
    listed,
    memory_kind,
    objective,
    projected,
    reset,
    start,
    weight,
    windowed,
)
from tests.properties.rules import One, Part, axis_update, gate, link, projection, rate, update

NAMES = ("store", "aim", "pace")
PER = {"sequence": [], "stream": ["per stream", "reset never"], "model": ["per model", "reset never"]}


class Level:
    """One level as it is being drawn: lines of names, parts, fields. per: how many copies of its memories there are.

    reads: `m.read` of it can be called. publishes: it emits `size`."""

    def __init__(
        self, one: One, name: str, flows: set[str], optimizers: set[str], allowed: Allowed, per: str = "sequence"
    ) -> None:
        self.one, self.name, self.flows, self.optimizers = one, name, flows, optimizers
        self.allowed, self.per = allowed, per
        self.heads: int | None = one([None, 2, 1, 3])
        per_head = DIM // (self.heads or 1)
        self.key = one([4, 3, per_head])
        self.value = one([self.key, 3, per_head])
        self.lines: list[str] = [f"k = {self.projection(self.key)}"]
        self.parts: list[Part] = []
        self.body = self.draw()

    def draw(self) -> list[str]:
        one, count = self.one, self.one([1, 1, 2, 3])
        if one([False, False, False, True]):  # a name that nothing uses: its look-back moves all the same
            self.lines.append("spare = x |> linear(3) |> short_conv(2)")
        if count > 1:
            return self.memories(count)
        if self.per == "sequence" and one([False, False, False, True]):
            return self.cache()
        return self.keyless() if one([False] * 9 + [True]) else self.alone()

    def text(self) -> str:
        heads = f" heads {self.heads};" if self.heads else ""
        lines = "\n".join(f"  {line}" for line in [*self.lines, *PER[self.per], *self.body])
        return f"level {self.name}(x) {{\n {heads}\n{lines}\n}}"

    def projection(self, width: int, unit: bool = True) -> str:
        return projected(self.one, width, self.heads, self.allowed, unit)

    def join(self, y: str, width: int) -> str:
        """The level's `return`: whole, of width DIM."""
        norm = self.one(["", " |> rmsnorm", " |> short_conv(2)", " |> previous"])
        heads = " |> merge_heads" if self.heads else ""
        if width * (self.heads or 1) == DIM and self.one([True, False]):
            return f"return {y}{norm}{heads}"
        return f"return {y}{norm}{heads} |> linear({DIM})"

    def cache(self) -> list[str]:
        one, self.parts = self.one, [Part("memory", "cache", self.key, self.value, 1, 1)]
        key, value = "k", self.projection(self.value, unit=False)
        if one([False, False, False, True]):  # two pairs a tick
            key, value = f"[k, {self.projection(self.key)}]", f"[{value}, {self.projection(self.value, unit=False)}]"
        elif self.heads and self.heads > 1 and one([False, False, True]):
            key, value = "grouped(linear(x), 1)", "grouped(linear(x), 1)"
            width = DIM // self.heads
            query = f"query {self.projection(width)}"
            memory = [f"memory {cache_kind(one, self.allowed)}", f"key {key}", f"value {value}"]
            return ["every 1 token", *memory, query, self.join("y", width)]
        fields = ["every 1 token", f"memory {cache_kind(one, self.allowed)}", f"key {key}", f"value {value}"]
        return [*fields, f"query {self.projection(self.key)}", self.join("y", self.value)]

    def clock(self) -> tuple[int, int]:
        every = self.one([1, 1, 2, 3, 4])
        return every, every * self.one([1, 2, 3, 4])

    def part(self, name: str, kind: str, width: int, every: int, chunk: int) -> Part:
        """A memory. One of ten starts anew where a condition holds."""
        anew = self.per == "sequence" and self.one([False] * 9 + [True])
        of_sequence = self.per == "sequence"
        return Part(name, kind, self.key, width, every, chunk, [], anew, self.per == "model", of_sequence)

    def memories(self, count: int) -> list[str]:
        one = self.one
        self.lines += [f"u = {self.projection(self.key)}", f"q = {self.projection(self.key)}"]
        every, chunk = self.clock()
        for i, name in enumerate(NAMES[:count]):
            own = one([False, False, True])  # a clock of its own
            e, c = self.clock() if own else (every, chunk)
            width = self.value if i < 2 else 1
            kind = memory_kind(one, self.key, width, self.flows)
            if self.per == "sequence" and i == 1 and one([False, False, False, False, True]):
                kind = cache_kind(one, self.allowed)
            self.parts.append(self.part(name, kind, width, e, c))
        self.lines += [f"every {every} tokens", f"chunk {chunk}"]
        for p in self.parts:
            self.fields(p)
        body = []
        for p in self.parts:
            if (p.every, p.chunk) != (every, chunk) and not is_cache(p):
                p.fields[:0] = [f"every {p.every} tokens", f"chunk {p.chunk}"]
            body.append(f"memory {p.name} : {p.kind} {{ {'; '.join(p.fields)} }}")
        whole = [p for p in self.parts if p.value == self.value]
        y = one([f"{whole[0].name}(q)", " + ".join(f"{p.name}(q)" for p in whole)])
        return [*body, self.join(y if y.endswith("(q)") and "+" not in y else f"({y})", self.value)]

    def number(self) -> str | None:
        """A recall that is one number, for rates and gates."""
        numbers = [f"{p.name}(u)" for p in self.parts if p.value == 1 and self.per != "model"]
        return self.one(numbers) if numbers else None

    def fields(self, p: Part) -> None:
        """Key and value may recall the other memories and this one, at their chunks' first states."""
        one = self.one
        vectors = [m.name for m in self.parts if m.value == p.value and not is_cache(m)]
        keys = [m.name for m in self.parts if m.value == p.key and not is_cache(m)]
        key = one(["k", "k", "u", *[f"({m}(u) + k) |> l2norm" for m in keys if m != p.name]])
        # its own recall at another place than the key: the error would be zero, and rounding all that is left
        value = one([self.projection(p.value, unit=False), *[f"{m}({'q' if m == p.name else 'u'})" for m in vectors],
                     *[f"{m}(q) |> {look}" for m in vectors for look in ("short_conv(2)", "previous")],
                     *[f"stop({m}(q))" for m in vectors if m != p.name],
                     *[f"{m}({'q' if m == p.name else 'k'}) + ({self.projection(p.value)})" for m in vectors],
                     ])  # fmt: skip
        if not is_cache(p):
            value = listed(one, p, value, self.projection(p.value))
        p.fields += [f"key {key}", f"value {value}"]
        if not is_cache(p):
            self.learning(p, self.number(), "u")

    def learning(self, p: Part, number: str | None, other: str | None) -> None:
        one, of_sequence = self.one, self.per == "sequence"
        rule = axis_update(one, p) if one([False] * 7 + [True]) else update(one, number, self.heads, self.optimizers, p)
        goal = objective(one, other, p.value, self.allowed)
        rounds = "" if p.has("value [") or not p.at_once else one(["", "", "", "rounds 2", "rounds 3"])
        if p.has("value [") or rounds:
            rule = rule.replace("w_chunk", "w0").replace("chunk_sum", "lagged")  # not built in rounds
            self.optimizers |= {"lagged"} if "lagged" in rule else set()
        if of_sequence and not p.anew and one([False] * 5 + [True]):
            goal = windowed(one, goal)
        p.fields += [f"objective {goal}", f"update {rule}", rounds]
        if self.per != "model" and "chunk_sum" not in rule and one([False] * 5 + [True]):
            p.fields.append(f"when {one([w for w in WHEN if not (p.anew and w.startswith('t '))])}")
        if one([False] * 7 + [True]):
            chosen = projection(one, p)
            p.fields.append("project " + (chosen.replace("w_chunk", "w0") if rounds or p.has("value [") else chosen))
        own = weight(one, number, p, self.allowed)
        if own and not (own.startswith("{") and goal.startswith("windowed")):  # not built
            p.fields.append(f"weight {own}")
        retain = link(one, p) if one([False] * 9 + [True]) else gate(one, number, p)
        if retain:
            p.fields.append(f"retain {retain}")
        p.fields.append(one(["", "", "read before", "read chunk_start"]))
        p.fields.append(one(["", "", "", "gradient stop"]))
        others = [m for m in self.parts if m is not p]
        chosen = start(one, p, [m for m in self.parts[: self.parts.index(p)] if not is_cache(m)])
        p.fields.append(f"init {chosen}" if chosen else "")
        if of_sequence and p.anew:
            p.fields.append(f"reset where({one(WHERE)})")
        elif of_sequence and one([False] * 6 + [True]):
            p.fields.append(f"reset {reset(one, p, others)}")
        p.fields[:] = [f for f in p.fields if f]

    def alone(self) -> list[str]:
        one = self.one
        every, chunk = self.clock()
        p = self.part("memory", memory_kind(one, self.key, self.value, self.flows), self.value, every, chunk)
        self.parts = [p]
        number = None if self.per == "model" else one([None, None, "linear(memory(k), 1)"])
        p.fields += [f"key {one(['k', 'k * 0.5'])}"]
        p.fields.append("value " + one([self.projection(self.value, unit=False)]))
        p.fields.append("query " + one(["k", self.projection(self.key)]))
        other = one([None, "other"])
        if other:
            self.lines.append(f"other = {self.projection(self.key)}")
        self.learning(p, number, other)
        clock = [f"every {every} tokens", f"chunk {chunk}"]
        return [*clock, f"memory {p.kind}", *p.fields, self.join("y", self.value)]

    def keyless(self) -> list[str]:
        """A vector or a number that follows what the level reads."""
        one = self.one
        every, chunk = self.clock()
        vector = one([True, False])
        width = self.value if vector else 1
        p = self.part("memory", "vector" if vector else "scalar", width, every, chunk)
        self.parts = [p]
        value = self.projection(width, unit=False)
        p.fields += [f"value {value}" if vector else f"value mean({value})", one(["", "objective l2"])]
        step = rate(one, None, self.heads, p)
        p.fields.append(f"update {one([f'gd({step})', f'momentum({step}, 0.5)'])}")
        p.fields.append(one(["", f"when {one(WHEN[3:])}"]) if self.per != "model" else "")
        keep = gate(one, None, p)
        p.fields.append(f"retain {keep}" if keep else "")
        p.fields.append(one(["", "read before"]))
        if self.per == "sequence":
            p.fields.append(one(["", "reset each(chunk)"]) if not p.anew else f"reset where({one(WHERE)})")
        y = "y" if vector else f"(y * (x |> linear({self.value})))"
        clock = [f"every {every} tokens", f"chunk {chunk}"]
        return [*clock, f"memory {p.kind}", *(f for f in p.fields if f), self.join(y, self.value)]

    @property
    def reads(self) -> bool:
        """Whether `m.read` of it may be called."""
        return self.per == "sequence" and all(not p.anew and not is_cache(p) for p in self.parts)

    def publish(self) -> None:
        """`emit size`: a number a tick, of what the level recalls."""
        y = "memory(k)" if self.parts[0].name == "memory" else f"{self.parts[0].name}(q)"
        if not is_cache(self.parts[0]) and self.parts[0].kind not in ("vector", "scalar"):
            self.body.insert(0, f"emit size = mean(square({y}))")
