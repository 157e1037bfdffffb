"""The level table, the edges between levels and the structure of flows, read off the instances."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

from nestflow.graph.describe_rules import AddEdge, reading_edges, reading_rows, slot_span, slot_texts
from nestflow.graph.model import (
    Edge,
    EdgeKind,
    FlowBox,
    Instance,
    LevelInfo,
    Memory,
    Network,
    StateSlot,
    StepLevel,
    TokenLevel,
    WeightSpec,
)
from nestflow.graph.state import state_slots
from nestflow.ir.node import Node, walk
from nestflow.ir.rule import RuleSlot

_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_CALL = re.compile(r"@\d+(?=\.|$)")


def pattern(path: str) -> str:
    """A path with every repeat index as `*`; further calls of what is shared go with the first."""
    return _CALL.sub("", _NUMBER.sub(".*", path))


def group_name(instance: Instance) -> str:
    """What the instances of one row share: their path with `*`, and the level's name where a slot's stands
    (`mixers.*.swa`)."""
    base = pattern(instance.path)
    parts = base.split(".")
    return f"{base}.{instance.name}" if len(parts) > 1 and parts[-1] == "*" and parts[-2] != instance.name else base


def row_name(instance: Instance, memory: Memory) -> str:
    base = group_name(instance)
    return base if len(instance.memories) == 1 else f"{base}.{memory.name}"


def level_instances(root: Instance) -> list[Instance]:
    return [i for i in root.walk() if i.kind == "level"]


# --- rows ---------------------------------------------------------------------------------------------------


def levels(
    root: Instance,
    steps: tuple[StepLevel, ...],
    weights: list[WeightSpec],
    state: tuple[StateSlot, ...],
    tokens: tuple[TokenLevel, ...] = (),
) -> tuple[LevelInfo, ...]:
    """Fastest first: attention, then the token clock, then the step clock, frozen weights last."""
    rows: list[tuple[tuple[float, float, int], LevelInfo]] = []
    groups: dict[str, list[Instance]] = defaultdict(list)
    for i in level_instances(root):
        groups[group_name(i)].append(i)
    for name, group in groups.items():
        first = group[0]
        for m in first.memories:
            # a level with one memory shows all its weights; of several, each shows the weights that are its own
            prefix = "" if len(first.memories) == 1 else f"{m.name}."
            slow = sum(
                w.size for i in group for x in i.walk() for w in x.weights if x is not i or w.path.startswith(prefix)
            )
            rows += _memory_rows(name, first, m, len(group), slow, len(rows))
    by_path = {w.path: w for w in weights}
    for x in tokens:
        rows += reading_rows(x, by_path, len(rows))
    for s in steps:
        rows += _step_rows(s, by_path, len(rows))
    rows.sort(key=lambda r: r[0])
    return tuple(r for _, r in rows)


def _memory_rows(
    name: str, instance: Instance, m: Memory, count: int, slow: int, at: int
) -> list[tuple[tuple[float, float, int], LevelInfo]]:
    single = len(instance.memories) == 1
    row = name if single else f"{name}.{m.name}"
    heads, unit = m.heads or 1, "patch" if instance.ticks is not None else "token"
    kept = sum(
        _size(s.shape) * (s.heads or 1)
        for s in state_slots(instance)
        if s.role in ("memory", "cache_key", "cache_value")
        and s.path.startswith(f"{instance.path}.{m.name}." if instance.path else f"{m.name}.")
    )
    every = -1 if m.kind == "cache" else 0 if m.rule is None else m.every
    info = LevelInfo(
        row,
        instance.name if single else f"{instance.name}.{m.name}",
        "token",
        every,
        _token_text(m, unit),
        m.texts,
        count,
        m.heads,
        slow,
        kept * count,
        instance.doc,
        None if single else name,
        m.span or instance.span,
    )
    order = (2.0 if every == 0 else 0.0, -1.0 if every < 0 else float(m.every), at)
    rows = [(order, info)]
    for k, slot in enumerate(m.rule.slots if m.rule else ()):
        if slot.name.endswith(".pending"):
            continue
        span = slot_span(m.rule, slot.name)
        rows.append(
            (
                (0.0, float(m.every) - 0.5, at + k),
                LevelInfo(
                    f"{row}.{slot.name}",
                    slot.name,
                    "token",
                    m.every,
                    _token_text(m, unit),
                    slot_texts(slot, span),
                    count,
                    m.heads,
                    0,
                    kept_by(slot, [t.shape for t in m.function.tensors] if m.function else []) * heads * count,
                    None,
                    row,
                    span,
                ),
            )
        )
    return rows


def kept_by(slot: RuleSlot, shapes: list[tuple[int, ...]]) -> int:
    """How many numbers an optimiser's memory keeps for weights of these shapes (without heads)."""
    if slot.shared:
        return 1
    return sum(math.prod(own) for own in (slot.shape(s) for s in shapes) if own is not None)


