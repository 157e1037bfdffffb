"""Token axes of known length (`patches`): to a flow's functions they are feature axis 0, to a level its clock.

What ticks along such an axis (a level, or a block that looks back) is an instance of its own inside each example: it
sees one patch a tick, begins anew in every example, and is no part of the state of a stream. `Instance.ticks` says
how long the axis is, and so does the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nestflow.graph.model import Instance
from nestflow.graph.scope import Builder, Env
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make
from nestflow.ir.ops import ShapeError
from nestflow.language import tree
from nestflow.vocabulary.record import Word

LOOKS_BACK = ("rope", "short_conv", "previous")
"""Words that count along a token axis."""


def is_unrolled(value: Any) -> bool:
    return isinstance(value, Node) and value.type.unrolled


def length(inputs: Mapping[str, Node]) -> int | None:
    """The length of the unrolled axis that these inputs share, or None where none has one."""
    sizes = {k: x.type.shape[0] for k, x in inputs.items() if x.type.unrolled}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"`{k}` {n}" for k, n in sizes.items())
        raise ShapeError(f"a level ticks along one token axis, and its inputs have several lengths: {listed}")
    for k, x in inputs.items():
        if sizes and x.type.heads:
            raise ShapeError(f"`{k}` is per head beside an input of patches: {x.type}", "`merge_heads` it first")
    return next(iter(sizes.values()), None)


def within(x: Node, name: str) -> Node:
    """What stands for an input inside: one patch a tick; what has no patches is the same at every tick."""
    t = x.type.with_(clock=None, unrolled=False)
    if x.type.unrolled:
        t = t.with_(clock="T", shape=x.type.shape[1:])
    return ops.leaf("slot", t, x.span, name=name)


def called(
    instance: Instance, rel: str, names: tuple[str, ...], args: tuple[Node, ...], site: tree.Expr, **more: Any
) -> Node:
    """The call of an instance. Along an unrolled axis its results stand along feature axis 0."""
    assert instance.result is not None
    t = instance.result.type
    if instance.ticks is None:
        return make("call", args, t, site.span, child=rel, names=names, **more)
    clock = next((a.type.clock for a in args if a.type.clock), None)
    t = t.with_(clock=clock, shape=(instance.ticks, *t.shape), unrolled=True, batch=True)
    return make("call", args, t, site.span, child=rel, names=names, ticks=instance.ticks)


def count(n: int) -> Node:
    """t along an unrolled axis: 1 … n."""
    return ops.leaf("count", Type("int", (n,), unrolled=True), n=n)


def look_back(word: Word, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr, base: str) -> Node:
    """A block that looks back along patches: a flow of one function, at the path where the function would stand."""
    from nestflow.graph.apply import apply_word

    x: Node = args[0]
    if env.builder.memory is not None:
        message = f"`{word.name}` looks back, and a memory's function may not"
        raise env.elab.failure("NF320", message, site.span, "apply it to the key instead")
    if len(x.type.shape) < 2 and word.name != "previous":
        raise ShapeError(f"{word.name} needs a feature axis behind the patches, and this is {x.type}")
    rel = env.builder.name((id(site), env.for_key, env.prefix, word.name), env.path(base), env.indices)
    builder = Builder(f"{env.builder.path}.{rel}" if env.builder.path else rel, one=True)
    slot = within(x, "x")
    inside = Env(env.elab, builder, env.lookup, "flow", depth=env.depth + 1)
    result = apply_word(word, [slot, *args[1:]], kwargs, inside, site, base)
    made = Instance(
        builder.path,
        "flow",
        word.name,
        (("x", slot.type),),
        result,
        tuple(builder.weights),
        tuple(builder.tails),
        (),
        span=site.span,
        ticks=length({"x": x}),
    )
    env.builder.children[rel] = made
    return called(made, rel, ("x",), (x,), site)


def along(instance: Instance, ticks: int | None) -> Instance:
    return instance if ticks is None else replace(instance, ticks=ticks)
