"""`reset`: when a memory of the token clock goes back to its start within a sequence, and what a reset spares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nestflow.graph.expressions import evaluate
from nestflow.ir import ops
from nestflow.ir.construct import number
from nestflow.ir.node import Node, Type, depends
from nestflow.ir.rule import Rule
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.elaborate import Elaborator
    from nestflow.graph.levels.memory import MemoryBuild
    from nestflow.graph.model import Instance, StateSlot, StepLevel, TokenLevel

HELP = "`each(sequence)`, `each(chunk)`, `each(m)` (m a memory of the level), `where(condition)`"

Per = Literal["sequence", "stream", "model"]
ROWS = frozenset(("slot", "call", "emitted", "network", "network_result", "recall", "uniform", "noise", "dropout"))


@dataclass(frozen=True)
class Reset:
    """period: at the first of every so many ticks. where: at ticks where it holds, row by row. keep: the rule's own
    state (and its count of updates) goes on."""

    period: int | None = None
    where: Node | None = None
    keep: bool = False
    per: Per = "sequence"


def per_of(m: MemoryBuild) -> Per:
    """What the field `per` says: how many copies there are."""
    f = m.field("per")
    word = "sequence" if f is None else getattr(f.value, "name", None)
    if f is not None and word not in ("sequence", "stream", "model"):
        if word in ("task", "worker"):
            raise m.elab.not_yet(f"`per {word}` of a memory in a flow", f.span)
        known = "`per sequence`, `per stream`, `per model`"
        raise m.elab.failure("NF231", f"`per` says how many copies there are: {known}", f.span)
    return word if word in ("stream", "model") else "sequence"


def check_per(m: MemoryBuild, reset: Reset, fields: list[Node]) -> None:
    """What goes on beyond a sequence counts for itself: what counts the sequence's ticks is left to later."""
    others = {per_of(x) for x in m.level.memories.values()}
    if others == {"sequence"}:
        return
    f = m.field("per")
    span = f.span if f is not None else m.node.span
    if len(others) > 1:
        raise m.elab.not_yet("memories of one level with different `per`", span)
    if m.cache is not None and reset.per == "model":
        raise m.elab.not_yet("`per model` of a cache", span)
    if any(depends(n, lambda x: x.op == "window") for n in fields):
        raise m.elab.not_yet(f"a window of ticks in a memory `per {reset.per}`", span)


def check_one_copy(m: MemoryBuild, reset: Reset, rule: Rule | None, retain: Node | None, when: Node | None) -> None:
    """One copy that all rows write: how it is decayed and stepped cannot be each row's own."""
    if reset.per != "model":
        return
    if when is not None:
        raise m.elab.not_yet("`when` of a memory `per model`", m.node.span)
    for name, nodes in (("retain", [] if retain is None else [retain]), ("update", rule.nodes() if rule else ())):
        if any(depends(n, lambda x: x.op in ROWS) for n in nodes):
            f = m.field(name)
            message = f"one copy serves all rows (`per model`), and this `{name}` would be another in each of them"
            help_ = "numbers, `t` and slow weights; what a row's input says goes into `weight`, `key` or `value`"
            raise m.elab.failure("NF437", message, m.node.span if f is None else f.span, help_)


def one_copy(
    elab: Elaborator,
    root: Instance,
    levels: tuple[StepLevel, ...],
    reading: tuple[TokenLevel, ...],
    state: tuple[StateSlot, ...],
) -> None:
    """What a memory `per model` may stand beside: a step of training reads its batch once, all rows in lockstep."""
    if all(s.per != "model" for s in state):
        return
    span = next(m.span for i in root.streamed() for m in i.memories if m.per == "model")
    if any(s.drawn for s in state if s.per == "model"):
        raise elab.not_yet("a start that is drawn, of a memory `per model`", span)
    learning = [x for x in levels if x.rule is not None and x.objective is not None]
    for wrong, what in (
        (any(s.per == "stream" for s in state), "a memory `per stream`"),
        (bool(reading), "weights that learn while the module reads"),
        (any(x.inner is not None for x in learning), "a level that learns inside another's tick"),
        (len({x.objective for x in learning}) > 1, "levels that learn from several objectives"),
        (
            any(x.when is not None or x.clock.name != "step" for x in learning),
            "`when`, or a clock of its own",
        ),
    ):
        if wrong:
            raise elab.not_yet(f"a memory `per model` beside {what}", span)