def _token_text(m: Memory, unit: str) -> str:
    if m.kind == "cache":
        return "∞"
    if m.rule is None:
        return "never"
    several = {"token": "tokens", "patch": "patches"}[unit]
    every = f"every {unit}" if m.every == 1 else f"every {m.every} {several}"
    return every if m.chunk == m.every else f"{every}, chunk {m.chunk}"


def _step_rows(
    s: StepLevel, weights: dict[str, WeightSpec], at: int
) -> list[tuple[tuple[float, float, int], LevelInfo]]:
    tensors = list(s.state) or [weights[p] for p in s.weights]
    own = sum(w.size for w in s.state)
    size = 0 if s.state else sum(w.size for w in tensors)
    text, n = step_text(s), s.copies or 1
    # a clock of the caller is slower than steps; a level that begins anew in a step runs before the others
    clock = 2.0 if s.every == 0 else 1.5 if s.clock.base != "step" else 1.0
    period = float(s.every * s.clock.count) - (0.75 if s.inner is not None else 0.0)
    slots = s.rule.slots if s.rule else ()
    # what the optimiser's memories keep stands in their own rows

    def keeps(slot: RuleSlot) -> int:
        each = [kept_by(slot, [w.shape]) * (w.heads or 1) for w in tensors]
        return max(each, default=0) * n if slot.shared else sum(each)

    kept = sum(keeps(x) for x in slots if x.name.endswith(".pending"))
    rows = [
        (
            (clock, period, at),
            LevelInfo(
                s.name, s.name, s.clock.name, s.every, text, s.texts, n, None, size, kept + own, s.doc, None, s.span
            ),
        )
    ]
    for k, slot in enumerate(slots):
        if slot.name.endswith(".pending"):
            continue
        span = slot_span(s.rule, slot.name)
        rows.append(
            (
                (clock, period - 0.5, at + k),
                LevelInfo(
                    f"{s.name}.{slot.name}",
                    slot.name,
                    s.clock.name,
                    s.every,
                    text,
                    slot_texts(slot, span),
                    n,
                    None,
                    0,
                    keeps(slot),
                    None,
                    s.name,
                    span or s.span,
                ),
            )
        )
    return rows


def step_text(s: StepLevel) -> str:
    """`every step`, `every 4 rounds`, `5 times in every step, for each task`, `every step, 4 workers`."""
    unit = s.clock.name
    often = "never" if s.every == 0 else f"every {unit}" if s.every == 1 else f"every {s.every} {unit}s"
    if s.inner is None:
        return often + (f", {s.copies} worker{'s' * (s.copies > 1)}" if s.copies else "")
    often = f"{s.inner.rounds} times in {often}" if s.inner.rounds > 1 else often
    return often + (", for each task" if s.inner.copies == "task" else "")


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


# --- edges --------------------------------------------------------------------------------------------------


def edges(
    root: Instance,
    steps: tuple[StepLevel, ...],
    output: Node | None,
    weights: list[WeightSpec],
    tokens: tuple[TokenLevel, ...] = (),
) -> tuple[Edge, ...]:
    """The four kinds of edge, each once per pair of rows."""
    found: dict[tuple[EdgeKind, str, str], str] = {}

    def add(kind: EdgeKind, source: str, target: str, label: str = "") -> None:
        if source != target or kind == "generates":
            old = found.get((kind, source, target))
            labels = [] if not old else old.split(", ")
            if label and label not in labels:
                labels.append(label)
            found[(kind, source, target)] = ", ".join(labels)

    for source, target in _context(root, (*steps, *tokens)):
        add("context", source, target)
    for i in level_instances(root):
        for m in i.memories:
            _level_edges(i, m, add)
    _step_edges(root, steps, add)
    reading_edges(steps, tokens, add)
    return tuple(Edge(k, s, t, label) for (k, s, t), label in found.items())


