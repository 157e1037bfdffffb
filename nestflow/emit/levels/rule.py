"""An update rule on the tensors themselves, one update of one or more memories: what a scan does at a tick that learns.

The rule's expressions are typed for each tensor (`like w` becomes the tensor's shape, rates are those of the tick that
learns) and emitted like all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from nestflow.emit.expr import Emitter
from nestflow.emit.levels.commit import finish, wait
from nestflow.emit.levels.leaves import context_parts, decayed, is_context, slot_leaf, unit
from nestflow.emit.levels.nodes import Nodes, per_tick, state
from nestflow.emit.levels.pairs import absorbed, bare, dgd_of_pair, pair, shared, uses, widened
from nestflow.emit.ops import tensor
from nestflow.emit.writer import Writer, identifier
from nestflow.graph.globs import matches
from nestflow.graph.levels.windows import age_of
from nestflow.graph.model import Memory, MemoryTensor
from nestflow.graph.state import TICKS, UPDATES, has_dgd, state_tensors
from nestflow.ir import ops
from nestflow.ir.choices import for_tensor
from nestflow.ir.construct import number, rewrite
from nestflow.ir.forms import holds
from nestflow.ir.node import Node, Type, make, walk
from nestflow.ir.rule import DgdStep, Let, SetWeight, SlotUpdate, Statement
from nestflow.lowering.linear_rule import COUNT, SEEN, prepared
from nestflow.lowering.plan import MemoryPlan


@dataclass
class Tensor:
    """One tensor in the course of an update. w: its leaf as later statements see it; stepped: retain has acted."""

    memory: Memory
    spec: MemoryTensor
    gradient: Node
    program: tuple[Statement, ...]
    type: Type
    g: Node
    w: Node
    stepped: bool = False
    new: dict[str, Node] = field(default_factory=dict)
    project: Node | None = None
    input: Node | None = None  # what dgd erases, where g is kept as two vectors
    named: dict[str, Node] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.spec.path


class RuleCode:
    """The update of memories that learn by the same rule at the same ticks (norms may go over all of them)."""

    def __init__(
        self, writer: Writer, nodes: Nodes, em: Emitter, plans: list[MemoryPlan], names: dict[Node, str]
    ) -> None:
        self.writer, self.nodes, self.em, self.names = writer, nodes, em, names
        self.plans = plans
        self.first = plans[0].memory
        self.tensors: list[Tensor] = []
        for p in plans:
            for t in state_tensors(p.memory):
                self.tensors.append(self.tensor(p.memory, t))

    def tensor(self, m: Memory, t: MemoryTensor) -> Tensor:
        assert m.rule is not None
        type_ = Type(shape=t.shape, batch=True, heads=m.heads)
        gradient, program, project = prepared(m.rule, m, t)
        return Tensor(
            m,
            t,
            gradient,
            program,
            type_,
            self.leaf(m, t, "g"),
            self.leaf(m, t, "error" if m.decay_first else "now"),
            project=project,
        )

    def leaf(self, m: Memory, t: MemoryTensor, when: str) -> Node:
        return state(m, t.path, when, Type(shape=t.shape, heads=m.heads))

    # before the update -----------------------------------------------------------------------------

    def gradients(self) -> None:
        """g of every tensor: the sum over the ticks since the last update; and K where the rule is dgd."""
        for t in self.tensors:
            pairs = self.nodes.errors[t.memory.name].get(t.path, ())
            dense = self.nodes.dense[t.memory.name].get(t.path)
            if self.as_pair(t):
                continue
            sign = "*" if self.writer.one_token else "@"
            terms = [f"{self.em.atom(e)}.mT {sign} {self.em.atom(h)}" for h, e in pairs]
            if dense is not None:
                axis = -1 - len(t.spec.shape)
                terms.append(f"{self.em.atom(dense)}.{'squeeze' if self.writer.one_token else 'sum'}({axis})")
            if terms and t.memory.per == "model":
                terms = [self.of_all(t, " + ".join(terms))]
            text = " + ".join(terms) or f"torch.zeros_like({self.name(t, 'now')})"
            if t.memory.every > 1:
                text = f"{self.name(t, '@pending')} + {text}" if terms else self.name(t, "@pending")
            base = "g_" + identifier(t.path.removesuffix(".weight"))
            g = self.em.fresh(base, t.type)
            self.writer.line(f"{g} = {text}")
            self.em.bind(t.g, g)
            self.names[t.g] = g
            if has_dgd(t.memory) and pairs:
                self.gram(t, pairs)

    def as_pair(self, t: Tensor) -> bool:
        """At one token: keep g = e hᵀ, and dgd's K = h hᵀ, as their vectors where the rule asks for g in one place."""
        m, pairs = t.memory, self.nodes.errors[t.memory.name].get(t.path, ())
        dense = t.path in self.nodes.dense[m.name]
        if not self.writer.one_token or len(pairs) != 1 or dense or m.every > 1 or m.per == "model":
            return False
        steps = [s for s in t.program if isinstance(s, DgdStep)]
        rest = [t.gradient, *self.values(t.program), *([] if t.project is None else [t.project])]
        plain = t.gradient.op == "g" and uses(rest, "g") - 1 + len(steps) <= 1 and not uses(rest, "gram")
        ((h, e),) = pairs
        if not plain or any(m.weight is not None or m.ages or s.scale is not None for s in steps):
            return False
        if not all(self.value(t, s.lr).type.is_number for s in steps):
            return False
        for n in (h, bare(e)):
            self.em.variable(n)
        t.g, t.input = pair(e, h), h
        return True

    def count(self) -> None:
        """With `when`: how many ticks brought a pair since the last update, where that makes an update, which one."""
        m = self.first
        if m.when is None:
            return
        (when,) = [self.nodes.rate(m, m.when)]
        self.em.expression(when)
        brings = tensor(self.em, when, per_tick(m).with_(dtype="bool")).atom
        for p in self.plans:
            stored = self.names.get(self.counter(p.memory, TICKS))
            zero = f"torch.zeros_like({self.names[self.counter(p.memory, UPDATES)]})"
            seen = self.em.fresh("seen", self.counter(m, SEEN).type)
            self.writer.line(f"{seen} = {stored or zero} + {brings}.sum(-1)")
            self.names[self.counter(p.memory, SEEN)] = seen
            self.em.holder[seen] = None
            count = self.em.fresh("count", self.counter(m, COUNT).type)
            updates = self.names[self.counter(p.memory, UPDATES)]
            self.writer.line(f"{count} = {updates} + ({seen} > 0)")
            self.names[self.counter(p.memory, COUNT)] = count
            self.em.holder[count] = None

    @staticmethod
    def counter(m: Memory, name: str) -> Node:
        return state(m, "", name, Type("int", heads=m.heads))

    def made(self, m: Memory) -> Node:
        """Whether the memory learns now."""
        return ops.binary("gt", self.counter(m, SEEN), ops.const(0))

    def gram(self, t: Tensor, pairs: tuple[tuple[Node, Node], ...]) -> None:
        """K = Σ |weight| k kᵀ over the inputs of the tensor."""
        rule = t.memory.rule
        normalize, only = (rule.inputs if rule is not None else None) or (False, "**")
        if not matches(only, t.path):
            return
        m, terms = t.memory, []
        weight = None if m.weight is None else for_tensor(m.weight, t.path)
        for h, _ in pairs:
            k = unit(h) if normalize else h
            weighted = k
            for w in [*([weight] if weight is not None else []), *([m.ages[age_of(h)]] if m.ages else [])]:
                weighted = ops.binary("mul", ops.unary("abs", number(self.nodes.rate(m, w))), weighted)
            terms.append(f"{self.em.atom(weighted)}.mT @ {self.em.atom(k)}")
        if m.per == "model":
            terms = [self.of_all(t, " + ".join(terms))]
        text = " + ".join(([self.name(t, "@gram")] if m.every > 1 else []) + terms)
        width = t.spec.shape[1]
        leaf = self.leaf_k(t)
        k = self.em.fresh("k_" + identifier(t.path.removesuffix(".weight")), leaf.type)
        self.writer.line(f"{k} = {text}")
        self.em.bind(leaf, k)
        self.names[leaf] = k
        assert leaf.type.shape == (width, width)

    def of_all(self, t: Tensor, text: str) -> str:
        """One copy serves all rows: what they bring is summed, and each holds the sum."""
        return f"{self.writer.use('nestflow.ops.records', 'of_all')}({text}, {self.name(t, 'now')})"

    def leaf_k(self, t: Tensor) -> Node:
        width = t.spec.shape[1]
        return state(t.memory, t.path, "@k", Type(shape=(width, width), heads=t.memory.heads))

    def prefetch(self) -> None:
        """What the update reads of the context, before a condition makes its statements optional."""
        for t in self.tensors:
            parts = [self.last(t, n) for s in self.expressions(t) for n in context_parts(s)]
            for n in [*parts, *([] if t.memory.retain is None else [self.gate(t)])]:
                if self.writer.one_token and n.op == "last":
                    n = widened(n.args[0])
                self.em.variable(n)

    def expressions(self, t: Tensor) -> list[Node]:
        """Every expression of the tensor's update."""
        return [t.gradient, *self.values(t.program), *([] if t.project is None else [t.project])]

    @staticmethod
    def values(program: tuple[Statement, ...]) -> list[Node]:
        found: list[Node] = []
        for s in program:
            if isinstance(s, DgdStep):
                found += [s.lr] + ([s.scale] if s.scale is not None else [])
            else:
                found.append(s.value)
                if isinstance(s, SlotUpdate) and s.pending_value is not None:
                    found.append(s.pending_value)
        return found

    # the update ------------------------------------------------------------------------------------

    def update(self) -> None:
        """The statements that learn: the tensors' variables hold the new state afterwards."""
        transformed = [self.value(t, t.gradient) for t in self.tensors]
        for t, g in zip(self.tensors, transformed):
            if g is not t.g:
                t.g = self.kept(t, g, "g_" + identifier(t.path.removesuffix(".weight")))
        for i in range(len(self.tensors[0].program)):
            results = [self.statement(t, t.program[i]) for t in self.tensors]
            for commit in results:
                commit()
        for t in self.tensors:
            if not t.stepped:
                t.w = self.retained(t)
        for t in self.tensors:  # each tensor on its own
            if t.project is not None:
                t.w = self.kept(t, t.w, "stepped_" + identifier(t.path.removesuffix(".weight")))
                t.w = self.kept(t, self.value(t, t.project), "new_" + identifier(t.path.removesuffix(".weight")))
        finish(self)

    def wait(self) -> None:
        """Between updates: the sums go on."""
        wait(self)

    def statement(self, t: Tensor, s: Statement) -> Callable[[], None]:
        if not holds(s.where, t.spec.shape):
            return lambda: None
        if isinstance(s, Let):
            value = self.value(t, s.value)
            return lambda: t.named.update({s.name: value})
        if isinstance(s, SlotUpdate):
            return self.slot_update(t, s)
        value = self.dgd(t, s) if isinstance(s, DgdStep) else self.value(t, s.value)
        base = t.w if t.stepped else self.retained(t)
        stop = t.memory.gradient == "stop"
        if isinstance(s, SetWeight):
            after = ops.binary("add", base, ops.stop(ops.binary("sub", value, base))) if stop else value
        else:
            after = ops.binary("add", base, ops.stop(value) if stop else value)
        new = self.kept(t, after, "new_" + identifier(t.path.removesuffix(".weight")))

        def commit() -> None:
            t.w, t.stepped = new, True

        return commit

    def slot_update(self, t: Tensor, s: SlotUpdate) -> Callable[[], None]:
        """A memory of the rule; one with a period learns when it divides the updates."""
        base = f"new_{s.slot}_{identifier(t.path.removesuffix('.weight'))}"
        shape = self.slot(t, s.slot).type.shape
        if self.slot(t, s.slot)["tensor"] == "" and t is not self.tensors[0]:  # one number for the whole memory
            return lambda: t.new.update({s.slot: self.tensors[0].new[s.slot]})
        kept: Node | None = None
        if s.pending is not None and s.pending_value is not None:
            summed = ops.binary("add", self.slot(t, s.pending), self.value(t, s.pending_value))
            kept = t.new[s.pending] = self.kept(t, summed, f"sum_{base}", shape)
        new = self.value(t, s.value)
        if t.memory.gradient == "stop":
            new = ops.stop(new)
        if s.every == 1:
            new = self.kept(t, new, base, shape)
            return lambda: t.new.update({s.slot: new})
        if t.memory.when is not None:
            return self.slot_by_row(t, s, new, kept, base)
        updates = "t + n" if t.memory.every == 1 else f"(t + n) // {t.memory.every}"
        if t.memory.turns > 1:
            updates = f"(t + n - 1) * {t.memory.turns} + {t.memory.turn + 1}"
        due = f"({updates}) % {s.every} == 0"
        old = self.slot(t, s.slot)
        slot = self.chosen(t, due, new, old, base)
        rest = None if kept is None else self.chosen(t, due, None, kept, f"rest_{base}")

        def commit() -> None:
            t.new[s.slot] = slot
            if rest is not None and s.pending is not None:
                t.new[s.pending] = rest

        return commit

    def slot_by_row(self, t: Tensor, s: SlotUpdate, new: Node, kept: Node | None, base: str) -> Callable[[], None]:
        """A memory of the rule with a period, where every row counts its own updates."""
        of = ops.binary("mod", self.counter(t.memory, COUNT), ops.const(s.every))
        due = ops.binary("eq", of, ops.const(0))
        shape = self.slot(t, s.slot).type.shape
        slot = self.kept(t, ops.where(due, new, self.slot(t, s.slot)), base, shape)
        rest = None if kept is None else self.kept(t, ops.where(due, ops.const(0.0), kept), f"rest_{base}", shape)

        def commit() -> None:
            t.new[s.slot] = slot
            if rest is not None and s.pending is not None:
                t.new[s.pending] = rest

        return commit

    def chosen(self, t: Tensor, due: str, new: Node | None, old: Node, base: str) -> Node:
        """new (None: zeros) at updates that are due, old at the others."""
        was = self.em.value(old)
        value = f"torch.zeros_like({was})" if new is None else self.em.value(new)
        name = self.em.fresh(base, t.type)
        self.writer.line(f"{name} = {value} if {due} else {was}")
        leaf = state(t.memory, t.path, "variable:" + name, t.type)
        self.em.bind(leaf, name)
        return leaf

    def kept(self, t: Tensor, node: Node, base: str, shape: tuple[int, ...] | None = None) -> Node:
        """The value in a variable of its own, of the tensor's shape."""
        if node.type.shape != (t.type.shape if shape is None else shape) or not node.type.batch:
            node = ops.binary("add", ops.binary("mul", ops.const(0.0), self.leaf(t.memory, t.spec, "now")), node)
        node = absorbed(node)
        for x in shared(node):
            self.em.variable(x)
        e = self.em.expression(node)
        if not e.text.isidentifier():
            self.em.assign(node, e, base)
        return node

    # values ----------------------------------------------------------------------------------------

    def value(self, t: Tensor, node: Node) -> Node:
        """An expression of the rule for one tensor."""

        def change(n: Node, args: tuple[Node, ...]) -> Node | None:
            if n.op in ("g", "w", "w0", "w_chunk"):
                return {"g": t.g, "w": t.w}.get(n.op) or self.leaf(
                    t.memory, t.spec, "start" if n.op == "w0" else "chunk"
                )
            if n.op == "slot_old":
                return self.slot(t, n["name"])
            if n.op == "slot_new":
                return t.new[n["name"]]
            if n.op == "gram":
                width = math.prod(t.spec.shape[1:])
                known = len(t.spec.shape) == 2 and self.leaf_k(t) in self.names
                return self.leaf_k(t) if known else ops.leaf("fill", Type(shape=(width, width)), kind="zeros")
            if n.op == "named":
                return t.named[n["name"]]
            if n.op == "as_matrix":
                rows, *rest = t.spec.shape
                return ops.reshape(args[0], (rows, math.prod(rest)))
            if n.op == "like_w":
                return ops.reshape(args[0], t.spec.shape)
            if n.op == "eye_of":
                size = int(args[0].value)
                return ops.leaf("fill", Type(shape=(size, size)), kind="eye")
            if n.op in ("norm_all", "total"):
                return self.over_all(n)
            if n.op == "norm_w":
                return ops.root(ops.reduce("sum", ops.unary("square", args[0])))
            if n.op == "norm_rows":
                rows = ops.unary("square", args[0])
                return ops.root(ops.reduce("sum", rows, -1, keep=True)) if t.spec.shape else ops.unary("abs", args[0])
            if n.op == "sqrt" and any(
                a.type.like for a in walk(n)
            ):  # √v of an Adam: v = 0 only where g has been 0 all along
                return ops.root(args[0])
            if n.op in ("sum", "mean", "amax") and n.args[0].type.like:
                axis = n["axes"][0] if n["axes"] else None
                return ops.reduce(n.op, args[0], axis, axis is not None)
            if n.op == "newton_schulz" and len(t.spec.shape) < 2:
                return args[0]
            if is_context(n):
                return self.last(t, n)
            return None

        # context expressions are taken whole: what is above them is typed anew
        return rewrite([node], change)[0]

    def last(self, t: Tensor, n: Node) -> Node:
        """A context value at the tick that learns."""
        (x,) = [self.nodes.rate(t.memory, n)]
        if x.type.is_number:
            x = number(x)
        return make("last", (x,), x.type.with_(clock=None)) if x.type.clock else x

    def over_all(self, n: Node) -> Node:
        terms: Node | None = None
        for t in self.tensors:
            x = self.value(t, n.args[0])
            one = ops.reduce("sum", ops.unary("square", x) if n.op == "norm_all" else x)
            terms = one if terms is None else ops.binary("add", terms, one)
        assert terms is not None
        return ops.root(terms) if n.op == "norm_all" else terms

    def gate(self, t: Tensor) -> Node:
        assert t.memory.retain is not None
        return self.last(t, for_tensor(t.memory.retain, t.path))

    def retained(self, t: Tensor) -> Node:
        """retain(w)."""
        m = t.memory
        return t.w if m.retain is None or m.decay_first else decayed(m, t.w, self.gate(t))

    def dgd(self, t: Tensor, s: DgdStep) -> Node:
        """−η(w K + g), η = lr/(1 + lr tr K) if exact; gd(lr) for a tensor without an input."""
        if t.input is not None:
            return dgd_of_pair(self, t, s, t.input)
        lr, k = self.value(t, s.lr), self.leaf_k(t) if len(t.spec.shape) == 2 else None
        if k is None or k not in self.names:
            return ops.unary("neg", ops.binary("mul", lr, t.g))
        gram = k if s.scale is None else ops.binary("mul", self.value(t, s.scale), k)
        if s.exact:
            eye = ops.leaf("fill", Type(shape=k.type.shape), kind="eye")
            trace = ops.reduce("sum", ops.binary("mul", gram, eye))
            lr = ops.binary("div", lr, ops.binary("add", ops.const(1.0), ops.binary("mul", lr, trace)))
        return ops.unary("neg", ops.binary("mul", lr, ops.binary("add", ops.matmul(t.w, gram), t.g)))

    def slot(self, t: Tensor, name: str) -> Node:
        return slot_leaf(t.memory, t.spec, name)

    def name(self, t: Tensor, when: str) -> str:
        type_ = self.leaf_k(t).type if when == "@gram" else Type(shape=t.spec.shape, heads=t.memory.heads)
        return self.names[state(t.memory, t.path, when, type_)]


__all__ = ["RuleCode", "context_parts", "decayed", "slot_leaf"]
