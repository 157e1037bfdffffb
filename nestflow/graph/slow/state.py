"""The tensors of levels without slots that are their own, how they start, and in which order the levels run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.core import Related
from nestflow.graph.model import Init, Inner, Instance, StepLevel, WeightSpec
from nestflow.graph.slow.levels import begins_anew, init_of, records
from nestflow.ir.node import walk
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.slow.steps import StepLevels

OWNING = ("weights", "rest", "")


def is_inner(fields: dict[str, tree.Field]) -> bool:
    """Whether the level begins anew in every step."""
    return begins_anew(fields.get("reset"))


class OwnTensors:
    """What each level keeps. shapes: of all weights and kept tensors, by absolute path."""

    def __init__(self, steps: StepLevels, owned: dict[str, tuple[str, ...]], shapes: dict[str, WeightSpec]) -> None:
        self.steps, self.elab, self.owned, self.shapes = steps, steps.elab, owned, shapes
        self.known: dict[str, tuple[WeightSpec, ...]] = {}
        self.busy: list[str] = []

    def prefix(self, name: str) -> str:
        """What the absolute paths of a level's tensors begin with."""
        if self.elab.slow.kind(name) not in OWNING:
            return f"{name}."
        f = self.elab.slow.field(name, "memory")
        e = None if f is None else f.value
        return f"{e.args[0].name}." if isinstance(e, tree.Call) and e.args and isinstance(e.args[0], tree.Name) else ""

    def of(self, name: str) -> tuple[WeightSpec, ...]:
        """The tensors of a level that are its own, by absolute path."""
        if name in self.known:
            return self.known[name]
        f = self.elab.slow.field(name, "memory")
        if name in self.busy:
            message = f"`{name}` is like itself: " + " → ".join([*self.busy, name])
            raise self.elab.failure("NF206", message, f.span)
        self.busy.append(name)
        try:
            made = self.make(name, f)
        finally:
            self.busy.pop()
        self.known[name] = made
        self.shapes.update({w.path: w for w in made})
        return made

    def make(self, name: str, f: tree.Field) -> tuple[WeightSpec, ...]:
        slow = self.elab.slow
        kind, shape = slow.kind(name), slow.single(name)
        if shape is not None:
            return (WeightSpec(f"{name}.weight", shape, None, Init("zeros"), "weight", False, f.span),)
        if kind == "like":
            return tuple(
                replace(w, path=f"{name}.{own}", init=Init("zeros"), role="weight") for own, w in self.tensors(f)
            )
        if kind == "function":
            child: Instance | None = self.elab.root.children.get(name)
            if child is None:
                message = f"`{name}` is recalled nowhere, so nothing says what goes into its memory"
                raise self.elab.failure("NF407", message, f.span, f"recall it: `{name}(x)`")
            if any(i.memories or i.tails for i in child.walk()):
                message = "a level or a block that looks back inside the memory of a level without slots"
                raise self.elab.not_yet(message, f.span)
            return tuple(replace(w, path=f"{i.path}.{w.path}") for i in child.walk() for w in i.weights)
        message = f"`{kind}` is no memory of a level without slots"
        help_ = "`weights(F)`, `rest(F)`, `like(outer)`, `vector(n)`, `scalar`, or a flow: `memory net`"
        raise self.elab.failure("NF226", message, f.span, help_)

    def tensors(self, f: tree.Field) -> list[tuple[str, WeightSpec]]:
        """What `like(outer)` or `like(net)` is like: (name, tensor)."""
        e = f.value.args[0] if isinstance(f.value, tree.Call) and len(f.value.args) == 1 else None
        name = e.name if isinstance(e, tree.Name) else ""
        if name in self.elab.slow.levels:
            return self.record(name)
        if name in self.elab.root.children:
            prefix = f"{name}."
            return [(p.removeprefix(prefix), w) for p, w in self.shapes.items() if p.startswith(prefix)]
        message = "`like` takes a level without slots or a flow, whose tensors it copies in shape"
        raise self.elab.failure("NF226", message, f.span, "`memory like(outer)`")

    def record(self, name: str) -> list[tuple[str, WeightSpec]]:
        """(name in the record, tensor) of a level."""
        paths = self.owned.get(name)
        if paths is None or self.elab.slow.kind(name) not in OWNING:
            paths = tuple(w.path for w in self.of(name))
        return [(p.removeprefix(self.prefix(name)), self.shapes[p]) for p in paths]

    def start(self, level: tree.Level, f: tree.Field | None, inner: Inner | None) -> tuple[tuple[str, str], ...]:
        """path -> the tensor that it starts from: `init outer` matches by name, or else in text order."""
        name, elab = level.name, self.elab
        own = self.record(name)
        if f is None:
            if elab.slow.kind(name) == "function":
                message = f"`{name}` needs an `init`: the level or number that its tensors start from"
                raise elab.failure("NF234", message, level.span, "`init outer`, outer a level on the same weights")
            return ()
        source = init_of(elab, f.value)
        if isinstance(source, Init):
            if name not in self.known:
                raise elab.not_yet("an `init` for weights of a flow that is no level", f.span)
            drawn = source.kind not in ("zeros", "ones", "constant")
            if drawn:
                raise elab.not_yet("a start that is drawn, on the step clock", f.span)
            self.known[name] = tuple(replace(w, init=source) for w in self.known[name])
            self.shapes.update({w.path: w for w in self.known[name]})
            return ()
        self.begins(name, f)
        if elab.slow.copied(source):
            raise elab.not_yet(f"`init {source}`, a level that has a copy for each {elab.slow.copied(source)}", f.span)
        again = elab.slow.field(source, "reset")
        if again is not None and is_inner({"reset": again}):
            raise elab.not_yet(f"`init {source}`, a level that begins anew in every step itself", f.span)
        other = self.record(source)
        table, prefix = dict(other), self.prefix(source)
        if {n for n, _ in own} == set(table):
            pairs = [(w, table[n], n) for n, w in own]
        elif len(own) == len(other):
            pairs = [(w, x, n) for (_, w), (n, x) in zip(own, other, strict=True)]
        else:
            message = f"`{name}` has {len(own)} tensors, and `{source}` has {len(other)}"
            raise elab.failure("NF301", message, f.span, "`init` matches tensors by path, or one by one in text order")
        for w, x, _ in pairs:
            if w.full_shape != x.full_shape:
                message = f"`{w.path}` is {list(w.full_shape)}, and `{x.path}` is {list(x.full_shape)}"
                raise elab.failure("NF301", message, f.span, "a start has the shape of what it starts")
        return tuple((w.path, prefix + n) for w, _, n in pairs)

    def begins(self, name: str, f: tree.Field) -> None:
        """A level begins at another that has a beginning: following `init` never leads back. Weights of a flow have
        one, and go back to another level's only at a reset."""
        seen, at = [name], f
        while (
            self.elab.slow.kind(seen[-1]) not in OWNING
            and isinstance(at.value, tree.Name)
            and at.value.name in self.elab.slow.levels
        ):
            seen.append(at.value.name)
            if seen[-1] in seen[:-1]:
                message = f"`{name}` begins at itself: " + " → ".join(seen)
                raise self.elab.failure("NF206", message, f.span, "`init outer`, outer a level on the same weights")
            following = self.elab.slow.field(seen[-1], "init")
            if following is None:
                return
            at = following


