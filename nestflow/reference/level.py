"""What a level of memories does at a tick: language.md §3.2 to 3.5, in that order."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from nestflow.graph.levels.windows import age_of
from nestflow.graph.model import Instance, Memory, MemoryTensor
from nestflow.graph.reading.state import SEGMENT
from nestflow.graph.state import CHUNK, GRAM, PENDING, SINCE, TICKS, UPDATES, keeps_anchor, memory_path
from nestflow.ir.choices import for_tensor
from nestflow.ir.node import Node, walk
from nestflow.ir.rule import Rule
from nestflow.reference.cache import append
from nestflow.reference.chance import drawn_start
from nestflow.reference.rule import Count, Update, Weight, pick, times
from nestflow.reference.tick import Frame, Tensors, Tick
from nestflow.reference.values import number


@dataclass
class Learning:
    """One memory in the course of a tick. before: A_{t−1}. at: A, decayed already where `decay_first` says so.
    anchor: θ_{a(t)}. alias: the same values again, what the derivative is taken in. g: G_t by tensor. gram: K_t."""

    memory: Memory
    path: str
    before: Tensors
    at: Tensors
    anchor: Tensors
    alias: Tensors
    g: Tensors
    gram: Tensors
    taken: Tensors = field(default_factory=dict[str, Tensor])  # G_t as `m.g` reads it


def learn(frame: Frame) -> None:
    """Context, error, learning. Afterwards the recalls of the level's `return` can be evaluated."""
    tick, memories = frame.tick, frame.instance.memories
    ones = [begin(frame, m) for m in memories if m.cache is None]
    frame.learning = {one.memory.name: one for one in ones}
    for m in memories:  # 2. context: all that looks back takes its input, whether used at this tick or not
        for r in (m, *m.rounds):
            rule = tuple(r.rule.nodes()) if r.rule is not None else ()
            frame.look_back(r.key, r.value, r.query, r.weight, r.when, r.reset_where, r.objective, r.retain, *rule)
        if m.cache is not None:
            append(frame, m)
    frame.look_back(*(n for _, n in frame.instance.names))
    for one in ones:
        decay_first(frame, one)
    for one in ones:  # all errors are taken at one state, then all learn (§3.7)
        error(frame, one)
    for rule, group in same_update(ones):
        update(frame, rule, group)
    for turn in range(1, max((m.turns for m in memories), default=1)):  # `rounds`: 3 and 4 again, from where they led
        later = [again(frame, one, turn) for one in ones if one.memory.turns > turn]
        for one in later:
            error(frame, one)
        for rule, group in same_update(later):
            update(frame, rule, group)
    for one in ones:  # 5. recall
        after = {name: tick.state[memory_path(frame.instance.path, one.memory.name, name)] for name in one.before}
        at = {"after": after, "before": one.before, "chunk_start": one.anchor}[one.memory.read]
        frame.states[one.memory.name, "return"] = {n: linked(one.memory, a) for n, a in at.items()}


def begin(frame: Frame, m: Memory) -> Learning:
    """A_{t−1}, and θ_{a(t)}, a(t) = C⌊(t−1)/C⌋: where C divides t − 1, the chunk's first state is the present one."""
    tick, path = frame.tick, memory_path(frame.instance.path, m.name, "")
    tensors = m.function.tensors if m.function is not None else ()
    start_anew(frame, m, path)
    before = {t.path: tick.state[f"{path}.{t.path}"] for t in tensors}
    anchor = dict(before)
    if path + SINCE in tick.state:  # rows whose chunks begin where they started anew
        tick.put(path + SINCE, tick.state[path + SINCE] + 1)
    if keeps_anchor(m):  # otherwise C = N: nothing has changed since the chunk began
        begins = (since(frame, m, path) - 1) % m.chunk == 0
        for name, a in before.items():
            anchor[name] = pick(begins, a, tick.state[f"{path}.{name}{CHUNK}"])
            tick.put(f"{path}.{name}{CHUNK}", anchor[name])
    frame.states[m.name, "chunk"] = {n: linked(m, a) for n, a in anchor.items()}
    return Learning(m, path, before, dict(before), anchor, {}, {}, {})


def since(frame: Frame, m: Memory, path: str) -> Tensor:
    """Ticks that the clock of a memory has made: since its row's sequence began, or `reset where(…)` held."""
    return frame.tick.state.get(path + SINCE, frame.tick.clock(m))


