"""A memory of an optimiser: its shape, its fields, and the state that it becomes at a tick."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.core import NestflowError, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.expressions import evaluate, integer, partial
from nestflow.graph.rules.resets import begun_anew
from nestflow.graph.values import Distribution, Partial, Quiet
from nestflow.ir import ops
from nestflow.ir.forms import COLS, NUMBER, ROWS, Form, Forms, W, canonical
from nestflow.ir.node import Node, Type, make, rebuild, walk
from nestflow.ir.rule import RuleSlot, SlotUpdate
from nestflow.language import tree
from nestflow.vocabulary.fields import word_for

if TYPE_CHECKING:
    from nestflow.graph.rules.body import Program
    from nestflow.graph.rules.update import RuleBuilder

LIKE = Type(like=True)
FIELDS = ("value", "update", "retain", "objective", "init", "every", "key", "per", "reset")
EVERYWHERE = frozenset(["total", "norm_all"])


@dataclass
class RuleMemory:
    """A memory of an optimiser: before its statement only `before(m)` may be read."""

    name: str
    number: bool
    ready: bool = False
    retain: Node | None = None
    form: Form = W
    keyed: bool = False
    taken: Node | None = None

    @property
    def type(self) -> Type:
        return Type() if self.number else LIKE

    def state_node(self, expr: tree.Expr) -> Node:
        if not self.ready:
            raise fail(
                "NF235",
                f"`{self.name}` is read above its own statement, where its new state is not known yet",
                expr.span,
                f"`before({self.name})` is its state before this tick",
            )
        return ops.leaf("slot_new", self.type, expr.span, name=self.name)

    def old(self) -> Node:
        return ops.leaf("slot_old", self.type, name=self.name)

    def gradient(self, expr: tree.Expr) -> Node:
        """`m.g`: the gradient that it took in this tick."""
        self.state_node(expr)
        if self.taken is None:
            message = f"`{self.name}` learns once in a period, and keeps no gradient of one tick"
            raise fail("NF237", message, expr.span, "`m.g` is the gradient of a memory that learns at each tick")
        return self.taken

    def recall(self, keys: list[Node], state: Node) -> Node:
        """M(x) = W x of every row of x."""
        return ops.matmul(keys[0], ops.transpose(state))


class MemoryStatement:
    """One `memory name : kind { fields }` in the body of an optimiser."""

    def __init__(self, program: Program, s: tree.MemoryPart, m: RuleMemory) -> None:
        self.program, self.rule, self.elab, self.env = program, program.rule, program.elab, program.env
        self.s, self.m = s, m

    # the kind ----------------------------------------------------------------------------------------

    def settle_form(self) -> None:
        """What it stores: `like(e)` the shape of e, `matrix(m, n)`, `vector(n)`, `scalar`."""
        name, given = kind_of(self.s)
        if name == "like":
            value = self.elab.as_node(evaluate(given[0], self.env), given[0]) if len(given) == 1 else None
            if value is None or (not value.type.like and not self.m.number):
                message = "`like` takes one tensor whose shape the memory has"
                raise self.elab.failure("NF226", message, self.s.kind.span, "`like(w)`")
            self.m.form = self.rule.form(value, given[0])
        elif name in ("matrix", "vector"):
            sizes = tuple(self.size(e) for e in given)
            if len(sizes) != (2 if name == "matrix" else 1):
                message = f"`{name}` in an optimiser says its size{'s' if name == 'matrix' else ''}"
                help_ = "`matrix(rows(w), cols(w))`" if name == "matrix" else "`vector(rows(w))`"
                raise self.elab.failure("NF226", message, self.s.kind.span, help_)
            self.m.form = canonical(Form(sizes))
        else:
            self.m.form = NUMBER

    def foresee(self) -> None:
        """The shape, where it can be told above the statement: `before(m)` may stand there."""
        if kind_of(self.s)[0] in ("matrix", "vector"):
            with contextlib.suppress(NestflowError, Quiet):
                self.settle_form()
                self.place()

    def size(self, e: tree.Expr) -> Node:
        """A size, over facts of w and numbers known when compiling."""
        return size_of(self.rule, self.elab.as_node(evaluate(e, self.env), e, "a size"), e)

    # the statement -----------------------------------------------------------------------------------

    def run(self) -> None:
        m, s = self.m, self.s
        self.settle_form()
        self.place()
        fields = self.fields()
        for need in ("value", "update"):
            if need not in fields:
                raise self.elab.failure("NF234", f"memory `{s.name}` needs `{need}`", s.span)
        value = self.value(fields["value"])
        key = self.key(fields["key"]) if "key" in fields else None
        m.keyed = key is not None
        m.retain = retain = None if "retain" not in fields else self.value(fields["retain"])
        shared = "per" in fields and self.per_level(fields["per"])
        if shared:
            for name in ("value", "retain", "update"):
                if name in fields:
                    self.level_wide(self.value(fields[name]) if name != "update" else None, fields[name])
        start = self.start(fields["init"]) if "init" in fields else ops.const(0.0)
        self.place(start, shared)
        every = self.every(fields["every"]) if "every" in fields else 1
        pending, read = None, value if key is None else None
        if every > 1:
            if key is not None:
                raise self.elab.not_yet("`every` in a memory of an optimiser with a `key`", fields["every"].span)
            pending = f"{m.name}.pending"
            where = self.rule.where
            self.rule.slots.append(
                RuleSlot(pending, m.form.like, ops.const(0.0), None if m.form in (W, NUMBER) else m.form, where)
            )
            read = ops.leaf("slot_new", m.type, name=pending)
        step = self.inner_step(fields, value if read is None else read, key)
        old = m.old() if retain is None else ops.binary("mul", retain, m.old())
        new = ops.binary("add", old, step, s.span)
        if "reset" in fields:
            new = begun_anew(self.rule, fields["reset"], m.name, new, start)
        self.rule.same_form(new, m.form, s, f"what `{s.name}` becomes")
        self.program.into.append(
            SlotUpdate(m.name, new, every, pending, value if pending else None, s.span, self.rule.where)
        )
        m.ready = True

    def place(self, start: Node | None = None, shared: bool = False) -> None:
        """The slot of the memory, as far as it is known."""
        m = self.m
        own = None if m.form in (W, NUMBER) else m.form
        slot = RuleSlot(m.name, m.form.like, start or ops.const(0.0), own, self.rule.where, shared)
        self.rule.slots = [slot if x.name == m.name else x for x in self.rule.slots]

    def fields(self) -> dict[str, tree.Field]:
        fields: dict[str, tree.Field] = {}
        for f in self.s.body:
            if not isinstance(f, tree.Field):
                raise self.elab.failure(
                    "NF217", "this statement cannot stand in a memory", f.span, "it has fields only"
                )
            if f.name in ("query", "weight", "chunk", "read", "project"):
                raise self.elab.not_yet(f"`{f.name}` in a memory of an optimiser", f.span)
            if f.name not in FIELDS:
                message = f"a memory of an optimiser has no field `{f.name}`"
                other = word_for(f.name)
                near = f"nestflow's word is `{other.name}`" if other and other.name in FIELDS else None
                help_ = near or did_you_mean(f.name, FIELDS) or "its fields are " + ", ".join(FIELDS)
                raise self.elab.failure("NF221", message, f.name_span or f.span, help_)
            if f.name in fields:
                raise self.elab.failure("NF222", f"`{f.name}` is given twice", f.span, "keep one of them")
            fields[f.name] = f
        return fields

    def value(self, f: tree.Field) -> Node:
        """A field of a memory: like w, or a number; a `scalar` takes numbers only."""
        node = self.elab.as_node(evaluate(f.value, self.env), f.value, f"`{f.name}`")
        if self.m.number and node.type.like:
            message = f"`{self.s.name}` is a scalar, and this `{f.name}` is a tensor like w"
            raise self.elab.failure("NF301", message, f.value.span, "`norm(g)` is a number; `like(w)` keeps a tensor")
        return node

    def start(self, f: tree.Field) -> Node:
        """`init`: `eye` has the memory's own size."""
        sizes = matrix_sizes(self.m.form)
        names: dict[str, Any] = {} if sizes is None else {"eye": eye(sizes[0])}
        value = evaluate(f.value, self.env.extend(names))
        if isinstance(value, Distribution) and not value.init.maps and value.init.kind in ("normal", "uniform"):
            kind, a, b = value.init.kind, value.init.a, value.init.b
            return ops.leaf("draw", self.m.type, f.span, slot=self.m.name, kind=kind, a=a, b=b)
        node = self.elab.as_node(value, f.value, "`init`")
        if self.m.number and node.type.like:
            message = f"`{self.s.name}` is a scalar, and this `init` is a tensor like w"
            raise self.elab.failure("NF301", message, f.value.span, "a number")
        self.rule.same_form(node, self.m.form, f, "`init`")
        return node

    def key(self, f: tree.Field) -> Node:
        """The keys of a matrix, a row each: [n, cols] of a matrix [rows, cols]."""
        node = self.elab.as_node(evaluate(f.value, self.env), f.value, "`key`")
        sizes, own = matrix_sizes(self.rule.form(node, f.value)), matrix_sizes(self.m.form)
        if sizes is None or own is None or sizes[1] is not own[1]:
            message = f"`{self.s.name}` takes keys as rows of a matrix, each as wide as the memory's last axis"
            raise self.elab.failure(
                "NF301", message, f.value.span, "`memory m : matrix(rows(w), cols(w)) { key g; … }`"
            )
        return node

    def every(self, f: tree.Field) -> int:
        """The period of a memory, in ticks of the optimiser."""
        unit = (f.unit or "").removesuffix("s")
        if unit not in ("", "tick", "update"):
            message = f"a memory of an optimiser counts ticks, and this says `{f.unit}`"
            raise self.elab.failure("NF401", message, f.unit_span or f.span, "`every 8 ticks`")
        n = integer(f.value, self.program.raw_env, "`every`")
        if not 1 <= n <= 10**9:
            raise self.elab.failure("NF406", f"`every` is at least 1 tick and at most 10^9, and this is {n}", f.span)
        return n

    # one for all weights -----------------------------------------------------------------------------

    def per_level(self, f: tree.Field) -> bool:
        name = f.value.name if isinstance(f.value, tree.Name) else ""
        if name in ("model", "weight"):
            return False
        if name != "level":
            message = "`per` of a memory of an optimiser is `level`: one for all weights of the level"
            raise self.elab.failure("NF231", message, f.value.span, "without `per` each weight has its own")
        if not self.m.number:
            message = "one memory for all weights is a number: the weights have different shapes"
            raise self.elab.failure("NF301", message, f.span, "`memory rate : scalar { …; per level }`")
        return True

    def level_wide(self, node: Node | None, f: tree.Field) -> None:
        """All weights must see the same number: what tells one from another stands inside `total` or `norm_all`."""
        stack = [] if node is None else [node]
        while stack:
            n = stack.pop()
            if n.op in EVERYWHERE:
                continue
            if n.op == "fact" or n.type.like or any(a.type.like for a in n.args):
                message = "a memory `per level` is one number for all weights, and this differs from weight to weight"
                raise self.elab.failure("NF301", message, f.value.span, "`total(g * g)`, `norm_all(g)`")
            stack.extend(n.args)

    # learning ----------------------------------------------------------------------------------------

    def bent(self, objective: str, error: Node, text: tree.Call) -> Node:
        """`lp(p)` and `huber(delta)`: what they make of the error."""
        given = [*text.args, *(e for _, e in text.kwargs)]
        if len(given) != 1:
            message = f"`{objective}` in a memory of an optimiser takes one number"
            raise self.elab.failure("NF213", message, text.span, "`lp(3)`, `huber(0.1)`")
        number = self.elab.as_node(evaluate(given[0], self.env), given[0], f"`{objective}`")
        if number.type.like:
            raise self.elab.failure("NF301", f"`{objective}` takes a number", given[0].span, "`lp(3)`, `huber(0.1)`")
        return _bent(objective, error, number)

    def inner_step(self, fields: dict[str, tree.Field], value: Node, key: Node | None) -> Node:
        """The memory's own step from its gradient: −value under dot (the default), m − value under l2; with keys k,
        a row each, (M(k) − value)ᵀ k and −valueᵀ k."""
        m = self.m
        text = fields["objective"].value if "objective" in fields else None
        called = text.function if isinstance(text, tree.Call) else text
        objective = called.name if isinstance(called, tree.Name) else "dot" if text is None and key is None else ""
        if text is None and key is not None:
            message = f"memory `{self.s.name}` has a `key`, so it needs an `objective`"
            raise self.elab.failure("NF232", message, self.s.span, "`objective dot`, or `objective l2`")
        if objective not in ("dot", "l2", "lp", "huber") or (objective in ("dot", "l2") and called is not text):
            raise self.elab.not_yet("this `objective` in a memory of an optimiser", fields["objective"].span)
        predicted = m.old() if key is None else m.recall([key], m.old())
        error = ops.unary("neg", value) if objective == "dot" else ops.binary("sub", predicted, value)
        if objective in ("lp", "huber") and isinstance(text, tree.Call):
            error = self.bent(objective, error, text)
        if key is not None:
            self.rule.same_form(error, self.rule.form(predicted, self.s.kind), self.s, "the error")
        g = error if key is None else ops.matmul(ops.transpose(error), key)
        m.taken = g if "every" not in fields else None
        f = fields["update"]
        if isinstance(f.value, tree.Name) and f.value.name == "replace":
            if key is not None:
                message = "`replace` puts the value in place of the state, and this memory has a key"
                raise self.elab.failure("NF408", message, f.span, "`gd(eta)`")
            return ops.binary("sub", value, m.old())
        target = partial(f.value, self.env) if isinstance(f.value, (tree.Call, tree.Name)) else None
        if isinstance(target, Partial) and target.kind == "optimizer":
            args = [g, *target.args]
            step = self.rule.call(Partial(target.target, target.name), args, dict(target.kwargs), f.value, m.old())
        else:
            step = self.elab.as_node(evaluate(f.value, self.env.extend({"g": g, "w": m.old()})), f.value)
        return tidy(step)


