"""The elaborator's shared state: declarations, params, the root instance, and how mistakes are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nestflow.diagnostics.core import Collector, NestflowError, Span, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.model import Init, ParamValue
from nestflow.graph.scope import Builder, Env
from nestflow.graph.values import Distribution, Partial, Poison, Quiet
from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.language import tree
from nestflow.vocabulary.later import LATER
from nestflow.vocabulary.record import WORDS, Word, lookup

MAX_INSTANCES = 100_000
MAX_WEIGHTS = 20_000_000_000
MAX_DEPTH = 64


class Elaborator:
    """Turns a Program (declarations, params, overrides) into instances. One object per build; nothing global."""

    def __init__(self, program: Any) -> None:
        from nestflow.graph.templates import Templates

        self.program = program
        self.collector = Collector()
        self.templates = Templates(self)
        self.declared: dict[str, tree.Template] = {}
        self.names: dict[str, tree.Assign] = {}
        self.values: dict[str, Any] = {}
        self.params: dict[str, ParamValue] = {}
        self.inputs: dict[str, Node] = {}
        self.root = Builder("")
        self.instances = 0
        self.weight_count = 0
        self.busy: list[str] = []
        self._kept: list[Any] = []
        self.top = Env(self, self.root, self.find_top, "top")

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
            return Partial(self.declared[name], name)
        word = lookup(name)
        if word is not None and word.build is not None and word.kind != "update":
            return Partial(word, name)
        shipped = self.program.shipped(name)
        if shipped is not None:
            return Partial(shipped, name)
        return None if word is None else Partial(word, name)

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
        if not isinstance(value, list) or len(value) != len(names):
            size = len(value) if isinstance(value, list) else "no list"
            raise self.failure(
                "NF314", f"{len(names)} names take a list of {len(names)}, and this is {size}", statement.span
            )
        into.update(zip(names, value, strict=True))

    # values ----------------------------------------------------------------------------------------

    def as_node(self, value: Any, expr: tree.Expr, what: str = "this") -> Node:
        if isinstance(value, Node):
            return value
        if isinstance(value, bool | int | float):
            return ops.const(value)
        if isinstance(value, Poison):
            raise Quiet
        state = getattr(value, "state_node", None)
        if state is not None:
            return state(expr)
        if isinstance(value, Partial):
            known = f"`{value.name}` is a {value.kind if value.kind != 'word' else 'function'}"
            raise self.failure(
                "NF207", f"{known}, and a value is needed here", expr.span, f"call it: `{value.name}(...)`"
            )
        kind = {list: "a list", str: "a string", dict: "a record"}.get(type(value), type(value).__name__.lower())
        raise self.failure("NF315", f"{what} needs a value, and this is {kind}", expr.span)

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
        n = heads or 1
        for d in shape:
            n *= d
        self.weight_count += n
        if self.weight_count > MAX_WEIGHTS:
            raise self.failure(
                "NF430",
                f"this spec asks for more than {MAX_WEIGHTS:,} weights (this one is {list(shape)})",
                expr.span,
                "is a size a typo?",
            )

    def count_instance(self, expr: tree.Expr) -> None:
        self.instances += 1
        if self.instances > MAX_INSTANCES:
            raise self.failure(
                "NF431", f"this spec makes more than {MAX_INSTANCES:,} instances", expr.span, "is a `repeat` a typo?"
            )

    # mistakes --------------------------------------------------------------------------------------

    @contextmanager
    def at(self, expr: tree.Node) -> Iterator[None]:
        """Shape errors inside are told at this place."""
        try:
            yield
        except ops.ShapeError as e:
            raise self.failure("NF301", str(e), expr.span, e.help) from e
        except RecursionError as e:
            raise self.failure("NF432", "this is nested too deeply", expr.span) from e

    def failure(
        self, code: str, message: str, span: Span | None, help: str | None = None, related: Any = ()
    ) -> NestflowError:
        return fail(code, message, span, help, related)

    def not_yet(self, what: str, span: Span | None) -> NestflowError:
        return self.failure(
            "NF490",
            f"{what} is in the language, but this version does not build it yet",
            span,
            "`ROADMAP.md` says what is to come",
        )

    def unknown_name(self, name: str, span: Span | None, env: Env) -> NestflowError:
        if name in LATER:
            return self.not_yet(f"`{name}`", span)
        for w in WORDS.values():
            if name in w.also:
                return self.failure(
                    "NF201", f"`{name}` is not known here", span, f"nestflow's word is `{w.name}`: {w.doc}"
                )
        from nestflow.language.shipped import shipped_words

        known = {*self.values, *self.inputs, *self.names, *self.declared, *WORDS, *shipped_words(), *self.visible(env)}
        return self.failure(
            "NF201",
            f"`{name}` is not known here",
            span,
            did_you_mean(name, known) or "define it with `=`, or `use` the file that does",
        )

    def visible(self, env: Env) -> set[str]:
        names = getattr(env.lookup, "visible", None)
        return set(names()) if names else set()

    def unknown_slot(self, function: str, name: str, slots: list[str], site: tree.Expr) -> NestflowError:
        help_ = did_you_mean(name, slots) or f"`{function}` has the slots " + ", ".join(f"`{s}`" for s in slots)
        return self.failure("NF202", f"`{function}` has no slot `{name}`", site.span, help_)


__all__ = ["Elaborator", "Word"]
