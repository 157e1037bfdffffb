"""A cache at a tick: its pairs join those that were kept, a query attends to those that it sees (language.md §3.5)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nestflow.graph.model import CacheSpec, Memory
from nestflow.graph.state import SINCE, memory_path
from nestflow.reference.tick import Frame


@dataclass
class Whole:
    """The pairs of all ticks of a call, for caches that see later ones too (`causal = false`): found by going through
    the call once before. sequence: [B, T], which of the row's sequences each tick is part of. now: this tick's index.
    pairs: path -> the pairs of each tick, [B, H, n, width], as this run makes them; known: as the last one did."""

    sequence: Tensor
    now: int = 0
    pairs: dict[str, list[Tensor]] = field(default_factory=dict)
    known: dict[str, Tensor] = field(default_factory=dict)

    def again(self) -> Whole:
        """For the next time through, which knows the pairs of this one."""
        return Whole(self.sequence, 0, {}, {p: torch.stack(xs, 2) for p, xs in self.pairs.items()})


def spec_of(m: Memory) -> CacheSpec:
    if m.cache is None:
        raise LookupError("no cache")
    return m.cache


def append(frame: Frame, m: Memory) -> None:
    """The pairs of this tick join those that were kept: [B, H, n, width], this tick's last."""
    tick, count = frame.tick, spec_of(m).pairs
    for role, node in (("key", m.key), ("value", m.value)):
        if node is not None:
            path = memory_path(frame.instance.path, m.name, role)
            x = frame.eval(node)
            x = x.expand(tick.t.shape[0], *[-1] * (x.ndim - 1)).unflatten(-1, (count, -1))
            tick.put(path, torch.cat([tick.state[path].to(x.dtype), x], 2))
            if not spec_of(m).causal:
                tick.whole.pairs.setdefault(path, []).append(x)
    if m.reset_where is not None:  # the pairs from before a reset are forgotten: a life is told by its first tick
        path = memory_path(frame.instance.path, m.name, "") + SINCE
        due = frame.eval(m.reset_where)
        since = torch.where(due.reshape(*due.shape[:2]), 0, tick.state[path]) + 1
        tick.put(path, since)
        if not spec_of(m).causal:
            tick.whole.pairs.setdefault(path, []).append(began(frame, m)[..., None, None])


def began(frame: Frame, m: Memory) -> Tensor:
    """The tick at which the cache was empty last, [B, H]: the sequence's first, or one at which it was reset."""
    t = frame.tick.clock(m)
    if m.reset_where is None:
        return torch.ones_like(t)
    return t - frame.tick.state[memory_path(frame.instance.path, m.name, "") + SINCE] + 1


def attend(frame: Frame, m: Memory, q: Tensor) -> Tensor:
    """Σ softmax_i(scale · q·k_i) v_i over the pairs that tick t sees: its own, those in its window or segment, those of
    the first ticks (`sink`), the learned ones (`prefix`)."""
    spec = spec_of(m)
    paths = [memory_path(frame.instance.path, m.name, role) for role in ("key", "value")]
    if spec.causal or paths[0] not in frame.tick.whole.known:
        k, v = (frame.tick.state[p] for p in paths)
        seen = behind(spec, frame.tick.clock(m), began(frame, m), k.shape[2] // spec.pairs)
    else:
        k, v = (frame.tick.whole.known[p].flatten(2, 3) for p in paths)
        lives = frame.tick.whole.known.get(memory_path(frame.instance.path, m.name, "") + SINCE)
        seen = around(spec, frame.tick.whole, frame.tick.t, began(frame, m), lives)
    seen = seen.repeat_interleave(spec.pairs, -1)
    if spec.prefix:
        at = [memory_path(frame.instance.weights_path, m.name, f"prefix.{role}") for role in ("key", "value")]
        learned = [frame.tick.weights[p] for p in at]
        wide = [w[None] if w.ndim == 3 else w[None, None] for w in learned]
        k, v = (torch.cat([w.expand(x.shape[0], -1, -1, -1), x], 2) for w, x in zip(wide, (k, v)))
        seen = torch.cat([seen.new_ones(*seen.shape[:2], spec.prefix), seen], -1)
    groups = [n.type.heads or 1 for n in (m.key, m.value) if n is not None]
    k, v = (x.repeat_interleave((m.heads or 1) // n, 1) if x.shape[1] == n else x for x, n in zip((k, v), groups))
    scores = (spec.scale * q.unsqueeze(2) * k).sum(-1).masked_fill(~seen, float("-inf"))
    seen_v = v.masked_fill(~seen.unsqueeze(-1), 0.0)  # what is not seen counts nothing, whatever it is
    return (scores.softmax(-1).unsqueeze(-1) * seen_v).sum(2)


def behind(spec: CacheSpec, t: Tensor, first: Tensor, count: int) -> Tensor:
    """Which of the last `count` ticks, this one included, tick t sees: [B, H or 1, count]. first: see `began`."""
    age = torch.arange(count - 1, -1, -1, device=t.device)
    at = (t - age).unsqueeze(1)  # the tick of each pair, by the row's own count
    return (at >= first.unsqueeze(-1)) & near(spec, at, t.unsqueeze(-1), first.unsqueeze(-1))


def around(spec: CacheSpec, whole: Whole, t: Tensor, first: Tensor, lives: Tensor | None) -> Tensor:
    """Which of all ticks of the call tick t sees: those of its own sequence, and of its own life in it. lives: when
    that of each tick began, [B, H, T, 1, 1]."""
    ticks = torch.arange(whole.sequence.shape[1], device=t.device)
    at = (t + ticks - whole.now).unsqueeze(1)
    own = (whole.sequence == whole.sequence[:, whole.now : whole.now + 1]).unsqueeze(1)
    first = first.unsqueeze(-1)
    own = own if lives is None else own & (lives.flatten(2) == first)
    return own & near(spec, at, t.unsqueeze(-1), first)


def near(spec: CacheSpec, at: Tensor, t: Tensor, first: Tensor) -> Tensor:
    """Segments and sinks are counted from the first tick of the cache's life."""
    seen, at, t = torch.ones_like(at - first, dtype=torch.bool), at - first + 1, t - first + 1
    if spec.window is not None:
        seen = seen & ((t - at).abs() < spec.window)
    if spec.segment is not None:
        seen = seen & ((at - 1) // spec.segment == (t - 1) // spec.segment)
    return seen | (at <= spec.sink)


def forget(frame: Frame) -> None:
    """The pairs that no later query can see are dropped: of a window those of the last w − 1 ticks stay."""
    for m in frame.instance.memories:
        if m.cache is not None and m.cache.window is not None and not m.cache.sink:
            for role in ("key", "value"):
                path = memory_path(frame.instance.path, m.name, role)
                kept = frame.tick.state[path]
                frame.tick.put(path, kept[:, :, max(0, kept.shape[2] - (m.cache.window - 1) * m.cache.pairs) :])


__all__ = ["Whole", "append", "attend", "forget"]
