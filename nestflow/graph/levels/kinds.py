"""What a memory is: a matrix, any function with weights, or a cache; its tensors and how they start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestflow.diagnostics.core import Span
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.apply import apply
from nestflow.graph.arguments import bind
from nestflow.graph.expressions import partial
from nestflow.graph.globs import check_glob, matches
from nestflow.graph.levels.caches import cache_spec
from nestflow.graph.levels.starts import tensor
from nestflow.graph.model import Init, MemoryFunction
from nestflow.graph.networks import NetworkValue
from nestflow.graph.scope import Builder, Env
from nestflow.graph.values import Partial, SelfReference
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.vocabulary.record import Word

if TYPE_CHECKING:
    from nestflow.graph.levels.memory import MemoryBuild

ELSEWHERE = {
    "weights": "on the step clock, in a level at the top without slots",
    "rest": "on the step clock, in a level at the top without slots",
}


KEYLESS = ("vector", "scalar", "like")
FROM_ZERO = ("matrix", *KEYLESS)


def keyless(m: MemoryBuild, kind: str, sizes: list[Any]) -> MemoryFunction:
    """M() is the state: a number, a vector of the value's width or of n, or a tensor like another value."""
    shape: tuple[int, ...] = ()
    if kind == "like":
        shape = m.elab.as_node(sizes[0], m.kind_expr, "`like`").type.shape
    elif kind == "vector" and sizes[0] is not None:
        shape = (_size(m, sizes[0], "features"),)
    elif kind == "vector":
        value = m.context("value")
        if value is None:
            raise m.elab.failure("NF233", f"memory `{m.name}` needs a `value`", m.node.span, "or a width: `vector(n)`")
        shape = value.type.shape
        if len(shape) != 1:
            message = f"a vector tracks a vector, and the value of `{m.name}` is {value.type}"
            raise m.elab.failure("NF319", message, value.span, "`memory scalar`, `memory like(value)`")
    heads = m.level.env.heads
    m.elab.count_weights(shape, heads, m.kind_expr)
    theta = ops.leaf("theta", Type(shape=shape, heads=heads), m.kind_expr.span, tensor="state")
    return MemoryFunction(Type(), theta, (tensor(m, "state", shape, Init("zeros"), heads, 1, True),))


def make_function(m: MemoryBuild) -> None:
    """Settle m.kind, and m.function or m.cache."""
    given = m.level.overrides.get("memory")
    value = partial(m.kind_expr, m.level.env.with_(prefix=m.name)) if given is None else given
    if not isinstance(value, Partial) or not _may_store(value):
        what = f"`{value.name}` is {_a(value)}" if isinstance(value, Partial) else "this is a value"
        if isinstance(value, NetworkValue):
            what = f"`{value.name}` is a network of yours, whose weights a level at the top may own"
        message = f"`memory` takes a kind of memory or a flow, and {what}"
        help_ = "`matrix`, `mlp(depth = 2)`, `cache`, or a flow of yours"
        raise m.elab.failure("NF226", message, m.kind_expr.span, help_)
    out = dict(value.kwargs).get("out")
    m.out_width = out.value if isinstance(out, Node) and out.op == "const" else None
    word = value.target if isinstance(value.target, Word) and value.target.kind == "memory" else None
    if word is None:
        m.kind = "function"
        m.function = of_flow(m, value)
    elif word.name == "cache":
        m.kind = "cache"
        m.cache = cache_spec(m, bind(word, list(value.args), dict(value.kwargs), m.elab, m.kind_expr))
    elif word.name == "matrix":
        m.kind = "matrix"
        m.function = matrix(m, bind(word, list(value.args), dict(value.kwargs), m.elab, m.kind_expr))
    elif word.name in KEYLESS:
        m.kind = word.name
        m.function = keyless(m, word.name, bind(word, list(value.args), dict(value.kwargs), m.elab, m.kind_expr))
    else:
        where = ELSEWHERE.get(word.name, "elsewhere")
        message = f"`memory {word.name}` in a level that is called on tokens: it is built {where}"
        raise m.elab.failure("NF490", message, m.kind_expr.span)


def _may_store(value: Partial) -> bool:
    if isinstance(value.target, Word):
        return value.target.kind in ("memory", "function")
    return value.kind == "flow"


def _a(value: Partial) -> str:
    kind = value.target.kind if isinstance(value.target, Word) else value.kind
    kind = {"optimizer": "optimiser", "update": "word of update rules", "special": "word of its own kind"}.get(
        kind, kind
    )
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def key_place(m: MemoryBuild) -> Span | None:
    f = m.field("key")
    return m.node.span if f is None else f.value.span


# --- matrix -------------------------------------------------------------------------------------------------


