"""Fields of a level without slots: what it is drawn towards, when it begins anew, how its steps are kept in bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.fixes import add_after
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.arguments import bind
from nestflow.graph.contents import called, draws
from nestflow.graph.expressions import evaluate, integer
from nestflow.graph.levels.learning import CLOCKS
from nestflow.graph.levels.memory import written
from nestflow.graph.levels.projection import named
from nestflow.graph.model import ClockSpec, Inner
from nestflow.graph.published import published
from nestflow.graph.rules.update import update_rule
from nestflow.graph.scope import Site
from nestflow.graph.slow.levels import copies_of, reaches_record, records
from nestflow.graph.slow.state import is_inner
from nestflow.graph.values import Partial
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, walk
from nestflow.ir.rule import DgdStep, Rule, SetWeight, Step
from nestflow.language import tree
from nestflow.vocabulary.record import Word

if TYPE_CHECKING:
    from nestflow.graph.slow.steps import StepLevels

LIKE = Type(like=True)
GRADIENTS = "`through`, `stop`, `truncate(n)` or `implicit(cg, iters = 10)`"
STEP = ClockSpec("step", "step", 1)
OUTSIDE = frozenset(["slot", "weight", "call", "position", "head", "recall", "training", "network"])


def state_of(s: StepLevels, level: tree.Level, span: Any) -> Node:
    """The level's own tensors, as its objective sees them."""
    value = s.elab.slow.find(level.name)
    assert value is not None
    return value.state_node(tree.Name(level.name, span=span))


def drawn_to(s: StepLevels, level: tree.Level, fields: dict[str, tree.Field]) -> Node:
    """The objective of a memory without a key that has a `value`: `dot` unless written (§3.3)."""
    elab, f = s.elab, fields["value"]
    own = state_of(s, level, f.span)
    v = elab.as_node(evaluate(f.value, elab.top), f.value, "`value`")
    if own.type.like and not v.type.like and not v.type.is_number:
        message = f"`{level.name}` keeps a tensor for each weight, and this is {v.type}"
        raise elab.failure("NF301", message, f.span, "`value outer`: the tensors of another level")
    if not own.type.like and (v.type.like or ops.broadcast(v.type.shape, own.type.shape) != own.type.shape):
        message = f"`{level.name}` is {own.type}, and its value is {v.type}"
        raise elab.failure("NF301", message, f.span, "the value has the shape of the memory")
    if v.type.batch:
        message = "this value differs from row to row, and the level has one state for all"
        raise elab.failure("NF311", message, f.span, "`mean(…)` of it is one number")
    if not is_inner(fields):  # a constant in this step, also where it was made from the level's own tensors
        v = ops.stop(v)
    e = fields["objective"].value if "objective" in fields else None
    names = {"M": own, "value": v}
    made = ops.unary("neg", ops.binary("mul", own, v)) if e is None else evaluate(e, elab.top.extend(names))
    if (
        isinstance(made, Partial)
        and isinstance(made.target, Word)
        and made.target.kind == "objective"
        and e is not None
    ):
        made = named_objective(s, made, own, v, e)
    node = elab.as_node(made, e or f.value, "`objective`")
    if reaches_record(node):
        return ops.total(node, f.span)
    return ops.reduce("sum", node) if node.type.shape else node


def named_objective(s: StepLevels, partial: Partial, own: Node, v: Node, e: tree.Expr) -> Node:
    """`l2`, `huber(δ)`, … between the state and the value."""
    word = partial.target
    assert isinstance(word, Word)
    if word.name == "dot":
        return ops.unary("neg", ops.binary("mul", own, v))
    if word.build is None:
        raise s.elab.not_yet(f"`{word.name}` on the step clock", e.span)
    given = bind(word, [own, v, *partial.args], dict(partial.kwargs), s.elab, e) if word.name == "l2" else None
    site = Site(s.elab.top, word.name, e, word.name)
    if given is not None:
        return word.build(site, *given)
    return word.build(site, own, v, *bind(word, list(partial.args), dict(partial.kwargs), s.elab, e))


