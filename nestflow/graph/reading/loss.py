"""Levels on the token clock that own weights of the model: they learn from its own loss while it reads.

`level cms { every 512 tokens; memory weights(model, "**.mlp.**"); objective loss; update gd(1e-3) }`. The meaning is in
docs/meaning.md, "A loss of the whole model on the token clock".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from nestflow.diagnostics.core import NestflowError, Related
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.expressions import evaluate, integer
from nestflow.graph.levels.learning import MAX_PERIOD
from nestflow.graph.levels.level import LEVEL_FIELDS, field_help
from nestflow.graph.levels.memory import written
from nestflow.graph.model import StepLevel, Texts, TokenLevel, WeightSpec
from nestflow.graph.reading.terms import check_terms, condition_of, terms_of, weighed, weight_of
from nestflow.graph.rules.shapes import check_rule
from nestflow.graph.rules.update import update_rule
from nestflow.graph.slow.fields import OUTSIDE, projected
from nestflow.graph.slow.steps import StepLevels
from nestflow.graph.values import Quiet
from nestflow.ir.construct import number
from nestflow.ir.node import Node, walk
from nestflow.ir.rule import DgdStep, Rule, Step
from nestflow.language import tree

FIELDS = (
    *("every", "memory", "objective", "update", "retain", "project", "when", "weight"),
    *("init", "reset", "keep", "per", "read", "gradient"),
)
CONTEXT = frozenset(["slot", "call", "position", "head", "recall", "training", "next", "weight"])
RESETS = "`each(sequence)`, `never` with `per stream`, or `each(m)`, m a slower such level"
Per = Literal["sequence", "stream"]


def on_tokens(level: tree.Level) -> bool:
    """Whether a level without slots ticks by tokens."""
    periods = [s for s in level.body if isinstance(s, tree.Field) and s.name == "every"]
    return bool(periods) and (periods[0].unit or "").removesuffix("s") == "token" and periods[0].of is None


@dataclass(frozen=True)
class _Reset:
    per: Per
    reset: str  # sequence, never, or a level's name
    keep: bool


class TokenLevels(StepLevels):
    """All levels of the token clock that own weights: ownership, periods and resets are settled among them."""

    clock = "token"

    def prepare(self) -> None:
        """Evaluate the objectives and gates: they may make weights of their own."""
        self.gates: dict[str, Node | None] = {}
        self.weighed: dict[str, Node] = {}
        for level in self.levels:
            try:
                fields = self.fields[level.name] = self.read(level)
                gate, f = fields.get("retain"), fields.get("objective")
                self.gates[level.name] = None if gate is None else self.gate(gate)
                self.objectives[level.name] = None if f is None else self.objective(f)
                if "weight" in fields:
                    self.weighed[level.name] = weight_of(self.elab, fields["weight"])
                if "when" in fields:
                    self.conditions[level.name] = condition_of(self.elab, fields["when"])
            except NestflowError as e:
                self.elab.collector.take(e)
            except Quiet:
                continue

    def field(self, level: tree.Level, s: tree.Statement, fields: dict[str, tree.Field]) -> None:
        if isinstance(s, tree.Field) and s.name in LEVEL_FIELDS and s.name not in FIELDS:
            if s.name in ("key", "value", "query"):
                message = f"level `{level.name}` owns weights, and what flows through it is the model's own loss"
                raise self.elab.failure("NF221", message, s.name_span or s.span, field_help(s.name, FIELDS))
            raise self.elab.not_yet(f"`{s.name}` beside a loss of the whole model on the token clock", s.span)
        if isinstance(s, tree.Field) and s.name in FIELDS:
            if s.name in fields:
                first = fields[s.name].span
                related = (Related(first, "given here first"),) if first else ()
                raise self.elab.failure("NF222", f"`{s.name}` is given twice", s.span, "keep one of them", related)
            fields[s.name] = s
            return
        super().field(level, s, fields)

    def gate(self, f: tree.Field) -> Node:
        node = self.elab.as_node(evaluate(f.value, self.elab.top), f.value, "`retain`")
        if not node.type.is_number or node.type.batch or any(n.op in CONTEXT for n in walk(node)):
            message = "`retain` of weights that learn while reading is a number, known when compiling"
            raise self.elab.failure("NF322", message, f.span, "`retain 0.99`")
        return number(node)

    # building ---------------------------------------------------------------------------------------

    def settle(self, weights: list[WeightSpec]) -> tuple[TokenLevel, ...]:
        """The levels, but for their `init`. weights: all slow weights."""
        names = [level for level in self.levels if level.name in self.fields]
        self.shared = {w.path: w.also for w in weights if w.also}
        owned = {x.name: self.owned(x, weights) for x in names if not self.is_rest(x)}
        owned |= {x.name: self.rest(x, weights) for x in names if self.is_rest(x)}
        self.elab.collector.stop_on_errors()
        found: dict[str, TokenLevel] = {}
        for level in names:
            try:
                found[level.name] = self.one(level, owned[level.name], weights)
            except NestflowError as e:
                self.elab.collector.take(e)
            except Quiet:
                continue
        self.elab.collector.stop_on_errors()
        self.check_periods(found)
        self.check_resets(found)
        self.elab.collector.stop_on_errors()
        return tuple(found.values())

    def one(self, level: tree.Level, owned: tuple[str, ...], weights: list[WeightSpec]) -> TokenLevel:
        fields = self.fields[level.name]
        for word, least in (("update", "`update gd(1e-3)`"), ("objective", "`objective loss`")):
            if word not in fields:
                code = "NF234" if word == "update" else "NF232"
                raise self.elab.failure(code, f"level `{level.name}` needs an `{word}`", level.span, least)
        objective = self.objectives.get(level.name)
        if objective is None:
            raise Quiet
        when = self.conditions.get(level.name)
        terms = weighed(terms_of(objective), self.weighed.get(level.name), when)
        check_terms(self.elab, terms, fields["objective"])
        for word, only in (("read", "before"), ("gradient", "stop")):
            self.only(fields.get(word), word, only)
        rule = self.learned_by(fields, owned, weights)
        reset = self.reset(level, fields)
        self.check_counts(rule, reset, fields)
        texts = Texts(
            memory=written(fields["memory"].value),
            objective=written(fields["objective"].value),
            update=written(fields["update"].value),
            retain=written(fields["retain"].value) if "retain" in fields else "",
        )
        every = self.tokens(fields["every"])
        gate = self.gates.get(level.name)
        return TokenLevel(
            level.name,
            every,
            owned,
            terms,
            rule,
            gate,
            reset.per,
            reset.reset,
            reset.keep,
            owned,
            texts=texts,
            doc=level.doc,
            span=level.span,
            when=when,
        )

    def learned_by(self, fields: dict[str, tree.Field], owned: tuple[str, ...], weights: list[WeightSpec]) -> Rule:
        """The update and what follows it: they see gradients, weights and counts."""
        f = fields["update"]
        rule = update_rule(self.elab, f, self.elab.top)
        if "project" in fields:
            rule = replace(rule, project=projected(self, fields["project"]))
        outside = next((n for n in walk(*rule.nodes()) if n.op in OUTSIDE), None)
        if outside is not None:
            message = (
                "the update of weights that learn while reading sees gradients, and this reads the model or inputs"
            )
            help_ = "rates are numbers or schedules in tokens: `cosine(3e-4, total = 8192)`"
            raise self.elab.failure("NF415", message, outside.span or f.span, help_)
        mine = set(owned)
        check_rule(self.elab.failure, rule, {w.shape: w.path for w in reversed(weights) if w.path in mine}, f.span)
        return rule

    def check_counts(self, rule: Rule, reset: _Reset, fields: dict[str, tree.Field]) -> None:
        """What these levels leave to others."""
        f = fields["update"]
        nodes = list(walk(*rule.nodes()))
        if any(isinstance(s, DgdStep) for s in rule.program):
            raise self.elab.not_yet("`dgd` beside a loss of the whole model on the token clock", f.span)
        if any(n.op == "debias" and rule.expand(n.args[1]).op != "const" for n in nodes):
            raise self.elab.not_yet("`debias` of a memory whose retain varies, on the token clock", f.span)
        if any(n.op == "curvature" for n in nodes):
            raise self.elab.not_yet("`curvature` beside a loss of the whole model on the token clock", f.span)
        if reset.reset not in ("sequence", "never") and any(n.op in ("w0", "w_chunk") for n in nodes):
            raise self.elab.not_yet("`w0` of weights that go back to another level's state", f.span)
        for n in nodes:
            if n.op == "schedule" and n["kind"] != "wsd" and n["total"] is None:
                message = "a schedule of tokens has no run whose length it could take"
                raise self.elab.failure("NF540", message, n.span or f.span, "write its `total`, in tokens")

    def only(self, f: tree.Field | None, word: str, value: str) -> None:
        """These memories are read before their tick, and their steps are constants for slower levels."""
        name = None if f is None else getattr(f.value, "name", None)
        if f is None or name == value:
            return
        if word == "gradient":
            raise self.elab.not_yet("a gradient through what the model learned while reading", f.span)
        message = "weights that learn while the model reads are read before they learn: a tick never uses its own label"
        raise self.elab.failure("NF231", message, f.span, f"leave `{word}` out: it is `{value}`")

    def tokens(self, f: tree.Field) -> int:
        n = integer(f.value, self.elab.top, "`every`")
        if not 1 <= n <= MAX_PERIOD:
            message = f"`every` is between 1 and {MAX_PERIOD:,} tokens, and this is {n}"
            raise self.elab.failure("NF406", message, f.span)
        return n

    def reset(self, level: tree.Level, fields: dict[str, tree.Field]) -> _Reset:
        """What `per`, `reset` and `keep` say. Default: one copy for each sequence, back to its start with each."""
        f, given = fields.get("reset"), fields.get("per")
        per: Any = "sequence" if given is None else getattr(given.value, "name", None)
        if given is not None and per not in ("sequence", "stream"):
            known = "`per sequence`, `per stream`"
            if per in ("model", "task", "worker"):
                raise self.elab.not_yet(f"`per {per}` on the token clock", given.span)
            raise self.elab.failure("NF231", f"`per` says how many copies there are: {known}", given.span)
        keep = self.keeps(fields.get("keep"))
        if f is None:
            return _Reset(per, "sequence" if per == "sequence" else "never", keep)
        call = f.value
        name = call.function if isinstance(call, tree.Call) else call
        word = name.name if isinstance(name, tree.Name) else ""
        if word == "never" and not isinstance(call, tree.Call):
            if per == "sequence":
                message = "what is never reset is kept beyond its sequence, and one copy for each sequence cannot be"
                help_ = "`per stream`: one for each session"
                raise self.elab.failure("NF437", message, f.span, help_)
            return _Reset(per, "never", keep)
        if not isinstance(call, tree.Call) or word != "each" or len(call.args) != 1:
            raise self.elab.failure("NF231", "`reset` says when the weights go back to their start", f.span, RESETS)
        for k, e in call.kwargs:
            if k != "keep":
                raise self.elab.unknown_slot("each", k, ["keep"], e)
            keep = keep or self.rule_word(e)
        what = call.args[0]
        target = what.name if isinstance(what, tree.Name) else ""
        if target == "sequence":
            if per != "sequence":
                message = f"`per {per}` and `reset each(sequence)` do not go together"
                raise self.elab.failure("NF437", message, f.span, "leave one of them out, or write `reset never`")
            return _Reset("sequence", "sequence", keep)
        if target not in {x.name for x in self.levels}:
            help_ = did_you_mean(target, [x.name for x in self.levels]) or RESETS
            raise self.elab.failure(
                "NF231", f"`{target}` is no level that learns while the model reads", what.span, help_
            )
        if target == level.name:
            raise self.elab.failure("NF436", f"`{target}` cannot reset itself by its own updates", f.span, RESETS)
        return _Reset(per, target, keep)

    def keeps(self, f: tree.Field | None) -> bool:
        return f is not None and self.rule_word(f.value)

    def rule_word(self, e: tree.Expr) -> bool:
        if isinstance(e, tree.Name) and e.name == "rule":
            return True
        raise self.elab.failure("NF231", "a reset can spare the state of the rule", e.span, "`keep = rule`")

    # among each other -------------------------------------------------------------------------------

    def check_periods(self, found: dict[str, TokenLevel]) -> None:
        """All periods are multiples of the shortest: it cuts the stream in segments."""
        if not found:
            return
        least = min(found.values(), key=lambda x: x.every)
        for x in found.values():
            if x.every % least.every:
                related = (Related(least.span, f"`{least.name}`: every {least.every} tokens"),) if least.span else ()
                message = (
                    f"`every {x.every} tokens` is no multiple of `{least.name}`'s {least.every}, the shortest period"
                )
                near = max(1, round(x.every / least.every)) * least.every
                span = self.fields[x.name]["every"].span
                self.elab.collector.error("NF439", message, span, f"`every {near} tokens`", related)

    def check_resets(self, found: dict[str, TokenLevel]) -> None:
        """They share one reset, or go by a slower one of them."""
        roots = [x for x in found.values() if x.reset not in found]
        for x in found.values():
            f = self.fields[x.name].get("reset") or self.fields[x.name].get("per")
            span = x.span if f is None else f.span
            if x.reset in found:
                slow = found[x.reset]
                if slow.when is not None:
                    what = f"`when` of `{slow.name}`, after whose updates `{x.name}` begins again"
                    self.elab.collector.take(self.elab.not_yet(what, self.fields[slow.name]["when"].span))
                if slow.every <= x.every:
                    message = (
                        f"`{x.name}` learns every {x.every} tokens, and `{slow.name}` is no slower: every {slow.every}"
                    )
                    self.elab.collector.error("NF436", message, span, RESETS)
                elif x.per != slow.per and "per" in self.fields[x.name]:
                    message = f"`{x.name}` goes back by the updates of `{slow.name}`: one copy per {slow.per}"
                    self.elab.collector.error("NF436", message, span, f"leave `per` out, or write `per {slow.per}`")
                continue
            first = roots[0]
            if (x.reset, x.per) != (first.reset, first.per):
                related = (Related(first.span, f"`{first.name}`: {_said(first)}"),) if first.span else ()
                message = f"`{x.name}` ({_said(x)}) and `{first.name}` ({_said(first)}) learn from one stream"
                help_ = "give both the same `reset` and `per`, or reset the faster by the slower: `reset each(slow)`"
                self.elab.collector.error("NF436", message, span, help_, related)

    def started(
        self, levels: tuple[TokenLevel, ...], weights: list[WeightSpec], steps: tuple[StepLevel, ...]
    ) -> tuple[TokenLevel, ...]:
        """`init`, slowest level first: what each begins from, and copies per what its slower level has."""
        done: dict[str, TokenLevel] = {}
        for x in sorted(levels, key=lambda x: -x.every):
            if x.reset in done:
                x = replace(x, per=done[x.reset].per)
            f = self.fields[x.name].get("init")
            try:
                done[x.name] = x if f is None else self.begin(x, f, done, weights, steps)
            except NestflowError as e:
                self.elab.collector.take(e)
                done[x.name] = x
        self.elab.collector.stop_on_errors()
        needed = {x.reset for x in done.values()}
        return tuple(replace(x, idle=x.name not in needed and is_idle(x)) for x in (done[x.name] for x in levels))

    def begin(
        self,
        x: TokenLevel,
        f: tree.Field,
        done: dict[str, TokenLevel],
        weights: list[WeightSpec],
        steps: tuple[StepLevel, ...],
    ) -> TokenLevel:
        """`init m`: the state of a slower level, by path or, where the paths differ, in text order."""
        name = f.value.name if isinstance(f.value, tree.Name) else ""
        if name == "learned":
            return x
        step = next((s for s in steps if s.name == name), None)
        slow = done.get(name)
        if slow is None and step is None:
            help_ = (
                did_you_mean(name, [*done, *(s.name for s in steps)]) or "leave it out: they start as the model does"
            )
            raise self.elab.failure("NF438", f"`{written(f.value)}` is no slower level of weights", f.span, help_)
        theirs = slow.weights if slow is not None else step.weights if step is not None else ()
        sources = self.paired(x, name, theirs, weights, f)
        if slow is None:
            return replace(x, starts=sources)
        if x.reset != name:
            message = f"`{x.name}` begins from `{name}`, and goes back to its start by something else"
            raise self.elab.failure("NF438", message, f.span, f"`reset each({name})`")
        starts = dict(zip(slow.weights, slow.starts, strict=True))
        return replace(x, starts=tuple(starts[p] for p in sources), init=name, sources=sources)

    def paired(
        self, x: TokenLevel, name: str, theirs: tuple[str, ...], weights: list[WeightSpec], f: tree.Field
    ) -> tuple[str, ...]:
        if set(x.weights) <= set(theirs):
            return x.weights
        shapes = {w.path: w.full_shape for w in weights}
        mine = [shapes[p] for p in x.weights]
        if mine != [shapes[p] for p in theirs]:
            message = (
                f"`{x.name}` has {len(mine)} weights and `{name}` {len(theirs)}, and they do not agree pair by pair"
            )
            own, other = (", ".join(f"{p} {list(shapes[p])}" for p in ps[:3]) for ps in (x.weights, theirs))
            raise self.elab.failure("NF438", message, f.span, f"`{x.name}`: {own}; `{name}`: {other}")
        return theirs


def is_idle(x: TokenLevel) -> bool:
    """Whether its steps are 0 by a rate that is known: what it owns stays as it starts."""

    def zero(n: Node) -> bool:
        if n.op == "const":
            return n.value == 0
        known = [zero(a) for a in n.args]
        return any(known) if n.op == "mul" else all(known) if n.op in ("add", "sub", "neg") and known else False

    steps = all(isinstance(s, Step) and zero(x.rule.expand(s.value)) for s in x.rule.program)
    return steps and x.retain is None and x.starts == x.weights


def _said(x: TokenLevel) -> str:
    return "reset each(sequence)" if x.reset == "sequence" else f"reset never, per {x.per}"


__all__ = ["TokenLevels", "on_tokens"]
