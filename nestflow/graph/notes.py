"""Notes: what a spec says rightly, but perhaps does not mean. They are never errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nestflow.diagnostics.core import Diagnostic, Span
from nestflow.graph.model import Instance, Memory, Network, StepLevel
from nestflow.ir.node import Node, walk

NORMALISED = frozenset(["sqrt", "sign", "norm_all", "norm_w", "newton_schulz", "n_ticks", "l2norm", "rmsnorm"])


def notes(
    root: Instance, steps: tuple[StepLevel, ...], output: Node | None, networks: tuple[Network, ...] = ()
) -> tuple[Diagnostic, ...]:
    """All notes on a graph, each place once."""
    found: dict[tuple[str, Span | None, str], Diagnostic] = {}
    for n in (
        *_memories(root),
        *_copies(root),
        *_unused(root, output, steps),
        *_sums(steps),
        *_waiting(networks),
        *_odd(root, steps),
    ):
        found.setdefault((n.code, n.span, n.message), n)
    return tuple(found.values())


def _note(code: str, message: str, span: Span | None, help: str) -> Diagnostic:
    return Diagnostic(code, message, span, help, (), "note")


def _memories(root: Instance) -> Iterator[Diagnostic]:
    """A matrix under l2 that is near DeltaNet, but another function."""
    for i in root.walk():
        for m in i.memories:
            if m.kind != "matrix" or m.texts.objective != "l2" or m.decay_first:
                continue
            if m.chunk > m.every:  # `every 16 tokens` alone says what it wants
                message = f"chunk {m.chunk} takes the errors of {m.chunk} ticks at one state: this is not DeltaNet"
                help_ = "the delta rule is `chunk 1`, which is computed in blocks anyway"
                yield _note("NF451", message, m.span, help_)
            elif m.retain is not None and m.every == 1 and _follows(m):
                message = "this gate decays the memory after the error is taken"
                help_ = "Gated DeltaNet decays before it: `retain decay_first(…)`"
                yield _note("NF452", message, m.span, help_)


def _follows(m: Memory) -> bool:
    return m.rule is not None and not m.rule.slots


def _copies(root: Instance) -> Iterator[Diagnostic]:
    """`memory model`: a new network of that shape, and not the model's weights."""
    flows = {name for name, c in root.children if c.kind == "flow"}
    for i in root.walk():
        for m in i.memories:
            if m.kind == "function" and m.texts.memory in flows:
                message = f"`memory {m.texts.memory}` is a copy of its own, with weights that it learns in context"
                help_ = f"did you mean `weights({m.texts.memory})`, the weights that the model computes with?"
                yield _note("NF453", message, m.span, help_)


def _unused(root: Instance, output: Node | None, steps: tuple[StepLevel, ...]) -> Iterator[Diagnostic]:
    """A root flow that the output does not reach."""
    if output is None:
        return
    # a level's copy of a flow, and the flow whose weights such a copy starts from, are what they should be
    copies = {x.name for x in steps if x.inner is not None or x.copies}
    copied = copies | {c.name for n, c in root.children if n in copies}
    reached = {n["child"] for n in walk(output) if n.op == "call"}
    for name, child in root.children:
        if name not in reached and name not in copied:
            message = f"no output uses `{name}`: it is computed for an objective only"
            yield _note("NF454", message, child.span, f"`output {name}(…)`, if it is what the model should give")


def _sums(steps: Iterable[StepLevel]) -> Iterator[Diagnostic]:
    """`every N steps` with a rule whose step grows with its gradient: it sums N of them."""
    for s in steps:
        if s.every < 2 or s.rule is None or any(n.op in NORMALISED for n in walk(*s.rule.nodes())):
            continue
        message = f"`every {s.every} steps` sums {s.every} gradients, and this update grows with them"
        yield _note("NF455", message, s.rule.span or s.span, "`g / n_ticks` is their mean")


def _waiting(networks: Iterable[Network]) -> Iterator[Diagnostic]:
    """A network that was not given: what cannot be checked without it."""
    for n in networks:
        if n.given:
            continue
        parts = "which of its parameters the globs name, and whether each has one owner"
        if n.called and n.type is None:
            parts += "; and what is computed from it, since its type is not written"
        message = f"`{n.name}` is a network of yours that is not here: {parts}, is checked when it is given"
        yield _note("NF460", message, n.span, f"`nestflow.check(spec, {n.name}=model)` checks the whole")


def _odd(root: Instance, steps: tuple[StepLevel, ...]) -> Iterator[Diagnostic]:
    """Numbers and targets that are right to write and seldom meant."""
    memories = [m for i in root.walk() for m in i.memories]
    for rule in (*(m.rule for m in memories), *(s.rule for s in steps)):
        for name, value in rule.arguments if rule is not None else ():
            if name == "lr" and (number := _number(value)) is not None and number < 0:
                message = f"the rate is {number:g}: this level climbs, and its objective grows"
                yield _note("NF461", message, value.span or (rule and rule.span), "a rate above 0 goes down")
    for m in memories:
        kept = None if m.retain is None or m.link is not None else _number(m.retain)
        if kept is not None and not 0 <= kept <= 1:
            what = "turns its sign" if kept < 0 else "grows"
            message = f"`retain {kept:g}` is no part of 1: what the memory keeps {what} at each update"
            yield _note("NF462", message, m.retain.span if m.retain else m.span, "a gate between 0 and 1 forgets")
    for s in steps:
        for n in walk(s.objective) if s.objective is not None else ():
            if n.op == "cross_entropy" and len(n.args) == 2 and _reads_its_target(n.args[0], n.args[1]):
                target = n.args[1]["name"]
                message = f"the scores at a token are computed from `{target}` up to that token, the target among them"
                yield _note("NF463", message, n.span or s.span, f"`next({target})` is the token to come")


def _number(node: Node) -> float | None:
    """A rate or gate that is known: a number, or the peak of a schedule."""
    value = node.value if node.op == "const" else node.get("peak") if node.op == "schedule" else None
    return float(value) if isinstance(value, (int, float)) else None


def _reads_its_target(scores: Node, target: Node) -> bool:
    return target.op == "slot" and target.type.clock is not None and any(n is target for n in walk(scores))
