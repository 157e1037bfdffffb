"""Expressions of a spec, evaluated to values: what is known when compiling is computed, the rest becomes IR nodes."""

from __future__ import annotations

from typing import Any

from nestflow.graph.scope import Env, Site
from nestflow.graph.values import (
    DecayFirst,
    Distribution,
    MemoryValue,
    OnValue,
    Partial,
    Poison,
    Quiet,
    SharedValue,
)
from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.language import tree
from nestflow.vocabulary.record import REQUIRED, Word

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
        if isinstance(expr, tree.Pipe):
            value = evaluate(expr.stages[0], env)
            for stage in expr.stages[1:]:
                with elab.at(stage):
                    if isinstance(stage, tree.Call):
                        value = call(stage.function, [value], stage.args, stage.kwargs, env, stage)
                    else:
                        value = call(stage, [value], (), (), env, stage)
            return value
    raise elab.failure("NF299", f"this cannot stand in an expression: {type(expr).__name__}", expr.span)


def name(expr: tree.Name, env: Env) -> Any:
    value = env.lookup(expr.name)
    if value is None:
        raise env.elab.unknown_name(expr.name, expr.span, env)
    if isinstance(value, Poison):
        raise Quiet
    return value


def _unary(expr: tree.Unary, env: Env) -> Any:
    value = evaluate(expr.operand, env)
    op = "neg" if expr.op == "-" else "not"
    if isinstance(value, list):
        return [ops.unary(op, env.elab.as_node(v, expr), expr.span) for v in value]
    if isinstance(value, Distribution):
        return value.mapped(op)
    return ops.unary(op, env.elab.as_node(value, expr.operand), expr.span)


def _binary(expr: tree.Binary, env: Env) -> Any:
    a, b = evaluate(expr.left, env), evaluate(expr.right, env)
    if isinstance(a, list) or isinstance(b, list):
        n = len(a) if isinstance(a, list) else len(b)
        left, right = a if isinstance(a, list) else [a] * n, b if isinstance(b, list) else [b] * n
        if len(left) != len(right):
            raise env.elab.failure("NF312", f"a list of {len(left)} meets a list of {len(right)}", expr.span)
        return [apply_binary(expr, x, y, env) for x, y in zip(left, right, strict=True)]
    return apply_binary(expr, a, b, env)


def apply_binary(expr: tree.Binary, a: Any, b: Any, env: Env) -> Any:
    if expr.op in ("==", "!=") and not (isinstance(a, Node) and isinstance(b, Node)):
        same = a == b if type(a) is type(b) else getattr(a, "name", a) == getattr(b, "name", b)
        return ops.const(same == (expr.op == "=="), expr.span)
    x, y = env.elab.as_node(a, expr.left), env.elab.as_node(b, expr.right)
    if expr.op == "@":
        return ops.matmul(x, y, expr.span)
    return ops.binary(_BINARY[expr.op], x, y, expr.span)


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
    value = evaluate(expr.value, env)
    if isinstance(value, SharedValue):
        return env.elab.templates.shared_weight(value, expr.name, env, expr)
    if isinstance(value, dict) and expr.name in value:
        return value[expr.name]
    raise env.elab.failure(
        "NF203",
        f"`{full or expr.name}`: there is no `.{expr.name}` here",
        expr.span,
        "`.weight` belongs to a name made by `shared`",
    )


def _index(expr: tree.Index, env: Env) -> Any:
    value = evaluate(expr.value, env)
    if len(expr.items) != 1:
        raise env.elab.failure("NF313", "an index has one entry: feature axis 0", expr.span)
    item = expr.items[0]
    if isinstance(item, tree.Slice):
        n = len(value) if isinstance(value, list) else env.elab.as_node(value, expr.value).type.shape[0]
        start = 0 if item.start is None else integer(item.start, env)
        stop = n if item.stop is None else integer(item.stop, env)
        return (
            value[start:stop]
            if isinstance(value, list)
            else ops.index(value, (start % n if start < 0 else start, stop % n if stop < 0 else stop), expr.span)
        )
    i = integer(item, env)
    if isinstance(value, list):
        # a list of levels or flows is taken in turn (i modulo their number)
        if not value:
            raise env.elab.failure("NF313", "this list is empty", expr.span)
        return value[i % len(value)]
    if isinstance(value, (Partial, SharedValue)):
        return value
    return ops.index(env.elab.as_node(value, expr.value), i, expr.span)


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
        raise env.elab.not_yet("`m.read(x)`", site.span)
    value = evaluate(function, env)
    if isinstance(value, MemoryValue):
        if kwargs:
            raise env.elab.failure("NF210", "a recall takes a key and nothing else", site.span)
        given = piped + [evaluate(a, env) for a in args]
        return value.level.recall(value.name, given, env, site)
    values = piped + [evaluate(a, env) for a in args]
    named = {k: evaluate(v, env) for k, v in kwargs}
    if len(named) != len(kwargs):
        raise env.elab.failure("NF211", "a keyword is given twice", site.span)
    base = called_name(function, value, env)
    return apply(value, values, named, env, site, base)


