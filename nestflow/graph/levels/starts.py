"""How a memory starts: zeros, a constant, a draw, a learned start, an expression of those, or the state of another
memory of its level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nestflow.graph.expressions import call, evaluate
from nestflow.graph.model import Computed, Init, Memory, MemoryTensor, WeightSpec
from nestflow.graph.scope import Env
from nestflow.graph.values import Distribution, MemoryValue, Partial
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, walk
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild

CHANCE = ("noise", "uniform", "dropout")
LOOKS_BACK = ("short_conv", "previous", "window", "recall")


def tensor(
    m: MemoryBuild, path: str, shape: tuple[int, ...], init: Init, heads: int | None, layers: int, from_zero: bool
) -> MemoryTensor:
    """A state tensor and its start: `init`, or the default of the kind (zeros for a matrix, else learned)."""
    f = m.field("init")
    other = None if f is None else another(m, f)
    if other is not None and f is not None:
        return taken_over(m, other, path, shape, f)
    if from_zero:
        init = Init("zeros")
    wanted = Wanted(m, path, shape, init, heads)
    start = wanted.start(f, layers) if f is not None else "zeros" if from_zero else "learned"
    if start == "zeros":
        return MemoryTensor(path, shape, None, Init("zeros"))
    if isinstance(start, Computed):
        m.level.starts.append(start)
        return MemoryTensor(path, shape, start.path, init)
    if isinstance(start, Init):
        if start.kind == "eye":
            wanted.square(f)
        return MemoryTensor(path, shape, None, start, drawn=f"{m.name}.{path}" if start.is_drawn else "")
    learned = start if isinstance(start, Learned) else Learned(init)
    return MemoryTensor(path, shape, wanted.weight(learned), learned.init)


@dataclass(frozen=True)
class Learned:
    """A slow weight, drawn from `init`."""

    init: Init


class Wanted:
    """What `init` of a memory says about one of its tensors. init: how that starts where it is `learned`."""

    def __init__(self, m: MemoryBuild, path: str, shape: tuple[int, ...], init: Init, heads: int | None) -> None:
        self.m, self.elab, self.path, self.shape, self.init, self.heads = m, m.elab, path, shape, init, heads
        self.weights = 0

    def start(self, f: tree.Field, layers: int) -> str | Learned | Init | Computed:
        """`zeros` or `learned`; a learned start from a distribution; a constant or distribution; an expression."""
        name = f.value.name if isinstance(f.value, tree.Name) else ""
        if name == "zeros" and layers >= 2:
            message = "a memory of two or more layers that starts at zeros would never learn"
            raise self.elab.failure("NF404", message, f.span, "`init learned` is its default")
        if name in ("zeros", "learned"):
            return name
        call = f.value
        if isinstance(call, tree.Call) and isinstance(call.function, tree.Name) and call.function.name == "learned":
            given = self.distribution(call.args, call.kwargs, call)
            if given is not None:
                return Learned(given)
        value = evaluate(f.value, self.env())
        if isinstance(value, (Distribution, Partial, str)):
            init = self.elab.as_init(value, f.value)
            return Init("eye", 1.0) if init.kind == "eye" else init
        node = self.elab.as_node(value, f.value, "`init`")
        if node.op == "const":
            return Init("constant", float(node.value))
        return self.computed(node, f)

    def distribution(self, args: Any, kwargs: Any, site: tree.Expr) -> Init | None:
        """`learned(normal(0.02))`; None where it is a tensor of its own sizes: `learned(4, 4)`."""
        if len(args) != 1 or kwargs:
            return None
        value = evaluate(args[0], self.m.level.env)
        sizes = isinstance(value, Node) and not (value.op == "const" and isinstance(value.value, float))
        return None if sizes else self.elab.as_init(value, args[0])

    def env(self) -> Env:
        """Here `zeros`, `ones`, `eye` and `learned` are of the tensor's shape."""
        env = self.m.env("init")
        words = {n: w for n in ("zeros", "ones", "eye", "learned") if isinstance(w := env.lookup(n), Partial)}
        specials = {n: partial(self.sized, n, env) for n in words}
        return env.extend(_Shaped(self, words)).with_(specials={**env.specials, **specials})

    def sized(self, name: str, env: Env, piped: list[Any], args: Any, kwargs: Any, site: tree.Expr) -> Any:
        """The same words where they are called."""
        if name == "learned" and not piped:
            given = self.distribution(args, kwargs, site)
            if given is not None:
                return self.leaf(given)
        function = getattr(site, "function", site)
        return call(function, piped, args, kwargs, env.with_(specials={}), site)

    def leaf(self, init: Init) -> Node:
        type_ = Type(shape=self.shape, heads=self.heads)
        return ops.leaf("weight", type_, self.m.node.span, path=self.weight(Learned(init)))

    def weight(self, start: Learned) -> str:
        """A slow weight of the tensor's shape: its path in the level."""
        self.weights += 1
        name = f"{self.m.name}.{self.path}" + (f"_{self.weights}" if self.weights > 1 else "")
        spec = WeightSpec(name, self.shape, self.heads, start.init, "init", True, self.m.node.span)
        self.m.level.builder.weights.append(spec)
        return name

    def square(self, f: tree.Field | None) -> None:
        if len(self.shape) != 2 or self.shape[0] != self.shape[1]:
            message = f"`eye` is square, and `{self.m.name}.{self.path}` is {list(self.shape)}"
            raise self.elab.failure("NF319", message, f.span if f else None, "`init learned(normal(0.02))`")

    def computed(self, node: Node, f: tree.Field) -> str | Init | Computed:
        """An expression of constants and slow weights."""
        for n in walk(node):
            if not n.args and n.op not in ("const", "fill", "weight", "head"):
                if n.op == "slot" and not n.type.clock:
                    raise self.elab.not_yet("an `init` that depends on an input", f.span)
                what = f"`{n['name']}`" if n.op == "slot" else "what stands here"
                message = f"a start is there before the first tick, and {what} belongs to a tick"
                raise self.elab.failure("NF316", message, f.span, "numbers, `eye`, `learned(…)`, names made of those")
            if n.op in ("call", "network", *CHANCE, *LOOKS_BACK):
                raise self.elab.not_yet("a call or chance in an expression as `init`", f.span)
        if node.type.shape not in ((), self.shape):
            message = f"`{self.m.name}.{self.path}` is {list(self.shape)}, and its start is {list(node.type.shape)}"
            raise self.elab.failure("NF319", message, f.span, "a start has the shape of what it starts, or is a number")
        if node.type.heads not in (None, self.heads):
            raise self.elab.failure("NF319", f"this start is per head, and `{self.m.name}` is not", f.span)
        if node.op == "fill":
            return Init(node["kind"], 1.0 if node["kind"] == "eye" else 0.0)
        return Computed(f"{self.m.name}.{self.path}@start", node, self.shape, self.heads)