def check_records(s: StepLevels, node: Node, f: tree.Node, own: str, inner: bool) -> None:
    """An objective is one number, and what it reads of other levels is one copy."""
    elab = s.elab
    if reaches_record(node):
        message = "this objective is a record, one tensor for each weight, and an objective is one number"
        raise elab.failure("NF407", message, f.span, "`total(…)` sums over the tensors")
    averaged = {id(n.args[0]) for n in walk(node) if n.op == "average"}
    group_of(s, node, f)
    single = [n for n in walk(node) if n.op == "weight" and n["path"].partition(".")[0] in elab.slow.levels]
    for r in [*records(node), *single]:
        name = r["level"] if r.op == "record" else r["path"].partition(".")[0]
        copied = elab.slow.copied(name)
        if copied and name != own and id(r) not in averaged:
            message = f"`{name}` has a copy for each {copied}, and stands here as one"
            raise elab.failure("NF237", message, r.span or f.span, f"`average({name})` is the mean over the copies")
        if name == own and r.op == "record" and r["what"] in ("before", "copies") and inner:
            raise elab.failure("NF237", f"`{name}` begins anew in every step: it has no state before it", f.span)


def group_of(s: StepLevels, node: Node, f: tree.Node) -> None:
    """Examples are lined up with those of their own group alone: support and query differ in their number."""
    groups: dict[int, str] = {}
    for n in walk(node):
        if n.op == "slot" and n.type.clock == "N":
            groups[id(n)] = n["name"].rpartition(".")[0]
        met = {groups[id(a)]: None for a in n.args if id(a) in groups}
        if len(met) > 1:
            one, other = list(met)[:2]
            message = f"examples of `{one}` meet examples of `{other}`, and there need not be as many"
            raise s.elab.failure(
                "NF301", message, n.span or f.span, "inputs of one group: `support.x`, `support.label`"
            )
        if met and n.type.clock == "N":
            groups[id(n)] = next(iter(met))


# --- when, weight, retain, project ------------------------------------------------------------------------


def condition(s: StepLevels, f: tree.Field) -> Node:
    node = s.elab.as_node(evaluate(f.value, s.elab.top), f.value, "`when`")
    if node.type.dtype != "bool" or node.type.batch or not node.type.is_number:
        message = f"`when` of a level without slots is one condition for the whole batch, and this is {node.type}"
        raise s.elab.failure("NF305", message, f.span, "`when loss > 0.1`")
    return node


def weighted(s: StepLevels, f: tree.Field, objective: Node, inner: str | None) -> Node:
    """`weight e`: the gradient times e, which is constant in it. inner: the name of a level that begins anew, through
    whose steps slower gradients reach e; so e does not read that level."""
    node = s.elab.as_node(evaluate(f.value, s.elab.top), f.value, "`weight`")
    if node.type.batch or not node.type.is_number or node.type.dtype == "bool":
        raise s.elab.failure("NF322", f"`weight` of a level without slots is a number: this is {node.type}", f.span)
    own = next((n for n in walk(node) if inner is not None and reads_level(n, inner)), None)
    if own is not None:
        message = f"`weight` of `{inner}` in what `{inner}` itself computes"
        raise s.elab.not_yet(message, own.span or f.span)
    return ops.binary("mul", node if inner is not None else ops.stop(node), objective)


def reads_level(n: Node, name: str) -> bool:
    """Whether it is a recall, a tensor or the record of that level."""
    if n.op == "weight":
        return n["path"].partition(".")[0] == name
    return (n.op == "call" and n["child"] == name) or (n.op == "record" and n["level"] == name)


def gate(s: StepLevels, f: tree.Field) -> Node:
    """`retain e`: a number that may follow a schedule, `t`, and what the weight is."""
    names = {"w": ops.leaf("w", LIKE), "t": ops.leaf("updates", Type("int"))}
    node = s.elab.as_node(evaluate(f.value, s.elab.top.extend(names).with_(rule=s)), f.value, "`retain`")
    outside = next((n for n in walk(node) if n.op in OUTSIDE), None)
    if outside is not None:
        message = "`retain` on the step clock sees weights and counts, and this reads the model or its inputs"
        raise s.elab.failure("NF415", message, f.span, "`retain 0.99`, `retain 1 - cosine(0.01)`")
    if node.type.like or not node.type.is_number:
        message = f"`retain` on the step clock is one number for each weight, and this is {node.type}"
        raise s.elab.failure("NF322", message, f.span, "`retain 0.99 if ndim(w) >= 2 else 1`")
    return node


def projected(s: StepLevels, f: tree.Field) -> Node:
    """`project ball(10)`, or an expression in w."""
    elab = s.elab
    names = {"w": ops.leaf("w", LIKE), "w0": ops.leaf("w0", LIKE)}
    # a projection stands where a rule does: words of updates are known in it
    env = elab.top.extend(names).with_(rule=s)
    value = named(f.value, names["w"], env)
    value = evaluate(f.value, env) if value is None else value
    if isinstance(value, Partial) or not elab.as_node(value, f.value, "`project`").type.like:
        message = "`project` gives the new weight"
        raise elab.failure("NF323", message, f.span, "`project ball(10)`, or an expression in `w`: `w / norm(w)`")
    return value