def chunk_began(frame: Frame, m: Memory) -> Tensors:
    """θ_{a(t)} of a memory of another level, whether that has learned at this tick already or not."""
    tick, theta = frame.tick, {}
    for t in m.function.tensors if m.function is not None else ():
        path = memory_path(frame.learner or "", m.name, t.path)
        a = tick.before[path]
        if keeps_anchor(m):
            a = pick((tick.t - 1) % m.chunk == 0, a, tick.before[path + CHUNK])
        if m.reset is not None:
            source = None if t.source is None else tick.before[memory_path(frame.learner or "", *t.source)]
            start = tick.start[path] if source is None else source
            if t.drawn and source is None:
                start = drawn(tick, frame.learner or "", m, t)
            a = pick((tick.t - 1) % m.reset == 0, start, a)
        theta[t.path] = linked(m, a)
    return theta


def start_anew(frame: Frame, m: Memory, path: str) -> None:
    """1. A reset that is due within a sequence: all that is kept starts again, but what `keep = rule` spares."""
    tick = frame.tick
    if m.reset is not None:
        due = (tick.t - 1) % m.reset == 0
    elif m.reset_where is not None:
        due = frame.eval(m.reset_where).reshape(*frame.memo[id(m.reset_where)].shape[:2])
    else:
        return
    tensors = m.function.tensors if m.function is not None else ()
    names, starts = [t.path for t in tensors], dict(tick.start)
    for t in tensors:
        if t.drawn and t.source is None:
            at = (frame.instance.path, m, t)
            starts |= dict.fromkeys(drawn_slots(*at), drawn(tick, *at))
        if t.source is not None:  # another memory's state, as this tick found it
            taken = tick.before[memory_path(frame.instance.path, *t.source)]
            starts |= {f"{path}.{t.path}{suffix}": taken for suffix in ("", CHUNK)}
    own = {f"{path}.{n}{suffix}" for n in names for suffix in ("", CHUNK, PENDING, GRAM)} | {path + TICKS, path + SINCE}
    for key in [k for k in tick.state if k.startswith(path + ".") or k in (path + TICKS, path + UPDATES, path + SINCE)]:
        if (key in own or not m.keep_rule) and not goes_on(frame.instance, key):
            tick.put(key, pick(due, starts[key], tick.state[key]))


def goes_on(instance: Instance, key: str) -> bool:
    """What lies below a memory's path and is none of its state: what looks back in its fields (§3.11), in the flows
    that they call too, and what a segment of the stream began with (§3.6)."""
    below = (memory_path(instance.path, "", t.path) for t in instance.tails)
    called = tuple(f"{c.path}." for _, c in instance.children)
    return key in below or key.startswith(called) or key.endswith(SEGMENT)


def drawn(tick: Tick, instance: str, m: Memory, t: MemoryTensor) -> Tensor:
    """What a memory that is drawn would start with at this tick."""
    path, clock = memory_path(instance, "", t.drawn), tick.clock(m)
    return drawn_start(t.init, (tick.seed, tick.step), path, clock, m.heads or 1, t.shape, tick.row).to(tick.dtype)


def drawn_slots(instance: str, m: Memory, t: MemoryTensor) -> list[str]:
    """The state that starts as the tensor does: its own, and memories of the rule that begin at w."""
    path, rule = memory_path(instance, m.name, ""), m.rule
    slots = [] if rule is None else [s.name for s in rule.slots if s.init.op in ("w", "w0")]
    return [f"{path}.{t.path}", f"{path}.{t.path}{CHUNK}", *(f"{path}.{s}.{t.path}" for s in slots)]


def again(frame: Frame, one: Learning, turn: int) -> Learning:
    """The memory as the round `turn` finds it. What was recalled in the objective of a round before is forgotten."""
    m = one.memory.rounds[turn - 1]
    stale: set[int] = set()
    for n in walk(*(x for x in (m.objective,) if x is not None)):
        own = n.op == "recall" and n["memory"] == m.name and n["mode"] == "objective"
        if own or any(id(a) in stale for a in n.args):
            stale.add(id(n))
            frame.memo.pop(id(n), None)
    frame.inputs_of.pop(m.name, None)
    now = {n: frame.tick.state[f"{one.path}.{n}"] for n in one.before}
    new = Learning(m, one.path, now, dict(now), one.anchor, {}, {}, {})
    decay_first(frame, new)
    return new


