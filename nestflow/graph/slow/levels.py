"""Levels without slots as values: their tensors, a record, by the level's name; a recall by calling it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.apply import apply
from nestflow.graph.declarations import plain
from nestflow.graph.expressions import evaluate, partial
from nestflow.graph.model import Init
from nestflow.graph.networks import NetworkValue
from nestflow.graph.values import Partial
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.language import tree
from nestflow.vocabulary.record import Word

SINGLE = ("vector", "scalar")
NO_SLOW_MEMORY = ("matrix", "cache")


def begins_anew(reset: tree.Field | None) -> bool:
    """Whether a level's `reset` says that it begins anew in every step."""
    e = reset.value if reset is not None else None
    return isinstance(e, tree.Call) and any(isinstance(a, tree.Name) and a.name == "step" for a in e.args)


@dataclass(frozen=True)
class LevelValue:
    """A level without slots, named in an expression outside flows."""

    slow: SlowNames
    name: str

    def state_node(self, expr: tree.Expr, what: str = "now") -> Node:
        """Its tensors: a record; of `vector` and `scalar` the one tensor."""
        shape = self.slow.single(self.name)
        if shape is not None:
            if what != "now":
                raise self.slow.elab.not_yet(f"`{what}` of a vector or scalar", expr.span)
            return ops.leaf("weight", Type(shape=shape), expr.span, path=f"{self.name}.weight")
        return ops.record(self.name, what, expr.span)

    def gradient(self, expr: tree.Expr) -> Node:
        """`outer.g`: the gradient that the level took in this tick."""
        if begins_anew(self.slow.field(self.name, "reset")):
            raise self.slow.elab.not_yet("`g` of a level that begins anew in every step", expr.span)
        return self.state_node(expr, "gradient")

    def call(self, args: list[Any], kwargs: dict[str, Any], site: tree.Expr) -> Any:
        return self.slow.call(self.name, args, kwargs, site)


