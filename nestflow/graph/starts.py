"""How a memory starts: zeros, a constant, a learned start, or the state of another memory of its level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.graph.expressions import evaluate
from nestflow.graph.model import Init, Memory, MemoryTensor, WeightSpec
from nestflow.graph.values import Distribution, MemoryValue
from nestflow.ir.node import walk
from nestflow.language import tree

if TYPE_CHECKING:
    from nestflow.graph.memory import MemoryBuild

CONSTANTS = ("ones", "eye", "constant")


def tensor(
    m: MemoryBuild, path: str, shape: tuple[int, ...], init: Init, heads: int | None, layers: int, from_zero: bool
) -> MemoryTensor:
    """A state tensor and its start: `init`, or the default of the kind (zeros for a matrix, else learned)."""
    f = m.field("init")
    other = None if f is None else another(m, f)
    if other is not None and f is not None:
        return taken_over(m, other, path, shape, f)
    start = start_of(m, f, layers) if f is not None else "zeros" if from_zero else "learned"
    if start == "zeros":
        return MemoryTensor(path, shape, None, Init("zeros"))
    if isinstance(start, tuple):
        (constant,) = start
        if constant.kind == "eye" and (len(shape) != 2 or shape[0] != shape[1]):
            message = f"`eye` is square, and `{m.name}.{path}` is {list(shape)}"
            raise m.elab.failure("NF319", message, f.span if f else None, "`init learned(normal(0.02))`")
        return MemoryTensor(path, shape, None, constant)
    if isinstance(start, Init):
        init = start
    elif m.kind == "matrix":
        init = Init("zeros")
    learned = f"{m.name}.{path}"
    m.level.builder.weights.append(WeightSpec(learned, shape, heads, init, "init", True, m.node.span))
    return MemoryTensor(path, shape, learned, init)


def start_of(m: MemoryBuild, f: tree.Field, layers: int) -> str | Init | tuple[Init]:
    """`zeros`, `learned`, the distribution that a learned start is drawn from, or (a constant)."""
    name = f.value.name if isinstance(f.value, tree.Name) else ""
    if name == "zeros" and layers >= 2:
        message = "a memory of two or more layers that starts at zeros would never learn"
        raise m.elab.failure("NF404", message, f.span, "`init learned` is its default")
    if name in ("zeros", "learned"):
        return name
    call = f.value
    if isinstance(call, tree.Call) and isinstance(call.function, tree.Name) and call.function.name == "learned":
        if len(call.args) != 1 or call.kwargs:
            raise m.elab.failure(
                "NF316", "`learned` as a start takes a distribution", f.span, "`init learned(normal(0.02))`"
            )
        inner = evaluate(call.args[0], m.level.env)
        return inner.init if isinstance(inner, Distribution) else m.elab.as_init(inner, call.args[0])
    value = evaluate(f.value, m.level.env)
    if isinstance(value, Distribution):
        raise m.elab.not_yet("a distribution as `init`, drawn anew at each reset,", f.span)
    init = m.elab.as_init(value, f.value)
    return (Init("eye", 1.0) if init.kind == "eye" else init,)


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
    return MemoryTensor(path, shape, found.learned, found.init, (other.name, found.path))


def check_taken(m: MemoryBuild, memory: Memory) -> None:
    """A rule that looks back at the start of a memory knows one start."""
    anew = memory.reset is not None or memory.reset_where is not None
    taken = memory.function is not None and any(t.source for t in memory.function.tensors)
    if not anew or not taken or memory.rule is None:
        return
    starts = any(s.init.op in ("w", "w0") for s in memory.rule.slots)
    if starts or any(n.op == "w0" for n in walk(*memory.rule.nodes())):
        f = m.field("init")
        raise m.elab.not_yet("`w0` of a memory that takes over another's state", f.span if f else None)


__all__ = ["check_taken", "tensor"]
