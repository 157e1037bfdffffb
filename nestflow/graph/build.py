"""Program to LevelGraph: the one function of this room, and what it shares with `nestflow.optimizer`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nestflow.diagnostics.core import Diagnostic, NestflowError, Related
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph import describe
from nestflow.graph.body import items_of
from nestflow.graph.declarations import input_, param
from nestflow.graph.elaborate import Elaborator
from nestflow.graph.evolution import is_es, misplaced
from nestflow.graph.execution import fitting, settings
from nestflow.graph.expressions import evaluate
from nestflow.graph.levels.resets import one_copy
from nestflow.graph.model import InputSpec, Instance, LevelGraph, Network, StateSlot, StepLevel, TokenLevel, WeightSpec
from nestflow.graph.names import check_name, check_slots
from nestflow.graph.networks import NetworkFacts, check_given, declare, networks
from nestflow.graph.notes import notes
from nestflow.graph.reading.loss import TokenLevels, on_tokens
from nestflow.graph.reading.state import reading_slots
from nestflow.graph.reading.terms import check_around
from nestflow.graph.rules.update import RuleBuilder
from nestflow.graph.slow.reach import check_reach
from nestflow.graph.slow.steps import StepLevels
from nestflow.graph.state import state_slots
from nestflow.graph.substitute import substitute
from nestflow.graph.unused import check_unused
from nestflow.graph.values import Abort, Quiet, is_record
from nestflow.ir import ops
from nestflow.ir.node import Node, depends, walk
from nestflow.ir.rule import Rule
from nestflow.language import tree


def build(program: Any, given: Mapping[str, NetworkFacts] | None = None) -> LevelGraph:
    """The level graph of a program. given: facts of the networks (`extern`) that the caller has.

    Raises NestflowError with every mistake that was found.
    """
    top = _Top(Elaborator(program, given))
    try:
        return fitting(top.build())
    except (Quiet, Abort):
        unknown = Diagnostic("NF299", "this spec cannot be built, and nothing says why: please report it")
        raise NestflowError(in_order(top.elab.collector.errors) or [unknown]) from None
    except NestflowError as e:
        raise NestflowError(in_order(e.diagnostics)) from None


def in_order(found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Mistakes as they stand in the text; those of the spec itself before those of what it uses."""
    sources = list(dict.fromkeys(d.span.source for d in found if d.span is not None))
    return sorted(found, key=lambda d: (sources.index(d.span.source), d.span.start) if d.span else (-1, 0))


