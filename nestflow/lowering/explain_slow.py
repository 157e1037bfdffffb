"""`nestflow explain SPEC` of what takes more than one pass: levels without slots, models that learn while they read,
flows that go through their input in pieces."""

from __future__ import annotations

import math
from dataclasses import replace

from nestflow.graph.describe import group_name, step_text
from nestflow.graph.model import Inner, LevelGraph, StepLevel, TokenLevel
from nestflow.graph.reading.state import shortest
from nestflow.ir.node import walk
from nestflow.lowering.pieces import piece_size

SHORT = 16  # pieces below this length waste most of what a device can do at once


def pieces_texts(graph: LevelGraph) -> list[str]:
    """A block for each flow that reads a level, repeated ones once."""
    found: dict[str, str] = {}
    for i in graph.root.walk():
        size = piece_size(i)
        if not size:
            continue
        calls = walk(i.result) if i.result is not None else ()
        read = sorted({n["of"] for n in calls if n.op == "call" and n.get("of") is not None})
        tokens = "one token" if size == 1 else f"{size} tokens"
        why = f"`{', '.join(read)}` is read as its chunk began"
        name = group_name(i)
        lines = [name, f"  how        {tokens} at a time, one piece after the other: {why}"]
        if size < SHORT:
            lines.append(
                "  note       short pieces make it slow: a longer `chunk` of the level that is read makes longer ones"
            )
        found.setdefault(name, "\n".join(lines))
    return list(found.values())


def step_level_text(s: StepLevel, graph: LevelGraph) -> str:
    """A level without slots: when it learns, and what it costs where that is more than one pass forward and back."""
    count = len(s.weights)
    what = (
        ("tensor of its own" if count == 1 else "tensors of its own")
        if s.state
        else "weight"
        if count == 1
        else "weights"
    )
    how = f"one torch optimizer, {count} {what}, {step_text(s)}"
    if s.copies:
        one = len(s.names)
        copies = "one copy" if s.copies == 1 else f"{s.copies} copies"
        how = f"one torch optimizer, {copies} of {one} tensor{'s' * (one > 1)}, {step_text(replace(s, copies=0))}"
    how = "frozen: it never learns" if s.rule is None else how
    if s.inner is not None:
        through = {"truncate": f"through the last {s.inner.keep} updates", "implicit": "at the stationary point"}
        slower = through.get(s.inner.gradient, s.inner.gradient)
        how = f"inside the step, begins anew in each; {step_text(s)}; slower gradients: {slower}"
    waits = any(not n.given for n in graph.networks) and not s.weights
    how = how.replace("0 weights", "weights of a network of yours") if waits else how
    lines = [s.name, f"  how        {how}"]
    if s.inner is not None and s.rule is not None:
        lines.append(f"  cost       {inner_cost(s, s.inner)}")
    if s.copies and s.rule is not None:
        lines.append(f"  cost       {worker_cost(s)}")
    es = [n for n in walk(s.objective) if n.op == "es"] if s.objective is not None else []
    if es:
        passes = sum(2 * n["pairs"] + 1 for n in es)
        lines.append(f"  cost       its gradient is estimated: {passes} passes forward in each step, none backward")
    return "\n".join(lines)


def inner_cost(s: StepLevel, inner: Inner) -> str:
    """Numbers of one copy, passes in a step, and what stays in memory for slower gradients."""
    assert s.rule is not None
    numbers = sum(math.prod(w.full_shape) for w in s.state)
    slots = sum(x.like == "w" for x in s.rule.slots)
    copy = "for each task" if inner.copies == "task" else "for the batch"
    runs = "one run" if inner.rounds == 1 else f"{inner.rounds} runs"
    text = f"{numbers * (1 + slots):,} numbers {copy}"
    text += f" ({slots} of the rule for each of its own)" if slots else ""
    text += f"; {runs} forward and backward of its objective in each step, one after the other"
    kept = {"through": inner.rounds, "truncate": inner.keep}.get(inner.gradient, 0)
    if kept:
        text += f"; training keeps {'the run' if kept == 1 else f'{kept} runs'} and differentiates twice"
    elif inner.gradient == "implicit":
        text += f"; training takes {inner.keep} products with the Hessian and keeps none of the runs"
    else:
        text += "; training keeps none of them"
    return text


def worker_cost(s: StepLevel) -> str:
    """What the copies of all workers keep, and what a step of them runs."""
    assert s.rule is not None
    numbers = sum(math.prod(w.full_shape) for w in s.state) // s.copies
    slots = sum(x.like == "w" for x in s.rule.slots)
    text = f"{numbers * (1 + slots):,} numbers for each worker" + (f" ({slots} of the rule for each)" if slots else "")
    return text + "; one pass forward and back for each, on its part of the batch, one after the other"


def reading_text(x: TokenLevel, graph: LevelGraph) -> str:
    """A level whose weights learn while the module reads: what its copies and its gradients cost."""
    if x.idle:
        return f"{x.name}\n  how        its rate is 0: the plain model, bit for bit"
    size = shortest(graph.reading)
    numbers = sum(math.prod(w.full_shape) for w in graph.weights if w.path in set(x.weights))
    slots = sum(s.like == "w" for s in x.rule.slots)
    each = {"sequence": "sequence", "stream": "stream"}[x.per]
    tokens = "token by token" if size == 1 else f"{size} tokens at a time"
    note = [
        f"  note       short segments make it slow: the model runs {tokens}; a longer `every` of the fastest of these "
        "levels makes longer ones"
    ]
    return "\n".join(
        [
            x.name,
            f"  how        the call is cut in segments of {size} tokens; each row runs on copies of its own; "
            "one gradient of the model's loss for each segment",
            f"  learns     {len(x.weights)} weights, every {x.every} token{'s' * (x.every > 1)}, "
            f"by {x.rule.text}; its steps are constants for slower levels",
            f"  cost       {numbers * (2 + slots):,} numbers for each {each}: the weights, the sum of their gradients"
            + (f", {slots} of the rule" if slots else "")
            + "; a backward pass through the model for each token",
            *(note if size < SHORT else ()),
        ]
    )


__all__ = ["pieces_texts", "reading_text", "step_level_text"]