def rule_of(s: StepLevels, level: tree.Level, fields: dict[str, tree.Field]) -> Rule:
    """The level's update; `replace` and `prox` know their step from its value."""
    f = fields["update"]
    stage = f.value.function if isinstance(f.value, tree.Call) else f.value
    word = stage.name if isinstance(stage, tree.Name) else ""
    g, text = ops.leaf("g", LIKE), written(f.value)
    if word == "replace":
        if "value" not in fields or "objective" in fields:
            message = "`replace` puts the value in the memory's place: it takes a `value` and no objective"
            raise s.elab.failure("NF408", message, f.span, "`value outer; update replace`")
        rule = Rule(text, (), (SetWeight(ops.unary("neg", g), f.value.span),), (), g, None, f.span)
    elif word == "prox":
        rule = prox(s, f, fields, g, text)
    else:
        rule = update_rule(s.elab, f, s.elab.top)
    if "project" in fields:
        rule = replace(rule, project=projected(s, fields["project"]))
    return rule


def prox(s: StepLevels, f: tree.Field, fields: dict[str, tree.Field], g: Node, text: str) -> Rule:
    """argmin ½‖A − v‖² + ‖A − A₋‖²/(2 lr) = A₋ − lr/(1 + lr) · (A₋ − v)."""
    e = fields["objective"].value if "objective" in fields else None
    if "value" not in fields or not (isinstance(e, tree.Name) and e.name == "l2"):
        message = "`prox` on this clock solves `l2` of a memory that has a `value`"
        raise s.elab.failure("NF408", message, f.span, "`value outer; objective l2; update prox(0.1)`")
    args = [evaluate(a, s.elab.top) for a in f.value.args] if isinstance(f.value, tree.Call) else []
    kwargs = {k: evaluate(v, s.elab.top) for k, v in f.value.kwargs} if isinstance(f.value, tree.Call) else {}
    word = s.elab.find_top("prox")
    (lr,) = bind(word.target, args, kwargs, s.elab, f.value)
    rate = s.elab.as_node(lr, f.value)
    if rate.op != "const" or not float(rate.value) > 0:
        raise s.elab.failure("NF304", "the rate of `prox` on this clock is a number above 0", f.span, "`prox(0.1)`")
    k = float(rate.value) / (1 + float(rate.value))
    return Rule(text, (), (Step(ops.binary("mul", ops.const(-k), g), f.value.span),), (), g, None, f.span)


# --- clock, reset, copies, gradient -----------------------------------------------------------------------


def clock_of(s: StepLevels, f: tree.Field, counted: tuple[str, ...] = ()) -> ClockSpec | None:
    """The clock of `every n UNIT`; None where no clock has the name. counted: the levels whose updates led here."""
    unit = f.unit or ""
    if f.of is not None:
        if unit.removesuffix("s") != "update":
            return None
        if f.of not in s.elab.slow.levels:
            help_ = did_you_mean(f.of, s.elab.slow.levels) or "the name of a level without slots"
            raise s.elab.failure("NF401", f"`{f.of}` is no level whose updates could be counted", f.span, help_)
        if f.of in counted:
            message = f"the updates of `{f.of}` are counted by themselves: " + " → ".join([*counted, f.of])
            raise s.elab.failure("NF206", message, f.span, "count steps in one of them: `every 2 steps`")
        other = s.elab.slow.field(f.of, "every")
        if other is None:
            return replace(STEP, name=f"update of {f.of}")
        base = clock_of(s, other, (*counted, f.of))
        if base is None or (isinstance(other.value, tree.Name) and other.value.name == "never"):
            raise s.elab.failure("NF401", f"`{f.of}` has no updates that could be counted", f.span)
        n = integer(other.value, s.elab.top, "`every`")
        return ClockSpec(f"update of {f.of}", base.base, base.count * n)
    for name in (unit, unit.removesuffix("s")):
        if name in s.elab.clocks.known:
            return s.elab.clocks.known[name]
    return STEP if unit.removesuffix("s") == "step" else None


