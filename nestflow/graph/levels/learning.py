"""How a memory learns: its clock, objective, update and retention."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from nestflow.diagnostics.core import Related, Span
from nestflow.diagnostics.fixes import add_after
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.arguments import bind, link
from nestflow.graph.expressions import evaluate, integer
from nestflow.graph.levels.last_ticks import with_ticks
from nestflow.graph.levels.projection import projection
from nestflow.graph.levels.resets import Reset, ticks
from nestflow.graph.levels.windows import Windows
from nestflow.graph.model import Link
from nestflow.graph.rules.shapes import check_rule
from nestflow.graph.rules.update import update_rule
from nestflow.graph.scope import Env, Site
from nestflow.graph.values import DecayFirst, Linked, OnValue, Partial
from nestflow.ir import ops
from nestflow.ir.construct import number
from nestflow.ir.node import Node, depends, make, through, walk
from nestflow.ir.rule import Rule
from nestflow.language import tree
from nestflow.vocabulary.fields import word_for
from nestflow.vocabulary.matrices import KL_RETENTION
from nestflow.vocabulary.record import WORDS, Word

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild

READS = ("after", "before", "chunk_start")
GRADIENTS = ("through", "stop")
RetainOn = Literal["number", "key", "value", "full"]
CLOCKS = ("token", "step", "tick", "update", "round", "task")
MAX_PERIOD = 10_000_000

# --- clock --------------------------------------------------------------------------------------------------


def is_frozen(m: MemoryBuild) -> bool:
    """`every never`."""
    f = m.field("every")
    given = m.level.overrides.get("every")
    name = getattr(given, "name", given) if given is not None else getattr(f.value, "name", None) if f else None
    return name == "never"


def clock(m: MemoryBuild) -> tuple[int, int]:
    """every and chunk, in tokens. A memory that never learns takes no part in either."""
    if is_frozen(m):
        return 1, 1
    every = _count(m, "every", 1)
    chunk = _count(m, "chunk", every)
    if chunk % every:
        f = m.field("chunk") or m.field("every")
        message = f"`chunk {chunk}` is no multiple of `every {every}`"
        below, above = chunk // every * every, (chunk // every + 1) * every
        near = f"`chunk {below}` and `chunk {above}` are" if below else f"`chunk {every}` is the least"
        other = m.field("every")
        related = other_end(other.span if other and other is not f else None, "`every` is here")
        raise m.elab.failure("NF405", message, f.span if f else m.node.span, near, related)
    return every, chunk


def other_end(span: Span | None, message: str) -> tuple[Related, ...]:
    """The second place of a clash, where there is one."""
    return () if span is None else (Related(span, message),)


def _count(m: MemoryBuild, name: str, default: int) -> int:
    given = m.level.override(name)
    f = m.field(name)
    if given is None and f is None:
        return default
    if given is None and f is not None:
        check_unit(m.elab, f, m.level.template.name, m.level.site.span)
        given = integer(f.value, m.level.env, f"`{name}`")
    span = f.span if f is not None and name not in m.level.overrides else m.level.site.span
    if not isinstance(given, (int, float)) or isinstance(given, bool) or given != int(given):
        raise m.elab.failure("NF303", f"`{name}` must be a whole number, and this is {given}", span)
    if not 1 <= given <= MAX_PERIOD:
        raise m.elab.failure("NF406", f"`{name}` is between 1 and {MAX_PERIOD:,} tokens, and this is {given}", span)
    return int(given)


def check_unit(elab: Any, f: tree.Field, level: str, call: Span | None = None) -> None:
    """`every` of a level that is called on tokens counts tokens; `chunk` counts them without saying so."""
    if f.unit is None:
        if f.name == "every":
            shown = f.value.span.text if f.value.span else "n"
            unit = "token" if shown == "1" else "tokens"
            if shown.removesuffix("s") in ("step", "token"):
                raise elab.failure("NF402", "`every` needs a number", f.span, "say how many: `every 1 token`")
            help_ = f"add a unit: `{shown} {unit}`"
            raise elab.failure("NF402", "`every` needs a unit", f.span, help_, fix=add_after(f.value, f" {unit}"))
        return
    unit = f.unit.removesuffix("s")
    if unit == "token" and f.of is None:
        return
    where = f.unit_span or f.span
    if unit in ("step", "round", "task"):
        message = f"level `{level}` is called on tokens, and its clock is `{f.unit}`"
        help_ = f"a level that is called in a flow ticks by tokens: `{f.name} 1 token`"
        raise elab.failure("NF401", message, where, help_, other_end(call, "called here, on values with a token axis"))
    if unit in CLOCKS:
        raise elab.not_yet(f"the clock `{f.unit}{f' of {f.of}' if f.of else ''}` in a level", where)
    help_ = did_you_mean(unit, CLOCKS) or f"a level that is called in a flow ticks by tokens: `{f.name} 1 token`"
    raise elab.failure("NF401", f"`{f.unit}` is no clock", where, help_)


def choice(m: MemoryBuild, name: str, known: tuple[str, ...], default: str) -> str:
    """A field that takes one of a few words."""
    f = m.field(name)
    v = m.level.overrides.get(name, None if f is None else f.value)
    if v is None:
        return default
    text = v if isinstance(v, str) else getattr(v, "name", None)
    if text in known:
        return text
    span = f.span if f else m.node.span
    later = {"gradient": ("truncate", "implicit")}.get(name, ())
    called = v.function.name if isinstance(v, tree.Call) and isinstance(v.function, tree.Name) else None
    if called in later:
        raise m.elab.not_yet(f"`{name} {called}(…)`", span)
    help_ = did_you_mean(text, known) if isinstance(text, str) else None
    raise m.elab.failure("NF231", f"`{name}` is one of " + ", ".join(f"`{k}`" for k in known), span, help_)


# --- objective ----------------------------------------------------------------------------------------------


def objective(m: MemoryBuild, value: Node | None) -> Node:
    """What the memory minimises at a tick: one number, over a recall of the memory at the key."""
    f = m.field("objective")
    given = m.level.overrides.get("objective")
    if f is None and given is None and m.keyless:
        given = Partial(WORDS["dot"], "dot")
    if f is None and given is None:
        raise m.elab.failure(
            "NF232",
            f"memory `{m.name}` has a `key`, so it needs an `objective`",
            m.node.span,
            "`objective dot` (Hebbian), `objective l2` (delta rule), or an expression in M(key) and value",
        )
    site: tree.Expr = f.value if f is not None else m.level.site
    if given is None:
        env = m.env("objective", recall_mode="objective").extend({} if m.keyless else {"key": m.key_node()})
        env = env if value is None else env.extend({"value": value})

        def named(one: Partial) -> Node:
            return _named(m, one, value, site)

        windows = Windows(m, env, named)
        given = evaluate(site, env.with_(specials={**env.specials, "windowed": windows}))
    if isinstance(given, Partial):
        given = _named(m, given, value, site)
    node = m.elab.as_node(given, site, "`objective`")
    if node.type.short:
        raise m.elab.failure("NF403", "the objective of a memory cannot look ahead", site.span)
    if node.type.dtype != "float":
        raise m.elab.failure("NF407", f"an objective is a number with a gradient, and this is {node.type}", site.span)
    if not node.type.is_number or node.type.shape:
        node = ops.reduce("sum", node)

    def own(n: Node) -> bool:
        return n.op == "recall" and n["memory"] == m.name and n["mode"] == "objective"

    if depends(node, lambda n: n.op == "py" and depends(n, own)):
        message = f"the objective of `{m.name}` goes through Python, and its gradient is taken by the compiler"
        raise m.elab.failure("NF574", message, site.span, "write the objective in the language")
    if not any(own(n) for n in through(node)):
        stopped = depends(node, own)
        what = "recalls it where no gradient passes" if stopped else "does not recall it"
        message = f"the objective of `{m.name}` {what}: it would never learn"
        help_ = "what learns is recalled outside `stop`, `sign` and comparisons" if stopped else "use `M(key)` in it"
        raise m.elab.failure("NF407", message, site.span, help_)
    return node


def _named(m: MemoryBuild, given: Partial, value: Node | None, site: tree.Expr) -> Node:
    """`dot`, `l2`, `huber(d)`, `lp(p)`: they compare the recall at the key with the value."""
    word = given.target
    if not isinstance(word, Word) or word.kind != "objective" or word.build is None:
        other = word_for(given.name, "objective")
        known = f"nestflow's word is `{other.name}`; or " if other and other.kind == "objective" else ""
        known += "`dot`, `l2`, `huber(d)`, `lp(p)`, or an expression in `M(key)` and `value`"
        raise m.elab.failure("NF232", f"`{given.name}` is no objective of a memory", site.span, known)
    if value is None:
        message = f"`{given.name}` compares the recall with a `value`, and there is none"
        raise m.elab.failure("NF233", message, site.span, "write `value …`")
    prediction = m.recall([] if m.keyless else [m.key_node()], "objective", site)
    fits = prediction.type.shape == value.type.shape or (prediction.type.is_number and value.type.is_number)
    if not fits or prediction.type.heads != value.type.heads:
        message = f"memory `{m.name}` recalls a {prediction.type}, and its value is {value.type}"
        help_ = "give the memory the value's width, or the value the memory's"
        f = m.field("value")
        related = other_end(f.span if f else None, f"the value, {value.type}")
        raise m.elab.failure("NF319", message, site.span, help_, related)
    # `l2(p, v)` has slots for what is given here; the others keep theirs (`huber(delta)`, `lp(p)`)
    own = () if [s.name for s in word.slots] == ["p", "v"] else word.slots
    rest = Word(word.name, word.signature, own, word.kind, word.doc)
    extra = bind(rest, list(given.args), dict(given.kwargs), m.elab, site)
    return word.build(Site(m.env("objective"), word.name, site, word.name), prediction, value, *extra)


# --- update and retention -----------------------------------------------------------------------------------


def rule(m: MemoryBuild) -> Rule:
    """The update rule, its arguments evaluated where the field stands."""
    f = m.field("update")
    if f is None:
        message = f"memory `{m.name}` needs an `update`"
        raise m.elab.failure("NF234", message, m.node.span, "`update gd(0.1)`, `update adam(lr = 0.01)`, …")
    built = update_rule(m.elab, f, with_ticks(m, m.env("update").extend(m.context_names())), m)
    if m.function is not None:
        shapes = {t.shape: f"{m.name}.{t.path}" for t in reversed(m.function.tensors)}
        check_rule(m.elab.failure, built, shapes, f.span, m.kind != "function")
    for n in walk(*built.nodes()):
        if n.op == "schedule" and n["kind"] != "wsd" and n["total"] is None:
            message = f"`{n['kind']}` of a memory on the token clock ends at a tick that is not known"
            raise m.elab.failure("NF540", message, n.span or f.span, f"say it: `{n['kind']}(…, total = 2048)`")
    for n in built.nodes():
        if n.type.short:
            raise m.elab.failure("NF403", "an update cannot look ahead", f.span, "`next` belongs to a loss")
    return replace(built, project=projection(m))


def weight(m: MemoryBuild) -> Node | None:
    """What multiplies the gradient of a tick: a number, or a record with one for each tensor."""
    f = m.field("weight")
    if f is None:
        return None
    node = m.shared(evaluate(f.value, m.env("weight").extend(m.context_names())), f.value, "`weight`")
    if node.type.short:
        raise m.elab.failure("NF403", "a weight cannot look ahead", f.span, "`next` belongs to a loss")
    if not node.type.is_number:
        message = f"a weight is one number per tick (and head), and this is {node.type}"
        raise m.elab.failure("NF322", message, f.value.span, "`weight sigmoid(linear(x, 1))`")
    return node


def condition(m: MemoryBuild) -> Node | None:
    """`when`: whether the tick brings a pair; None where it always does."""
    f = m.field("when")
    if f is None:
        return None
    node = m.elab.as_node(evaluate(f.value, m.env("when").extend(m.context_names())), f.value, "`when`")
    if node.type.short:
        raise m.elab.failure("NF403", "a condition cannot look ahead", f.span, "`next` belongs to a loss")
    if node.type.dtype != "bool" or not node.type.is_number:
        message = f"`when` is a condition, true or false at a tick (and head), and this is {node.type}"
        raise m.elab.failure("NF305", message, f.value.span, "`when norm(M(key) - value) > 0.1`")
    node = number(node)
    if node.op == "const" and not node.value:
        raise m.elab.failure("NF407", f"memory `{m.name}` never learns", f.span, "`every never` says so")
    return None if node.op == "const" else node


def masked(weight: Node | None, when: Node | None) -> Node | None:
    """The weight of a tick, 0 where it brings no pair."""
    if when is None:
        return weight
    if weight is not None and weight.op == "each":
        values = tuple(ops.where(when, v, ops.const(0.0)) for v in weight.args)
        return make("each", values, ops.carried(weight.type, when.type), weight.span, **dict(weight.attrs))
    return ops.where(when, ops.const(1.0) if weight is None else number(weight), ops.const(0.0))


def retention(m: MemoryBuild, every: int, turns: int = 1) -> tuple[Node | None, RetainOn, bool, Link | None]:
    """The gate, what it acts on, whether it decays before the error, and the link that the memory is read through."""
    f = m.field("retain")
    value = m.level.overrides.get("retain")
    if f is None and value is None:
        return None, "number", False, None
    site: tree.Expr = f.value if f is not None and value is None else m.level.site
    if value is None:
        # in `retain` t counts updates: at the ticks that learn, the position over the period (1 at those before the
        # first)
        t = ticks(Reset() if m.reset.keep else m.reset)
        updates = t if every == 1 else ops.binary("max", ops.binary("floordiv", t, ops.const(every)), ops.const(1))
        if turns > 1:  # it acts in the first round
            before = ops.binary("mul", ops.binary("sub", t, ops.const(1)), ops.const(turns))
            updates = ops.binary("add", before, ops.const(1))
        env = with_ticks(m, m.env("retain").extend({**m.context_names(), "t": updates}))
        value = evaluate(site, env.with_(specials={**env.specials, "kl": partial(kl_retention, env)}))
    through = value.link if isinstance(value, Linked) else None
    value = value.gate if isinstance(value, Linked) else value
    first = isinstance(value, DecayFirst)
    if isinstance(value, DecayFirst):
        value = value.gate
    on_value = isinstance(value, OnValue)
    node = value.node if isinstance(value, OnValue) else m.shared(value, site, "`retain`")
    if node.type.short:
        raise m.elab.failure("NF403", "a gate cannot look ahead", site.span, "`next` belongs to a loss")
    if node.type.heads is None and m.level.env.heads and not node.type.is_number and node.type.batch:
        message = f"under `heads` a gate is per head, and this one is whole: {node.type}"
        raise m.elab.failure("NF319", message, site.span, "`split_heads`, or a `linear` of its own")
    return node, _acts_on(m, node, on_value, site), first, through


def kl_retention(
    env: Env,
    piped: list[Any],
    args: tuple[tree.Expr, ...],
    kwargs: tuple[tuple[str, tree.Expr], ...],
    site: tree.Expr,
) -> Linked:
    """`retain kl(alpha, scale)`: elsewhere `kl` is a divergence."""
    given = piped + [evaluate(a, env) for a in args]
    gate, scale = bind(KL_RETENTION, given, {k: evaluate(e, env) for k, e in kwargs}, env.elab, site)
    return Linked(gate, link("kl", scale, env, site))


def _acts_on(m: MemoryBuild, node: Node, on_value: bool, site: tree.Expr) -> RetainOn:
    """A number on all; on a matrix a vector on the key axis, `on_value` on the value axis, a matrix elementwise."""
    if node.type.like:  # a record with an entry of its own shape for each tensor
        return "full"
    if node.type.is_number:
        return "number"
    if m.keyless and m.function is not None and not on_value and node.type.shape == m.function.tensors[0].shape:
        return "full"
    if m.kind != "matrix" or m.function is None:
        message = f"the gate of `{m.name}` is {node.type}; a memory that is no matrix takes one number per head"
        raise m.elab.failure("NF322", message, site.span, "`sigmoid(linear(x, 1) + 6)`")
    out, width = m.function.tensors[0].shape
    if on_value:
        if node.type.shape == (out,):
            return "value"
        message = f"a gate on the value axis has {out} features, and this is {node.type}"
        raise m.elab.failure("NF322", message, site.span)
    if node.type.shape == (width,):
        return "key"
    if node.type.shape == (out, width):
        return "full"
    message = f"a gate of {list(node.type.shape)} fits no axis of a matrix {out} × {width}"
    help_ = f"a number, {width} features (the key's), or `on_value` with {out}"
    raise m.elab.failure("NF322", message, site.span, help_)


def check_decay_first(m: MemoryBuild, first: bool, every: int, chunk: int) -> None:
    """To decay before the error, the error must be that of the state before it: chunk and every are 1."""
    f = m.field("retain")
    if first and (every, chunk) != (1, 1):
        message = f"`decay_first` takes the error at the decayed state of each tick, and this level has chunk {chunk}"
        raise m.elab.failure("NF414", message, f.span if f else m.node.span, "leave `chunk` and `every` at 1 token")
