"""Is an update rule linear? The symbolic basis test: evaluate its program on {w, every slot, g} instead of on tensors.

A rule is linear if each of its states comes out as a combination of these with coefficients that are numbers of the
tick. What is found is a triangular recurrence, slot by slot in the rule's order and the memory last:

    x_t = decay_t · x_{t−1} + Σ coefficient_t · (g_t, or another slot's new or old value)

from which `nestflow.ops.coefficients` makes the closed form of a whole block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nestflow.graph.model import Memory, MemoryTensor
from nestflow.graph.state import keeps_anchor
from nestflow.ir import ops
from nestflow.ir.choices import chosen, for_tensor
from nestflow.ir.construct import number, rewrite
from nestflow.ir.forms import facts_of as facts_of_shape
from nestflow.ir.forms import holds
from nestflow.ir.node import Node, Type, depends, walk
from nestflow.ir.pullback import times
from nestflow.ir.rule import DgdStep, Let, Rule, SetWeight, SlotUpdate, Statement
from nestflow.lowering.schedules import scheduled

ONE, ZERO = ops.const(1.0), ops.const(0.0)
Form = dict[Node, Node]


def is_zero(n: Node) -> bool:
    return ops.is_const(n, 0)


AS_CHUNK_BEGAN = "@chunk"


class NotLinear(Exception):
    """A plain sentence: why the rule has no closed form."""


@dataclass(frozen=True)
class Carry:
    """One state of the rule: slot name ("" is the memory itself, "@chunk" what it was as the chunk began), its decay,
    and what drives it: pairs of a source ("g", "new:SLOT", "old:SLOT") and a coefficient."""

    slot: str
    decay: Node
    drive: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class LinearRule:
    """carries: in the order they are computed, the memory last. dgd: the rule is a delta step (its rate then lies in
    the coefficient of g, and the error reads the weight it changes)."""

    carries: tuple[Carry, ...]
    dgd: DgdStep | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """The order of the starts: the memory first."""
        return ("", *(c.slot for c in self.carries if c.slot))

    def support(self, slot: str, pending: bool) -> frozenset[str]:
        """The starts that a state is made of: its own, those of what drives it, "@pending" where errors are summed."""
        found: dict[str, frozenset[str]] = {}
        for c in self.carries:
            names = frozenset() if is_zero(c.decay) else frozenset({c.slot})
            if pending:  # between updates every state stays as it is
                names |= {c.slot, "@pending"}
            for where, _ in c.drive:
                if where != "g":
                    names |= found[where.partition(":")[2]] | {where.partition(":")[2]}
            found[c.slot] = names
        return found[slot] if slot in found else frozenset({slot})

    def coefficients(self) -> tuple[Node, ...]:
        return tuple(n for c in self.carries for n in (c.decay, *(k for _, k in c.drive)))


def position() -> Node:
    return ops.leaf("position", Type("int", batch=True, clock="T"))


def facts_of(tensor: MemoryTensor) -> dict[str, int]:
    """What a rule may ask of one weight."""
    return facts_of_shape(tensor.shape)


def prepared(rule: Rule, memory: Memory, tensor: MemoryTensor) -> tuple[Node, tuple[Statement, ...], Node | None]:
    """The rule of one tensor: arguments, facts and counters put in: its gradient, its program, its projection."""
    facts = facts_of(tensor)
    arguments = dict(rule.arguments)

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "each":
            return chosen(n, args, tensor.path)
        if n.op == "hyper":
            value = put(rule.expand(arguments[n["name"]]))  # it may count updates too
            return number(value) if value.type.is_number else value
        if n.op == "fact" and n["name"] in facts:
            return ops.const(facts[n["name"]])
        if n.op == "n_ticks":
            return ops.const(memory.every) if memory.when is None or memory.every == 1 else own_count(memory, SEEN)
        if n.op == "updates":
            return counted(memory) if memory.when is None else own_count(memory, COUNT)
        if n.op == "schedule":
            return scheduled(memory, n)
        if n.op == "debias":
            return debiased(rule, memory, n, args)
        if n.op == "where" and args[0].op == "const":  # what this tensor is not, is not asked
            return args[1] if args[0].value else args[2]
        return None

    memo: dict[Node, Node] = {}

    def put(n: Node) -> Node:
        return rewrite([n], change, memo)[0]

    program: list[Statement] = []
    for s in rule.program:
        if isinstance(s, DgdStep):
            program.append(replace(s, lr=put(s.lr), scale=None if s.scale is None else put(s.scale)))
        elif isinstance(s, SlotUpdate):
            pending = None if s.pending_value is None else put(s.pending_value)
            program.append(replace(s, value=put(s.value), pending_value=pending))
        else:
            program.append(replace(s, value=put(s.value)))
    return put(rule.gradient), tuple(program), None if rule.project is None else put(rule.project)


def debiased(rule: Rule, memory: Memory, n: Node, args: tuple[Node, ...]) -> Node:
    """m / (1 − rᵗ), t the updates of m."""
    retain = args[1]
    assert retain.op == "const"  # of one that varies the graph keeps the product (nestflow.graph.rules.resets)
    every = next((s.every for s in rule.program if isinstance(s, SlotUpdate) and s.slot == n["slot"]), 1)
    if memory.when is None:
        count = counted(memory, every)
    else:
        count = ops.binary("max", ops.binary("floordiv", own_count(memory, COUNT), ops.const(every)), ops.const(1))
    return ops.binary("div", args[0], ops.binary("sub", ONE, ops.binary("pow", ops.const(float(retain.value)), count)))


SEEN, COUNT = "@seen", "@count"


def own_count(memory: Memory, name: str) -> Node:
    """With `when` each row counts for itself: the ticks that brought a pair since the last update, or the updates,
    those of this tick included. At least 1."""
    type_ = Type("int", batch=True, heads=memory.heads)
    return ops.binary("max", ops.leaf("state", type_, memory=memory.name, tensor="", when=name), ops.const(1))


def counted(memory: Memory, period: int = 1) -> Node:
    """The updates so far, this one included, of what learns at every `period`-th of them. At least 1: rows before the
    first are computed too, and not used."""
    period *= memory.every
    count = position()
    if memory.reset is not None and not memory.keep_rule:
        since = ops.binary("mod", ops.binary("sub", count, ops.const(1)), ops.const(memory.reset))
        count = ops.binary("add", since, ops.const(1))
    if memory.turns > 1:
        before = ops.binary("mul", ops.binary("sub", count, ops.const(1)), ops.const(memory.turns))
        count = ops.binary("add", before, ops.const(memory.turn + 1))
    if period == 1:
        return count
    return ops.binary("max", ops.binary("floordiv", count, ops.const(period)), ops.const(1))


def linear_rule(memory: Memory, tensor: MemoryTensor) -> LinearRule:
    """The recurrence of one tensor of a memory. Raises NotLinear with the reason."""
    rule = memory.rule
    if rule is None:
        return LinearRule((Carry("", ONE, ()),))
    if memory.retain_on not in ("number", "key"):
        raise NotLinear("its gate is not one number per tick, nor one for each key channel")
    if memory.retain_on == "key" and (rule.slots or memory.every > 1):
        raise NotLinear("its gate is a vector, and its rule keeps memories or sums errors")
    gradient, program, project = prepared(rule, memory, tensor)
    if project is not None:
        raise NotLinear("`project` changes every new state")
    if any(s.like == "tensor" and s.shape(tensor.shape) is not None for s in rule.slots):
        raise NotLinear("its memories have shapes of their own")
    if memory.reset_where is not None:
        raise NotLinear("rows begin anew at ticks of their own (`reset where`)")
    if memory.when is not None and memory.every > 1:
        raise NotLinear("`when` leaves out updates, and errors are summed between them")
    test = BasisTest(gradient)
    carries: list[Carry] = []
    read = [gradient, *(s.value for s in program if not isinstance(s, DgdStep))]
    if any(n.op == "w_chunk" for n in walk(*read)):
        if not keeps_anchor(memory) or memory.retain_on == "key":
            raise NotLinear("it reads `w_chunk`")
        carries.append(Carry(AS_CHUNK_BEGAN, ONE, ()))  # one more start, which stays as it is to the chunk's end
    retain = ONE if memory.retain is None else gate_of(memory, tensor.path)
    weight: Form | None = None
    dgd: DgdStep | None = None
    for s in program:
        if not holds(s.where, tensor.shape):
            continue
        if isinstance(s, Let):
            raise NotLinear("it keeps a value of the weight from before its step")
        if isinstance(s, SlotUpdate):
            if s.every > 1 or s.pending is not None:
                raise NotLinear(f"its memory `{s.slot}` has a period of its own")
            if weight is not None:
                raise NotLinear("its program learns more after the step")
            carries.append(test.carry(s.slot, test.form(s.value)))
        elif isinstance(s, DgdStep):
            dgd, weight = s, test.form(delta_step(s))
        else:
            if dgd is not None:
                raise NotLinear("its program goes on after `dgd`")
            if weight is not None and depends(s.value, lambda n: n.op == "w"):
                raise NotLinear("it reads the weight after the step")
            step = test.form(s.value)
            if isinstance(s, SetWeight):
                weight = step
            else:
                weight = added(weight or {ops.leaf("w", Type(like=True)): retain}, step)
    if weight is None:
        weight = {}
    if dgd is not None:
        weight = added({ops.leaf("w", Type(like=True)): retain}, weight)
    carries.append(test.carry("", weight))
    return LinearRule(tuple(carries if memory.when is None else sometimes(carries, memory.when, dgd)), dgd)


def sometimes(carries: list[Carry], when: Node, dgd: DgdStep | None) -> list[Carry]:
    """Where a tick brings no pair every state stays as it is."""
    if dgd is not None:
        raise NotLinear("`when` leaves out updates by `dgd`")
    found = [
        Carry(c.slot, ops.where(when, c.decay, ONE), tuple((at, ops.where(when, k, ZERO)) for at, k in c.drive))
        for c in carries
    ]
    if any(depends(n, lambda x: x.op == "state") for c in found for n in (c.decay, *(k for _, k in c.drive))):
        raise NotLinear("`when` leaves out updates, and it counts them")
    return found


def gate_of(memory: Memory, tensor: str) -> Node:
    """The memory's retain for one of its tensors: a number, or a vector on the key axis."""
    assert memory.retain is not None
    return memory.retain if memory.retain_on == "key" else number(for_tensor(memory.retain, tensor))


