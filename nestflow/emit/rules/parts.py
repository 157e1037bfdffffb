"""An update rule made ready to be written: which arguments a param group holds, and in which order memories change."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from nestflow.diagnostics.core import Span
from nestflow.emit.numbers import literal
from nestflow.emit.writer import plain
from nestflow.ir import ops
from nestflow.ir.node import Node, depends, rebuild, walk
from nestflow.ir.rule import DgdStep, Rule, SlotUpdate, Statement

# what a generated function calls its own arguments, and keys that a param group needs for itself
TAKEN = frozenset(
    {
        "w",
        "g",
        "t",
        "state",
        "group",
        "fact",
        "gram",
        "curvature",
        "torch",
        "math",
        "params",
        "level",
        "every",
        "names",
        "ticks",
        "updates",
        "n_ticks",
        "total_steps",
        "evaluating",
        "initial_lr",
        "param_names",
        "step",
        "pending",
    }
)
_NUMBER_LEAVES = frozenset({"const", "fact", "schedule", "hyper"})


def key(name: str) -> str:
    """The name of a rate or memory in param groups, state and generated code."""
    name = re.sub(r"\W", "_", name)
    return name + "_" if name in TAKEN or not name.isidentifier() else name


def place(span: Span | None) -> str:
    """`optimizers/adamw.nl:3`: the last two parts of the file's name, and the line."""
    if span is None:
        return ""
    parts = span.source.name.replace("\\", "/").split("/")
    return f"{plain('/'.join(parts[-2:])).replace(chr(10), ' ')}:{span.line}"


def static_parts(rule: Rule) -> tuple[dict[str, Node], dict[str, Node]]:
    """Arguments that are numbers known for each weight, and those that follow a schedule. Others are written out."""
    settled: dict[str, Node] = {}
    timed: dict[str, Node] = {}
    for name, _ in rule.arguments:
        node = rule.expand(ops.leaf("hyper", rule.argument(name).type, name=name))
        leaves = {n.op for n in walk(node) if not n.args}
        if node.op == "const" and isinstance(node.value, bool):
            continue  # a switch: known when compiling
        if leaves <= _NUMBER_LEAVES and not any(n.type.like for n in walk(node)):
            (timed if "schedule" in leaves else settled)[name] = node
    return settled, timed


def resolve(rule: Rule) -> Rule:
    """The rule with only those hypers left that a param group holds; switches decide their branches."""
    settled, timed = static_parts(rule)
    table = dict(rule.arguments)

    def change(n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op == "hyper" and n["name"] not in settled and n["name"] not in timed:
            return rebuild(table[n["name"]], change)
        if n.op == "where":
            return ops.where(*args, span=n.span)
        if n.op == "not" and args[0].op == "const":
            return ops.unary("not", args[0])
        if n.op in ("eq", "ne", "and", "or") and all(a.op == "const" for a in args):
            return ops.binary(n.op, args[0], args[1])
        return None

    def new(s: Statement) -> Statement:
        if isinstance(s, DgdStep):
            return replace(s, lr=rebuild(s.lr, change), scale=None if s.scale is None else rebuild(s.scale, change))
        if isinstance(s, SlotUpdate) and s.pending_value is not None:
            return replace(s, value=rebuild(s.value, change), pending_value=rebuild(s.pending_value, change))
        return replace(s, value=rebuild(s.value, change))

    return replace(
        rule,
        program=tuple(new(s) for s in rule.program),
        gradient=rebuild(rule.gradient, change),
        eval=None if rule.eval is None else rebuild(rule.eval, change),
        slots=tuple(replace(s, init=rebuild(s.init, change)) for s in rule.slots),
    )


def schedule_call(node: Node, tick: str, total: str, every: str) -> str:
    """The rate of a schedule at a tick. total: its length, where none is written."""
    settings = {k: node.get(k) for k in ("peak", "warmup", "total", "floor", "stable", "decay")}
    parts = [f"{k}={literal(v).text}" for k, v in settings.items() if v is not None]
    if node["kind"] != "wsd":
        parts += [f"total={total}"] if settings["total"] is None else []
        parts.append(f"every={every}")
    return f"{node['kind']}({tick}, {', '.join(parts)})"


def lift_schedules(rule: Rule) -> Rule:
    """A schedule inside a step (`-cosine(0.1) * g`) becomes an argument, so that a param group holds its value."""
    names = {n for n, _ in rule.arguments}
    lifted: dict[Node, str] = {}

    def change(n: Node, _: tuple[Node, ...]) -> Node | None:
        if n.op != "schedule":
            return None
        if n not in lifted:
            base = name = "lr" if "lr" not in names else "schedule"
            i = 1
            while name in names:
                i += 1
                name = f"{base}_{i}"
            names.add(name)
            lifted[n] = name
        return ops.leaf("hyper", n.type, n.span, name=lifted[n])

    def new(s: Statement) -> Statement:
        if isinstance(s, DgdStep):
            return replace(s, lr=rebuild(s.lr, change))
        if isinstance(s, SlotUpdate) and s.pending_value is not None:
            return replace(s, value=rebuild(s.value, change), pending_value=rebuild(s.pending_value, change))
        return replace(s, value=rebuild(s.value, change))

    program, gradient = tuple(new(s) for s in rule.program), rebuild(rule.gradient, change)
    return replace(
        rule, program=program, gradient=gradient, arguments=rule.arguments + tuple((v, k) for k, v in lifted.items())
    )


def reads(s: Statement, test: Callable[[Node], bool]) -> bool:
    """Whether an expression of the statement has a node that passes the test."""
    nodes = [s.lr, *([s.scale] if s.scale is not None else [])] if isinstance(s, DgdStep) else [s.value]
    if isinstance(s, SlotUpdate) and s.pending_value is not None:
        nodes.append(s.pending_value)
    return any(depends(n, test) for n in nodes)


def opposite(where: Node) -> Node:
    """The condition of the other branch."""
    return ops.unary("not", where)


def slot_is(op: str, name: str) -> Callable[[Node], bool]:
    """A test for slot_old or slot_new of one memory."""
    return lambda n: n.op == op and n["name"] == name


def settle_order(program: tuple[Statement, ...]) -> list[Statement]:
    """A memory that later statements read as it was `before` is updated after them, if nothing between needs it."""
    order = list(program)
    for s in program:
        if not isinstance(s, SlotUpdate):
            continue
        i = order.index(s)
        readers = [j for j in range(i + 1, len(order)) if reads(order[j], slot_is("slot_old", s.slot))]
        if not readers:
            continue
        between = order[i + 1 : readers[-1] + 1]
        if any(x.where is not s.where for x in between):
            continue
        moved = {x.slot for x in between if isinstance(x, SlotUpdate)}
        weight_changes = any(not isinstance(x, SlotUpdate) for x in between) and reads(s, lambda n: n.op == "w")
        if (
            not any(reads(x, slot_is("slot_new", s.slot)) for x in between)
            and not any(reads(s, slot_is(kind, m)) for m in moved for kind in ("slot_old", "slot_new"))
            and not weight_changes
        ):
            order.insert(readers[-1], order.pop(i))
    return order