def reset_of(m: MemoryBuild, every: int, chunk: int) -> Reset:
    """What the fields `reset` and `keep` say."""
    f = m.field("reset")
    keep = keeps(m, m.field("keep"))
    per = per_of(m)
    if f is None:
        return Reset(keep=keep, per=per)
    call = f.value
    name = call.function if isinstance(call, tree.Call) else call
    word = name.name if isinstance(name, tree.Name) else ""
    if word == "never":
        if per == "sequence":
            message = "what is never reset is kept beyond its sequence, and one copy for each sequence cannot be"
            raise m.elab.failure("NF437", message, f.span, "`per stream` (one for each session) or `per model`")
        return Reset(keep=keep, per=per)
    if per != "sequence":
        message = f"`per {per}` keeps the memory beyond its sequence, and this `reset` does not"
        raise m.elab.failure("NF437", message, f.span, "leave one of them out, or write `reset never`")
    if not isinstance(call, tree.Call) or word not in ("each", "where") or len(call.args) != 1:
        raise m.elab.failure("NF231", "`reset` says when the memory goes back to its start", f.span, HELP)
    for k, e in call.kwargs:
        if k != "keep" or word != "each":
            raise m.elab.unknown_slot(word, k, ["keep"] if word == "each" else [], e)
        keep = keep or rule_word(m, e)
    if word == "where":
        return Reset(where=condition(m, call.args[0], every, chunk), keep=keep)
    period = period_of(m, call.args[0], chunk)
    if period is not None and period % chunk:
        message = f"a reset at every {period} ticks would cut chunks of {chunk}"
        raise m.elab.failure("NF405", message, f.span, f"a multiple of the chunk, {chunk}")
    return Reset(period, keep=keep)


def period_of(m: MemoryBuild, what: tree.Expr, chunk: int) -> int | None:
    """`sequence`, `chunk`, or a memory of the level: the first tick after each of its updates."""
    from nestflow.graph.levels.learning import clock

    word = what.name if isinstance(what, tree.Name) else ""
    if word in ("sequence", "chunk"):
        return chunk if word == "chunk" else None
    found = m.level.memories.get(word)
    if found is None:
        raise m.elab.failure("NF231", "`reset each(…)` takes what it goes by", what.span, HELP)
    if found is m:
        raise m.elab.failure("NF231", f"`{word}` cannot reset itself by its own updates", what.span, HELP)
    return clock(found)[0]


def condition(m: MemoryBuild, what: tree.Expr, every: int, chunk: int) -> Node:
    node = m.elab.as_node(evaluate(what, m.env("reset")), what, "`where`")
    if node.type.dtype != "bool" or not node.type.is_number:
        message = f"`reset where` takes a condition, true or false at a tick, and this is {node.type}"
        raise m.elab.failure("NF305", message, what.span, "`reset where(starts > 0)`")
    if node.type.short:
        raise m.elab.failure("NF403", "a condition cannot look ahead", what.span, "`next` belongs to a loss")
    if depends(node, lambda n: n.op in ("recall", "position")):
        raise m.elab.not_yet("a recall or `t` in `reset where(…)`", what.span)
    return number(node)


def keeps(m: MemoryBuild, f: tree.Field | None) -> bool:
    return f is not None and rule_word(m, f.value)


def rule_word(m: MemoryBuild, e: tree.Expr) -> bool:
    if isinstance(e, tree.Name) and e.name == "rule":
        return True
    raise m.elab.failure("NF231", "a reset can spare the state of the rule", e.span, "`keep = rule`")


def ticks(reset: Reset) -> Node:
    """t in the fields of a memory: ticks since its last reset, this one included."""
    t = ops.leaf("position", Type("int", (), True, "T"))
    if reset.period is None:
        return t
    since = ops.binary("mod", ops.binary("sub", t, ops.const(1)), ops.const(reset.period))
    return ops.binary("add", since, ops.const(1))


def own_counts(
    m: MemoryBuild, reset: Reset, rule: Rule | None, when: Node | None, retain: Node | None, fields: list[Node]
) -> Node | None:
    """`when`, or a condition that always holds: rows that begin anew at ticks of their own count their updates for
    themselves, as those do whose ticks do not all bring a pair."""
    if reset.where is None:
        return when
    for f in fields:
        if depends(f, lambda x: x.op == "window"):
            raise m.elab.not_yet("a window beside `reset where(…)`", m.node.span)
        if depends(f, lambda x: x.op == "position"):  # it would have to be the row's own, since its last reset
            raise m.elab.not_yet("`t` in a field of a memory beside `reset where(…)`", f.span or m.node.span)
    nodes = [*(rule.nodes() if rule is not None else ()), *([] if retain is None else [retain])]
    if any(depends(n, lambda x: x.op == "schedule") for n in nodes):
        raise m.elab.not_yet("a schedule beside `reset where(…)`, which would count from there,", m.node.span)
    counts = any(depends(n, lambda x: x.op in ("updates", "debias")) for n in nodes)
    periods = rule is not None and any(getattr(s, "every", 1) > 1 for s in rule.program)
    if when is not None or not (counts or periods):
        return when
    return ops.binary("ge", ops.leaf("position", Type("int", (), True, "T")), ops.const(1))


__all__ = ["Reset", "check_one_copy", "check_per", "one_copy", "own_counts", "reset_of", "ticks"]
