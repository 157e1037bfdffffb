"""A token-level level, instantiated: its names, its memories with their fields, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nestflow.diagnostics.core import Diagnostic, NestflowError, Related
from nestflow.diagnostics.suggest import Suggestion, did_you_mean
from nestflow.graph.body import items_of, publish
from nestflow.graph.expressions import default_of, evaluate, integer
from nestflow.graph.levels.gradients import check_gradients
from nestflow.graph.levels.memory import MEMORY_FIELDS, MemoryBuild
from nestflow.graph.levels.resets import ticks
from nestflow.graph.model import Computed, Instance
from nestflow.graph.names import check_name
from nestflow.graph.scope import Builder, Env
from nestflow.graph.substitute import substitute
from nestflow.graph.values import MemoryValue, Partial, Poison, Quiet, SelfReference
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.language import tree
from nestflow.vocabulary.fields import word_for

LEVEL_FIELDS = ("memory", "heads", *MEMORY_FIELDS)
CONSTANT = ("every", "chunk", "heads", "read", "gradient", "retain", "objective", "memory")
MAX_HEADS = 4096


@dataclass(frozen=True)
class _Found:
    """The level's names as a lookup."""

    level: LevelBuilder

    def __call__(self, name: str) -> Any:
        return self.level.find(name)

    def visible(self) -> set[str]:
        return {*self.level.bound, *self.level.exprs, *self.level.parts}