def every_of(s: StepLevels, f: tree.Field | None) -> tuple[ClockSpec, int]:
    """The clock that the level's ticks are counted on, and N: it learns at their multiples."""
    if f is None:
        return STEP, 1
    if isinstance(f.value, tree.Name) and f.value.name == "never":
        return STEP, 0
    if f.unit is None:
        count = written(f.value)
        unit = "step" if count == "1" else "steps"
        if count.removesuffix("s") in ("step", "token"):
            help_ = f"say how many: `every 1 {count.removesuffix('s')}`"
            raise s.elab.failure("NF402", "`every` needs a number", f.span, help_)
        help_ = f"add a unit: `{count} {unit}`"
        raise s.elab.failure("NF402", "`every` needs a unit", f.span, help_, fix=add_after(f.value, f" {unit}"))
    unit = f.unit.removesuffix("s")
    clock = clock_of(s, f)
    if clock is None and unit == "token":
        raise s.elab.not_yet("a loss of the whole model on the token clock", f.span)
    if clock is None:
        where = f.unit_span or f.span
        if unit in CLOCKS and f.of is None and unit not in ("task", "round"):
            raise s.elab.not_yet(f"the clock `{f.unit}`", where)
        near = did_you_mean(unit, [*CLOCKS, *s.elab.clocks.known])
        declare = f"declare it: `clock {unit}`" if unit in ("task", "round") else near
        raise s.elab.failure("NF401", f"`{f.unit}` is no clock", where, declare or "`every 4 steps`")
    n = integer(f.value, s.elab.top, "`every`")
    if not 1 <= n <= 10**9:
        raise s.elab.failure(
            "NF406",
            f"`every` is at least 1 {clock.name} and at most 10^9, and this is {n}",
            f.span,
            "`every never` freezes a level",
        )
    return clock, n


def reset_of(s: StepLevels, f: tree.Field, keep: tree.Field | None) -> tuple[str | None, bool]:
    """("step" | a clock | a level | None, whether the rule's state is spared)."""
    elab, e = s.elab, f.value
    known = ["step", *elab.clocks.known, *elab.slow.levels]
    help_ = "`reset never`, `reset each(step)`, or each of: " + ", ".join(known[1:] or ["a clock or level of the spec"])
    spare = keep is not None
    if isinstance(e, tree.Name) and e.name == "never":
        return None, spare
    word = e.function.name if isinstance(e, tree.Call) and isinstance(e.function, tree.Name) else ""
    if word == "where":
        raise elab.not_yet("`reset where(…)` on the step clock", f.span)
    if not isinstance(e, tree.Call) or word != "each" or len(e.args) != 1 or not isinstance(e.args[0], tree.Name):
        raise elab.failure("NF231", "`reset` says when the memory goes back to its start", f.span, help_)
    for k, v in e.kwargs:
        if k != "keep" or not (isinstance(v, tree.Name) and v.name == "rule"):
            raise elab.failure("NF231", "a reset can spare the state of the rule", v.span, "`keep = rule`")
        spare = True
    name = e.args[0].name
    if name not in known:
        raise elab.failure(
            "NF231", f"`{name}` is no clock or level", e.args[0].span, did_you_mean(name, known) or help_
        )
    return name, spare


def inner_of(s: StepLevels, level: tree.Level, fields: dict[str, tree.Field], reset: str | None) -> Inner | None:
    """What it is to begin anew in every step; None for a level that lives on."""
    elab = s.elab
    copies = copies_of(elab, fields["per"]) if "per" in fields else "one"
    if copies == "worker" and reset == "step":
        message = f"the copies of `{level.name}` go on from step to step, each worker with its own"
        raise elab.failure("NF231", message, fields["reset"].span, "`reset each(round, keep = rule)`, or `per task`")
    if reset != "step":
        for name in ("rounds", "gradient"):
            if name in fields:
                message = f"`{name}` belongs to a level that begins anew in every step, and `{level.name}` lives on"
                raise elab.failure("NF231", message, fields[name].span, "`reset each(step)`")
        if copies == "task":
            message = f"`{level.name}` has a copy for each task of a batch, and the next batch has other tasks"
            raise elab.failure("NF231", message, fields["per"].span, "`reset each(step)`")
        return None
    rounds = integer(fields["rounds"].value, elab.top, "`rounds`") if "rounds" in fields else 1
    if not 1 <= rounds <= 10_000:
        message = f"`rounds` is at least 1 and at most 10,000, and this is {rounds}"
        raise elab.failure("NF406", message, fields["rounds"].span)
    inner = Inner("task" if copies == "task" else "one", rounds)
    return gradient_of(s, fields["gradient"], inner) if "gradient" in fields else inner


