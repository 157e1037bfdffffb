"""An update rule as the body of one Python function that changes a weight and its memories in place.

Rates that are numbers come from the param group, so that torch's schedulers and per-group settings work; an argument
that depends on the gradient or the weight is written out where it is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nestflow.emit.numbers import ATOM, OR, POWER, PRODUCT, SUM, Text, is_number, number
from nestflow.emit.rules.matrices import scaled_eye, zeros
from nestflow.emit.rules.memories import MemoryLines
from nestflow.emit.rules.parts import (
    TAKEN,
    key,
    lift_schedules,
    opposite,
    place,
    resolve,
    schedule_call,
    settle_order,
    static_parts,
)
from nestflow.emit.tensors import Product, Tensors
from nestflow.ir import ops
from nestflow.ir.forms import Form
from nestflow.ir.node import Node, depends, walk
from nestflow.ir.rule import DgdStep, Let, Rule, RuleSlot, SetWeight, SlotUpdate, Statement, Step

WIDTH = 110  # inside a method


@dataclass
class RuleCode:
    """What is emitted for one rule. hypers, schedules, slots: name -> Python text. update, evaluate: lines."""

    hypers: dict[str, str]
    schedules: dict[str, str]
    schedule_facts: tuple[str, ...]
    slots: dict[str, str]
    update: list[str]
    evaluate: list[str]
    helpers: set[str]
    collective: bool
    needs_math: bool
    reads_inputs: bool
    text: str = ""
    normalize: bool = False
    only: str = "**"
    present: dict[str, str] = field(default_factory=dict[str, str])
    shared: tuple[str, ...] = ()
    curvature: str = ""  # when it is read: a condition on t


@dataclass
class _Lines:
    lines: list[str] = field(default_factory=list)
    indent: str = ""
    note: str = ""

    def shift(self, columns: int) -> None:
        """Indent what follows, or take that back."""
        self.indent = " " * (len(self.indent) + columns)

    def add(self, text: str) -> None:
        text = self.indent + text
        if self.note and len(text) + len(self.note) + 4 > WIDTH:
            self.lines.append(f"{self.indent}# {self.note}")
            self.lines.append(text)
        else:
            self.lines.append(f"{text}  # {self.note}" if self.note else text)
        self.note = ""


class RuleWriter(MemoryLines):
    """Writes the functions of one rule."""

    def __init__(self, rule: Rule) -> None:
        rule = lift_schedules(rule)
        self.settled, self.timed = static_parts(rule)
        self.rule = resolve(rule)
        self.out = _Lines()
        self.used: set[str] = set()
        self.facts: set[str] = set()
        self.counts_ticks = self.counts_updates = False
        self.products: dict[str, str] = {}  # memories whose retain varies: the number that holds its running product
        self.periods = {s.slot: s.every for s in self.rule.program if isinstance(s, SlotUpdate)}
        self.slot_kinds = {s.name: s for s in self.rule.slots}
        self.variables = (
            set(TAKEN) | {key(s.name) for s in self.rule.slots} | {key(n) for n in (*self.settled, *self.timed)}
        )
        self.tensors = Tensors(self.out.add, self._name, self._leaf, self._kept, self.out.shift)
        self.blocks: list[tuple[int, Node]] = []  # lines of `if` on what w is, whose memories are read inside

    # --- leaves ----------------------------------------------------------------------------------------

    def _name(self, base: str) -> str:
        name, n = base, 1
        while name in self.variables:
            n += 1
            name = f"{base}_{n}"
        self.variables.add(name)
        return name

    def _leaf(self, node: Node) -> Text:
        if node.op == "hyper":
            self.used.add(node["name"])
            return Text(key(node["name"]))
        if node.op == "fact":
            self.facts.add(node["name"])
            return Text(f"fact.{node['name']}")
        if node.op == "updates":
            self.counts_updates = True
            return Text("t")
        if node.op == "n_ticks":
            self.counts_ticks = True
            return Text("n_ticks")
        return self._schedule(node)

    def _schedule(self, node: Node) -> Text:
        self.tensors.helper(node["kind"])
        return Text(schedule_call(node, "tick", "total", "every"))

    def _kept(self, node: Node) -> Text:
        """1 − the product of the retains of a memory so far."""
        slot, retain = node.args[0]["name"], node.args[1]
        constant = not depends(retain, lambda n: n.op not in ("const", "hyper", "fact") and not n.args) and not any(
            n.op == "hyper" and n["name"] in self.timed for n in walk(retain)
        )
        if not constant:
            return Text(f"1 - {self.products[slot]}", SUM)
        self.counts_updates = True
        every = self.periods.get(slot, 1)
        times = "t" if every == 1 else f"max(t // {every}, 1)"
        return Text(f"1 - {self.tensors.number(retain).at(ATOM)}**{times}", SUM)

    # --- statements ------------------------------------------------------------------------------------

    def write(self) -> RuleCode:
        """All functions of the rule."""
        rule, tensors = self.rule, self.tensors
        tensors.bound = {n: n.op for n in self._leaves() if n.op in ("g", "w", "curvature")}
        order = settle_order(rule.program)
        for s in order:
            if isinstance(s, SlotUpdate):
                tensors.bound.update(
                    {n: key(s.slot) for n in self._leaves() if n.op == "slot_old" and n["name"] == s.slot}
                )
        if any(n.op == "gram" for n in self._leaves()):
            zero = f"{self.tensors.helper('zeros_of')}(w, fact.heads, fact.cols, fact.cols)"
            self.out.add(f"gram = {zero} if gram is None else gram")
            tensors.bound.update({n: "gram" for n in self._leaves() if n.op == "gram"})
        self._starting_values()
        self._running_products()
        self._gradient()
        for s in order:
            roots = [s.lr] if isinstance(s, DgdStep) else [s.value]
            tensors.count(
                *roots, *([s.pending_value] if isinstance(s, SlotUpdate) and s.pending_value is not None else [])
            )
        for i, s in enumerate(order):
            if i and s.where is not None and s.where is order[i - 1].where:
                continue
            if s.where is None:
                self.out.note = place(s.span or rule.span)
                self._statement(s, order[i + 1 :])
            else:
                same = next((j for j in range(i, len(order)) if order[j].where is not s.where), len(order))
                self._block(order[i:same], order[same:], None if i == 0 else order[i - 1].where)
        body = self.out.lines
        update = self._prelude(body) + list(body)
        evaluate = self._evaluate()
        return RuleCode(
            *self._arguments(),
            self._slots(),
            update,
            evaluate,
            tensors.helpers,
            tensors.collective,
            tensors.needs_math,
            rule.inputs is not None,
            rule.text,
            *self._inputs(),
            self._present(),
            tuple(key(s.name) for s in self.rule.slots if s.shared),
            self._curvature(),
        )

    def _block(self, block: list[Statement], later: list[Statement], before: Node | None) -> None:
        """Statements for some weights only: `if fact.ndim >= 2:`."""
        where = block[0].where
        assert where is not None
        other = before is not None and (where is opposite(before) or before is opposite(where))
        self.out.add("else:" if other else f"if {self.tensors.number(where).text}:")
        outside = dict(self.tensors.bound)
        self.out.shift(4)
        start = len(self.out.lines)
        for i, s in enumerate(block):
            self.out.note = place(s.span or self.rule.span)
            self._statement(s, block[i + 1 :] + later)
        own = [key(s.name) for s in self.rule.slots if s.where is not None]
        read = self._taken(own, "\n".join(self.out.lines[start:]), "state", len(self.out.indent))
        self.out.lines[start:start] = [self.out.indent + x for x in read]
        self.out.shift(-4)
        kept = {n: v for n, v in self.tensors.bound.items() if n.op in ("slot_old", "slot_new")}
        self.tensors.bound = outside | kept
        if any(not isinstance(s, (SlotUpdate, Let)) for s in block):
            self.tensors.forget(lambda n: n.op == "w" and bool(n.args) is False)
            self.tensors.bound.update({n: "w" for n in self._leaves() if n.op == "w"})

    def _taken(self, names: list[str], text: str, source: str, indent: int = 0) -> list[str]:
        """`m, v = state["m"], state["v"]` for the names that the text uses."""
        rows: list[list[str]] = [[]]
        for n in (n for n in names if re.search(rf"\b{re.escape(n)}\b", text)):
            if sum(2 * len(x) + len(source) + 8 for x in (*rows[-1], n)) > WIDTH - indent:
                rows.append([])
            rows[-1].append(n)
        return [", ".join(row) + " = " + ", ".join(f'{source}["{n}"]' for n in row) for row in rows if row]

    def _curvature(self) -> str:
        """When the rule reads a curvature: under one condition on the count of updates, or always."""
        users = [n for n in walk(*self.rule.nodes()) if any(a.op == "curvature" for a in n.args)]
        roots = [x for s in self.rule.program if not isinstance(s, DgdStep) for x in [s.value]]
        if not any(depends(x, lambda n: n.op == "curvature") for x in roots):
            return ""
        conditions: set[Node] = set()
        stack = list(roots)
        while stack:
            n = stack.pop()
            if not depends(n, lambda x: x.op == "curvature"):
                continue
            if n.op == "where" and is_number(n.args[0]) and not depends(n.args[2], lambda x: x.op == "curvature"):
                conditions.add(n.args[0])
            elif n.op == "curvature":
                return "True"
            else:
                stack.extend(n.args)
        assert users
        counts = self.counts_updates
        text = " or ".join(self.tensors.number(c).at(OR) for c in conditions)
        self.counts_updates = counts
        return text if not any(n.op == "hyper" for c in conditions for n in walk(c)) else "True"

    def _inputs(self) -> tuple[bool, str]:
        return self.rule.inputs or (False, "**")

    def _leaves(self) -> list[Node]:
        return [n for n in walk(*self.rule.nodes()) if not n.args]

    def _starting_values(self) -> None:
        for n in self._leaves():
            if n.op == "w0":
                self.tensors.bound[n] = "w0"
            elif n.op == "w_chunk":
                self.out.add("w_chunk = w.clone()")
                self.tensors.bound[n] = "w_chunk"

    def _running_products(self) -> None:
        for n in walk(*self.rule.nodes()):
            if n.op == "debias":
                leaves = {x for x in walk(n.args[1]) if not x.args}
                if any(
                    x.op not in ("const", "hyper", "fact") or (x.op == "hyper" and x["name"] in self.timed)
                    for x in leaves
                ):
                    self.products.setdefault(n.args[0]["name"], self._name(f"{key(n.args[0]['name'])}_kept"))

    def _gradient(self) -> None:
        if self.rule.gradient.op == "g":
            return
        self.tensors.count(self.rule.gradient)
        self.out.note = place(self.rule.span)
        before = dict(self.tensors.bound)
        self.out.add(f"g = {self.tensors.text(self.rule.gradient).text}")
        self.tensors.bound = before
        self.tensors.uses.clear()

    def _statement(self, s: Statement, later: list[Statement]) -> None:
        if isinstance(s, SlotUpdate):
            self._memory(s, later)
        elif isinstance(s, Step):
            self._step(s.value)
        elif isinstance(s, Let):
            self._let(s)
        elif isinstance(s, SetWeight):
            self.out.add(f"w.copy_({self.tensors.text(s.value).text})")
        else:
            self._dgd(s)
        if not isinstance(s, (SlotUpdate, Let)):
            self.tensors.forget(lambda n: n.op == "w" and bool(n.args) is False)
            self.tensors.bound.update({n: "w" for n in self._leaves() if n.op == "w"})

    def _let(self, s: Let) -> None:
        """A name for a value as it is before a step: it is computed here."""
        e = self.tensors.text(s.value)
        variable = self.tensors.bound.get(s.value)
        if variable in (None, "w"):
            variable = self._name(key(s.name))
            self.out.add(f"{variable} = {e.text}{'.clone()' if e.text == 'w' else ''}")
        self.tensors.bound.update({n: variable for n in self._leaves() if n.op == "named" and n["name"] == s.name})

    def _step(self, value: Node) -> None:
        p = self.tensors.product(value)
        if len(p.tensors) == 1 and p.tensors[0].op == "w" and not p.below:
            change = f"1 {'-' if p.sign < 0 else '+'} {p.factor(positive=True).at(PRODUCT)}"
            self.out.add(f"w.mul_({change})")
            return
        line = "w" + self._gain(value)
        if len(line) > WIDTH:  # the parts get names of their own
            for x in (*p.tensors, *p.below):
                if x.args and x not in self.tensors.bound and len(self.tensors.text(x).text) > 30:
                    self.tensors.bind(x, self.tensors.text(x))
            line = "w" + self._gain(value)
        self.out.add(line)

    def _gain(self, value: Node) -> str:
        """`.add_(x, alpha=c)` and the like: adds the value in place."""
        tensors = self.tensors
        if value in tensors.bound or value.op in ("add", "sub"):
            return f".add_({tensors.text(value).text})"
        p = tensors.product(value, squares=True)
        number_beside = p.factor()
        scale = "" if p.plain else number_beside.text
        if not p.tensors and not p.below:
            return f".add_({number_beside.text})"
        if len(p.tensors) == 1 and len(p.below) == 1:
            top, below = tensors.text(p.tensors[0]).text, tensors.text(p.below[0]).text
            return f".addcdiv_({top}, {below}{f', value={scale}' if scale else ''})"
        if len(p.tensors) == 2 and not p.below:
            a, b = (tensors.text(x).text for x in p.tensors)
            return f".addcmul_({a}, {b}{f', value={scale}' if scale else ''})"
        if not p.tensors:
            return f".add_({tensors.text(value).text})"
        inside = tensors._times(self._joined(p.tensors), Product(), p.below)
        return f".add_({inside.text}{f', alpha={scale}' if scale else ''})"

    def _joined(self, nodes: list[Node]) -> Text:
        first = self.tensors.text(nodes[0])
        rest = [self.tensors.text(x).at(POWER) for x in nodes[1:]]
        return Text(" * ".join([first.at(PRODUCT), *rest]), PRODUCT, True) if rest else first

    def _dgd(self, s: DgdStep) -> None:
        gram = "gram"
        if s.scale is not None and not ops.is_const(s.scale, 1):
            self.out.add(f"gram = None if gram is None else gram * {self.tensors.text(s.scale).at(PRODUCT)}")
        exact = "" if s.exact else ", exact=False"
        self.out.add(
            f"w.add_({self.tensors.helper('delta_step')}(w, g, {gram}, {self.tensors.text(s.lr).text}{exact}))"
        )

    # --- the other functions ---------------------------------------------------------------------------

    def _arguments(self) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
        """Texts of the arguments that are in use (lr always), and the facts that schedules look at."""
        used = set(self.used) | ({"lr"} & {*self.settled, *self.timed})
        hypers = {key(n): number(node, self._leaf).text for n, node in self.settled.items() if n in used}
        self.facts.clear()
        schedules = {key(n): number(node, self._leaf).text for n, node in self.timed.items() if n in used}
        self.tensors.needs_math |= any("math." in x for x in (*hypers.values(), *schedules.values()))
        return hypers, schedules, tuple(sorted(self.facts))

    def _slots(self) -> dict[str, str]:
        slots: dict[str, str] = {}
        for s in self.rule.slots:
            slots[key(s.name)] = self._start(s)
        if any(n.op == "w0" for n in self._leaves()):
            slots["w0"] = f"{self.tensors.helper('copy_of')}(w)"
        for product in self.products.values():
            slots[product] = "torch.ones((), dtype=torch.float64)"
        if self.rule.eval is not None:
            slots["training_weight"] = f"{self.tensors.helper('zeros')}(w)"
        return slots

    def _start(self, slot: RuleSlot) -> str:
        init, like = self.rule.expand(slot.init), slot.like
        if init.op == "w":
            return f"{self.tensors.helper('copy_of')}(w)"
        if like == "number":
            return f"{self.tensors.helper('number_of')}(w, fact.heads, {self.tensors.text(init).text})"
        zero = f"{self.tensors.helper('zeros')}(w)"
        if slot.own is not None:
            helper, zero = zeros(slot.own, lambda n: self.tensors.number(n).text)
            self.tensors.helper(helper)
        if init.op == "draw":
            sizes = "None" if slot.own is None else self._sizes(slot.own)
            draws = f"{init['kind']!r}, {init['a']!r}, {init['b']!r}"
            return f'{self.tensors.helper("drawn")}(w, fact, "{key(slot.name)}", {sizes}, {draws})'
        identity = scaled_eye(init)
        if identity is not None:
            size, scale = identity
            return f"{self.tensors.helper('eye_like')}(w, fact.heads, {self.tensors.number(size).text}, {scale!r})"
        if init.op == "const":
            return zero if init.value == 0 else f"{zero}.fill_({init.value!r})"
        return f"{zero}.add_({self.tensors.text(init).text})"

    def _sizes(self, form: Form) -> str:
        """The axes of a memory as a tuple."""
        if form.sizes is None:
            return f"tuple(zeros_along(w, {', '.join(map(str, sorted(form.single)))}).shape[fact.heads :])"
        return "(" + "".join(f"{self.tensors.number(n).text}, " for n in form.sizes).rstrip() + ")"

    def _present(self) -> dict[str, str]:
        """Memories that only some weights have, and the condition."""
        return {key(s.name): self.tensors.number(s.where).text for s in self.rule.slots if s.where is not None}

    def _prelude(self, body: list[str]) -> list[str]:
        """The lines that take rates and memories out of the group and the state."""
        text = "\n".join(body)
        rates = sorted((key(n) for n in self.used), key=[key(n) for n, _ in self.rule.arguments].index)
        inside = {key(s.name) for s in self.rule.slots if s.where is not None}
        memories = [k for k in self._slots() if k not in inside]
        lines = self._taken(rates, "\n".join([text, *rates]), "group") + self._taken(memories, text, "state")
        if self.counts_updates:
            lines.append('t = state["step"]  # updates of this weight, this one included')
        if self.counts_ticks:
            lines.append('n_ticks = group["n_ticks"]  # ticks summed in g')
        return lines

    def _evaluate(self) -> list[str]:
        if self.rule.eval is None:
            return []
        used, self.used = self.used, set()
        self.counts_ticks = self.counts_updates = False
        self.out = _Lines()
        self.tensors.line = self.out.add
        self.tensors.bound.update({n: key(n["name"]) for n in self._leaves() if n.op in ("slot_old", "slot_new")})
        self.out.add(f"return {self.tensors.text(self.rule.eval).text}")
        lines = self._prelude(self.out.lines) + self.out.lines
        self.used = used | self.used
        return lines


def write_rule(rule: Rule) -> RuleCode:
    """Python text for one update rule. Raises NestflowError NF547: an operation without a step-clock form."""
    return RuleWriter(rule).write()


__all__ = ["RuleCode", "write_rule"]