class LevelBuilder:
    """Names are evaluated when first used, in any order; each once. Fields are evaluated per memory."""

    def __init__(
        self,
        elab: Any,
        template: tree.Level,
        path: str,
        bound: dict[str, Any],
        overrides: dict[str, Any],
        depth: int,
        site: tree.Expr,
    ) -> None:
        self.elab, self.template, self.path, self.bound, self.overrides = elab, template, path, bound, overrides
        self.site = site
        self.builder = Builder(path)
        self.exprs: dict[str, tuple[tree.Assign, tuple[Any, ...]]] = {}
        self.fields: dict[str, tree.Field] = {}
        self.mistakes: list[Diagnostic] = []
        self.returns: tree.Return | None = None
        self.emits: list[tuple[tree.Emit, tuple[Any, ...]]] = []
        self.parts: dict[str, tuple[tree.Expr, dict[str, tree.Field], tree.Node]] = {}
        self.memo: dict[str, Any] = {}
        self.busy: list[str] = []
        self.widths = 0  # memories whose value's width is being looked for
        self.memories: dict[str, MemoryBuild] = {}
        self.starts: list[Computed] = []
        self.env = Env(elab, self.builder, _Found(self), "level", depth=depth)
        for s in template.slots or ():
            if s.name not in bound:
                bound[s.name] = default_of(s, self.env)

    # reading the body ------------------------------------------------------------------------------

    def collect(self, body: tuple[tree.Statement, ...], for_key: tuple[Any, ...] = ()) -> None:
        """Sort the statements; what is wrong with one does not hide what is wrong with the next."""
        for s in body:
            try:
                self.statement(s, for_key)
            except NestflowError as e:
                self.mistakes += e.diagnostics

    def statement(self, s: tree.Statement, for_key: tuple[Any, ...]) -> None:
        if isinstance(s, tree.Assign):
            for n in s.names:
                check_name(self.elab, n, s.span)
                self.once(n, s, self.exprs[n][0] if n in self.exprs else None)
                self.exprs[n] = (s, for_key)
        elif isinstance(s, tree.Field):
            self.field(s, self.fields, LEVEL_FIELDS)
        elif isinstance(s, tree.Return):
            self.once("return", s, self.returns, "NF222")
            self.returns = s
        elif isinstance(s, tree.MemoryPart):
            self.part(s)
        elif isinstance(s, tree.For):
            check_name(self.elab, s.variable, s.span)
            items = items_of(s, self.env)
            with self.elab.turns(len(items), "for", s.span):
                for i, item in enumerate(items):
                    replaced = self.elab.keep(substitute(s.body, s.variable, item))
                    self.collect(replaced, (*for_key, (id(s), i)))
        elif isinstance(s, tree.If):
            condition = self.elab.as_node(evaluate(s.condition, self.env), s.condition)
            if condition.op != "const":
                message = "the condition of `if` must be known when compiling"
                raise self.elab.failure("NF302", message, s.condition.span)
            self.collect(s.body if condition.value else s.otherwise, for_key)
        elif isinstance(s, tree.Emit):
            self.emits.append((s, for_key))
        else:
            help_ = "a level has fields, names, memories, `for`, `if`, `emit` and `return`"
            raise self.elab.failure("NF217", "this statement cannot stand in a level", s.span, help_)

    def once(self, name: str, s: tree.Node, other: tree.Node | None, code: str = "NF220") -> None:
        if other is not None:
            related = (Related(other.span, "given here first"),) if other.span else ()
            help_ = "in a level a name is given once" if code == "NF220" else "keep one of them"
            raise self.elab.failure(code, f"`{name}` is given twice in this level", s.span, help_, related)

    def field(self, s: tree.Field, into: dict[str, tree.Field], known: tuple[str, ...]) -> None:
        if s.name not in known:
            what = "a level" if known is LEVEL_FIELDS else "a memory of a level"
            help_ = field_help(s.name, known)
            raise self.elab.failure("NF221", f"{what} has no field `{s.name}`", s.name_span or s.span, help_)
        if s.name in into:
            first = into[s.name].span
            related = (Related(first, "given here first"),) if first else ()
            raise self.elab.failure("NF222", f"`{s.name}` is given twice", s.span, "keep one of them", related)
        into[s.name] = s

    def part(self, s: tree.MemoryPart) -> None:
        check_name(self.elab, s.name, s.span)
        self.once(s.name, s, self.parts[s.name][2] if s.name in self.parts else None)
        fields: dict[str, tree.Field] = {}
        self.parts[s.name] = (s.kind, fields, s)
        for f in s.body:
            if not isinstance(f, tree.Field):
                message = "this statement cannot stand in a memory"
                raise self.elab.failure("NF217", message, f.span, "a memory has fields only; names stand in its level")
            self.field(f, fields, MEMORY_FIELDS)

    # names -----------------------------------------------------------------------------------------

    def find(self, name: str) -> Any:
        if name in self.memo:
            return self.memo[name]
        if name in self.bound:
            return self.bound[name]
        if name in self.parts or (name == "memory" and not self.parts and "memory" in self.fields):
            return MemoryValue(self, name)
        if name in self.exprs:
            return self.named(name)
        if name == "t" and "reset" in self.fields and self.memories:
            return ticks(next(iter(self.memories.values())).reset)
        if name == "t":
            return ops.leaf("position", Type("int", (), True, "T"))
        if name == "head" and self.env.heads:
            return ops.leaf("head", Type("int", (), heads=self.env.heads))
        if name == "training":
            return ops.leaf("training", Type("bool"))
        return self.elab.find_inside(name)

    def named(self, name: str) -> Any:
        if name in self.busy:
            if self.widths:
                raise SelfReference
            circle = " → ".join([*self.busy, name])
            help_ = "break the circle; a recall of a memory is no circle"
            raise self.elab.failure(
                "NF206", f"`{name}` is defined by itself: {circle}", self.exprs[name][0].span, help_
            )
        statement, for_key = self.exprs[name]
        self.busy.append(name)
        try:
            value = evaluate(statement.value, self.env.with_(prefix=name, for_key=for_key))
            if len(statement.names) > 1:
                self.elab.unpack(statement.names, value, statement, self.memo)
            else:
                self.memo[name] = value
        except NestflowError as e:
            self.elab.collector.take(e)
            self.memo.update({n: Poison() for n in statement.names})
        except Quiet:
            self.memo.update({n: Poison() for n in statement.names})
        finally:
            self.busy.pop()
        if isinstance(self.memo[name], Poison):
            raise Quiet
        return self.memo[name]

    def try_unused(self) -> None:
        """Names that nothing reads make no weights, but their mistakes are told."""
        used = dict(self.memo)
        for name in self.exprs:
            if name not in used:
                kept = self.builder.snapshot()
                try:
                    self.named(name)
                except Quiet:
                    pass
                finally:
                    self.builder.restore(kept)
        self.memo = used

    # building --------------------------------------------------------------------------------------

    def build(self) -> Instance:
        self.collect(self.template.body)
        self.check_overrides()
        if self.mistakes:
            raise NestflowError(self.mistakes)
        inputs = [v for v in self.bound.values() if isinstance(v, Node) and v.op == "slot"]
        if inputs and not any(v.type.clock and v.type.clock != "N" for v in inputs):
            message = f"level `{self.template.name}` ticks by tokens, and none of its inputs has the token axis T"
            raise self.elab.failure("NF401", message, self.site.span, "`input x : float[T, 64]` has it")
        self.set_heads()
        kinds = dict(self.parts)
        if "memory" in self.fields:
            f = self.fields["memory"]
            if kinds:
                message = "`memory` without a name stands beside memories with names"
                raise self.elab.failure(
                    "NF222", message, f.span, f"`memory name : {f.value.span.text if f.value.span else '…'} {{ … }}`"
                )
            kinds["memory"] = (f.value, {}, f)
        if not kinds:
            message = f"level `{self.template.name}` has no memory"
            span = self.template.name_span or self.template.span
            raise self.elab.failure("NF223", message, span, "write `memory matrix`, `memory mlp(depth = 2)`, …")
        self.memories = {n: MemoryBuild(self, n, kind, fields, node) for n, (kind, fields, node) in kinds.items()}
        self.each(lambda m: m.prepare())
        built = self.each(lambda m: m.build())
        result = self.publish(self.result())
        check_gradients(self.elab, built, result)
        self.try_unused()
        slots = tuple((k, v.type) for k, v in self.bound.items() if isinstance(v, Node) and v.op == "slot")
        names = tuple((n, v) for n, v in self.memo.items() if isinstance(v, Node) and v.op not in ("const", "slot"))
        return Instance(
            self.path,
            "level",
            self.template.name,
            slots,
            result,
            tuple(self.builder.weights),
            tuple(self.builder.tails),
            tuple(self.builder.children.items()),
            tuple(built),
            self.env.heads,
            names,
            self.template.doc,
            self.template.span,
            starts=tuple(self.starts),
        )

    def each(self, act: Callable[[MemoryBuild], Any]) -> list[Any]:
        """Do it for every memory; what is wrong with one does not hide what is wrong with the next."""
        errors: list[Diagnostic] = []
        done: list[Any] = []
        quiet = False
        for m in self.memories.values():
            try:
                done.append(act(m))
            except NestflowError as e:
                errors += e.diagnostics
            except Quiet:
                quiet = True
        if errors:
            raise NestflowError(errors)
        if quiet:
            raise Quiet
        return done

    def set_heads(self) -> None:
        given = self.override("heads")
        f = self.fields.get("heads")
        if given is None and f is None:
            return
        heads = given if f is None or given is not None else integer(f.value, self.env, "`heads`")
        span = f.span if f is not None and given is None else self.site.span
        if isinstance(heads, bool) or not isinstance(heads, (int, float)) or heads != int(heads):
            raise self.elab.failure("NF303", f"`heads` must be a whole number, and this is {heads}", span)
        if not 1 <= heads <= MAX_HEADS:
            message = f"heads must be between 1 and {MAX_HEADS}, and this is {heads:,}"
            raise self.elab.failure("NF304", message, span)
        self.env = self.env.with_(heads=int(heads))

    # keywords of the call --------------------------------------------------------------------------

    def check_overrides(self) -> None:
        for name, value in self.overrides.items():
            constant = isinstance(value, (Partial, str)) or (isinstance(value, Node) and value.op == "const")
            if name not in CONSTANT or not constant:
                message = f"a call can set `{name}` of level `{self.template.name}` only where it is constant"
                help_ = "give the level a slot for it, or write a level of your own"
                self.mistakes += self.elab.failure("NF302", message, self.site.span, help_).diagnostics

    def override(self, name: str) -> Any:
        """The constant value that a call's keyword gives a field, or None."""
        v = self.overrides.get(name)
        return v.value if isinstance(v, Node) else v

    # what it returns -------------------------------------------------------------------------------

    def result(self) -> Node:
        # weights of the result lie at `out.…`: torch.export writes paths as Python attributes, and `return` is a
        # keyword
        env = self.env.with_(prefix="out", recall_mode="return").extend(_Y(self))
        if self.returns is None:
            y = self.y(self.template)
            return ops.merge_heads(y) if self.env.heads and len(y.type.shape) == 1 else y
        site = self.returns.value
        node = self.elab.as_node(evaluate(site, env), site, "`return`")
        if node.type.short:
            raise self.elab.failure("NF403", "a level cannot look ahead", site.span, "`next` belongs to a loss")
        whole = not any(isinstance(v, Node) and v.type.heads for v in self.bound.values())
        if self.env.heads and node.type.heads and whole:
            message = f"level `{self.template.name}` returns a value per head: {node.type}"
            raise self.elab.failure("NF319", message, site.span, "join the heads: `|> merge_heads`")
        return node

    def publish(self, result: Node) -> Node:
        """The result, and what `emit` names beside it; a recall in `emit` sees the state that one in `return` does."""
        published: list[tuple[str, Node]] = []
        for s, for_key in self.emits:
            env = self.env.with_(prefix=f"emit.{s.name}", recall_mode="return", for_key=for_key).extend(_Y(self))
            published.append((s.name, publish(self.elab, s, env)))
        return ops.emit(result, published)

    def y(self, site: tree.Node) -> Node:
        """The recall at `query` (without a key: the state)."""
        if len(self.memories) != 1:
            calls = ", ".join(f"`{m}(q)`" for m in self.memories)
            message = "`y` is the recall of the only memory, and this level has several"
            raise self.elab.failure("NF224", message, site.span, f"call one of them: {calls}")
        (memory,) = self.memories.values()
        return memory.y(site)

    def state_of(self, name: str, tensor: str | None, mode: str, site: tree.Expr) -> Node:
        """The state of a memory: its one tensor, or the one at a path."""
        memory = self.memories.get(name)
        if memory is None and name == "M":
            message = "`M` is the memory of this field, and its tensors have no names here"
            help_ = "bare `M` is its state, if that is one tensor; of several: `memory m : KIND { … }`, then `m.linear`"
            raise self.elab.failure("NF225", message, site.span, help_)
        if memory is None:
            raise self.elab.failure("NF225", f"`{name}` is no memory of this level", site.span)
        return memory.state_of(tensor, mode, site)

    def gradient_of(self, name: str, tensor: str | None, site: tree.Expr) -> Node:
        """`m.g`: the gradient that a memory takes in this tick, of its one tensor or of the one at a path."""
        memory = self.memories.get(name)
        if memory is None:
            raise self.elab.failure("NF225", f"`{name}` is no memory of this level", site.span)
        return memory.state_of(tensor, "gradient", site)

    def recall(self, name: str, given: list[Any], env: Env, site: tree.Expr) -> Node:
        memory = self.memories.get(name)
        if memory is None:
            raise self.elab.failure("NF225", f"`{name}` is no memory of this level", site.span)
        return memory.recall(given, env.recall_mode, site)