def size_of(rule: RuleBuilder, node: Node, e: tree.Node) -> Node:
    """A size, over facts of w and numbers known when compiling."""
    node = rule.constant(node)
    if node.type.dtype != "int" or any(x.op not in ("const", "fact") for x in walk(node) if not x.args):
        message = "a size is a whole number known when compiling, or made of `rows(w)` and `cols(w)`"
        raise rule.elab.failure("NF302", message, e.span, "`matrix(rows(w), rows(w))`")
    return node


def _bent(objective: str, error: Node, number: Node) -> Node:
    """The gradient in the prediction: sign(e)·|e|^(p − 1) of `lp(p)`, e within ±δ of `huber(δ)`."""
    if objective == "huber":
        low = ops.binary("max", error, ops.unary("neg", number))
        return ops.binary("min", low, number)
    power = ops.binary("pow", ops.unary("abs", error), ops.binary("sub", number, ops.const(1)))
    return ops.binary("mul", ops.unary("sign", error), power)


def kind_of(s: tree.MemoryPart) -> tuple[str, tuple[tree.Expr, ...]]:
    """The word of a memory's kind, and what is in its brackets."""
    written = s.kind.function if isinstance(s.kind, tree.Call) else s.kind
    return written.name if isinstance(written, tree.Name) else "", s.kind.args if isinstance(s.kind, tree.Call) else ()


def eye(size: Node) -> Node:
    """The identity, size × size."""
    return make("eye_of", (size,), LIKE)


def matrix_sizes(form: Form) -> tuple[Node, ...] | None:
    """Rows and columns of a matrix; None of anything else."""
    if form == W:
        return ROWS, COLS
    return form.sizes if form.sizes is not None and len(form.sizes) == 2 else None


def tidy(node: Node) -> Node:
    """(−a)·(−b) is a·b, and −1·(−b) is b: so that an EMA looks like one."""

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "mul":
            a, b = args
            if b.op == "neg":
                if a.op == "neg":
                    return ops.binary("mul", a.args[0], b.args[0])
                if a.op == "const" and a.value < 0:
                    return ops.binary("mul", ops.const(-a.value), b.args[0])
        return None

    return rebuild(node, change)


__all__ = ["Forms", "MemoryStatement", "RuleMemory", "eye", "kind_of", "tidy"]