def linked(m: Memory, a: Tensor) -> Tensor:
    """θ = link(A), A [B, H, *shape] (§3.4, named retentions)."""
    if m.link is None:
        return a
    if m.link.kind == "kl":
        return m.link.number * (a - a.logsumexp(-1, keepdim=True)).exp() if a.ndim > 2 else a
    q = m.link.number
    powers = a.abs().pow(q).flatten(2).sum(-1) if a.ndim > 2 else a.abs().pow(q)
    zero = powers == 0
    factor = torch.where(zero, 0.0, torch.where(zero, 1.0, powers).pow(-(q - 2) / q))
    return times(factor, a)


def retained(frame: Frame, m: Memory, path: str, a: Tensor) -> Tensor:
    """retain(A): a number; a vector on the key (in) axis or, `on_value`, on the value (out) axis; elementwise."""
    if m.retain is None:
        return a
    gate = frame.eval(for_tensor(m.retain, path))
    if m.retain_on == "value" and number(gate).ndim == 3:
        gate = gate.unsqueeze(-1)
    return times(gate, a)


def decay_first(frame: Frame, one: Learning) -> None:
    """`retain decay_first(α)`: α A_{t−1} takes A_{t−1}'s place in the error and in the step (C = N = 1)."""
    m = one.memory
    if one.alias:  # another memory has asked for the gradient already
        return
    if m.decay_first:
        one.at = {name: retained(frame, m, name, a) for name, a in one.before.items()}
    theta = one.at if m.decay_first or m.turn else one.anchor
    with torch.enable_grad():  # a fresh alias: other uses of θ (names, key, value) stay constant inside the step
        theta = {n: linked(m, a) for n, a in theta.items()}
        one.alias = {n: a.clone() if a.requires_grad else a.detach().clone().requires_grad_() for n, a in theta.items()}
    frame.states[m.name, "objective"] = one.alias