def _answering(level: Instance) -> Memory:
    """The memory whose recall the level returns."""
    nodes = walk(level.result) if level.result else ()
    read = {n["memory"] for n in nodes if n.op == "recall" and n["mode"] == "return"}
    return next((m for m in level.memories if m.name in read), level.memories[-1])


def _level_edges(i: Instance, m: Memory, add: AddEdge) -> None:
    fields = {"key": m.key, "value": m.value, "query": m.query, "gate": m.retain}
    for r in m.rounds:
        fields |= {f"key {r.turn + 1}": r.key, f"value {r.turn + 1}": r.value}
    if m.rule is not None:
        fields |= {"rate" if n == "lr" else n: a for n, a in m.rule.arguments}
    for label, node in fields.items():
        for n in walk(node) if node is not None else ():
            if n.op == "recall" and n["mode"] in ("chunk", "gradient"):
                source = next(x for x in i.memories if x.name == n["memory"])
                add("generates", row_name(i, source), row_name(i, m), label)
    for slot in m.rule.slots if m.rule else ():
        if not slot.name.endswith(".pending"):
            add("optimises", f"{row_name(i, m)}.{slot.name}", row_name(i, m))
    for t in m.function.tensors if m.function is not None else ():
        if t.source is not None:
            source = next(x for x in i.memories if x.name == t.source[0])
            add("initialises", row_name(i, source), row_name(i, m), "start")


def _step_edges(root: Instance, steps: tuple[StepLevel, ...], add: AddEdge) -> None:
    for s in steps:
        for slot in s.rule.slots if s.rule else ():
            if not slot.name.endswith(".pending"):
                add("optimises", f"{s.name}.{slot.name}", s.name)
        table = {p: x.name for x in steps for p in x.weights}
        for source in dict.fromkeys(table[p] for _, p in s.start if p in table):
            add("initialises", source, s.name, "start")
        for n in walk(s.objective) if s.objective is not None else ():
            if n.op == "record" and n["level"] != s.name:
                kind = "generates" if s.texts.value else "context"
                add(kind, n["level"], s.name, "value" if s.texts.value else "objective")
            elif n.op == "call" and n["child"] in {x.name for x in steps} - {s.name}:
                add("context", n["child"], s.name, "objective")
    owner = {p: s.name for s in steps for p in s.weights}
    for i in level_instances(root):
        for m in i.memories:
            owners: dict[str, set[str]] = {"initialises": set(), "generates": set()}
            for w in i.weights:
                full = f"{i.path}.{w.path}" if i.path else w.path
                if full in owner:
                    mine = w.path.startswith(f"{m.name}.")
                    if w.role == "init" and mine:
                        owners["initialises"].add(owner[full])
                    elif w.role == "weight":
                        owners["generates"].add(owner[full])
            for s in owners["initialises"]:
                add("initialises", s, row_name(i, m), "start")
            if m is i.memories[0]:
                for s in owners["generates"]:
                    add("generates", s, row_name(i, m), "projections")


def _own_parts(root: Instance, steps: tuple[StepLevel | TokenLevel, ...]) -> dict[str, str]:
    """Flow instances that are the memory of a slow level (a continuum's MLPs): instance path -> level.

    Only levels whose weights all lie in such flows count; who owns the rest of a model is no stage of its own.
    """
    owner = {p: s.name for s in steps for p in s.weights}
    parts: dict[str, str] = {}
    covered: dict[str, int] = defaultdict(int)
    holds: dict[str, tuple[set[str], int, bool]] = {}

    def visit(i: Instance) -> tuple[set[str], int, bool]:
        below = [visit(c) for _, c in i.children]
        mine = {owner.get(f"{i.path}.{w.path}" if i.path else w.path, "") for w in i.weights}
        level = i.kind == "level" or any(b[2] for b in below)
        found = mine.union(*(b[0] for b in below)), len(i.weights) + sum(b[1] for b in below), level
        holds[i.path] = found
        return found

    def mark(i: Instance) -> None:
        owners, n, level = holds[i.path]
        if i.kind == "flow" and not level and n and len(owners) == 1 and "" not in owners:
            (name,) = owners
            parts[i.path] = name
            covered[name] += n
            return
        for _, c in i.children:
            mark(c)

    visit(root)
    mark(root)
    whole = {s.name for s in steps if covered[s.name] == len(s.weights)}
    return {path: name for path, name in parts.items() if name in whole}