def called_name(function: tree.Expr, value: Any, env: Env) -> str:
    if isinstance(function, tree.Name):
        return function.name
    if isinstance(function, tree.Index):
        return called_name(function.value, value, env)
    return getattr(value, "name", "call")


def apply(value: Any, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr, base: str) -> Any:
    """Call a value. A template or word without its first input becomes a Partial."""
    elab = env.elab
    if isinstance(value, SharedValue):
        return elab.templates.call_shared(value, args, kwargs, env, site)
    if not isinstance(value, Partial):
        raise elab.failure("NF204", f"`{base}` is not a function", site.span)
    kwargs = dict(kwargs)
    written = kwargs.pop("name", None)
    if written is not None:
        if not isinstance(written, str) or not written:
            raise elab.failure("NF212", "`name =` takes a string", site.span)
        # a name given by hand takes no repeat index: `{i}` in it tells the turns apart
        base, env = written, env.with_(indices=(), for_key=(*env.for_key, env.indices, written))
    bound = list(args)
    if value.shift or value.args:
        bound = [*args[:1], *value.args, *args[1:]]
    merged = {**dict(value.kwargs), **kwargs}
    if isinstance(value.target, Word):
        return apply_word(value.target, bound, merged, env, site, base)
    if not args and value.target.slots and value.target.slots[0].name not in merged and value.kind != "optimizer":
        return Partial(value.target, value.name, tuple(bound), tuple(merged.items()), shift=bool(bound))
    return elab.templates.call(value, bound, merged, env, site, base)


def apply_word(word: Word, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr, base: str) -> Any:
    elab = env.elab
    if word.elementwise and args and isinstance(args[0], list):
        return [apply_word(word, [a, *args[1:]], kwargs, env, site, base) for a in args[0]]
    if (
        not args
        and word.slots
        and word.slots[0].required
        and word.slots[0].name not in kwargs
        and word.kind == "function"
    ):
        return Partial(word, word.name, (), tuple(kwargs.items()))
    if word.build is None:
        return special(word, args, kwargs, env, site)
    bound = bind(word, args, kwargs, elab, site)
    s = Site(env, word.name, site, base)
    if word.kind == "objective":
        if [x.name for x in word.slots] == ["p", "v"] and all(b is not None for b in bound):  # `l2(p, v)` of outputs
            return word.build(s, *(elab.as_node(b, site, f"`{word.name}`") for b in bound))
        return Partial(word, word.name, tuple(args), tuple(kwargs.items()))
    if word.variadic:
        return word.build(s, *args, **{k: v for k, v in kwargs.items()})
    return word.build(s, *bound)


def bind(word: Word, args: list[Any], kwargs: dict[str, Any], elab: Any, site: tree.Expr) -> list[Any]:
    """Arguments in the order of the word's slots, with its defaults."""
    names = [s.name for s in word.slots]
    for k in kwargs:
        if k not in names:
            raise elab.unknown_slot(word.name, k, names, site)
    if word.variadic:
        return list(args)
    if len(args) > len(names):
        raise elab.failure(
            "NF213",
            f"`{word.name}` takes at most {len(names)} arguments, and this gives {len(args)}",
            site.span,
            f"`{word.signature}`",
        )
    result: list[Any] = []
    for i, slot in enumerate(word.slots):
        if i < len(args):
            if slot.name in kwargs:
                raise elab.failure("NF211", f"`{slot.name}` is given twice", site.span)
            result.append(args[i])
        elif slot.name in kwargs:
            result.append(kwargs[slot.name])
        elif slot.required:
            raise elab.failure("NF214", f"`{word.name}` needs `{slot.name}`", site.span, f"`{word.signature}`")
        else:
            result.append(slot.default)
    return result


def special(word: Word, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr) -> Any:
    if word.kind == "memory":
        return Partial(word, word.name, tuple(args), tuple(kwargs.items()))
    bound = bind(word, args, kwargs, env.elab, site)
    if word.name == "decay_first":
        return DecayFirst(bound[0])
    if word.name == "on_value":
        return OnValue(env.elab.as_node(bound[0], site))
    raise env.elab.failure("NF205", f"`{word.name}` cannot stand here", site.span, word.doc)


__all__ = ["REQUIRED", "apply", "call", "evaluate", "integer"]
