"""`windowed(ℓ, W, weight = e)`: the objective of the pairs of the last W ticks, all at one state.

ℓ is written out once for each age a = 0 … W − 1, its context read as it was a ticks ago: what it is made of besides
recalls of the memory is kept for W ticks (`window`), and a pair from before the memory's start counts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestflow.graph.expressions import evaluate
from nestflow.graph.levels.resets import ticks
from nestflow.graph.model import TailSpec
from nestflow.graph.scope import Env
from nestflow.graph.values import Partial
from nestflow.ir import ops
from nestflow.ir.choices import for_round, per_round
from nestflow.ir.construct import number, rewrite
from nestflow.ir.node import Node, Type, depends, walk
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild

LONGEST = 128


class Windows:
    """What `windowed` means in the objective of one memory. named: makes an objective of a name (`l2`, `lp(3)`)."""

    def __init__(self, m: MemoryBuild, env: Env, named: Any) -> None:
        self.m, self.env, self.named = m, env, named
        self.kept: dict[Node, Node] = {}

    def __call__(
        self, piped: list[Any], args: tuple[tree.Expr, ...], kwargs: tuple[tuple[str, tree.Expr], ...], site: tree.Expr
    ) -> Node:
        """The sum over ages, a number per tick."""
        given = [*piped, *(evaluate(a, self.env) for a in args)]
        weights = {k: e for k, e in kwargs if k == "weight"}
        for k, e in kwargs:
            if k != "weight":
                raise self.m.elab.unknown_slot("windowed", k, ["objective", "window", "weight"], e)
        if len(given) != 2:
            help_ = "`windowed(l2, 16)`, `windowed(l2, 16, weight = e)`"
            raise self.m.elab.failure("NF214", "`windowed` takes an objective and a number of ticks", site.span, help_)
        size = self.size(given[1], site)
        one = self.named(given[0]) if isinstance(given[0], Partial) else self.m.elab.as_node(given[0], site)
        one = number(one) if one.type.is_number else ops.reduce("sum", one)
        pair = self.weight(site)
        if pair is not None:
            one = ops.binary("mul", pair, one)
        total: Node | None = None
        self.m.ages = []
        for age in range(size):
            term = self.aged(one, pair, age, size, weights.get("weight"), site)
            total = term if total is None else ops.binary("add", total, term)
        assert total is not None
        return total

    def size(self, value: Any, site: tree.Expr) -> int:
        node = self.m.elab.as_node(value, site, "the window")
        if node.op != "const" or isinstance(node.value, bool) or node.value != int(node.value):
            raise self.m.elab.failure("NF303", "the window is a whole number of ticks known when compiling", site.span)
        if not 1 <= node.value <= LONGEST:
            message = f"the window is between 1 and {LONGEST} ticks, and this is {node.value}"
            raise self.m.elab.failure("NF406", message, site.span)
        return int(node.value)

    def weight(self, site: tree.Expr) -> Node | None:
        """The pair's own weight, which it keeps."""
        from nestflow.graph.levels.learning import condition, masked, weight

        node = masked(weight(self.m), condition(self.m))
        if node is not None and depends(node, lambda n: n.op == "each" and n["by"] == "tensor"):
            raise self.m.elab.not_yet("a record as `weight` beside `windowed`", site.span)
        return None if node is None else number(node)

    def aged(
        self, one: Node, pair: Node | None, age: int, size: int, weight: tree.Expr | None, site: tree.Expr
    ) -> Node:
        """The term of the pair that is `age` ticks old."""
        factor = ops.const(1.0)
        if weight is not None:
            env = self.env.extend({"age": ops.const(age)})
            factor = self.m.elab.as_node(evaluate(weight, env), weight, "`weight`")
            if not factor.type.is_number:
                message = f"the weight of an age is a number, and this is {factor.type}"
                raise self.m.elab.failure("NF322", message, weight.span, "`learned(16, init = ones)[age]`")
            factor = number(factor)
        if age:
            t = ticks(self.m.reset)  # none from before a reset
            factor = ops.where(ops.binary("gt", t, ops.const(age)), factor, ops.const(0.0))
        then = pair if pair is None or size == 1 or not pair.type.clock else self.past(pair, age, size)
        self.m.ages.append(factor if then is None else ops.binary("mul", factor, then))
        return ops.binary("mul", factor, self.lagged(one, age, size))

    def lagged(self, one: Node, age: int, size: int) -> Node:
        """ℓ with everything but the recalls of this memory as it was `age` ticks ago."""
        if size == 1:
            return one
        inside: dict[Node, None] = {}  # what recalls this memory, in the order of the text: paths are numbered by it
        for n in walk(one):
            if self.recalls(n) or any(a in inside for a in n.args):
                inside[n] = None
        context = dict.fromkeys(a for n in inside for a in n.args if a not in inside and a.type.clock)
        memo = {n: self.past(n, age, size) for n in context}
        return rewrite([one], lambda n, args: None, memo)[0]

    def recalls(self, n: Node) -> bool:
        return n.op == "recall" and n["memory"] == self.m.name and n["mode"] == "objective"

    def past(self, x: Node, age: int, size: int) -> Node:
        """x as it was `age` ticks ago."""
        if not x.type.batch or not depends(x, lambda n: n.op not in ("position", "const") and not n.args):
            t = ops.leaf("position", Type("int", (), True, "T"))
            then = ops.binary("max", ops.binary("sub", t, ops.const(age)), ops.const(1))
            return rewrite([x], lambda n, args: then if n is t else None)[0]
        lists = [n for n in walk(x) if n.op == "each"]
        if lists:  # each round has pairs of its own
            return per_round([self.past(for_round(x, j), age, size) for j in range(len(lists[0].args))])
        if x not in self.kept:
            path = f"{self.m.name}@window.{len(self.kept)}"
            self.kept[x] = ops.window(x, size, path, x.span)
            self.m.level.builder.tails.append(TailSpec(path, x.type, size - 1))
        return ops.index(self.kept[x], age)


def age_of(n: Node) -> int:
    """How old the pair is that an expression of a windowed objective looks at."""
    return next((x["item"] for x in walk(n) if x.op == "index" and x.args[0].op == "window"), 0)


def is_windowed(objective: Node) -> bool:
    return depends(objective, lambda n: n.op == "window")