class _Y(dict[str, Any]):
    """`y` is made when it is used: a level without a query may do without it."""

    def __init__(self, level: LevelBuilder) -> None:
        super().__init__(y=None)
        self.level = level

    def __getitem__(self, key: str) -> Any:
        return self.level.y(self.level.returns or self.level.template)


def field_help(name: str, known: tuple[str, ...]) -> str:
    """The field that a misspelt or foreign one stands for."""
    if name in ("lr", "rate", "learning_rate", "beta", "momentum", "weight_decay"):
        if name == "weight_decay":
            return (
                "`weight_decay` belongs to `update`, as in `update adamw(1e-3, weight_decay = 0.1)`; see also `retain`"
            )
        return f"`{'lr' if 'rate' in name else name}` belongs to `update`: `update gd(lr = 0.1)`"
    if name in ("freeze", "frozen") and "every" in known:
        return "a level that does not learn has `every never`"
    other = word_for(name, "field")
    if other is not None and other.kind == "field" and other.name in (*known, "return"):
        # a forget gate is no `retain`, a frequency no `every`: only these mean just the same
        same = name in ("optimizer", "optimiser", "keys", "values", "queries", "k", "v", "q")
        return Suggestion(f"nestflow's word is `{other.name}`", name, other.name, same)
    if name in LEVEL_FIELDS and name not in known:
        return f"`{name}` belongs to the level"
    return did_you_mean(name, known) or "the fields are " + ", ".join(known)


__all__ = ["LEVEL_FIELDS", "LevelBuilder"]
