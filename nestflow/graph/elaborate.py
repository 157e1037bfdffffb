"""The elaborator's shared state: declarations, params, the root instance, and how mistakes are told."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from nestflow.diagnostics.core import Collector, Edit, NestflowError, Related, Span, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.model import Init, ParamValue
from nestflow.graph.published import emitted
from nestflow.graph.scope import Builder, Env
from nestflow.graph.values import Abort, Distribution, Partial, Poison, Quiet, is_list
from nestflow.ir import ops
from nestflow.ir.node import Node, depends
from nestflow.language import tree
from nestflow.vocabulary.fields import GIVEN, SLOTS_ALSO, SYNTAX, words_for
from nestflow.vocabulary.later import LATER
from nestflow.vocabulary.record import WORDS, Word, lookup

MAX_INSTANCES = 100_000
MAX_WEIGHTS = 20_000_000_000
_BATCH = "the batch axis is never written: `float[T, 16]` is a vector of 16 at each token"
_MODULE = "functions stand without a module: `linear`, `rmsnorm`, `softmax`; `nestflow explain linear` says more"
# what newcomers from Python and PyTorch write
ELSEWHERE = {"B": _BATCH, "batch": _BATCH, "batch_size": _BATCH, "nn": _MODULE, "torch": _MODULE, "F": _MODULE}
OUTSIDE = frozenset(["slot", "call", "weight", "schedule", "next", "network"])
MAX_DEPTH = 60
MAX_TURNS = 10_000


class Elaborator:
    """Turns a Program (declarations, params, overrides) into instances. One object per build; nothing global."""

    def __init__(self, program: Any, given: Mapping[str, Any] | None = None) -> None:
        from nestflow.graph.slow.clocks import Clocks
        from nestflow.graph.templates import Templates

        self.program = program
        self.given: dict[str, Any] = dict(given or {})  # facts of the networks that the caller gave, by name
        self.networks: dict[str, Any] = {}
        self.called_networks: set[str] = set()
        self.waiting = False  # something is not known without a network that was not given
        self.collector = Collector()
        self.templates = Templates(self)
        self.declared: dict[str, tree.Template] = {}
        self.names: dict[str, tree.Assign] = {}
        self.values: dict[str, Any] = {}
        self.params: dict[str, ParamValue] = {}
        self.inputs: dict[str, Node] = {}
        self.root = Builder("")
        self.root_calls: list[Node] = []  # calls of root flows, in order
        self.instances = 0
        self.weight_count = 0
        self.busy: list[str] = []
        self.turns_now = 1
        self._kept: list[Any] = []
        self.clocks = Clocks(self)
        self.slow: Any = None  # SlowNames: the levels without slots, once the declarations are read
        self.words: dict[str, Callable[..., Any]] = {"emitted": partial(emitted, self)}  # outside flows alone
        self.top = Env(self, self.root, self.find_top, "top", specials=self.words)

    def keep(self, made: Any) -> Any:
        """Hold a tree that substitution made: call sites are told apart by identity, so none may be freed."""
        self._kept.append(made)
        return made

    # names -----------------------------------------------------------------------------------------

    def find_top(self, name: str) -> Any:
        """Params, inputs, names and templates of the spec, then shipped ones, then the vocabulary."""
        if name in self.values:
            return self.values[name]
        if name in self.inputs:
            return self.inputs[name]
        if name in self.names:
            return self._top_name(name)
        if name in self.declared:
            level = self.slow.find(name) if self.slow is not None else None
            return level or Partial(self.declared[name], name)
        if name in self.networks:
            return self.networks[name]
        word = lookup(name)
        if word is not None and word.build is not None and word.kind != "update":
            return Partial(word, name)
        shipped = self.program.shipped(name)
        if shipped is not None:
            return Partial(shipped, name)
        if name == "none" and word is None:  # as in signatures: `reduce = none`, `reset = none`
            return name
        return None if word is None else Partial(word, name)

    def find_inside(self, name: str) -> Any:
        """The same from inside a flow, level or optimiser: the model's inputs come in through slots alone."""
        value = self.find_top(name)
        if self.slow is not None and self.slow.find(name) is not None and name in self.declared:
            message = f"`{name}` is a level without slots, and is not seen inside a flow, level or optimiser"
            raise fail("NF243", message, None, "its tensors stand in objectives and in fields of levels without slots")
        if isinstance(value, Node) and depends(value, lambda n: n.op in OUTSIDE):
            what = "an input of the model" if name in self.inputs else "computed from the model's inputs"
            if value.op == "schedule":
                what = "a schedule, which stands in `update`"
            message = f"`{name}` is {what}, and is not seen inside a flow, level or optimiser"
            raise fail("NF243", message, None, f"give it a slot: `flow f(x, {name})`")
        return value

    def _top_name(self, name: str) -> Any:
        if name in self.busy:
            raise self.failure(
                "NF206",
                f"`{name}` is defined by itself: " + " → ".join([*self.busy, name]),
                self.names[name].span,
                "break the circle",
            )
        self.busy.append(name)
        try:
            from nestflow.graph.expressions import evaluate

            statement = self.names[name]
            value = evaluate(statement.value, self.top)
            if len(statement.names) > 1:
                self.unpack(statement.names, value, statement, self.values)
            else:
                self.values[name] = value
        except NestflowError as e:
            self.collector.take(e)
            self.values[name] = Poison()
        finally:
            self.busy.pop()
        return self.values[name]

    def unpack(self, names: tuple[str, ...], value: Any, statement: tree.Node, into: dict[str, Any]) -> None:
        if not is_list(value) or len(value) != len(names):
            size = len(value) if is_list(value) else "no list"
            raise self.failure(
                "NF314", f"{len(names)} names take a list of {len(names)}, and this is {size}", statement.span
            )
        into.update(zip(names, value, strict=True))

    # values ----------------------------------------------------------------------------------------

    def as_node(self, value: Any, expr: tree.Expr, what: str = "this") -> Node:
        if isinstance(value, Node):
            if value.op != "network_result":
                return value
            from nestflow.graph.networks import known

            return known(value, self, expr)
        if isinstance(value, bool | int | float):
            return ops.const(value)
        if isinstance(value, Poison):
            raise Quiet
        state = getattr(value, "state_node", None)
        if state is not None:
            return state(expr)
        if isinstance(value, Partial):
            kind = value.kind if value.kind != "word" else "function"
            known = f"`{value.name}` is {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
            raise self.failure(
                "NF207", f"{known}, and a value is needed here", expr.span, f"call it: `{value.name}(...)`"
            )
        kinds: dict[Any, str] = {list: "a list", str: "a string", dict: "a record"}
        given: Any = value
        kind = kinds.get(type(given), type(given).__name__.lower())
        lists = "`[a, b]` is one for each round of a tick, as keys and rates may be; here one is for all"
        help_ = lists if kind == "a list" else None
        raise self.failure("NF315", f"{what} needs a value, and this is {kind}", expr.span, help_)

    def as_init(self, value: Any, expr: tree.Expr) -> Init:
        if isinstance(value, Init):
            return value
        if isinstance(value, Distribution):
            return value.init
        if isinstance(value, str):
            return Init(value)
        if isinstance(value, Partial) and value.name in ("zeros", "ones", "eye"):
            return Init(value.name)
        node = self.as_node(value, expr)
        if node.op == "fill":
            return Init(node["kind"])
        if node.op == "const":
            return Init("constant", float(node.value))
        raise self.failure(
            "NF316", "a start is a distribution, a number, `zeros` or `ones`", expr.span, "`init = normal(0.02)`"
        )

    def count_weights(self, shape: tuple[int, ...], heads: int | None, expr: tree.Expr) -> None:
        """Keep a typo from asking for terabytes: nothing is allocated before the sum is known."""
        self.count(math.prod(shape) * (heads or 1), expr)

    def count(self, weights: int, expr: tree.Expr) -> None:
        self.weight_count += weights
        if self.weight_count > MAX_WEIGHTS:
            message = f"this spec asks for more than {MAX_WEIGHTS:,} weights (here for {weights:,} of them)"
            raise self.fatal("NF430", message, expr.span, "is a size a typo?")

    def count_instance(self, expr: tree.Expr, instances: int = 1) -> None:
        self.instances += instances
        if self.instances > MAX_INSTANCES:
            message = f"this spec makes more than {MAX_INSTANCES:,} instances"
            raise self.fatal("NF431", message, expr.span, "is a `repeat` a typo?")

    @contextmanager
    def turns(self, count: int, what: str, span: Span | None) -> Generator[None, None, None]:
        """Loops inside each other: how often what stands in them is run is bounded before it is run."""
        if not 0 <= count <= MAX_TURNS:
            raise self.failure("NF434", f"`{what}` {count:,} times is outside 0 … {MAX_TURNS:,}", span)
        before = self.turns_now
        self.turns_now *= max(count, 1)
        try:
            if self.turns_now > MAX_TURNS:
                message = f"these loops inside each other make {self.turns_now:,} turns; {MAX_TURNS:,} are the most"
                raise self.failure("NF434", message, span)
            yield
        finally:
            self.turns_now = before

    # mistakes --------------------------------------------------------------------------------------

    @contextmanager
    def at(self, expr: tree.Node) -> Generator[None, None, None]:
        """Shape errors inside are told at this place."""
        try:
            yield
        except ops.ShapeError as e:
            parts = tuple(Related(span, said, part=True) for span, said in e.parts)
            raise self.failure("NF301", str(e), expr.span, e.help, parts) from e
        except RecursionError as e:
            raise self.failure("NF432", "this is nested too deeply", expr.span) from e

    def failure(
        self,
        code: str,
        message: str,
        span: Span | None,
        help: str | None = None,
        related: Any = (),
        fix: tuple[Edit, ...] = (),
    ) -> NestflowError:
        return fail(code, message, span, help, related, fix)

    def fatal(self, code: str, message: str, span: Span | None, help: str | None = None) -> Abort:
        """A spent budget: going on would take without end, so this is the last that is told."""
        self.collector.error(code, message, span, help)
        return Abort()

    def not_yet(self, what: str, span: Span | None) -> NestflowError:
        return self.failure(
            "NF490",
            f"{what} is in the language, but this version does not build it yet",
            span,
            "`ROADMAP.md` says what is to come",
        )

    def unknown_name(self, name: str, span: Span | None, env: Env) -> NestflowError:
        from nestflow.language.shipped import shipped_words

        if name in LATER:
            return self.not_yet(f"`{name}`", span)
        message = f"`{name}` is not known here"
        if name in GIVEN:
            what, where = GIVEN[name]
            return self.failure("NF201", message, span, f"`{name}` is {what}; it stands {where}")
        syntax = SYNTAX.get(name)
        if syntax is not None:
            opens = f"`{name}` opens a {syntax.kind}; it is no value"
            what = f"`{name}` is a setting of `execution {{ … }}`" if syntax.kind == "setting" else opens
            return self.failure("NF201", message, span, what)
        found = words_for(name)
        others = [w for w in found if w.name in WORDS] or found
        if len(others) == 1:
            return self.failure("NF201", message, span, f"nestflow's word is `{others[0].name}`: {others[0].doc}")
        if others:
            said = " or ".join(f"`{w.name}` ({w.doc.partition(':')[0].lower()})" for w in others)
            return self.failure("NF201", message, span, f"nestflow's word is {said}")
        if name in ELSEWHERE:
            return self.failure("NF201", message, span, ELSEWHERE[name])
        known = {
            *self.values,
            *self.inputs,
            *self.names,
            *self.declared,
            *self.networks,
            *WORDS,
            *shipped_words(),
            *self.visible(env),
        }
        help_ = did_you_mean(name, known) or "define it with `=`, or `use` the file that does"
        return self.failure("NF201", message, span, help_)

    def visible(self, env: Env) -> set[str]:
        """Names of the place: slots, names and memories of the flow, level or optimiser."""
        names: Callable[[], set[str]] | None = getattr(env.lookup, "visible", None)
        return set() if names is None else names()

    def unknown_slot(self, function: str, name: str, slots: list[str], site: tree.Expr) -> NestflowError:
        listed = f"`{function}` has the slots " + ", ".join(f"`{s}`" for s in slots) if slots else "it has no slots"
        other = SLOTS_ALSO.get(name.lower())
        near = f"nestflow's word is `{other}`" if other in slots else did_you_mean(name, slots)
        help_ = near or listed
        return self.failure("NF202", f"`{function}` has no slot `{name}`", site.span, help_)


__all__ = ["Elaborator", "Word"]
