"""Expressions of a spec, evaluated to values: what is known when compiling is computed, the rest becomes IR nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nestflow.diagnostics.core import NestflowError
from nestflow.graph.apply import apply, shape_parts
from nestflow.graph.scope import Env
from nestflow.graph.values import (
    Distribution,
    MemoryValue,
    Partial,
    Poison,
    Quiet,
    SharedValue,
    is_list,
    is_record,
)
from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.language import tree
from nestflow.language.expressions import expression
from nestflow.vocabulary.record import Word

_BINARY = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "//": "floordiv",
    "%": "mod",
    "^": "pow",
    "==": "eq",
    "!=": "ne",
    "<": "lt",
    "<=": "le",
    ">": "gt",
    ">=": "ge",
    "and": "and",
    "or": "or",
}


def placed(e: NestflowError, expr: tree.Expr) -> NestflowError:
    """What a lookup says has no place of its own: it is told where the name stands."""
    return NestflowError([d if d.span is not None else replace(d, span=expr.span) for d in e.diagnostics])


def evaluate(expr: tree.Expr, env: Env) -> Any:
    """The value of an expression. Raises NestflowError for a mistake in it, Quiet where one was told already."""
    elab = env.elab
    with elab.at(expr):
        if isinstance(expr, (tree.Number, tree.Bool)):
            return ops.const(expr.value, expr.span)
        if isinstance(expr, tree.String):
            return expr.value
        if isinstance(expr, tree.Name):
            return name(expr, env)
        if isinstance(expr, tree.ListExpr):
            return [evaluate(e, env) for e in expr.items]
        if isinstance(expr, tree.Record):
            return {k: evaluate(e, env) for k, e in expr.entries}
        if isinstance(expr, tree.Unary):
            return _unary(expr, env)
        if isinstance(expr, tree.Binary):
            return _binary(expr, env)
        if isinstance(expr, tree.Conditional):
            return _conditional(expr, env)
        if isinstance(expr, tree.Attribute):
            return _attribute(expr, env)
        if isinstance(expr, tree.Index):
            return _index(expr, env)
        if isinstance(expr, tree.Call):
            return call(expr.function, [], expr.args, expr.kwargs, env, expr)
        value = evaluate(expr.stages[0], env)  # a pipe: the last kind of expression there is
        for stage in expr.stages[1:]:
            with elab.at(stage):
                if isinstance(stage, tree.Call):
                    value = call(stage.function, [value], stage.args, stage.kwargs, env, stage)
                else:
                    value = call(stage, [value], (), (), env, stage)
        return value


def name(expr: tree.Name, env: Env) -> Any:
    try:
        value = env.lookup(expr.name)
    except NestflowError as e:
        raise placed(e, expr) from None
    if value is None:
        raise env.elab.unknown_name(expr.name, expr.span, env)
    if isinstance(value, Poison):
        raise Quiet
    if isinstance(value, MemoryValue) and value.keyless:  # its bare name is its state
        return value.level.recall(value.name, [], env, expr)
    return replace(value, mode=env.recall_mode) if isinstance(value, MemoryValue) else value


def _unary(expr: tree.Unary, env: Env) -> Any:
    value = evaluate(expr.operand, env)
    op = "neg" if expr.op == "-" else "not"
    if is_list(value):
        return [ops.unary(op, env.elab.as_node(v, expr), expr.span) for v in value]
    if isinstance(value, Distribution):
        return value.mapped(op)
    return ops.unary(op, env.elab.as_node(value, expr.operand), expr.span)


def _binary(expr: tree.Binary, env: Env) -> Any:
    a, b = evaluate(expr.left, env), evaluate(expr.right, env)
    if is_list(a) or is_list(b):
        n = len(a) if is_list(a) else len(b)
        left, right = a if is_list(a) else [a] * n, b if is_list(b) else [b] * n
        if len(left) != len(right):
            raise env.elab.failure("NF312", f"a list of {len(left)} meets a list of {len(right)}", expr.span)
        return [apply_binary(expr, x, y, env) for x, y in zip(left, right, strict=True)]
    return apply_binary(expr, a, b, env)


def apply_binary(expr: tree.Binary, a: Any, b: Any, env: Env) -> Any:
    plain = (str, Partial)
    if expr.op in ("==", "!=") and (isinstance(a, plain) or isinstance(b, plain)):
        same = a == b if type(a) is type(b) else getattr(a, "name", a) == getattr(b, "name", b)
        return ops.const(same == (expr.op == "=="), expr.span)
    x, y = env.elab.as_node(a, expr.left), env.elab.as_node(b, expr.right)
    try:
        if expr.op == "@":
            return ops.matmul(x, y, expr.span)
        return ops.binary(_BINARY[expr.op], x, y, expr.span)
    except ops.ShapeError as e:
        sides = f"`{brief(expr.left)}` is {x.type}, `{brief(expr.right)}` is {y.type}"
        parts = shape_parts((expr.left, x), (expr.right, y))
        raise ops.ShapeError(str(e), sides if e.help is None else f"{sides}; {e.help}", parts) from e


def brief(expr: tree.Expr) -> str:
    """An expression as written, on one short line."""
    text = " ".join(expr.span.text.split()) if expr.span is not None else expression(expr)
    return text if len(text) <= 48 else text[:45] + "..."


def _conditional(expr: tree.Conditional, env: Env) -> Any:
    condition = env.elab.as_node(evaluate(expr.condition, env), expr.condition)
    if condition.op == "const":
        return evaluate(expr.then if condition.value else expr.otherwise, env)
    a = env.elab.as_node(evaluate(expr.then, env), expr.then)
    b = env.elab.as_node(evaluate(expr.otherwise, env), expr.otherwise)
    return ops.where(condition, a, b, expr.span)


def dotted(expr: tree.Expr) -> str | None:
    """`a.b.c` as a string, or None."""
    if isinstance(expr, tree.Name):
        return expr.name
    if isinstance(expr, tree.Attribute):
        left = dotted(expr.value)
        return None if left is None else f"{left}.{expr.name}"
    return None


def _attribute(expr: tree.Attribute, env: Env) -> Any:
    full = dotted(expr)
    if full is not None:
        grouped = env.lookup(full)
        if grouped is not None:
            return grouped
    memory, _, tensor = (full or "").partition(".")
    try:
        stored = env.lookup(memory) if tensor else None
    except NestflowError as e:
        raise placed(e, expr) from None
    if isinstance(stored, MemoryValue) and tensor.partition(".")[0] == "g":
        return stored.level.gradient_of(stored.name, tensor[2:] or None, expr)
    if isinstance(stored, MemoryValue):
        return stored.level.state_of(memory, tensor, env.recall_mode, expr)
    value = evaluate(expr.value, env)
    of_level = isinstance(value, Partial) and value.kind == "level"
    if expr.name == "g" and (of_level or isinstance(value, SharedValue)):
        what = "the gradient of a memory outside its level (in it, `emit` or `return` gives `memory.g`)"
        raise env.elab.not_yet(what, expr.span)
    if isinstance(value, SharedValue):
        return env.elab.templates.shared_weight(value, expr.name, env, expr)
    if is_record(value) and expr.name in value:
        return value[expr.name]
    if isinstance(value, Node) and value.op == "network_result":
        from nestflow.graph.networks import field

        return field(value, expr.name, env, expr)
    gradient = getattr(value, "gradient", None)
    if gradient is not None and expr.name == "g":  # of a level without slots
        return gradient(expr)
    raise env.elab.failure(
        "NF203",
        f"`{full or expr.name}`: there is no `.{expr.name}` here",
        expr.span,
        "`.weight` belongs to a name made by `shared`",
    )


def _index(expr: tree.Index, env: Env) -> Any:
    from nestflow.graph.networks import NetworkValue
    from nestflow.graph.python import PyFunction

    value = evaluate(expr.value, env)
    if len(expr.items) != 1:
        raise env.elab.failure("NF313", "an index has one entry: feature axis 0", expr.span)
    item = expr.items[0]
    if isinstance(item, tree.Slice):
        return _slice(expr, value, item, env)
    i = integer(item, env)
    if is_list(value):
        # a list of levels or flows is taken in turn (i modulo their number)
        if not value:
            raise env.elab.failure("NF313", "this list is empty", expr.span)
        return value[i % len(value)]
    if isinstance(value, (Partial, SharedValue, NetworkValue, PyFunction)):
        return value
    return ops.index(env.elab.as_node(value, expr.value), i, expr.span)


def _slice(expr: tree.Index, value: Any, item: tree.Slice, env: Env) -> Any:
    """`x[i:j]` on feature axis 0, or of a list; negative ends count from the end."""
    items: list[Any] | None = value if is_list(value) else None
    node = None if items is not None else env.elab.as_node(value, expr.value)
    if node is not None and not node.type.shape:
        raise ops.ShapeError(f"{node.type} has no axis to index")
    n = len(items) if items is not None else node.type.shape[0] if node is not None else 0
    start = 0 if item.start is None else integer(item.start, env)
    stop = n if item.stop is None else integer(item.stop, env)
    start, stop = start + n if start < 0 else start, stop + n if stop < 0 else stop
    if items is not None:
        return items[max(start, 0) : max(stop, 0)]
    return ops.index(env.elab.as_node(value, expr.value), (start, stop), expr.span)


def integer(expr: tree.Expr, env: Env, what: str = "an index") -> int:
    """A whole number known when compiling."""
    value = env.elab.as_node(evaluate(expr, env), expr)
    if value.op != "const" or isinstance(value.value, bool):
        raise env.elab.failure("NF302", f"{what} must be known when compiling", expr.span, "use a number or a param")
    if value.value != int(value.value):
        raise env.elab.failure("NF303", f"{what} must be a whole number, and this is {value.value:g}", expr.span)
    return int(value.value)


# --- calls ------------------------------------------------------------------------------------------------


def call(
    function: tree.Expr,
    piped: list[Any],
    args: tuple[tree.Expr, ...],
    kwargs: tuple[tuple[str, tree.Expr], ...],
    env: Env,
    site: tree.Expr,
) -> Any:
    """A call as written; `piped` is what a pipe puts before the arguments."""
    written = dotted(function)
    if written is not None and written in env.specials:
        return env.specials[written](piped, args, kwargs, site)
    if isinstance(function, tree.Attribute) and function.name == "read":
        return _read(function, piped, args, kwargs, env, site)
    try:
        value = env.lookup(function.name) if isinstance(function, tree.Name) else None
    except NestflowError as e:
        raise placed(e, function) from None
    value = value if isinstance(value, MemoryValue) else evaluate(function, env)
    if isinstance(value, Partial) and isinstance(value.target, Word) and value.target.name == "grouped":
        return _grouped(piped, args, kwargs, env, site)
    if isinstance(value, MemoryValue):
        if kwargs:
            raise env.elab.failure("NF210", "a recall takes a key and nothing else", site.span)
        given = piped + [evaluate(a, env) for a in args]
        return value.level.recall(value.name, given, env, site)
    values = piped + [evaluate(a, env) for a in args]
    options: frozenset[str] = (
        value.target.options if isinstance(value, Partial) and isinstance(value.target, Word) else frozenset()
    )
    named = {k: v.name if isinstance(v, tree.Name) and v.name in options else evaluate(v, env) for k, v in kwargs}
    if len(named) != len(kwargs):
        raise env.elab.failure("NF211", "a keyword is given twice", site.span)
    base = called_name(function, value, env)
    return apply(value, values, named, env, site, base)


def _read(
    function: tree.Attribute,
    piped: list[Any],
    args: tuple[tree.Expr, ...],
    kwargs: tuple[tuple[str, tree.Expr], ...],
    env: Env,
    site: tree.Expr,
) -> Any:
    """`m.read(x)`: m only recalls, from the state that its chunk began with. m: a shared level, or a memory of the
    level that this stands in."""
    found = env.lookup(function.value.name) if isinstance(function.value, tree.Name) else None
    value = found if isinstance(found, MemoryValue) else evaluate(function.value, env)
    given = piped + [evaluate(a, env) for a in args]
    if isinstance(value, SharedValue):
        return env.elab.templates.read_shared(value, given, {k: evaluate(v, env) for k, v in kwargs}, env, site)
    if not isinstance(value, MemoryValue):
        message = f"`{dotted(function) or 'read'}`: only a shared level is read without learning"
        raise env.elab.failure("NF421", message, site.span, "`shared m = titans`; then `m.read(x)` beside `m(x)`")
    if kwargs:
        raise env.elab.failure("NF210", "a recall takes a key and nothing else", site.span)
    return value.level.recall(value.name, given, env.with_(recall_mode="chunk"), site)


def _grouped(
    piped: list[Any], args: tuple[tree.Expr, ...], kwargs: tuple[tuple[str, tree.Expr], ...], env: Env, site: tree.Expr
) -> Node:
    """`grouped(e, n)`: e once for each group, under as many heads as there are groups."""
    elab, named = env.elab, dict(kwargs)
    if piped or set(named) - {"n"} or len(args) + len(named) != 2:
        help_ = "it goes around what it evaluates: `grouped(x |> linear |> l2norm, 2)`"
        raise elab.failure("NF214", "`grouped` takes an expression and a number of groups", site.span, help_)
    if not env.heads:
        raise elab.failure("NF310", "`grouped` stands outside a level with heads", site.span, "write `heads n`")
    n = integer(named.get("n", args[-1]), env, "the number of groups")
    if n < 1 or env.heads % n:
        message = f"{n} groups do not divide {env.heads} heads"
        raise elab.failure("NF307", message, site.span, "each group serves as many heads as every other")
    within = env.with_(heads=n, shares=env.shares or env.heads)
    x = elab.as_node(evaluate(args[0], within), args[0], "`grouped`")
    if not x.type.heads:
        help_ = "a `linear` in it gives each group its own, `split_heads` its share"
        raise elab.failure("NF319", f"what is grouped is per group, and this is whole: {x.type}", site.span, help_)
    if x.type.heads != n:
        raise elab.failure("NF319", f"{n} groups meet a value of {x.type.heads} heads", site.span, "`grouped` once")
    return ops.grouped(x, env.heads, site.span)


def partial(expr: tree.Expr, env: Env) -> Any:
    """An expression without its first input: `mlp(depth = 2)`, `embed(vocab, dim)`, `titans`."""
    if isinstance(expr, tree.Call):
        value = evaluate(expr.function, env)
        if isinstance(value, Partial):
            args = tuple(evaluate(a, env) for a in expr.args)
            kwargs = tuple((k, evaluate(v, env)) for k, v in expr.kwargs)
            return Partial(value.target, value.name, (*value.args, *args), (*value.kwargs, *kwargs), shift=True)
        return call(expr.function, [], expr.args, expr.kwargs, env, expr)
    return evaluate(expr, env)


def called_name(function: tree.Expr, value: Any, env: Env) -> str:
    if isinstance(function, tree.Name):
        return function.name
    if isinstance(function, tree.Index):
        return called_name(function.value, value, env)
    return getattr(value, "name", "call")


def default_of(slot: tree.Slot, env: Env) -> Any:
    """The value of a slot that a call does not give; calls have been checked to give those without a default."""
    if slot.default is None:
        raise LookupError(f"`{slot.name}` has no default")
    return evaluate(slot.default, env)