def named_by(level: StepLevel) -> dict[str, Any]:
    """Other levels that a level names or recalls (not by `before` and `init`): name -> where."""
    found: dict[str, Any] = {}
    for node in (level.objective, level.when):
        for n in walk(node) if node is not None else ():
            if n.op == "record" and n["what"] != "before":
                found.setdefault(n["level"], n.span)
            elif n.op == "call":
                found.setdefault(n["child"], n.span)
            elif n.op == "weight" and "." in n["path"]:
                found.setdefault(n["path"].partition(".")[0], n.span)
    found.pop(level.name, None)
    return found


def in_order(elab: Any, levels: list[StepLevel]) -> list[StepLevel]:
    """The levels of one clock in the order in which they run: after those that they name (§3.7). Raises NF418."""
    table = {x.name: x for x in levels}
    partners: dict[Any, list[StepLevel]] = {}
    for x in levels:  # those of one objective go together
        partners.setdefault(id(x.objective) if x.objective is not None else x.name, []).append(x)
    done: list[str] = []
    busy: list[str] = []

    def visit(x: StepLevel) -> None:
        if x.name in done:
            return
        busy.append(x.name)
        group = partners[id(x.objective) if x.objective is not None else x.name]
        for member in group:
            for name, span in named_by(member).items():
                other = table.get(name)
                if other is None or other.clock != x.clock or other.name in done or other in group:
                    continue
                if other.name in busy:
                    message = f"`{x.name}` and `{name}` each read what the other has become in the same tick"
                    help_ = f"`before({name})` is the state before this tick"
                    related = (Related(other.span, f"`{name}` is here"),) if other.span else ()
                    elab.collector.error("NF418", message, span or x.span, help_, related)
                    elab.collector.stop_on_errors()
                visit(other)
        busy.pop()
        done.extend(m.name for m in group if m.name not in done)

    for x in levels:
        visit(x)
    return [table[n] for n in done]


def check_alike(elab: Any, levels: list[StepLevel]) -> None:
    """Records that meet in one expression have the same tensors."""
    names = {x.name: x.names for x in levels}
    for level in levels:
        for node in (level.objective, level.when):
            for t in (n for n in walk(node) if n.op == "total") if node is not None else ():
                met = [r for r in records(t) if r["level"] in names]
                other = next((r for r in met if set(names[r["level"]]) != set(names[met[0]["level"]])), None)
                if other is not None:
                    message = f"`{met[0]['level']}` and `{other['level']}` keep different tensors, and meet here"
                    help_ = f"`memory like({met[0]['level']})` keeps the same"
                    elab.collector.error("NF301", message, other.span or level.span, help_)
    elab.collector.stop_on_errors()


def beginning(levels: Sequence[StepLevel]) -> list[StepLevel]:
    """The levels that are set to their starts when a model is made, each after the one that it starts from.

    Where weights of a flow and a level start from each other (slow weights that a faster level goes back to), the
    weights keep the start that the flow gives them."""
    owner = {p: x for x in levels for p in x.weights}
    done: list[StepLevel] = []
    busy: list[str] = []

    def source(x: StepLevel) -> StepLevel | None:
        return next((owner[s] for _, s in x.start if s in owner), None)

    def visit(x: StepLevel) -> None:
        if x in done or x.name in busy:
            return
        busy.append(x.name)
        before, steps = source(x), 0
        if before is not None:
            visit(before)
        while before is not None and before is not x and steps < len(levels):
            before, steps = source(before), steps + 1
        busy.pop()
        if x.state or before is None:
            done.append(x)

    for x in levels:
        if x.inner is None:
            visit(x)
    return done


__all__ = ["OWNING", "OwnTensors", "beginning", "check_alike", "in_order", "is_inner", "named_by", "records"]