class SlowNames:
    """The levels without slots of a spec, by name."""

    def __init__(self, elab: Any, levels: Sequence[tree.Level]) -> None:
        self.elab = elab
        self.levels = {level.name: level for level in levels}
        self.functions: dict[str, tree.Template] = {}  # level -> the flow that is its memory

    def field(self, name: str, field: str) -> tree.Field | None:
        """A field of a level; only those that are known before anything is built."""
        return next((s for s in self.levels[name].body if isinstance(s, tree.Field) and s.name == field), None)

    def find(self, name: str) -> LevelValue | None:
        return LevelValue(self, name) if name in self.levels else None

    def kind(self, name: str) -> str:
        """`weights`, `rest`, `like`, `vector`, `scalar`, or `function`: any flow or block."""
        f = self.field(name, "memory")
        e = None if f is None else f.value
        e = e.function if isinstance(e, tree.Call) else e
        word = e.name if isinstance(e, tree.Name) else ""
        return word if word in ("weights", "rest", "like", *SINGLE, *NO_SLOW_MEMORY, "") else "function"

    def copied(self, name: str) -> str:
        """For what a level has copies: `task`, `worker`, or "" where it has one state."""
        f = self.field(name, "per")
        e = f.value.function if f is not None and isinstance(f.value, tree.Call) else None if f is None else f.value
        return e.name if isinstance(e, tree.Name) and e.name in ("task", "worker") else ""

    def single(self, name: str) -> tuple[int, ...] | None:
        """The shape of a `vector` or `scalar`; None for records."""
        kind, f = self.kind(name), self.field(name, "memory")
        if kind == "scalar":
            return ()
        if kind != "vector" or f is None:
            return None
        if not isinstance(f.value, tree.Call) or len(f.value.args) != 1:
            raise self.elab.failure("NF214", "a `vector` on this clock says its size", f.value.span, "`vector(16)`")
        n = plain(self.elab, f.value.args[0], "the size of a vector")
        if isinstance(n, bool) or not isinstance(n, int) or not 0 < n <= 2**31:
            raise self.elab.failure("NF303", f"the size of a vector is a whole number, and this is {n}", f.value.span)
        return (n,)

    def owned(self) -> set[str]:
        """The flows whose weights some level owns."""
        found: set[str] = set()
        for name in self.levels:
            f = self.field(name, "memory")
            if self.kind(name) in ("weights", "rest") and f is not None and isinstance(f.value, tree.Call):
                found |= {a.name for a in f.value.args[:1] if isinstance(a, tree.Name)}
        return found

    # recalls ---------------------------------------------------------------------------------------

    def call(self, name: str, args: list[Any], kwargs: dict[str, Any], site: tree.Expr) -> Any:
        """A recall: the memory's function with the level's tensors."""
        from nestflow.graph.templates import signature

        elab, kind = self.elab, self.kind(name)
        if kind in ("weights", "rest"):
            f = self.field(name, "memory")
            flow = f.value.args[0] if f is not None and isinstance(f.value, tree.Call) and f.value.args else None
            if flow is not None:
                return apply(evaluate(flow, elab.top), args, kwargs, elab.top, site, getattr(flow, "name", name))
        if kind != "function":
            message = f"`{name}` keeps tensors and no function: it cannot be recalled at a key"
            raise elab.failure("NF204", message, site.span, f"`{name}` alone is its state")
        template, given = self.function(name)
        merged = {**dict(given.kwargs), **kwargs}
        bound = [*args[:1], *given.args, *args[1:]]
        slots, overrides = elab.templates.bind(given, template, bound, merged, site)
        if template.name in self.owned() and template.name not in elab.root.children:
            # the weights that a level owns are those of the flow itself, which may be called through copies alone
            elab.root.name((template.name,), template.name, ())
            elab.templates.root_keys[template.name] = signature(template, slots, overrides)
            elab.templates.instantiate(template, template.name, slots, overrides, elab.top, site)
        return elab.templates.root_call(given, template, slots, overrides, elab.top, site, rel=name)

    def function(self, name: str) -> tuple[tree.Template, Partial]:
        """The flow that is a level's memory; a block of the vocabulary stands in a flow made for it."""
        f = self.field(name, "memory")
        if f is None:
            raise LookupError(f"`{name}` has no memory")
        value = partial(f.value, self.elab.top)
        if isinstance(value, NetworkValue):
            what = f"a copy of `{value.name}`, a network of your own, as a memory (`weights({value.name})` owns it)"
            raise self.elab.not_yet(what, f.value.span)
        if not isinstance(value, Partial) or value.kind not in ("flow", "word"):
            what = "a level's memory is a flow, a block, `weights(F)`, `rest(F)`, `like(…)`, `vector(n)` or `scalar`"
            raise self.elab.failure("NF226", what, f.value.span, "`memory net`, net a flow of yours")
        target = value.target
        if isinstance(target, tree.Flow):
            return target, value
        if isinstance(target, Word) and target.kind != "function":
            raise self.elab.failure("NF226", f"`{value.name}` is no memory of a level without slots", f.value.span)
        if name not in self.functions:
            x = tree.Slot("x", span=f.value.span)
            result = tree.Return(tree.Pipe((tree.Name("x", span=f.value.span), f.value), span=f.value.span))
            self.functions[name] = self.elab.keep(
                tree.Flow(name=name, slots=(x,), body=(result,), span=f.value.span, doc=None)
            )
        made = self.functions[name]
        return made, Partial(made, name)


def init_of(elab: Any, e: tree.Expr) -> str | Init:
    """`init outer`: a level's name; else how all tensors start."""
    if isinstance(e, tree.Name) and elab.slow.find(e.name) is not None:
        return e.name
    value = evaluate(e, elab.top)
    if isinstance(value, Partial) and value.name == "learned":
        raise elab.not_yet("a learned start of a level on the step clock", e.span)
    return elab.as_init(value, e)


