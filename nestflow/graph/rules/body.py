"""The statements of an optimiser: names, memories, steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.core import Diagnostic, NestflowError, Span
from nestflow.graph.body import items_of
from nestflow.graph.expressions import evaluate, integer
from nestflow.graph.names import check_name
from nestflow.graph.rules.memory import MemoryStatement, RuleMemory, eye, kind_of, size_of
from nestflow.graph.rules.resets import debiased, varies
from nestflow.graph.scope import Env
from nestflow.graph.substitute import substitute
from nestflow.graph.values import Poison, Quiet
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, depends, make, walk
from nestflow.ir.rule import Let, RuleSlot, SetWeight, Statement, Step
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.rules.update import RuleBuilder

LIKE = Type(like=True)
NUMBER = Type()


def given_names(g: Node, w: Node | None = None) -> dict[str, Any]:
    """What an update rule sees without being told: the gradient, the weight (or the memory that it serves), the
    counts."""
    return {
        "g": g,
        "w": ops.leaf("w", LIKE) if w is None else w,
        "w0": ops.leaf("w0", LIKE),
        "w_chunk": ops.leaf("w_chunk", LIKE),
        "n_ticks": ops.leaf("n_ticks", Type("int")),
        "t": ops.leaf("updates", Type("int")),
    }


class Program:
    """The statements of an optimiser, run from top to bottom."""

    def __init__(
        self,
        rule: RuleBuilder,
        env: Env,
        local: dict[str, Any],
        raw: dict[str, Any],
        into: list[Statement],
        template: tree.Template,
    ) -> None:
        self.rule, self.local, self.raw, self.into, self.template = rule, local, raw, into, template
        self.elab = rule.elab
        self.mine: dict[str, RuleMemory] = {}
        self.mistakes: list[Diagnostic] = []
        self.quiet = False
        self.w: Node = local["w"]
        self.below: tuple[tree.Statement, ...] = ()
        words = {"before": self.before, "debias": self.debias, "eye": self.eye}
        self.env = env.with_(specials={**words, "curvature": rule.curvature, "gram": rule.gram})
        self.raw_env = env.extend(raw)
        # names given in text order: before(m) may stand above m's own statement
        for s in template.body:
            if isinstance(s, tree.MemoryPart):
                self.declare(s)

    def declare(self, s: tree.MemoryPart) -> None:
        check_name(self.elab, s.name, s.span)
        if s.name in self.mine or s.name in self.local:
            message = f"`{s.name}` is given twice in this optimiser"
            raise self.elab.failure("NF220", message, s.span, "give one of them another name")
        unique = s.name
        while any(slot.name == unique for slot in self.rule.slots):
            unique += "_"
        kind = self.kind(s)
        of_number = kind == "tensor" and kind_of(s)[0] == "like" and not self.w.type.like
        m = RuleMemory(unique, kind == "number" or of_number)
        self.mine[s.name] = self.local[s.name] = m
        self.rule.slots.append(RuleSlot(unique, "number" if m.number else "w", ops.const(0.0), None, self.rule.where))
        MemoryStatement(self, s, m).foresee()

    def kind(self, s: tree.MemoryPart) -> str:
        name, _ = kind_of(s)
        if name in ("like", "matrix", "vector"):
            return "tensor"
        if name == "scalar":
            return "number"
        if name in ("mlp", "cache"):
            raise self.elab.not_yet(f"`memory {name}` in an optimiser", s.span)
        message = "a memory of an optimiser is `like(w)`, `matrix(m, n)`, `vector(n)` or `scalar`"
        raise self.elab.failure("NF226", message, s.kind.span)

    def before(self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
        return self.named(piped, args, site, "before").old()

    def debias(self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
        m = self.named(piped, args, site, "debias")
        new = m.state_node(site)
        retain = m.retain if m.retain is not None else ops.const(1.0)
        known = self.rule.arguments.get(retain["name"], retain) if retain.op == "hyper" else retain
        if ops.is_const(known, 1):
            raise self.elab.failure(
                "NF304",
                f"`debias({m.name})` divides by 1 − the product of its retains, and its retain is 1",
                site.span,
                "give the memory a `retain` below 1, or leave `debias` out",
            )
        if self.rule.memory is not None and varies(self.rule, retain):
            return debiased(self.rule, self.into, m.name, new, retain)
        return make("debias", (new, retain), m.type, site.span, slot=m.name)

    def eye(self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: Any, site: tree.Expr) -> Node:
        """`eye(rows(w))`: the size may be a fact of w."""
        given = [*piped, *(evaluate(a, self.env) for a in args)]
        if len(given) != 1:
            raise self.elab.failure("NF214", "`eye` takes the size of a square matrix", site.span, "`eye(rows(w))`")
        return eye(size_of(self.rule, self.elab.as_node(given[0], site), site))

    def named(self, piped: list[Any], args: tuple[tree.Expr, ...], site: tree.Expr, what: str) -> RuleMemory:
        name = args[0].name if len(args) == 1 and not piped and isinstance(args[0], tree.Name) else ""
        if name not in self.mine:
            raise self.elab.failure(
                "NF237",
                f"`{what}` takes the name of a memory of this optimiser",
                site.span,
                "its memories: " + (", ".join(f"`{m}`" for m in self.mine) or "none"),
            )
        return self.mine[name]

    def run(self, body: tuple[tree.Statement, ...]) -> None:
        """All statements; what is wrong with one does not hide what is wrong with the next."""
        self.statements(body)
        if self.mistakes:
            raise NestflowError(self.mistakes)
        if self.quiet:
            raise Quiet

    def statements(self, body: tuple[tree.Statement, ...]) -> None:
        outside = self.below
        for i, s in enumerate(body):
            self.below = (*body[i + 1 :], *outside)
            try:
                with self.elab.at(s):
                    self.statement(s)
                continue
            except NestflowError as e:
                self.mistakes += e.diagnostics
            except Quiet:
                self.quiet = True
            if isinstance(s, tree.MemoryPart) and s.name in self.mine:
                self.mine[s.name].ready = True
            for n in s.names if isinstance(s, tree.Assign) else ():
                self.local[n] = Poison()
        self.below = outside

    def statement(self, s: tree.Statement) -> None:
        if isinstance(s, tree.Assign):
            for n in s.names:
                check_name(self.elab, n, s.span)
            value = evaluate(s.value, self.env)
            if isinstance(value, RuleMemory):  # `u = m` reads the memory here
                value = value.state_node(s.value)
            if len(s.names) > 1:
                self.elab.unpack(s.names, value, s, self.local)
            else:
                self.local.update(dict.fromkeys(s.names, value))
        elif isinstance(s, tree.MemoryPart):
            self.memory(s)
        elif isinstance(s, tree.Field) and s.name in ("step", "set", "eval"):
            node = self.elab.as_node(evaluate(s.value, self.env), s.value, f"`{s.name}`")
            if not node.type.like and self.w.type.like:
                message = f"`{s.name}` is a tensor like w, and this is {node.type}"
                raise self.elab.failure("NF323", message, s.value.span, "for example `step -lr * g`")
            self.level_wide(node, s.value)
            self.rule.same_form(node, self.rule.form(self.w, s), s, f"`{s.name}`")
            if s.name == "eval":
                if self.rule.where is not None:
                    raise self.elab.not_yet("`eval` for some weights only", s.span)
                self.rule.eval = node
            else:
                self.keep_names(s.span)
                self.into.append((Step if s.name == "step" else SetWeight)(node, s.span, self.rule.where))
        elif isinstance(s, tree.If):
            condition = self.elab.as_node(evaluate(s.condition, self.raw_env), s.condition)
            if condition.op == "const":
                self.statements(s.body if condition.value else s.otherwise)
                return
            if condition.type.dtype != "bool" or any(
                n.op not in ("const", "fact") for n in walk(condition) if not n.args
            ):
                message = "the condition of `if` must be known when compiling, or asks what w is: `ndim(w) >= 2`"
                raise self.elab.failure("NF302", message, s.condition.span, "`a if c else b` chooses at each update")
            self.branches(s, condition)
        elif isinstance(s, tree.For):
            self.below = (s, *self.below)
            check_name(self.elab, s.variable, s.span)
            items = items_of(s, self.env)
            with self.elab.turns(len(items), "for", s.span):
                for item in items:
                    self.statements(self.elab.keep(substitute(s.body, s.variable, item)))
        elif isinstance(s, tree.Repeat):
            self.below = (s, *self.below)
            count = integer(s.count, self.raw_env, "the count of repeat")
            with self.elab.turns(count, "repeat", s.count.span):
                for i in range(count):
                    if s.variable:
                        self.local[s.variable] = ops.const(i)
                    self.statements(s.body)
        else:
            name = getattr(s, "name", "this statement")
            raise self.elab.failure(
                "NF217",
                f"`{name}` cannot stand in an optimiser",
                s.span,
                "an optimiser has names, memories, `step`, `set`, `eval`, `if`, `for` and `repeat`",
            )

    def keep_names(self, span: Span | None) -> None:
        """Before a step: what is named and read below it stays what it is now, though it was made of w."""
        from nestflow.graph.unused import names_in  # which builds rules itself

        self.keep(names_in(self.below), lambda n: n is self.w, span)

    def keep(self, wanted: set[str], test: Callable[[Node], bool], span: Span | None) -> None:
        """Values of these names that pass the test are computed here, once."""
        for name, value in list(self.local.items()):
            if name not in wanted or not isinstance(value, Node) or value is self.w:
                continue
            if not depends(value, test):
                continue
            unique, n = name, 1
            while unique in self.rule.named:
                n += 1
                unique = f"{name}_{n}"
            self.rule.named[unique] = self.rule.form(value, self.template)
            self.into.append(Let(unique, value, span, self.rule.where))
            self.local[name] = ops.leaf("named", value.type, value.span, name=unique)

    def memory(self, s: tree.MemoryPart) -> None:
        if s.name not in self.mine:
            self.declare(s)
        MemoryStatement(self, s, self.mine[s.name]).run()

    # a choice by what a weight is ----------------------------------------------------------------------

    def branches(self, s: tree.If, condition: Node) -> None:
        """`if ndim(w) >= 2 { … } else { … }`: each weight runs the branch that its shape takes. What is named inside
        stays inside."""
        from nestflow.graph.unused import names_in

        outside = self.rule.where
        if outside is None:  # norms over all weights are taken where all weights are
            self.keep(names_in((s,)), lambda n: n.op in ("norm_all", "total"), s.span)
        for body, chosen in ((s.body, condition), (s.otherwise, ops.unary("not", condition))):
            kept, mine = dict(self.local), dict(self.mine)
            self.rule.where = chosen if outside is None else ops.binary("and", outside, chosen)
            for x in body:
                if isinstance(x, tree.MemoryPart):
                    self.declare(x)
            self.statements(body)
            self.rule.where = outside
            restore(self.local, kept)
            restore(self.mine, mine)

    def level_wide(self, node: Node, expr: tree.Expr) -> None:
        """Norms over all weights are taken where all weights are."""
        if self.rule.where is not None and depends(node, lambda n: n.op in ("norm_all", "total")):
            message = "`norm_all`, `total` and `clip_norm` go over all weights, and here stand only some of them"
            raise self.elab.failure("NF427", message, expr.span, "take the norm above the `if`, and use its name here")


__all__ = ["LIKE", "NUMBER", "Program", "RuleMemory", "given_names"]


def restore(names: dict[str, Any], old: dict[str, Any]) -> None:
    """A dict that others hold becomes what it was."""
    names.clear()
    names.update(old)
