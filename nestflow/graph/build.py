"""Program to LevelGraph: the one function of this room, and what it shares with `nestflow.optimizer`."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.core import NestflowError, Related
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph import describe
from nestflow.graph.elaborate import Elaborator
from nestflow.graph.expressions import evaluate
from nestflow.graph.model import InputSpec, Instance, LevelGraph, ParamValue, StateSlot, WeightSpec
from nestflow.graph.rules import RuleBuilder
from nestflow.graph.state import state_slots
from nestflow.graph.steps import StepLevels
from nestflow.graph.substitute import substitute
from nestflow.graph.templates import check_name, items_of
from nestflow.graph.values import Quiet
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.ir.rule import Rule
from nestflow.language import tree

AXES = ("T",)


def build(program: Any) -> LevelGraph:
    """The level graph of a program. Raises NestflowError with every mistake that was found."""
    top = _Top(Elaborator(program))
    try:
        return top.build()
    except Quiet:
        top.elab.collector.stop_on_errors()
        raise


class _Top:
    def __init__(self, elab: Elaborator) -> None:
        self.elab = elab
        self.program = elab.program
        self.inputs: list[InputSpec] = []
        self.output: tree.Field | None = None
        self.execution: list[tuple[str, Any]] = []

    def build(self) -> LevelGraph:
        self.read(self.program.body)
        self.elab.collector.stop_on_errors()
        standing = [
            t
            for t in self.elab.declared.values()
            if isinstance(t, tree.Level) and t.slots is None and not self.called(t)
        ]
        steps = StepLevels(self.elab, standing)
        output = self.evaluate_output()
        steps.prepare()
        self.elab.collector.stop_on_errors()
        root = self.root(output)
        weights = absolute_weights(root)
        levels = steps.build(weights)
        self.elab.collector.stop_on_errors()
        state = tuple(s for i in root.walk() for s in state_slots(i))
        return self.graph(root, output, levels, weights, state)

    def graph(
        self, root: Instance, output: Node | None, levels: Any, weights: list[WeightSpec], state: tuple[StateSlot, ...]
    ) -> LevelGraph:
        spec = self.program.spec
        name = spec.source.name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0].strip("<>") or "spec"
        info = describe.levels(root, levels, weights, state)
        return LevelGraph(
            name,
            spec.source,
            tuple(self.elab.params.values()),
            tuple(self.inputs),
            root,
            output,
            None if output is None else output.type,
            levels,
            tuple(weights),
            state,
            info,
            describe.edges(root, levels, output, weights),
            describe.flows(root),
            tuple(d for d in self.elab.collector.items if d.severity != "error"),
            tuple(self.execution),
            spec.doc,
            {"overrides": "", "name": name},
        )

    # declarations ----------------------------------------------------------------------------------

    def read(self, body: tuple[tree.Statement, ...]) -> None:
        for s in body:
            try:
                self.statement(s)
            except NestflowError as e:
                self.elab.collector.take(e)
            except Quiet:
                continue
        known = set(self.elab.params)
        wrong = {s.name for s in body if isinstance(s, tree.Param)} - known
        for name, value in self.program.overrides:
            if name not in known and name not in wrong:
                self.elab.collector.error(
                    "NF240",
                    f"there is no param `{name}` to set",
                    value.span,
                    did_you_mean(name, known) or f"the params are {', '.join(sorted(known))}",
                )

    def statement(self, s: tree.Statement) -> None:
        e = self.elab
        if isinstance(s, tree.Param):
            self.param(s)
        elif isinstance(s, tree.Input):
            self.input(s)
        elif isinstance(s, tree.Assign):
            for n in s.names:
                check_name(e, n, s)
                self.once(n, e.names.get(n), s)
                e.names[n] = s
        elif isinstance(s, tree.Template):
            check_name(e, s.name, s)
            self.once(s.name, e.declared.get(s.name), s)
            e.declared[s.name] = s
        elif isinstance(s, tree.Field) and s.name == "output":
            self.output = s
        elif isinstance(s, tree.For):
            for item in items_of(s, e.top):
                self.read(e.keep(substitute(s.body, s.variable, item)))
        elif isinstance(s, tree.If):
            condition = e.as_node(evaluate(s.condition, e.top), s.condition)
            if condition.op != "const":
                raise e.failure("NF302", "the condition of `if` must be known when compiling", s.condition.span)
            self.read(s.body if condition.value else s.otherwise)
        elif isinstance(s, tree.Execution):
            self.execution += [
                (
                    f.name,
                    f.value.value
                    if isinstance(f.value, (tree.Number, tree.String, tree.Bool))
                    else getattr(f.value, "name", None),
                )
                for f in s.body
                if isinstance(f, tree.Field)
            ]
        elif isinstance(s, tree.Assert):
            self.check(s)
        elif isinstance(s, (tree.Clock, tree.Extern)):
            raise e.not_yet(f"`{type(s).__name__.lower()}`", s.span)
        elif isinstance(s, tree.Field):
            raise e.failure(
                "NF217",
                f"`{s.name}` cannot stand at the top of a spec",
                s.span,
                did_you_mean(
                    s.name, ("output", "input", "param", "level", "flow", "optimizer", "use", "shared", "repeat")
                )
                or "the top has use, param, input, output, level, flow, optimizer and names",
            )
        else:
            raise e.failure("NF217", f"a `{type(s).__name__.lower()}` cannot stand at the top of a spec", s.span)

    def once(self, name: str, other: tree.Statement | None, s: tree.Statement) -> None:
        if other is not None and other is not s:
            related = (Related(other.span, "given here first"),) if other.span else ()
            raise self.elab.failure(
                "NF220", f"`{name}` is given twice", s.span, "give one of them another name", related
            )

    def check(self, s: tree.Assert) -> None:
        condition = self.elab.as_node(evaluate(s.condition, self.elab.top), s.condition)
        if condition.op != "const":
            raise self.elab.failure("NF302", "an `assert` must be known when compiling", s.span)
        if not condition.value:
            raise self.elab.failure("NF241", s.message or "this assert does not hold", s.condition.span)

    def param(self, s: tree.Param) -> None:
        check_name(self.elab, s.name, s)
        given = dict(self.program.overrides).get(s.name)
        default = evaluate(s.default, self.elab.top)
        value = default if given is None else evaluate(given, self.elab.top)
        if isinstance(value, Node) and value.op != "const":
            raise self.elab.failure(
                "NF302", f"param `{s.name}` must be known when compiling", (given or s.default).span
            )
        plain = value.value if isinstance(value, Node) else value
        base = default.value if isinstance(default, Node) else default
        self.check_param(s, plain, base, given)
        origin = s.span.where() if given is None and s.span else "--set"
        self.elab.params[s.name] = ParamValue(s.name, plain, base, s.doc, origin)
        self.elab.values[s.name] = value

    def check_param(self, s: tree.Param, value: Any, default: Any, given: tree.Expr | None) -> None:
        span = (given or s.default).span or s.span
        want = s.type.name if s.type else None
        kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "string": (str,)}
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if want in kinds and (not isinstance(value, kinds[want]) or (isinstance(value, bool) and want != "bool")):
            raise self.elab.failure("NF324", f"param `{s.name}` is {want}, and this is {value!r}", span)
        if given is not None and want is None and isinstance(default, (bool, str, int, float)):
            fits = (
                number
                if isinstance(default, (int, float)) and not isinstance(default, bool)
                else isinstance(value, type(default))
            )
            if not fits or (isinstance(default, int) and not isinstance(default, bool) and value != int(value)):
                raise self.elab.failure("NF324", f"param `{s.name}` is like {default!r}, and this is {value!r}", span)
        domain = s.domain or (s.type.domain if s.type else None)
        if domain is None:
            return
        if domain.values is not None:
            allowed = [self.plain(v) for v in domain.values]
            if value not in allowed:
                raise self.elab.failure(
                    "NF325", f"param `{s.name}` is one of {', '.join(map(str, allowed))}, and this is {value}", span
                )
            return
        low, high = self.plain(domain.low), self.plain(domain.high)
        inside = (
            number
            and (low is None or value > low or (value == low and not domain.low_open))
            and (high is None or value < high or (value == high and not domain.high_open))
        )
        if not inside:
            bounds = f"{'(' if domain.low_open else '['}{low}, {high}{')' if domain.high_open else ']'}"
            raise self.elab.failure("NF325", f"param `{s.name}` is in {bounds}, and this is {value}", span)

    def plain(self, expr: tree.Expr | None) -> Any:
        if expr is None:
            return None
        value = evaluate(expr, self.elab.top)
        if isinstance(value, Node):
            if value.op != "const":
                raise self.elab.failure("NF302", "a bound must be known when compiling", expr.span)
            return value.value
        return value if isinstance(value, str) else getattr(value, "name", value)

    def input(self, s: tree.Input) -> None:
        check_name(self.elab, s.name, s)
        if s.name in self.elab.inputs:
            raise self.elab.failure("NF220", f"two inputs are called `{s.name}`", s.span)
        if s.type.name not in ("int", "float", "bool"):
            raise self.elab.failure(
                "NF326",
                f"`{s.type.name}` is no type of an input",
                s.type.span or s.span,
                did_you_mean(s.type.name, ("int", "float", "bool")) or "int, float or bool",
            )
        clock, shape = None, []
        for i, d in enumerate(s.type.dims):
            if isinstance(d, tree.Name) and d.name in AXES and i == 0:
                clock = d.name
            elif isinstance(d, tree.Name) and d.name == "N":
                raise self.elab.not_yet("the axis N of a task's examples", d.span)
            else:
                n = self.plain(d)
                if not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= 2**31:
                    raise self.elab.failure(
                        "NF303",
                        f"an axis of an input is a whole number, and this is {n}",
                        d.span,
                        "`float[T, 64]`; T comes first",
                    )
                shape.append(n)
        type_ = Type(s.type.name, tuple(shape), True, clock)
        low, high = self.bounds(s.type.domain)
        self.elab.inputs[s.name] = ops.leaf("slot", type_, s.span, name=s.name)
        self.inputs.append(InputSpec(s.name, type_, low, high, s.span))

    def bounds(self, domain: tree.Domain | None) -> tuple[Any, Any]:
        if domain is None or domain.values is not None:
            return None, None
        low, high = self.plain(domain.low), self.plain(domain.high)
        if isinstance(high, int) and domain.high_open:
            high -= 1
        if isinstance(low, int) and domain.low_open:
            low += 1
        return low, high

    # the root --------------------------------------------------------------------------------------

    def called(self, level: tree.Level) -> bool:
        """A level without slots is one of the step clock; `level f() {…}` written with brackets is called."""
        return level.slots is not None

    def evaluate_output(self) -> Node | None:
        if self.output is None:
            return None
        try:
            node = self.elab.as_node(evaluate(self.output.value, self.elab.top), self.output.value, "`output`")
            if node.type.short:
                raise self.elab.failure(
                    "NF403", "an output cannot look ahead", self.output.span, "`next` belongs to a loss"
                )
            return node
        except NestflowError as e:
            self.elab.collector.take(e)
        except Quiet:
            pass
        return None

    def root(self, output: Node | None) -> Instance:
        r = self.elab.root
        slots = tuple((i.name, i.type) for i in self.inputs)
        library = not self.inputs and not any(
            isinstance(t, tree.Level) and t.slots is None for t in self.elab.declared.values()
        )
        if output is None and not library and not self.elab.collector.errors:
            self.elab.collector.error(
                "NF413",
                "this spec has no `output`",
                self.program.spec.body[0].span if self.program.spec.body else None,
                "say what the compiled module computes: `output model(tokens)`",
            )
            self.elab.collector.stop_on_errors()
        return Instance("", "root", "", slots, output, tuple(r.weights), tuple(r.tails), tuple(r.children.items()))


def absolute_weights(root: Instance) -> list[WeightSpec]:
    """Every slow weight with its absolute path, in order of creation."""
    from dataclasses import replace

    return [replace(w, path=f"{i.path}.{w.path}" if i.path else w.path) for i in root.walk() for w in i.weights]


def optimizer_rule(target: str, arguments: dict[str, Any]) -> Rule:
    """The rule of a shipped optimiser (or of one in a file or text), for any parameters.

    target: `adam`, `optimizers.adam`, "my.nl", or the text of a spec that holds one optimizer. arguments: its slots.
    """
    from nestflow.diagnostics.core import fail
    from nestflow.language.nl import parse_expression
    from nestflow.language.resolve import load

    program = load(target)
    found = [s for s in program.body if isinstance(s, tree.Optimizer)]
    short = target.rsplit(".", 1)[-1]
    template = next((t for t in found if t.name == short), found[-1] if found else None)
    if template is None:
        raise fail(
            "NF242", f"`{target}` holds no optimizer", None, "`optimizers.adam`, or a file with `optimizer name(…) {…}`"
        )
    elab = Elaborator(program)
    for s in program.body:
        if isinstance(s, tree.Template):
            elab.declared[s.name] = s
    names = [s.name for s in template.slots or ()]
    for k in arguments:
        if k not in names:
            raise fail(
                "NF202",
                f"`{template.name}` has no slot `{k}`",
                None,
                did_you_mean(k, names) or f"its slots are {', '.join(names)}",
            )
    text = f"{template.name}({', '.join(f'{k} = {_literal(v)}' for k, v in arguments.items())})"
    expr = parse_expression(text, "<arguments>")
    return RuleBuilder(elab, elab.top).build(expr, text, expr)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else str(value)