def matrix(m: MemoryBuild, sizes: list[Any]) -> MemoryFunction:
    """W q, W: out × in; in is the key's width, out the value's."""
    key = m.key_node()
    if len(key.type.shape) != 1:
        raise m.elab.failure("NF319", f"a matrix takes a vector as key, and this is {key.type}", key_place(m))
    (width,) = key.type.shape
    shape = value_width(m) if sizes[0] is None else ()
    if len(shape) > 1:
        raise m.elab.failure("NF319", f"a matrix answers with a vector, and the value is {list(shape)}", m.node.span)
    if sizes[0] is None:
        out = shape[0] if shape else 1
    else:
        out = _size(m, sizes[0], "rows")
        columns = out if sizes[1] is None else _size(m, sizes[1], "columns")
        if columns != width:
            message = f"a matrix of {out} × {columns} meets a key of width {width}"
            raise m.elab.failure(
                "NF319", message, m.kind_expr.span, "`matrix` alone takes its sizes from key and value"
            )
    heads = m.heads(key)
    m.elab.count_weights((out, width), heads, m.kind_expr)
    theta = ops.leaf("theta", Type(shape=(out, width), heads=heads), m.kind_expr.span, tensor="weight")
    slot = ops.leaf("slot", key.type, None, name="key")
    start = tensor(m, "weight", (out, width), Init("normal", width**-0.5), heads, 1, True)
    return MemoryFunction(key.type, ops.linear(slot, theta), (start,))


def _size(m: MemoryBuild, value: Any, what: str) -> int:
    n = m.elab.as_node(value, m.kind_expr, f"the {what} of a matrix")
    if n.op != "const" or isinstance(n.value, bool) or not 0 < n.value <= 2**31 or n.value != int(n.value):
        raise m.elab.failure(
            "NF303", f"the {what} of a matrix are a whole number known when compiling", m.kind_expr.span
        )
    return int(n.value)


def value_width(m: MemoryBuild) -> tuple[int, ...]:
    """The value's shape; the key's where there is no value, or where it depends on the memory itself."""
    level = m.level
    kept, memo, busy = level.builder.snapshot(), dict(level.memo), list(level.busy)
    level.widths += 1
    try:
        v = m.context("value")
        return m.key_node().type.shape if v is None else v.type.shape
    except SelfReference:
        level.builder.restore(kept)
        level.memo, level.busy = memo, busy
        m.values.pop("value", None)
        return m.key_node().type.shape
    finally:
        level.widths -= 1


# --- any function -------------------------------------------------------------------------------------------


def of_flow(m: MemoryBuild, value: Partial) -> MemoryFunction:
    """A block or flow, written without its first input: all its weights are state."""
    key = m.key_node()
    slots = [s.name for s in value.target.slots or ()]
    kwargs = dict(value.kwargs)
    if "out" in slots and "out" not in kwargs and len(value.args) < slots.index("out"):
        shape = value_width(m)
        kwargs["out"] = ops.const(shape[-1] if shape else 1)
    slow = slow_glob(m, kwargs.pop("slow", None), value)
    kept: list[str] = []

    def stays(path: str) -> tuple[Builder, str] | None:
        """A weight that `slow` names stays one, at the memory's path."""
        if slow is None or not matches(slow, path):
            return None
        kept.append(path)
        return m.level.builder, f"{m.name}.{path}"

    builder = Builder("", memory=[], slow=stays)
    slot = ops.leaf("slot", key.type, None, name="key")
    depth = m.level.env.depth + 1
    env = Env(m.elab, builder, m.elab.find_inside, "flow", flow_heads=key.type.heads, depth=depth)
    if isinstance(value.target, Word):
        result = apply(Partial(value.target, value.name), [slot, *value.args], kwargs, env, m.kind_expr, value.name)
    else:
        bound, _ = m.elab.templates.bind(value, value.target, [slot, *value.args], kwargs, m.kind_expr)
        result = m.elab.templates.run(value.target, bound, env, m.kind_expr)
    node = m.elab.as_node(result, m.kind_expr, "a memory's function")
    if slow is not None and not kept:
        names = [t.path for t in builder.memory or ()]
        help_ = did_you_mean(slow, names) or "its weights are " + ", ".join(f"`{n}`" for n in names)
        raise m.elab.failure("NF410", f'`slow = "{slow}"` names no weight of `{value.name}`', m.kind_expr.span, help_)
    if not builder.memory:
        raise m.elab.failure("NF228", f"`{value.name}` has no weights to be a memory", m.kind_expr.span)
    heads = m.heads(key)
    layers = sum(len(t.shape) >= 2 for t in builder.memory)
    tensors = tuple(tensor(m, t.path, t.shape, t.init, heads, layers, False) for t in builder.memory)
    return MemoryFunction(key.type, node, tensors)


def slow_glob(m: MemoryBuild, given: Any, value: Partial) -> str | None:
    """`memory f(slow = "layernorm.**")`: the weights of f that stay weights of the level."""
    if given is None:
        return None
    if not isinstance(given, str):
        message = f"`slow` of memory `{m.name}` is a glob, a string"
        raise m.elab.failure("NF238", message, m.kind_expr.span, f'`{value.name}(slow = "layernorm.**")`')
    check_glob(given, m.kind_expr.span)
    return given
