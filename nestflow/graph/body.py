"""The statements of a flow, run from top to bottom with the names they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.core import NestflowError
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.expressions import evaluate, integer, partial
from nestflow.graph.names import check_name
from nestflow.graph.scope import Env
from nestflow.graph.substitute import substitute
from nestflow.graph.unrolled import count, is_unrolled
from nestflow.graph.values import Partial, Poison, Quiet, SharedValue, is_list
from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.templates import Templates

STATEMENTS = ("shared", "repeat", "for", "if", "emit", "return")


class Body:
    """The statements of a flow, run with the names they make."""

    def __init__(self, templates: Templates, env: Env, local: dict[str, Any], names: dict[str, Node] | None) -> None:
        self.templates, self.env, self.local, self.names = templates, env, local, names
        self.elab = templates.elab
        self.result: Any = None
        self.published: list[tuple[str, Node]] = []

    def statements(self, body: tuple[tree.Statement, ...]) -> None:
        for s in body:
            try:
                self.statement(s)
            except NestflowError as e:
                self.elab.collector.take(e)
                self.poison(s)
            except Quiet:
                self.poison(s)

    def poison(self, s: tree.Statement) -> None:
        for n in getattr(s, "names", ()) or ((s.name,) if isinstance(s, tree.Shared) else ()):
            self.local[n] = Poison()
        if isinstance(s, tree.Return):
            self.result = Poison()

    def statement(self, s: tree.Statement) -> None:
        if isinstance(s, tree.Assign):
            for n in s.names:
                check_name(self.elab, n, s.span)
            value = evaluate(s.value, self.env)
            if len(s.names) > 1:
                self.elab.unpack(s.names, value, s, self.local)
            else:
                self.local.update(dict.fromkeys(s.names, value))
            if is_unrolled(value) and self.env.lookup("t") is None:  # from here on `t` counts patches
                self.local["t"] = count(value.type.shape[0])
            if self.names is not None:
                for n in s.names:
                    if isinstance(self.local[n], Node) and self.local[n].op not in ("const", "slot"):
                        self.names[n] = self.local[n]
        elif isinstance(s, tree.Shared):
            check_name(self.elab, s.name, s.span)
            self.local[s.name] = self.share(s)
        elif isinstance(s, tree.Return):
            self.result = evaluate(s.value, self.env)
        elif isinstance(s, tree.If):
            condition = self.elab.as_node(evaluate(s.condition, self.env), s.condition)
            if condition.op != "const":
                raise self.elab.failure(
                    "NF302",
                    "the condition of `if` must be known when compiling",
                    s.condition.span,
                    "use `a if c else b` for a choice at each tick",
                )
            self.statements(s.body if condition.value else s.otherwise)
        elif isinstance(s, tree.For):
            self.loop(s)
        elif isinstance(s, tree.Repeat):
            self.repeat(s)
        elif isinstance(s, tree.Emit):
            self.published.append((s.name, publish(self.elab, s, self.env)))
        else:
            self.result = Poison()  # it may be the `return` that was meant
            known = "a flow has names, `shared`, `repeat`, `for`, `if`, `emit` and `return`"
            word = s if isinstance(s, tree.Field) else None
            near = did_you_mean(word.name, STATEMENTS) if word else None
            span = (word.name_span if word else None) or s.span
            raise self.elab.failure("NF217", "this statement cannot stand in a flow", span, near or known)

    def loop(self, s: tree.For) -> None:
        check_name(self.elab, s.variable, s.span)
        items = items_of(s, self.env)
        outer = self.env
        with self.elab.turns(len(items), "for", s.span):
            for i, item in enumerate(items):
                self.env = outer.with_(for_key=(*outer.for_key, (id(s), i)))
                self.statements(self.elab.keep(substitute(s.body, s.variable, item)))
        self.env = outer

    def repeat(self, s: tree.Repeat) -> None:
        if s.variable is not None:
            check_name(self.elab, s.variable, s.span)
        count = integer(s.count, self.env, "the count of repeat")
        outer = self.env
        with self.elab.turns(count, "repeat", s.count.span):
            for i in range(count):
                body = s.body
                if s.variable is not None:
                    body = fill_marker(self.elab, body, s.variable, i)
                    self.local[s.variable] = ops.const(i)
                self.env = outer.with_(indices=(*outer.indices, i))
                before = len(self.elab.collector.errors)
                self.statements(body)
                if len(self.elab.collector.errors) > before:
                    break
        self.env = outer
        if s.variable is not None:
            self.local.pop(s.variable, None)

    def share(self, s: tree.Shared) -> Any:
        value = partial(s.value, self.env)
        if not isinstance(value, Partial):
            raise self.elab.failure(
                "NF218",
                "`shared` names one instance of a function, flow or level",
                s.span,
                "`shared emb = embed(vocab, dim)`",
            )
        made = SharedValue(value, s.name, s.value, self.env.builder)
        self.env.builder.shared.append(made)
        return made


def publish(elab: Any, s: tree.Emit, env: Env) -> Node:
    """The value of `emit name = e`: a number or tensor of each tick."""
    if env.builder.memory is not None:
        message = "a memory's function may not `emit`: it is recalled many times in a tick"
        raise elab.failure("NF320", message, s.span, "emit what the level or flow around it knows")
    node = elab.as_node(evaluate(s.value, env), s.value, "`emit`")
    if node.type.short:
        raise elab.failure("NF403", "`emit` cannot look ahead", s.span, "`next` belongs to a loss")
    return node if node.type.dtype == "float" else ops.binary("mul", ops.const(1.0), node, s.span)


def fill_marker(elab: Any, body: Any, variable: str, i: int) -> Any:
    """`{i}` of a repeat inside names and strings. Elsewhere the variable is a constant in scope, so that call sites
    stay the same from turn to turn."""
    if "{" + variable + "}" not in repr(body):
        return body
    return elab.keep(substitute(body, variable, tree.Number(i)))


def items_of(s: tree.For, env: Env) -> list[tree.Expr]:
    """The items of a `for`, as expressions to put in place of the variable."""
    if isinstance(s.items, tree.ListExpr):
        return list(s.items.items)
    value = evaluate(s.items, env)
    if not is_list(value) or not all(isinstance(v, Node) and v.op == "const" for v in value):
        raise env.elab.failure("NF318", "`for` goes over a list", s.items.span, "`for m in [keys, values] { … }`")
    return [tree.Number(v.value, span=s.items.span) for v in value]