class _Top:
    def __init__(self, elab: Elaborator) -> None:
        self.elab = elab
        self.program = elab.program
        self.inputs: list[InputSpec] = []
        self.output: tree.Field | None = None
        self.taken: dict[str, tree.Statement] = {}
        self.execution: list[tuple[str, Any]] = []

    def build(self) -> LevelGraph:
        self.read(self.program.body)
        self.check_overrides()
        check_given(self.elab)
        self.elab.collector.stop_on_errors()
        standing = [
            t
            for t in self.elab.declared.values()
            if isinstance(t, tree.Level) and t.slots is None  # a level with slots is called in a flow
        ]
        tokens = TokenLevels(self.elab, [x for x in standing if on_tokens(x)])
        steps = StepLevels(self.elab, [x for x in standing if not on_tokens(x)])
        output = self.evaluate_output()
        steps.prepare()
        tokens.prepare()
        self.elab.collector.stop_on_errors()
        check_unused(self.elab)
        self.elab.collector.stop_on_errors()
        given = networks(self.elab)
        root = self.root(output)
        weights = absolute_weights(root, self.elab.slow.levels)
        reading = tokens.settle(weights)
        if reading:
            check_around(self.elab, root, [n for x in reading for n in x.reads], output, reading[0].span)
        steps.elsewhere = set(tokens.owner)
        misplaced(self.elab, output)
        levels = steps.build(weights)
        if reading:
            found = next((x for x in levels if x.objective is not None and depends(x.objective, is_es)), None)
            if found is not None:
                raise self.elab.not_yet("`es` in a model whose weights learn while it reads", found.span)
        if reading and not levels:
            tokens.check_owners(weights, reading)
        reading = tokens.started(reading, weights, levels)
        self.elab.collector.stop_on_errors()
        if not self.elab.waiting:
            check_reach(self.elab, self.elab.root.children, levels, reading)
            self.elab.collector.stop_on_errors()
        state = tuple(s for i in root.streamed() for s in state_slots(i))
        learning = tuple(x for x in reading if not x.idle)
        state += reading_slots(learning, self.reading_inputs(reading, output), state, weights)
        one_copy(self.elab, root, levels, reading, state)
        return self.graph(root, output, levels, weights, state, given, reading)

    def reading_inputs(self, reading: tuple[TokenLevel, ...], output: Node | None) -> tuple[InputSpec, ...]:
        """The inputs of a segment that is run again."""
        roots = [n for x in reading for n in x.reads] + ([] if output is None else [output])
        read = {n["name"] for n in walk(*roots) if n.op == "slot"}
        return tuple(i for i in self.inputs if i.name in read)

    def graph(
        self,
        root: Instance,
        output: Node | None,
        levels: tuple[StepLevel, ...],
        weights: list[WeightSpec],
        state: tuple[StateSlot, ...],
        given: tuple[Network, ...],
        reading: tuple[TokenLevel, ...],
    ) -> LevelGraph:
        spec = self.program.spec
        name = short_name(spec)
        info = describe.levels(root, levels, weights, state, reading)
        return LevelGraph(
            name,
            spec.source,
            tuple(self.elab.params.values()),
            tuple(self.inputs),
            root,
            output,
            None if output is None or output.op == "outputs" else output.type,
            levels,
            tuple(weights),
            state,
            info,
            describe.edges(root, levels, output, weights, reading),
            describe.flows(root, given),
            (*(d for d in self.elab.collector.items if d.severity != "error"), *notes(root, levels, output, given)),
            tuple(self.execution),
            spec.doc,
            tuple(self.elab.clocks.known.values()),
            {"overrides": "", "name": name},
            given,
            reading,
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

    def check_overrides(self) -> None:
        """`--set` of a param that is not there."""
        known = [n for n, s in self.taken.items() if isinstance(s, tree.Param)]
        for name, value in self.program.overrides:
            if name not in known:
                listed = f"the params are {', '.join(sorted(known))}" if known else "this spec has no params"
                message = f"there is no param `{name}` to set"
                self.elab.collector.error("NF240", message, value.span, did_you_mean(name, known) or listed)

    def statement(self, s: tree.Statement) -> None:
        e = self.elab
        if isinstance(s, tree.Param):
            self.once(s.name, s)
            param(e, s)
        elif isinstance(s, tree.Input):
            self.once(s.name, s)
            self.inputs.append(input_(e, s))
        elif isinstance(s, tree.Assign):
            for n in s.names:
                self.once(n, s)
                e.names[n] = s
                check_name(e, n, s.span)
        elif isinstance(s, tree.Template):
            self.once(s.name, s)
            e.declared[s.name] = s
            check_name(e, s.name, s.name_span or s.span)
            check_slots(e, s)
        elif isinstance(s, tree.Field) and s.name == "output":
            if self.output is not None and self.output is not s:
                related = (Related(self.output.span, "given here first"),) if self.output.span else ()
                help_ = "keep one of them"
                raise e.failure("NF222", "`output` is given twice", s.span, help_, related)
            self.output = s
        elif isinstance(s, tree.For):
            check_name(e, s.variable, s.span)
            items = items_of(s, e.top)
            with e.turns(len(items), "for", s.span):
                for item in items:
                    self.read(e.keep(substitute(s.body, s.variable, item)))
        elif isinstance(s, tree.If):
            condition = e.as_node(evaluate(s.condition, e.top), s.condition)
            if condition.op != "const":
                raise e.failure("NF302", "the condition of `if` must be known when compiling", s.condition.span)
            self.read(s.body if condition.value else s.otherwise)
        elif isinstance(s, tree.Execution):
            self.execution += settings(e, s)
        elif isinstance(s, tree.Assert):
            self.check(s)
        elif isinstance(s, tree.Extern):
            self.once(s.name, s)
            declare(e, s)
        elif isinstance(s, tree.Clock):
            self.once(s.name, s)
            e.clocks.declare(s)
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
            raise e.failure("NF217", f"this `{type(s).__name__.lower()}` cannot stand here", s.span)

    def once(self, name: str, s: tree.Statement) -> None:
        other = self.taken.setdefault(name, s)
        if other is not s:
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

    # the root --------------------------------------------------------------------------------------

    def evaluate_output(self) -> Node | None:
        if self.output is None:
            return None
        try:
            value = evaluate(self.output.value, self.elab.top)
            if not is_record(value):
                return self.one_output(value, self.output)
            if not value:
                raise self.elab.failure("NF413", "this `output` names nothing", self.output.span)
            nodes = {name: self.one_output(v, self.output) for name, v in value.items()}
            return ops.outputs(nodes, self.output.span)
        except NestflowError as e:
            self.elab.collector.take(e)
        except Quiet:
            pass
        return None

    def one_output(self, value: Any, field: tree.Field) -> Node:
        node = self.elab.as_node(value, field.value, "`output`")
        if node.type.short:
            raise self.elab.failure("NF403", "an output cannot look ahead", field.span, "`next` belongs to a loss")
        return node

    def root(self, output: Node | None) -> Instance:
        r = self.elab.root
        slots = tuple((i.name, i.type) for i in self.inputs)
        library = not self.inputs and not any(
            isinstance(t, tree.Level) and t.slots is None for t in self.elab.declared.values()
        )
        library = library or bool(self.elab.networks and not self.inputs)  # levels on a network of the caller
        if self.output is None and not library and not self.elab.collector.errors:
            self.elab.collector.error(
                "NF413",
                "this spec has no `output`",
                self.program.spec.body[0].span if self.program.spec.body else None,
                "say what the compiled module computes: `output model(tokens)`",
            )
            self.elab.collector.stop_on_errors()
        return Instance("", "root", "", slots, output, tuple(r.weights), tuple(r.tails), tuple(r.children.items()))


def absolute_weights(root: Instance, kept: Collection[str] = ()) -> list[WeightSpec]:
    """Every slow weight with its absolute path, in order of creation. kept: children of the root whose weights are the
    state of a level, and no slow weights."""
    from dataclasses import replace

    return [
        replace(w, path=f"{i.path}.{w.path}" if i.path else w.path)
        for i in root.walk()
        if i.path.partition(".")[0] not in kept
        for w in i.weights
    ]


def short_name(spec: tree.Spec) -> str:
    """What a spec is called: its file's name without folder and ending."""
    return spec.source.name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0].strip("<>") or "spec"