def delta_step(s: DgdStep) -> Node:
    """The part of a delta step that g drives (the erasing part goes into the error itself)."""
    return ops.unary("neg", ops.binary("mul", s.lr, ops.leaf("g", Type(like=True))))


def added(a: Form, b: Form, sign: float = 1.0) -> Form:
    result = dict(a)
    for key, c in b.items():
        c = times(ops.const(sign), c)
        result[key] = ops.binary("add", result[key], c) if key in result else c
    return result


class BasisTest:
    """Evaluates expressions of one rule as linear forms over its basis."""

    def __init__(self, gradient: Node) -> None:
        self.memo: dict[Node, Form | None] = {}
        self.known: list[str] = []
        self.gradient = self.form(gradient)
        self.memo.clear()  # there `g` was the raw gradient; in the program it is what the stages made of it

    def carry(self, slot: str, form: Form) -> Carry:
        """The recurrence of a state that becomes `form`; its slots must be known by then."""
        decay: Node = ZERO
        drive: list[tuple[str, Node]] = []
        for key, c in form.items():
            own = key.op == "w" if slot == "" else key.op == "slot_old" and key["name"] == slot
            if own:
                decay = c
            elif key.op == "g":
                drive.append(("g", c))
            elif key.op == "w_chunk":
                drive.append(("new:" + AS_CHUNK_BEGAN, c))
            elif key.op == "w":
                raise NotLinear(f"its memory `{slot}` reads the weight it changes")
            elif key["name"] not in self.known:
                raise NotLinear(f"its memories `{slot}` and `{key['name']}` read each other")
            else:
                drive.append((("new:" if key.op == "slot_new" else "old:") + key["name"], c))
        if slot:
            self.known.append(slot)
        return Carry(slot, decay, tuple(drive))

    def form(self, root: Node) -> Form:
        for n in walk(root):
            if n not in self.memo:
                self.memo[n] = self.one(n)
        result = self.memo[root]
        if result is None:
            if ops.is_const(root, 0):
                return {}
            raise NotLinear("its step has a part that does not come from g or its memories")
        return result

    def one(self, n: Node) -> Form | None:
        """The form of a node whose arguments are known; None where it is free of the basis."""
        if n.op == "g" and hasattr(self, "gradient"):
            return self.gradient
        if n.op in ("g", "w", "w_chunk", "slot_old", "slot_new"):
            return {n: ONE}
        if n.op == "w0":
            raise NotLinear(f"it reads `{n.op}`")
        forms = [self.memo[a] for a in n.args]
        if all(f is None for f in forms):
            return None
        return self.combine(n, forms)

    def combine(self, n: Node, forms: list[Form | None]) -> Form:
        a, b = (*forms, None)[:2]
        if n.op == "neg" and a is not None:
            return added({}, a, -1.0)
        if n.op in ("add", "sub"):
            if (a is None and not ops.is_const(n.args[0], 0)) or (b is None and not ops.is_const(n.args[1], 0)):
                raise NotLinear("its step has a part that does not come from g or its memories")
            return added(a or {}, b or {}, -1.0 if n.op == "sub" else 1.0)
        if n.op == "mul" and (a is None or b is None):
            form, c = (a, n.args[1]) if b is None else (b, n.args[0])
            return self.scaled(form or {}, c, "mul")
        if n.op == "div" and a is not None and b is None:
            return self.scaled(a, n.args[1], "div")
        if n.op == "where" and forms[0] is None:
            if any(f is None and not is_zero(a) for f, a in zip(forms[1:], n.args[1:])):
                raise NotLinear("its step has a part that does not come from g or its memories")
            x, y = forms[1] or {}, forms[2] or {}
            c = number(n.args[0])
            return {k: ops.where(c, x.get(k, ZERO), y.get(k, ZERO)) for k in {**x, **y}}
        raise NotLinear(f"it applies `{n.op}` to g or to a memory")

    @staticmethod
    def scaled(form: Form, c: Node, op: str) -> Form:
        if not c.type.is_number:
            raise NotLinear("one of its rates is not one number per tick")
        c = number(c)
        if op == "div":
            return {k: ops.binary("div", x, c) for k, x in form.items()}
        return {k: times(x, c) for k, x in form.items()}
