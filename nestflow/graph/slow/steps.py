"""Levels on the step clock: which slow weights each owns, what it minimises, how and how often it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from nestflow.diagnostics.core import Diagnostic, NestflowError, Related
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.evolution import check_level, es_word, misplaced, settled
from nestflow.graph.expressions import evaluate
from nestflow.graph.globs import check_glob, matches
from nestflow.graph.levels.level import LEVEL_FIELDS, field_help
from nestflow.graph.levels.memory import written
from nestflow.graph.model import StepLevel, Texts, TokenLevel, WeightSpec
from nestflow.graph.rules.shapes import check_rule
from nestflow.graph.slow.fields import (
    OUTSIDE,
    check_inner,
    check_inner_rule,
    check_records,
    condition,
    drawn_to,
    every_of,
    gate,
    inner_of,
    reset_of,
    rule_of,
    weighted,
)
from nestflow.graph.slow.levels import SlowNames, distance_word, level_word, total_word
from nestflow.graph.slow.state import OWNING, OwnTensors, check_alike, in_order, is_inner
from nestflow.graph.slow.workers import for_workers
from nestflow.graph.values import Partial, Quiet
from nestflow.ir import ops
from nestflow.ir.node import Node, depends, walk
from nestflow.ir.rule import Rule
from nestflow.language import tree

FIELDS = (
    *("every", "memory", "objective", "update", "value", "init", "retain", "project", "when", "weight"),
    *("reset", "keep", "per", "rounds", "gradient"),
)


class StepLevels:
    """All levels of the step clock at once: ownership is settled among them."""

    clock = "step"

    def __init__(self, elab: Any, levels: list[tree.Level]) -> None:
        self.elab, self.levels = elab, levels
        self.unknown: set[str] = set()  # levels whose memory was told to be none
        self.elsewhere: set[str] = set()  # weights that a level on another clock owns
        self.fields: dict[str, dict[str, tree.Field]] = {}
        self.owner: dict[str, tree.Level] = {}
        self.rests: dict[str, tree.Level] = {}
        self.objectives: dict[str, Node | None] = {}
        self.shared: dict[str, tuple[str, ...]] = {}
        self.conditions: dict[str, Node] = {}
        elab.slow = SlowNames(elab, levels)
        elab.words |= {word: partial(level_word, elab, word) for word in ("before", "average")}
        elab.words |= {"total": partial(total_word, elab), "square_distance": partial(distance_word, elab)}
        elab.words["es"] = partial(es_word, elab)

    def prepare(self) -> None:
        """Evaluate the objectives: they and `output` make the root instances."""
        for level in self.levels:
            try:
                fields = self.read(level)
                self.fields[level.name] = fields
                f = fields.get("objective")
                if "value" in fields:
                    made = drawn_to(self, level, fields)
                else:
                    made = None if f is None else self.objective(f)
                if made is not None and "weight" in fields:
                    made = weighted(self, fields["weight"], made, level.name if is_inner(fields) else None)
                self.objectives[level.name] = made
                if "when" in fields:
                    self.conditions[level.name] = condition(self, fields["when"])
                for node, at in (
                    (made, f or fields.get("value")),
                    (self.conditions.get(level.name), fields.get("when")),
                ):
                    if node is not None and at is not None:
                        check_records(self, node, at, level.name, is_inner(fields))
            except NestflowError as e:
                self.elab.collector.take(e)
            except Quiet:
                continue
        for level in self.levels:  # once all objectives have made the instances that they recall
            try:
                if level.name in self.objectives:
                    self.instance_of(level, self.fields[level.name])
            except NestflowError as e:
                self.elab.collector.take(e)

    def read(self, level: tree.Level) -> dict[str, tree.Field]:
        fields: dict[str, tree.Field] = {}
        mistakes: list[Diagnostic] = []
        for s in level.body:
            try:
                self.field(level, s, fields)
            except NestflowError as e:
                mistakes += e.diagnostics
        if mistakes:
            raise NestflowError(mistakes)
        if "memory" not in fields:
            span = level.name_span or level.span
            message = f"level `{level.name}` has no memory"
            raise self.elab.failure("NF223", message, span, "`memory weights(model)`")
        return fields

    def field(self, level: tree.Level, s: tree.Statement, fields: dict[str, tree.Field]) -> None:
        if not isinstance(s, tree.Field):
            message = f"level `{level.name}` has no slots, so it learns weights, and has fields only"
            help_ = f"a level that is called in a flow has slots: `level {level.name}(x) {{ … }}`"
            raise self.elab.failure("NF217", message, s.span, help_)
        if s.name not in LEVEL_FIELDS:
            help_ = field_help(s.name, FIELDS)
            raise self.elab.failure("NF221", f"a level has no field `{s.name}`", s.name_span or s.span, help_)
        if s.name in fields:
            first = fields[s.name].span
            related = (Related(first, "given here first"),) if first else ()
            raise self.elab.failure("NF222", f"`{s.name}` is given twice", s.span, "keep one of them", related)
        if s.name not in FIELDS:
            raise self.elab.not_yet(f"`{s.name}` on the step clock", s.span)
        fields[s.name] = s

    def objective(self, f: tree.Field) -> Node:
        value = evaluate(f.value, self.elab.top)
        if isinstance(value, Partial):
            message = "the objective of weights is an expression"
            help_ = "`objective cross_entropy(model(tokens), next(tokens))`"
            raise self.elab.failure("NF232", message, f.span, help_)
        node = self.elab.as_node(value, f.value, "`objective`")
        if node.type.like:
            return node  # told below: an objective is no record
        if node.type.dtype != "float":
            raise self.elab.failure("NF407", f"an objective is a number with a gradient: this is {node.type}", f.span)
        if (
            not self.elab.collector.errors
            and not self.elab.waiting
            and not depends(node, lambda n: n.op in ("call", "weight", "network", "record"))
        ):
            message = "this objective depends on no weight: nothing would be learned"
            raise self.elab.failure("NF407", message, f.span, "`objective cross_entropy(model(tokens), next(tokens))`")
        return node if not node.type.shape and not node.type.batch else ops.mean_all(node, f.span)

    def instance_of(self, level: tree.Level, fields: dict[str, tree.Field]) -> None:
        """A level whose memory is a function has a copy of it, which its recalls make."""
        slow = self.elab.slow
        if slow.kind(level.name) != "function" or level.name in self.elab.root.children or "value" in fields:
            return
        text = written(fields["memory"].value)
        message = f"level `{level.name}` keeps a copy of `{text}`, and is recalled nowhere"
        help_ = f"its weights themselves: `memory weights({text})`; a copy is recalled by `{level.name}(…)`"
        raise self.elab.failure("NF226", message, fields["memory"].value.span, help_)

    def build(self, weights: list[WeightSpec]) -> tuple[StepLevel, ...]:
        self.shared = {w.path: w.also for w in weights if w.also}
        keeps = [x for x in self.levels if x.name in self.fields and self.elab.slow.kind(x.name) not in OWNING]
        owned = {
            name: self.owned(level, weights)
            for level in self.levels
            if (name := level.name) in self.fields and level not in keeps and not self.is_rest(level)
        }
        owned |= {
            level.name: self.rest(level, weights)
            for level in self.levels
            if level.name in self.fields and level not in keeps and self.is_rest(level)
        }
        shapes = {w.path: w for w in weights}
        own = OwnTensors(self, owned, shapes)
        for level in keeps:
            try:
                owned[level.name] = tuple(w.path for w in own.of(level.name))
            except NestflowError as e:
                self.elab.collector.take(e)
        self.objectives = settled(self.objectives, owned)
        misplaced(self.elab, *self.conditions.values())
        result: list[StepLevel] = []
        for level in self.levels:
            if level.name not in owned:
                continue
            try:
                result.append(self.level(level, owned[level.name], own))
            except NestflowError as e:
                self.elab.collector.take(e)
            except Quiet:
                continue
        self.elab.collector.stop_on_errors()
        self.check_owners(weights, result)
        self.check_sources(result)
        check_alike(self.elab, result)
        return tuple(in_order(self.elab, result))

    def call_of(self, level: tree.Level) -> tuple[str, tree.Expr, tuple[tree.Expr, ...], dict[str, tree.Expr]]:
        """weights or rest, its flow, globs, keywords."""
        f = self.fields[level.name]["memory"]
        e = f.value
        if not (
            isinstance(e, tree.Call)
            and isinstance(e.function, tree.Name)
            and e.function.name in ("weights", "rest")
            and e.args
        ):
            hint = "a level without inputs learns weights: `memory weights(model)`, `memory rest(model)`"
            raise self.elab.failure(
                "NF226",
                f"level `{level.name}` is called by nobody, and `{written(e)}` are no weights of a flow",
                e.span,
                hint,
            )
        return e.function.name, e.args[0], e.args[1:], dict(e.kwargs)

    def is_rest(self, level: tree.Level) -> bool:
        try:
            return self.call_of(level)[0] == "rest"
        except NestflowError:
            return False

    def flow_of(self, level: tree.Level, expr: tree.Expr) -> str:
        name = expr.name if isinstance(expr, tree.Name) else ""
        children = self.elab.root.children
        if name in self.elab.networks:
            return name
        if name not in children:
            if name in self.elab.declared and self.elab.waiting:
                return name
            if name in self.elab.declared:
                raise self.elab.failure(
                    "NF409",
                    f"`{name}` has no root instance: neither `output` nor an objective calls it",
                    expr.span,
                    f"`output {name}(…)`",
                )
            raise self.elab.failure(
                "NF201",
                f"`{name or written(expr)}` is no flow of this spec",
                expr.span,
                did_you_mean(name, [*children, *self.elab.networks, *self.elab.declared])
                or f"its flows are {', '.join(sorted([*children, *self.elab.networks]))}",
            )
        return name

    def owned(self, level: tree.Level, weights: list[WeightSpec]) -> tuple[str, ...]:
        try:
            _, flow_expr, globs, kwargs = self.call_of(level)
            prefix = self.flow_of(level, flow_expr) + "."
            texts = [self.glob(g) for g in globs] or ["**"]
            excepts = [self.glob(e) for k, e in kwargs.items() if k == "except"]
            for k, e in kwargs.items():
                if k != "except":
                    raise self.elab.unknown_slot("weights", k, ["except"], e)
            if prefix[:-1] in self.elab.networks and self.elab.networks[prefix[:-1]].facts is None:
                return ()  # which parameters these are is known when the network is given
            # a parameter that parts of a network share has several names, and each of them is a way to name it
            inside = {
                w.path: [p.removeprefix(prefix) for p in (w.path, *w.also)]
                for w in weights
                if w.path.startswith(prefix)
            }
            for g, e in zip(texts, globs, strict=False):
                if not (self.elab.waiting and not inside) and not any(
                    matches(g, n) for names in inside.values() for n in names
                ):
                    raise self.elab.failure("NF410", span=e.span, **self.no_match(g, prefix[:-1], inside))
            mine = tuple(
                p
                for p, names in inside.items()
                if any(matches(g, n) for g in texts for n in names)
                and not any(matches(x, n) for x in excepts for n in names)
            )
        except NestflowError as e:
            self.elab.collector.take(e)
            self.unknown.add(level.name)
            return ()
        taken: dict[str, list[str]] = {}
        for p in mine:
            other = self.owner.setdefault(p, level)
            if other is not level:
                taken.setdefault(other.name, []).append(p)
        for paths in taken.values():
            self.claimed(paths, level)
        return mine

    def no_match(self, glob: str, flow: str, inside: dict[str, list[str]]) -> dict[str, str]:
        """What to say of a glob that names nothing: what is near, or what is there."""
        names = [n for own in inside.values() for n in own]
        help_ = did_you_mean(glob, names) or "its weights are " + ", ".join(names[:4]) + (", …" if names[4:] else "")
        help_ = help_ if names else "it has no weights"
        for wrapper in ("module", "_orig_mod"):
            if names and all(n.startswith(f"{wrapper}.") for n in names):
                help_ = f"all its names begin with `{wrapper}.`: give what the wrapper holds, `{flow}=model.{wrapper}`"
        return {"message": f"`{glob}` matches no weight of `{flow}`", "help": help_}

    def claimed(self, paths: list[str], level: tree.Level) -> None:
        """One mistake for all weights that two levels want."""
        other = self.owner[paths[0]]
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        if shared := self.shared.get(paths[0]):
            more = f" (it is `{shared[0]}` too){more}"
        if other is not level:
            related = (Related(other.span, f"`{other.name}` owns it here"),) if other.span else ()
            self.elab.collector.error(
                "NF411",
                f"`{paths[0]}`{more} {'has' if len(paths) == 1 else 'have'} two owners on the {self.clock} clock: "
                f"`{other.name}` and `{level.name}`",
                level.span,
                '`rest(F)` takes what no other level owns; `except = "glob"` leaves some out',
                related,
            )

    def glob(self, expr: tree.Expr) -> str:
        value = evaluate(expr, self.elab.top)
        if not isinstance(value, str):
            raise self.elab.failure("NF238", "a glob is a string", expr.span, '`weights(model, "**.mlp.**")`')
        check_glob(value, expr.span)
        return value

    def rest(self, level: tree.Level, weights: list[WeightSpec]) -> tuple[str, ...]:
        try:
            _, flow_expr, globs, _ = self.call_of(level)
            prefix = self.flow_of(level, flow_expr) + "."
            if globs:
                raise self.elab.failure("NF238", "`rest(F)` takes no glob", globs[0].span, "`weights(F, glob)` does")
            if (other := self.rests.setdefault(prefix, level)) is not level:
                raise self.elab.failure(
                    "NF411",
                    f"`{other.name}` and `{level.name}` both own the rest of `{prefix[:-1]}`",
                    level.span,
                    "`weights(F, glob)` says what the one owns; the other owns the rest",
                    (Related(other.span, f"`{other.name}` takes it here"),) if other.span else (),
                )
            mine = tuple(w.path for w in weights if w.path.startswith(prefix) and w.path not in self.owner)
            for p in mine:
                self.owner.setdefault(p, level)
            return mine
        except NestflowError as e:
            self.elab.collector.take(e)
            self.unknown.add(level.name)
            return ()

    def level(self, level: tree.Level, owned: tuple[str, ...], own: OwnTensors) -> StepLevel:
        fields, name = self.fields[level.name], level.name
        clock, every = every_of(self, fields.get("every"))
        texts = Texts(
            memory=written(fields["memory"].value),
            value=written(getattr(fields.get("value"), "value", None)),
            objective=written(getattr(fields.get("objective"), "value", None)),
            update=written(getattr(fields.get("update"), "value", None)),
            retain=written(getattr(fields.get("retain"), "value", None)),
        )
        prefix, state = own.prefix(name), own.known.get(name, ())
        reset, spare = None, False
        if "reset" in fields:
            reset, spare = reset_of(self, fields["reset"], fields.get("keep"))
        inner = inner_of(self, level, fields, reset)
        start = own.start(level, fields.get("init"), inner)
        made = StepLevel(
            name, every, owned, None, None, texts, level.doc, level.span, prefix, state, start, clock, reset, spare
        )
        if every == 0:
            return made
        if "update" not in fields:
            raise self.elab.failure(
                "NF234", f"level `{level.name}` needs an `update`", level.span, "`update adamw(3e-4)`, or `every never`"
            )
        if self.objectives.get(level.name) is None and name in self.unknown:
            raise Quiet  # what it learns from depends on whose weights it has
        if self.objectives.get(level.name) is None and not self.may_wait(level, fields):
            help_ = "`objective loss`" if not state else "`value outer`, or an `objective`"
            raise self.elab.failure("NF232", f"level `{level.name}` needs an `objective`", level.span, help_)
        rule = self.rule(fields, level, owned, own)
        if inner is not None:
            check_inner(self, level, fields, owns=not state)
        missing = check_inner_rule(rule) if inner is not None else None
        if missing is not None:
            raise self.elab.not_yet(f"{missing} in a level that begins anew in every step", fields["update"].span)
        made = replace(
            made,
            objective=self.objectives.get(name),
            rule=rule,
            moment=clock.name != "step" or written(fields["update"].value) == "replace",
            inner=inner,
            when=self.conditions.get(name),
            retain=gate(self, fields["retain"]) if "retain" in fields else None,
        )
        check_level(self.elab, made, fields["objective"].span if "objective" in fields else level.span)
        return for_workers(self, level, fields, made)

    def may_wait(self, level: tree.Level, fields: dict[str, tree.Field]) -> bool:
        """A level on a network needs no objective: the caller's `backward()` brings its gradients. One that is written
        may be unknown, where the network that would say its type is not there."""
        if self.elab.slow.kind(level.name) not in OWNING:
            return False
        missing = any(v.facts is None for v in self.elab.networks.values())
        return missing if "objective" in fields else self.on_network(level.name)

    def on_network(self, level: str) -> bool:
        """Whether a level owns weights of a network of the caller."""
        e = self.fields[level]["memory"].value
        first = e.args[0] if isinstance(e, tree.Call) and e.args else None
        return isinstance(first, tree.Name) and first.name in self.elab.networks

    def rule(self, fields: dict[str, tree.Field], level: tree.Level, owned: tuple[str, ...], own: OwnTensors) -> Rule:
        """The optimiser of the level. It sees gradients, weights and counts, and nothing of the batch."""
        f = fields["update"]
        rule = rule_of(self, level, fields)
        outside = next((n for n in walk(*rule.nodes()) if n.op in OUTSIDE), None)
        if outside is not None:
            message = "an update on the step clock sees gradients and weights, and this reads the model or its inputs"
            help_ = "rates are numbers or schedules: `cosine(3e-4, warmup = 100)`"
            raise self.elab.failure("NF415", message, outside.span or f.span, help_)
        shapes = {own.shapes[p].shape: p for p in reversed(owned)}
        check_rule(self.elab.failure, rule, shapes, f.span)
        return rule

    def check_sources(self, levels: list[StepLevel]) -> None:
        """Gradients come from objectives or from the caller's own `backward()`: one step cannot wait for both."""
        bare = [s for s in levels if s.rule is not None and s.objective is None and self.on_network(s.name)]
        other = next((s for s in levels if s.rule is not None and s.objective is not None), None)
        if not bare or other is None or self.elab.waiting:
            return
        message = f"`{bare[0].name}` has no objective and learns from your gradients, `{other.name}` has one"
        help_ = "give each an objective (`b.step(batch)`), or none (`loss.backward()`, `optimizer.step()`)"
        related = (Related(other.span, "this one has"),) if other.span else ()
        raise self.elab.failure("NF447", message, bare[0].span, help_, related)

    def check_owners(self, weights: list[WeightSpec], levels: Sequence[StepLevel | TokenLevel]) -> None:
        """A weight with no owner is an error, once any level learns weights."""
        if not levels:
            return
        lost = [w for w in weights if w.path not in self.owner and w.path not in self.elsewhere]
        if lost:
            names = ", ".join(f"`{w.path}`" for w in lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
            flow = lost[0].path.split(".")[0]
            self.elab.collector.error(
                "NF412",
                f"no level owns {names}",
                levels[0].span,
                f"`level frozen {{ every never; memory rest({flow}) }}` keeps them as they start",
            )
        self.elab.collector.stop_on_errors()
