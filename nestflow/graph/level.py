"""A token-level level, instantiated: its names, its memories with their fields, and what it returns."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.core import NestflowError
from nestflow.diagnostics.fixes import add_after
from nestflow.diagnostics.suggest import Suggestion, did_you_mean
from nestflow.graph.body import items_of
from nestflow.graph.expressions import evaluate, integer
from nestflow.graph.memory import MemoryBuild
from nestflow.graph.model import Instance
from nestflow.graph.names import check_name
from nestflow.graph.scope import Builder, Env
from nestflow.graph.substitute import substitute
from nestflow.graph.templates import LEVEL_FIELDS
from nestflow.graph.values import MemoryValue, Poison, Quiet, SelfReference
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.language import tree

LATER = ("when", "project", "reset", "keep", "per", "rounds", "weight")
UNIT_FIELDS = ("every", "chunk")


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
        self.mistakes: list[Any] = []
        self.returns: tree.Return | None = None
        self.parts: dict[str, tuple[tree.Expr, dict[str, tree.Field], tree.Node]] = {}
        self.memo: dict[str, Any] = {}
        self.busy: list[str] = []
        self.widths = 0  # memories whose value's width is being looked for
        self.memories: dict[str, MemoryBuild] = {}
        self.env = Env(elab, self.builder, self.find, "level", depth=depth)
        for s in template.slots or ():
            if s.name not in bound:
                bound[s.name] = evaluate(s.default, self.env)

    # reading the body ------------------------------------------------------------------------------

    def collect(self, body: tuple[tree.Statement, ...], for_key: tuple[Any, ...] = ()) -> None:
        for s in body:
            if isinstance(s, tree.Assign):
                for n in s.names:
                    check_name(self.elab, n, s.span)
                    if n in self.exprs:
                        raise self.elab.failure(
                            "NF220", f"`{n}` is given twice in this level", s.span, "in a level a name is given once"
                        )
                    self.exprs[n] = (s, for_key)
            elif isinstance(s, tree.Field):
                try:
                    self.field(s, self.fields, LEVEL_FIELDS)
                except NestflowError as e:
                    self.mistakes += e.diagnostics
            elif isinstance(s, tree.Return):
                self.returns = s
            elif isinstance(s, tree.MemoryPart):
                self.part(s)
            elif isinstance(s, tree.For):
                for i, item in enumerate(items_of(s, self.env)):
                    self.collect(self.elab.keep(substitute(s.body, s.variable, item)), (*for_key, (id(s), i)))
            elif isinstance(s, tree.If):
                condition = self.elab.as_node(evaluate(s.condition, self.env), s.condition)
                if condition.op != "const":
                    raise self.elab.failure(
                        "NF302", "the condition of `if` must be known when compiling", s.condition.span
                    )
                self.collect(s.body if condition.value else s.otherwise, for_key)
            elif isinstance(s, tree.Emit):
                raise self.elab.not_yet("`emit`", s.span)
            else:
                raise self.elab.failure(
                    "NF217",
                    "this statement cannot stand in a level",
                    s.span,
                    "a level has fields, names, memories, `for`, `if` and `return`",
                )

    def field(self, s: tree.Field, into: dict[str, tree.Field], known: tuple[str, ...]) -> None:
        if s.name not in known:
            raise self.elab.failure(
                "NF221", f"a level has no field `{s.name}`", s.name_span or s.span, self.field_help(s, known)
            )
        if s.name in into:
            raise self.elab.failure("NF222", f"`{s.name}` is given twice", s.span, "keep one of them")
        into[s.name] = s

    def field_help(self, s: tree.Field, known: tuple[str, ...]) -> str:
        also = {
            "loss": "objective",
            "optimizer": "update",
            "optimiser": "update",
            "forget": "retain",
            "decay": "retain",
            "period": "every",
            "frequency": "every",
            "rate": "update gd(rate)",
            "lr": "update gd(lr)",
            "keys": "key",
            "values": "value",
            "state": "memory",
            "output": "return",
            "k": "key",
            "v": "value",
            "q": "query",
        }
        if s.name in also:
            meant = also[s.name]
            same = s.name in ("optimizer", "optimiser", "keys", "values", "k", "v", "q", "output")
            return Suggestion(f"nestflow's word is `{meant}`", s.name, meant, same)
        return did_you_mean(s.name, known) or "the fields are " + ", ".join(known)

    def part(self, s: tree.MemoryPart) -> None:
        check_name(self.elab, s.name, s.span)
        if s.name in self.parts:
            raise self.elab.failure("NF220", f"two memories are called `{s.name}`", s.span)
        fields: dict[str, tree.Field] = {}
        for f in s.body:
            if not isinstance(f, tree.Field):
                raise self.elab.failure(
                    "NF217", "this statement cannot stand in a memory", f.span, "a memory has fields only"
                )
            self.field(f, fields, LEVEL_FIELDS[:-1])
        self.parts[s.name] = (s.kind, fields, s)

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
        if name == "t":
            return ops.leaf("position", Type("int", (), True, "T"))
        if name == "head" and self.env.heads:
            return ops.leaf("head", Type("int", (), heads=self.env.heads))
        if name == "training":
            return ops.leaf("training", Type("bool"))
        return self.elab.find_top(name)

    def named(self, name: str) -> Any:
        if name in self.busy:
            if self.widths:
                raise SelfReference
            raise self.elab.failure(
                "NF206",
                f"`{name}` is defined by itself: " + " → ".join([*self.busy, name]),
                self.exprs[name][0].span,
                "break the circle; a recall of a memory is no circle",
            )
        statement, for_key = self.exprs[name]
        self.busy.append(name)
        try:
            env = self.env.with_(prefix=name, for_key=for_key)
            value = evaluate(statement.value, env)
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

    # building --------------------------------------------------------------------------------------

    def build(self) -> Instance:
        self.collect(self.template.body)
        if self.mistakes:
            raise NestflowError(self.mistakes)
        for n in self.fields:
            if n in LATER:
                raise self.elab.not_yet(f"`{n}` in a level", self.fields[n].span)
        self.set_heads()
        self.check_clock()
        kinds = dict(self.parts)
        if not kinds and "memory" in self.fields:
            kinds = {"memory": (self.fields["memory"].value, {}, self.fields["memory"])}
        if not kinds:
            raise self.elab.failure(
                "NF223",
                f"level `{self.template.name}` has no memory",
                self.template.span,
                "write `memory matrix`, `memory mlp(depth = 2)`, …",
            )
        self.memories = {n: MemoryBuild(self, n, kind, fields, node) for n, (kind, fields, node) in kinds.items()}
        self.each(lambda m: m.prepare())
        built = self.each(lambda m: m.build())
        result = self.result()
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
        )

    def each(self, act: Any) -> list[Any]:
        """Do it for every memory; what is wrong with one does not hide what is wrong with the next."""
        errors, done = [], []
        for m in self.memories.values():
            try:
                done.append(act(m))
            except NestflowError as e:
                errors += e.diagnostics
        if errors:
            raise NestflowError(errors)
        return done

    def set_heads(self) -> None:
        value = self.override("heads")
        if value is not None:
            heads = value if isinstance(value, int) else int(value)
        elif "heads" in self.fields:
            heads = integer(self.fields["heads"].value, self.env, "heads")
        else:
            return
        if not 1 <= heads <= 4096:
            raise self.elab.failure(
                "NF304",
                f"heads must be between 1 and 4096, and this is {heads:,}",
                self.fields["heads"].span if "heads" in self.fields else self.site.span,
            )
        self.env = self.env.with_(heads=heads)

    def override(self, name: str) -> Any:
        """The constant value that a call's keyword gives a field, or None."""
        if name not in self.overrides:
            return None
        v = self.overrides[name]
        if isinstance(v, Node):
            if v.op != "const":
                raise self.elab.failure("NF302", f"a call can set `{name}` only to a constant", self.site.span)
            return v.value
        return v

    def check_clock(self) -> None:
        every = self.fields.get("every")
        if every is not None and isinstance(every.value, tree.Name) and every.value.name == "never":
            raise self.elab.not_yet("`every never` of a memory on the token clock", every.span)
        if every is not None and every.unit is not None and every.unit.rstrip("s") not in ("token",):
            unit = every.unit
            hint = "a level that is called in a flow ticks by tokens: `every 1 token`"
            raise self.elab.failure(
                "NF401",
                f"level `{self.template.name}` is called on tokens, and its clock is `{unit}`",
                every.unit_span or every.span,
                hint,
            )
        if every is not None and every.unit is None:
            count = every.value.span.text if every.value.span else "n"
            unit = "token" if count == "1" else "tokens"
            help_ = f"add a unit: `{count} {unit}`"
            raise self.elab.failure(
                "NF402", "`every` needs a unit", every.span, help_, fix=add_after(every.value, f" {unit}")
            )

    def result(self) -> Node:
        # weights of the result lie at `out.…`: torch.export writes paths as Python attributes, and `return` is a keyword
        env = self.env.with_(prefix="out", recall_mode="return").extend(_Y(self))
        if self.returns is not None:
            return self.elab.as_node(evaluate(self.returns.value, env), self.returns.value, "`return`")
        y = self.y(self.template)
        return ops.merge_heads(y) if self.env.heads and len(y.type.shape) == 1 else y

    def y(self, site: tree.Node) -> Node:
        """The recall at `query` (without a key: the state)."""
        if len(self.memories) != 1:
            raise self.elab.failure(
                "NF224",
                "`y` is the recall of the only memory, and this level has several",
                site.span,
                "call one of them: " + ", ".join(f"`{m}(q)`" for m in self.memories),
            )
        (memory,) = self.memories.values()
        return memory.y(site)

    # recalls ---------------------------------------------------------------------------------------

    def recall(self, name: str, given: list[Any], env: Env, site: tree.Expr) -> Node:
        memory = self.memories.get(name)
        if memory is None:
            raise self.elab.failure("NF225", f"`{name}` is no memory of this level", site.span)
        return memory.recall(given, env.recall_mode, site)


class _Y(dict[str, Any]):
    """`y` is made when it is used: a level without a query may do without it."""

    def __init__(self, level: LevelBuilder) -> None:
        super().__init__()
        self.level = level

    def __contains__(self, key: object) -> bool:
        return key == "y"

    def __getitem__(self, key: str) -> Any:
        return self.level.y(self.level.returns or self.level.template)


__all__ = ["LevelBuilder"]