def optimizer_rule(target: Any, arguments: dict[str, Any]) -> Rule:
    """The rule of a shipped optimiser (or of one in a file or text), for any parameters.

    target: `adam`, `optimizers.adam`, "my.nl", or the text or dict of a spec that holds one optimizer (or several, of
    which one is called as the file is). arguments: its slots.
    """
    from nestflow.diagnostics.core import fail
    from nestflow.language.nl import parse_expression
    from nestflow.language.resolve import load

    program = load(target)
    net = next((s for s in program.body if isinstance(s, tree.Extern)), None)
    if net is not None:
        message = (
            f"`{short_name(program.spec)}` has levels on a network of yours, `{net.name}`, and takes no parameters"
        )
        raise fail("NF560", message, None, f"`nestflow.optimizer(spec, {net.name}=model)`")
    found = [s for s in program.body if isinstance(s, tree.Optimizer)]
    name = short_name(program.spec)
    template = next((t for t in found if t.name == name), found[0] if len(found) == 1 else None)
    if template is None and found:
        listed = ", ".join(f"`{t.name}`" for t in found)
        message = f"`{name}` holds several optimizers: {listed}"
        raise fail("NF242", message, None, "call one of them as the file is called")
    if template is None:
        raise fail(
            "NF242", f"`{name}` holds no optimizer", None, "`optimizers.adam`, or a file with `optimizer name(…) {…}`"
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
    if not isinstance(value, (bool, int, float, str)) and callable(getattr(value, "item", None)):
        value = value.item()  # a tensor or a number of numpy
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else str(value)