def check_inner(s: StepLevels, level: tree.Level, fields: dict[str, tree.Field], owns: bool) -> None:
    """What a level that begins anew in every step cannot do. owns: slow weights, where it should hold tensors."""
    elab, name = s.elab, level.name
    if owns:
        message = f"`{name}` begins anew in every step, and slow weights live on"
        help_ = f"`memory m; init outer` with a flow `m` keeps copies, and `{name}(…)` recalls them"
        raise elab.failure("NF231", message, fields["memory"].span if "memory" in fields else level.span, help_)
    if every_of(s, fields.get("every")) != (STEP, 1):
        message = f"`{name}` begins anew in every step, and learns in every step"
        raise elab.failure("NF231", message, fields["every"].span, "leave `every` out: `rounds` says how often")
    if "when" in fields:
        raise elab.not_yet("`when` of a level that begins anew in every step", fields["when"].span)
    child = elab.root.children.get(name)
    if child is not None and published(child) and elab.slow.copied(name):
        raise elab.not_yet("`emit` in a memory that has a copy for each task", fields["memory"].span)
    objective = s.objectives.get(name)
    own = [x for x in (child, *called(elab.root, () if objective is None else [objective])) if x is not None]
    if elab.slow.copied(name) and any(draws(x) for x in own):
        raise elab.not_yet("chance in what a level with a copy for each task learns from", fields["memory"].span)
    for n in walk(objective) if objective is not None and elab.slow.copied(name) else ():
        other = n["child"] if n.op == "call" else n["level"] if n.op == "record" else ""
        if other in elab.slow.levels and other != name and elab.slow.copied(other):
            raise elab.not_yet("a level with a copy for each task that reads another one", n.span or level.span)


def gradient_of(s: StepLevels, f: tree.Field, inner: Inner) -> Inner:
    elab, e = s.elab, f.value
    name = e.function if isinstance(e, tree.Call) else e
    word = name.name if isinstance(name, tree.Name) else ""
    args, kwargs = (list(e.args), dict(e.kwargs)) if isinstance(e, tree.Call) else ([], {})
    if word in ("through", "stop") and not args and not kwargs:
        return replace(inner, gradient=word)
    if word == "truncate" and len(args) == 1 and not kwargs:
        n = integer(args[0], elab.top, "the updates that gradients go through")
        if not n >= 0:
            raise elab.failure("NF406", f"gradients go through 0 updates or more, and this is {n}", f.span)
        return replace(inner, gradient="truncate", keep=min(n, inner.rounds))
    if word == "implicit":
        method = args[0] if args else tree.Name("cg")
        iters = args[1] if len(args) > 1 else kwargs.pop("iters", None)
        if kwargs or len(args) > 2 or not (isinstance(method, tree.Name) and method.name == "cg"):
            raise elab.failure("NF231", "`implicit` solves by `cg`", f.span, "`gradient implicit(cg, iters = 10)`")
        n = 10 if iters is None else integer(iters, elab.top, "`iters`")
        if not 1 <= n <= 10_000:
            raise elab.failure("NF406", f"`iters` is at least 1 and at most 10,000, and this is {n}", f.span)
        return replace(inner, gradient="implicit", keep=n)
    help_ = did_you_mean(word, ["through", "stop", "truncate", "implicit"]) or GRADIENTS
    raise elab.failure("NF231", "`gradient` says how slower gradients go through the level", f.span, help_)


def check_inner_rule(rule: Rule) -> str | None:
    """What of a rule a level that begins anew cannot do; None where it can all."""
    for s in rule.program:
        if isinstance(s, DgdStep):
            return "`dgd`"
    for n in walk(*(rule.expand(x) for x in rule.nodes())):
        if n.op in ("w_chunk", "w_in", "curvature"):
            return f"`{n.op}`"
        if n.op == "debias" and rule.expand(n.args[1]).op != "const":
            return "`debias` of a retain that varies"
    if rule.shaped:
        return "a memory of an optimiser with a shape of its own"
    started = next((s for s in rule.slots if rule.expand(s.init).op not in ("w", "w0", "const")), None)
    return None if started is None else f"a start of `{started.name}` that is no number and not `w`"


__all__ = [
    "OUTSIDE",
    "STEP",
    "check_inner",
    "check_inner_rule",
    "check_records",
    "condition",
    "drawn_to",
    "every_of",
    "gate",
    "inner_of",
    "projected",
    "reset_of",
    "rule_of",
    "weighted",
]
