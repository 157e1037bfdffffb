"""A cache: softmax attention over the context itself. What it sees, how many pairs a tick brings, its learned pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nestflow.graph.model import CacheSpec, Init, WeightSpec
from nestflow.ir import ops
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild
    from nestflow.graph.levels.resets import Reset

NAMES = ("window", "segment", "sink", "prefix", "causal", "scale")


def cache_spec(m: MemoryBuild, given: list[Any]) -> CacheSpec:
    """`cache(window, segment, sink, prefix, causal, scale)`, all known when compiling."""
    from nestflow.graph.levels.kinds import key_place

    key = m.key_node()
    if len(key.type.shape) != 1:
        raise m.elab.failure("NF319", f"a cache takes a vector as key, and this is {key.type}", key_place(m))
    m.heads(key)
    plain = {n: _constant(m, n, v) for n, v in zip(NAMES, given, strict=True)}
    if not isinstance(plain["causal"], bool):
        raise m.elab.failure("NF305", "`causal` of a cache is true or false", m.kind_expr.span)
    scale = plain["scale"] if plain["scale"] is not None else key.type.shape[-1] ** -0.5
    if isinstance(scale, bool):
        raise m.elab.failure("NF302", "`scale` of a cache is a number", m.kind_expr.span)
    return CacheSpec(
        _count(m, "window", plain, 1),
        _count(m, "segment", plain, 1),
        _count(m, "sink", plain, 0) or 0,
        _count(m, "prefix", plain, 0) or 0,
        plain["causal"],
        float(scale),
    )


def _constant(m: MemoryBuild, name: str, value: Any) -> Any:
    if isinstance(value, Node) and value.op == "const":
        return value.value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise m.elab.failure("NF302", f"`{name}` of a cache must be known when compiling", m.kind_expr.span)


def _count(m: MemoryBuild, name: str, plain: dict[str, Any], least: int) -> int | None:
    n = plain[name]
    what = "pairs" if name == "prefix" else "ticks"
    if n is not None and (isinstance(n, bool) or n != int(n) or n < least):
        message = f"the {name} of a cache is a whole number of {what}, and this is {n}"
        raise m.elab.failure("NF303", message, m.kind_expr.span)
    return None if n is None else int(n)


def pairs(m: MemoryBuild, key: Node | None, value: Node | None) -> tuple[Node | None, Node | None, int]:
    """Key and value of a tick, one behind the other where a list brings several, and how many they are.

    Keys of groups are kept as they are: the heads that share them find them when they look."""
    keys, values = _listed(key), _listed(value)
    for n in values:
        if len(n.type.shape) != 1:
            message = f"a cache answers with a vector, and this value is {n.type}"
            raise m.elab.failure("NF319", message, n.span or m.node.span, "`linear` makes one of a number")
    if len(keys) != len(values):
        message = f"`key` has {len(keys)} entries and `value` {len(values)}: each key has a value"
        f = m.field("value") or m.node
        raise m.elab.failure("NF312", message, f.span, "`key [a, b]; value [c, d]`")
    return _joined(m, "key", keys), _joined(m, "value", values), len(keys)


def _listed(node: Node | None) -> list[Node]:
    if node is None:
        return []
    entries = list(node.args) if node.op == "each" else [node]
    return [n.args[0] if n.op == "grouped" else n for n in entries]


def _joined(m: MemoryBuild, field: str, nodes: list[Node]) -> Node | None:
    if len({n.type.heads for n in nodes}) > 1:
        message = "the pairs of a tick are all per head or all whole: " + ", ".join(str(n.type) for n in nodes)
        raise m.elab.failure("NF319", message, (m.field(field) or m.node).span)
    if len(nodes) < 2:
        return nodes[0] if nodes else None
    return ops.concat(tuple(nodes), nodes[0].span)


def period_as_segment(m: MemoryBuild, spec: CacheSpec, reset: Reset) -> CacheSpec:
    """`reset each(…)` with a period: what a query sees ends where its period began, as with `segment`."""
    f = m.field("reset") or m.field("per") or m.node
    if reset.per != "sequence" and not spec.causal:
        message = f"a cache that sees later ticks takes a sequence in one call, and `per {reset.per}` goes on after it"
        raise m.elab.failure("NF437", message, f.span, "leave `causal = false` or `per` out")
    if reset.period is None:
        return spec
    if spec.segment is not None or spec.sink:
        word = "segment" if spec.segment is not None else "sink"
        message = f"`{word}` counts the ticks of a sequence, and this `reset` begins anew within it"
        raise m.elab.failure("NF436", message, f.span, f"`cache(segment = {reset.period})` alone")
    if not spec.causal:
        help_ = f"`cache(segment = {reset.period}, causal = false)`"
        raise m.elab.failure("NF436", "a cache that sees later ticks is not reset on the way", f.span, help_)
    return replace(spec, segment=reset.period)


def learned_pairs(m: MemoryBuild, spec: CacheSpec, key: Node, value: Node) -> None:
    """`prefix = n`: n pairs that every query sees, slow weights of the level."""
    for role, node in (("key", key), ("value", value)) if spec.prefix else ():
        shape, heads = (spec.prefix, node.type.shape[-1] // spec.pairs), node.type.heads
        m.elab.count_weights(shape, heads, m.kind_expr)
        path = f"{m.name}.prefix.{role}"
        m.level.builder.weights.append(WeightSpec(path, shape, heads, Init("normal", 0.02), span=m.node.span))


__all__ = ["cache_spec", "learned_pairs", "pairs", "period_as_segment"]