class _Shaped(dict[str, Any]):
    """The words as values; `learned` makes its weight when it is used."""

    def __init__(self, wanted: Wanted, words: Mapping[str, Any]) -> None:
        super().__init__(words)
        self.wanted = wanted

    def __getitem__(self, name: str) -> Any:
        w = self.wanted
        if name == "learned":
            return w.leaf(w.init)
        if name == "eye":
            w.square(w.m.field("init"))
        return ops.leaf("fill", Type(shape=w.shape), None, kind=name)


def another(m: MemoryBuild, f: tree.Field) -> MemoryBuild | None:
    """The memory of the level that `init` names."""
    if not isinstance(f.value, tree.Name) or f.value.name not in m.level.memories:
        return None
    found = m.level.env.lookup(f.value.name)
    other = m.level.memories[f.value.name] if isinstance(found, MemoryValue) else None
    if other is m or (other is not None and other.preparing):
        raise m.elab.failure("NF206", f"`{m.name}` starts from itself", f.span, "`init learned`")
    if other is not None:
        other.prepare()
        if other.function is None:
            raise m.elab.failure("NF319", f"`{other.name}` is a cache: no state to start from", f.span)
    return other


def taken_over(m: MemoryBuild, other: MemoryBuild, path: str, shape: tuple[int, ...], f: tree.Field) -> MemoryTensor:
    """The tensor of the same path; where the paths differ, the next in the order of the text."""
    assert other.function is not None
    theirs = {t.path: t for t in other.function.tensors}
    m.taken += 1
    found = theirs.get(path)
    if found is None and m.taken <= len(theirs):
        found = list(theirs.values())[m.taken - 1]
    if found is None or found.shape != shape:
        message = f"`{m.name}.{path}` is {list(shape)}, and `{other.name}` has " + ", ".join(
            f"`{t.path}` {list(t.shape)}" for t in theirs.values()
        )
        raise m.elab.failure("NF319", message, f.span, "a memory starts from one of the same kind and sizes")
    return MemoryTensor(path, shape, found.learned, found.init, (other.name, found.path), found.drawn)


def check_taken(m: MemoryBuild, memory: Memory) -> None:
    """A rule that looks back at the start of a memory knows one start."""
    anew = memory.reset is not None or memory.reset_where is not None
    tensors = () if memory.function is None else memory.function.tensors
    taken, drawn = any(t.source for t in tensors), any(t.drawn for t in tensors)
    if memory.rule is None or not (drawn or (anew and taken)):
        return
    f = m.field("init")
    if any(n.op == "w0" for n in walk(*memory.rule.nodes())):
        what = "that is drawn anew" if drawn else "that takes over another's state"
        raise m.elab.not_yet(f"`w0` of a memory {what}", f.span if f else None)
    if taken and anew and any(s.init.op in ("w", "w0") for s in memory.rule.slots):
        raise m.elab.not_yet("`w0` of a memory that takes over another's state", f.span if f else None)


__all__ = ["check_taken", "tensor"]