def error(frame: Frame, one: Learning) -> None:
    """3. G_t = weight_t · ∇_θ ℓ(M(k_t; θ), v_t), one for each row and head; K_t = |weight_t| Σ k kᵀ for dgd."""
    m, tick = one.memory, frame.tick
    if m.objective is None or m.rule is None or one.g:
        return
    through = tick.grad and m.gradient == "through"
    with torch.enable_grad():
        loss = frame.eval(m.objective).sum()
        grads = torch.autograd.grad(
            loss,
            list(one.alias.values()),
            create_graph=through,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    weight = {n: None if m.weight is None else frame.eval(for_tensor(m.weight, n)) for n in one.alias}
    one.g = {n: g if (w := weight[n]) is None else times(w, g) for n, g in zip(one.alias, grads)}
    one.taken = {n: g if m.gradient == "through" else g.detach() for n, g in one.g.items()}  # of this tick alone
    if m.rule.inputs is not None:
        seen = frame.inputs_of.get(m.name, {})
        aged = [frame.eval(e).abs() for e in m.ages]  # the pairs of a window weigh as they do in g
        one.gram = {n: gram(xs, m.rule.inputs[0], aged) for n, xs in seen.items()}
        one.gram = {n: k if (w := weight[n]) is None else times(w.abs(), k) for n, k in one.gram.items()}
    if m.per == "model":  # one copy serves all rows: G sums over them (§3)
        batch = tick.t.shape[0]
        for sums in (one.g, one.gram):
            for n, g in sums.items():
                sums[n] = g.expand(batch, *g.shape[1:]).sum(0, keepdim=True).expand(batch, *g.shape[1:])
    if m.every > 1:  # Σ G over the last N ticks
        keep_pending(frame, one)


def gradient_of(frame: Frame, name: str, tensor: str) -> Tensor:
    """`m.g`: what the memory takes in this tick, of itself alone (§3.9), whether its turn has come or not."""
    one = frame.learning[name]
    decay_first(frame, one)
    error(frame, one)
    return one.taken[tensor]


def keep_pending(frame: Frame, one: Learning) -> None:
    tick = frame.tick
    learns = since(frame, one.memory, one.path) % one.memory.every == 0
    for sums, suffix in ((one.g, PENDING), (one.gram, GRAM)):
        for name in sums:
            key = f"{one.path}.{name}{suffix}"
            sums[name] = tick.state[key] + sums[name]
            tick.put(key, pick(learns, torch.zeros_like(sums[name]), sums[name]))


def gram(inputs: list[tuple[Tensor, Node]], normalize: bool, aged: list[Tensor]) -> Tensor:
    """K = Σ k kᵀ over the inputs k of one weight at this tick (normalize: over k/‖k‖), each with the weight of its
    pair."""
    total: Tensor | None = None
    for x, recall in inputs:
        rows = x.reshape(*x.shape[:2], -1, x.shape[-1])
        if normalize:
            size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            rows = rows / torch.where(size == 0, torch.ones_like(size), size)
        k = rows.mT @ rows
        k = times(aged[age_of(recall)], k) if aged else k
        total = k if total is None else total + k
    if total is None:
        raise LookupError("no inputs were seen")
    return total


def same_update(ones: list[Learning]) -> list[tuple[Rule, list[Learning]]]:
    """The memories that learn at the same ticks by the same `update`: norms go over all of them."""
    groups: list[tuple[Rule, list[Learning]]] = []
    for one in ones:
        if one.memory.rule is None or not one.g:
            continue
        for rule, group in groups:
            other = group[0].memory
            if rule == one.memory.rule and clock_of(other) == clock_of(one.memory):
                group.append(one)
                break
        else:
            groups.append((one.memory.rule, [one]))
    return groups


def clock_of(m: Memory) -> tuple[object, ...]:
    """What two memories share that learn at the same ticks."""
    return m.every, m.when, m.reset_where if m.every > 1 else None


def update(frame: Frame, rule: Rule, group: list[Learning]) -> None:
    """4. In the rows where N divides t: Δ, s_t = update(g, …, s_{t−1}); A_t = retain(A_{t−1}) + Δ."""
    tick, m = frame.tick, group[0].memory
    due = since(frame, m, group[0].path) % m.every == 0
    if not due.any() and m.when is None:
        return
    weights: dict[str, Weight] = {}
    learns: dict[str, Tensor] = {}
    for one in group:
        learns[one.path], count = counted(frame, one, due)
        for n, a in one.at.items():
            keep = (lambda a: a) if one.memory.decay_first else partial(retained, frame, one.memory, n)
            old = {s: tick.state[slot_path(rule, one.path, s, n)] for s in slot_names(tick.state, rule, one.path, n)}
            start, stop = tick.start[f"{one.path}.{n}"], one.memory.gradient == "stop"
            weights[f"{one.path}.{n}"] = Weight(
                n, a, one.g[n], old, start, one.anchor[n], one.gram.get(n), keep, stop=stop, count=count
            )
    Update(rule, list(weights.values()), tick.t, every=m.every, context=frame.eval).run()
    for one in group:
        for n, a in one.before.items():
            w = weights[f"{one.path}.{n}"]
            tick.put(f"{one.path}.{n}", pick(learns[one.path], w.w, a))
            for s, value in w.new.items():
                tick.put(slot_path(rule, one.path, s, n), pick(learns[one.path], value, w.old[s]))


def counted(frame: Frame, one: Learning, due: Tensor) -> tuple[Tensor, Count]:
    """Where a memory learns now, and its counts: each has its own, since it may start anew where others do not. With
    `when` it does not learn if all N ticks were false. due: whether N divides the tick."""
    tick, m = frame.tick, one.memory
    ticks = tick.clock(m) if m.reset is None or m.keep_rule else (tick.t - 1) % m.reset + 1
    updates, n_ticks = ticks // m.every, torch.full_like(tick.t, m.every)
    if m.turns > 1:  # each round is an update
        updates = (ticks - 1) * m.turns + m.turn + 1
    if m.when is not None:
        brings = frame.eval(m.when).reshape(*frame.memo[id(m.when)].shape[:2])
        n_ticks = brings.to(torch.int64).expand(tick.t.shape[0], m.heads or 1)
        if m.every > 1:
            n_ticks = tick.state[one.path + TICKS] + n_ticks
            tick.put(one.path + TICKS, torch.where(due, 0, n_ticks))
        due = due & (n_ticks > 0)
        updates = tick.state[one.path + UPDATES] + due
        tick.put(one.path + UPDATES, updates)
    # 0 only in rows that do not learn now
    return due, Count(updates.clamp(min=1), n_ticks.clamp(min=1), ticks)


def slot_path(rule: Rule, memory: str, slot: str, tensor: str) -> str:
    """Where the stream keeps a memory of the rule: one for each tensor, or one number for all."""
    alone = any(s.name == slot and s.shared for s in rule.slots)
    return f"{memory}.{slot}" if alone else f"{memory}.{slot}.{tensor}"


def slot_names(state: Tensors, rule: Rule, memory: str, tensor: str) -> list[str]:
    names = [s.name for s in rule.slots if slot_path(rule, memory, s.name, tensor) in state]
    return names + [f"{n}@retained" for n in names if slot_path(rule, memory, f"{n}@retained", tensor) in state]