def copies_of(elab: Any, f: tree.Field) -> str:
    """What `per` says: for what a level without slots has copies."""
    word = f.value.name if isinstance(f.value, tree.Name) else ""
    if isinstance(f.value, tree.Call) and isinstance(f.value.function, tree.Name):
        word = f"{f.value.function.name}(…)"
    if word in ("task", "model", "worker(…)"):
        return word.removesuffix("(…)")
    if word == "worker":
        raise elab.failure("NF231", "`per worker` says how many workers there are", f.span, "`per worker(4)`")
    if word in ("level", "stream", "sequence"):
        raise elab.not_yet(f"`per {word}` on the step clock", f.span)
    near = did_you_mean(word.removesuffix("(…)"), ["task", "worker", "model"])
    raise elab.failure(
        "NF231", "`per` says for what there are copies", f.span, near or "`per task`: a copy for each row of the batch"
    )


# words outside flows that take a level's name --------------------------------------------------------


def level_word(
    elab: Any, word: str, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr
) -> Node:
    """`before(m)` and `average(m)` of a level."""
    name = args[0].name if len(args) == 1 and not piped and isinstance(args[0], tree.Name) else ""
    value: LevelValue | None = elab.slow.find(name)
    if value is None or kwargs:
        known = ", ".join(f"`{n}`" for n in elab.slow.levels)
        message = f"`{word}` takes the name of a level without slots"
        raise elab.failure("NF237", message, site.span, f"the levels: {known or 'none'}")
    if word == "before":
        return value.state_node(args[0], "before")
    if not elab.slow.copied(name):
        if (f := elab.slow.field(name, "per")) is not None:
            copies_of(elab, f)  # a slip there is the mistake
        message = f"`average` is the mean over the copies of a level, and `{name}` has one"
        raise elab.failure(
            "NF237", message, site.span, f"`{name}` alone is its state; `per task` or `per worker(4)` makes copies"
        )
    node = ops.record(name, "copies", args[0].span)
    return ops.make("average", (node,), node.type, site.span)


def total_word(elab: Any, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
    """`total(e)` outside flows: Σ over the tensors of a record."""
    given = piped + [evaluate(a, elab.top) for a in args]
    if len(given) != 1 or kwargs:
        raise elab.failure("NF214", "`total` takes one record", site.span, "`total((outer - anchor) ^ 2)`")
    node = elab.as_node(given[0], site, "`total`")
    if not reaches_record(node):
        message = f"`total` sums over the tensors of a level, and this is {node.type}"
        raise elab.failure("NF205", message, site.span, "`sum` and `mean` are for values of flows")
    return ops.total(node, site.span)


def distance_word(elab: Any, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Any:
    """`square_distance(a, b)` outside flows: of records over all their tensors, else the word of the vocabulary."""
    given = piped + [evaluate(a, elab.top) for a in args]
    named = {k: evaluate(e, elab.top) for k, e in kwargs}
    nodes = [elab.as_node(v, site) for v in (*given, *named.values())] if any(is_state(v) for v in given) else []
    if len(nodes) == 2:
        return ops.total(ops.unary("square", ops.binary("sub", nodes[0], nodes[1], site.span)), site.span)
    return apply(elab.find_top("square_distance"), given, named, elab.top, site, "square_distance")


def is_state(value: Any) -> bool:
    return isinstance(value, LevelValue) or (isinstance(value, Node) and reaches_record(value))


def reaches_record(node: Node) -> bool:
    """Whether a value is a record, or one number for each tensor of a record."""
    stack, seen = [node], set[int]()
    while stack:
        n = stack.pop()
        if n.op == "record":
            return True
        if n.op != "total" and id(n) not in seen:
            seen.add(id(n))
            stack += n.args
    return False


def records(node: Node) -> list[Node]:
    """The record leaves below a node."""
    from nestflow.ir.node import walk

    return [n for n in walk(node) if n.op == "record"]


__all__ = [
    "LevelValue",
    "SlowNames",
    "distance_word",
    "init_of",
    "level_word",
    "reaches_record",
    "records",
    "total_word",
]