def _context(root: Instance, steps: tuple[StepLevel | TokenLevel, ...]) -> list[tuple[str, str]]:
    """Which level's output reaches which level's input (as rows), without those that a level in between explains."""
    parts = _own_parts(root, steps)
    pairs: dict[tuple[str, str], None] = {}
    enters: dict[str, str] = {}  # instance path -> the row that takes its input
    leaves: dict[str, str] = {}  # instance path -> the row whose recall it returns
    level: dict[str, str] = {}  # instance path -> what tells its level from others

    def stage(child: Instance) -> bool:
        if child.path in parts:
            enters[child.path] = leaves[child.path] = level[child.path] = parts[child.path]
        elif child.kind == "level" and child.memories:
            enters[child.path] = row_name(child, child.memories[0])
            leaves[child.path] = row_name(child, _answering(child))
            level[child.path] = group_name(child)
        return child.path in enters

    number: dict[str, int] = {}  # a stage's bit
    before: dict[str, int] = {}  # the stages that reach it, as bits, its own among them

    def nearest(sources: Iterable[str]) -> frozenset[str]:
        """Without those that reach another of them: the level in between explains them."""
        found = set(sources)
        if len(found) < 2:
            return frozenset(found)
        return frozenset(s for s in found if not any(reaches(s, m) and not reaches(m, s) for m in found))

    def reaches(a: str, b: str) -> bool:
        return bool(before[b] >> number[a] & 1)

    def enter(path: str, sources: frozenset[str]) -> frozenset[str]:
        bit = 1 << number.setdefault(path, len(number))
        before[path] = before.get(path, 0) | bit
        for s in sorted(sources):
            before[path] |= before[s]
            pairs[(s, path)] = None
        return frozenset([path])

    def run(instance: Instance, taint: dict[str, frozenset[str]]) -> frozenset[str]:
        known: dict[int, frozenset[str]] = {}
        children = dict(instance.children)
        for n in walk(instance.result) if instance.result is not None else ():
            if n.op == "slot":
                known[id(n)] = taint.get(n["name"], frozenset())
            elif n.op == "call" and n.get("of"):  # read without learning: what the level gives
                learner = children[n["of"]]
                stage(learner)
                known[id(n)] = enter(learner.path, frozenset())
            elif n.op == "call":
                child = children[n["child"]]
                given = {name: known[id(a)] for name, a in zip(n["names"], n.args, strict=True)}
                is_stage = stage(child)
                known[id(n)] = enter(child.path, nearest(chain(*given.values()))) if is_stage else run(child, given)
            else:
                known[id(n)] = nearest(chain(*(known[id(a)] for a in n.args)))
        return known[id(instance.result)] if instance.result is not None else frozenset()

    run(root, {})
    # no level feeds itself a block further up
    return list(dict.fromkeys((leaves[a], enters[b]) for a, b in pairs if level[a] != level[b]))


# --- structure ----------------------------------------------------------------------------------------------


def flows(root: Instance, networks: Iterable[Network] = ()) -> tuple[FlowBox, ...]:
    """Flows and levels as boxes in boxes, a repeat once with its count; a network of the caller where it is called."""
    boxes = _boxes(root)
    return (*boxes, *(FlowBox(n.name, "network", 1) for n in networks if not _within(n.name, boxes)))


def _within(network: str, boxes: tuple[FlowBox, ...]) -> bool:
    return any((b.kind == "network" and b.name == network) or _within(network, b.children) for b in boxes)


def _boxes(instance: Instance) -> tuple[FlowBox, ...]:
    groups: dict[tuple[str, str], list[Instance]] = {}
    for rel, child in instance.children:
        if child.kind != "read":  # the level it reads has a box
            groups.setdefault((pattern("." + rel), child.name), []).append(child)
    boxes: list[FlowBox] = []
    for (name, _), group in groups.items():
        first = group[0]
        level = group_name(first) if first.kind == "level" else None
        boxes.append(FlowBox(name.replace(".*", "").strip("."), first.kind, len(group), _boxes(first), level))
    called = (n["network"] for n in walk(instance.result) if n.op == "network") if instance.result is not None else ()
    return (*boxes, *(FlowBox(n, "network", 1) for n in dict.fromkeys(called)))
