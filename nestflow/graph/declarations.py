"""Params and inputs: their types, their bounds, and the values that `--set` gives."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.core import NestflowError, Span
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.elaborate import Elaborator
from nestflow.graph.expressions import evaluate
from nestflow.graph.model import InputSpec, ParamValue
from nestflow.graph.names import AXES, check_axis_name, check_name
from nestflow.graph.values import Partial, Poison
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.language import tree
from nestflow.vocabulary.bounds import Bounds

INPUT_TYPES = ("int", "float", "bool")
PARAM_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "string": (str,)}


def bounds(elab: Elaborator, domain: tree.Domain) -> Bounds:
    """The domain with its ends evaluated. Raises where an end is no number, or the interval holds none."""
    if domain.values is not None:
        return Bounds(None, None, False, False, tuple(plain(elab, v) for v in domain.values))
    ends: list[float | None] = []
    for e in (domain.low, domain.high):
        end = None if e is None or _endless(e) else plain(elab, e)
        if e is not None and end is not None and (isinstance(end, bool) or not isinstance(end, (int, float))):
            raise elab.failure("NF302", f"a bound is a number, and this is {end!r}", e.span, "`in [1, 64]`")
        ends.append(end)
    low, high = ends
    if low is not None and high is not None and low > high:
        raise elab.failure("NF325", f"no number is between {low} and {high}", domain.span, "the lower end comes first")
    if low is not None and low == high and (domain.low_open or domain.high_open):
        message = f"no number is in this range: {low} is left out of it"
        raise elab.failure("NF325", message, domain.span, f"`[{low}, {high}]` has its ends")
    return Bounds(low, high, domain.low_open, domain.high_open, None)


def _endless(e: tree.Expr) -> bool:
    """`inf` and `-inf` as an end: there is none."""
    e = e.operand if isinstance(e, tree.Unary) and e.op == "-" else e
    return isinstance(e, tree.Name) and e.name == "inf"


def plain(elab: Elaborator, expr: tree.Expr, what: str = "a bound") -> Any:
    """A number, bool or string that is known when compiling; a word of the vocabulary is its name."""
    return plain_value(elab, evaluate(expr, elab.top), expr, what)


def plain_value(elab: Elaborator, value: Any, expr: tree.Expr, what: str) -> Any:
    if isinstance(value, Partial) and not value.args and not value.kwargs:
        return value.name
    if isinstance(value, str):
        return value
    if isinstance(value, Node) and value.op == "const":
        return value.value
    known = "must be known when compiling" if isinstance(value, Node) else "is a number, true, false or a string"
    raise elab.failure("NF302", f"{what} {known}", expr.span, "use a number or a param")


# --- params -------------------------------------------------------------------------------------------------


def param(elab: Elaborator, s: tree.Param) -> None:
    """Settle a param: its default, or what was set from outside."""
    check_name(elab, s.name, s.span)
    try:
        _settle(elab, s)
    except NestflowError:
        elab.values[s.name] = Poison()  # told already: uses of it say nothing more
        raise


def _settle(elab: Elaborator, s: tree.Param) -> None:
    given = dict(elab.program.overrides).get(s.name)
    what = f"param `{s.name}`"
    default = evaluate(s.default, elab.top)
    value = default if given is None else evaluate(given, elab.top)
    base = plain_value(elab, default, s.default, what)
    now = plain_value(elab, value, given or s.default, what)
    _check(elab, s, now, base, given)
    origin = s.span.where() if given is None and s.span else "--set"
    elab.params[s.name] = ParamValue(s.name, now, base, s.doc, origin)
    elab.values[s.name] = value


def _check(elab: Elaborator, s: tree.Param, value: Any, default: Any, given: tree.Expr | None) -> None:
    span = (given or s.default).span or s.span
    if s.type is not None:
        kinds = PARAM_TYPES.get(s.type.name)
        if kinds is None:
            help_ = did_you_mean(s.type.name, PARAM_TYPES) or "int, float, bool or string"
            raise elab.failure("NF326", f"`{s.type.name}` is no type of a param", s.type.span or s.span, help_)
        if not isinstance(value, kinds) or (isinstance(value, bool) and s.type.name != "bool"):
            raise elab.failure("NF324", f"param `{s.name}` is {s.type.name}, and this is {value!r}", span)
    elif given is not None and not _alike(value, default):
        raise elab.failure("NF324", f"param `{s.name}` is like {default!r}, and this is {value!r}", span)
    domain = s.domain or (s.type.domain if s.type else None)
    if domain is not None:
        allowed = bounds(elab, domain)
        if not allowed.allow(value):
            raise elab.failure("NF325", f"param `{s.name}` is {allowed.text}, and this is {value}", span)


def _alike(value: Any, default: Any) -> bool:
    """Whether a value may stand for the default: a number for a number, a whole one for a whole one."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, (int, float)) and value == int(value)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, str)


# --- inputs -------------------------------------------------------------------------------------------------


def input_(elab: Elaborator, s: tree.Input) -> InputSpec:
    """An input of the model. Its first axis may be T, the token axis; the batch axis is never written."""
    check_name(elab, s.name, s.span)
    check_axis_name(elab, s.name, s.span)
    if s.name in elab.inputs:
        raise elab.failure("NF220", f"two inputs are called `{s.name}`", s.span)
    try:
        type_, low, high = _input_type(elab, s)
    except NestflowError:
        elab.values[s.name] = Poison()
        raise
    elab.inputs[s.name] = ops.leaf("slot", type_, s.span, name=s.name)
    return InputSpec(s.name, type_, low, high, s.span)


def input_type(elab: Elaborator, t: tree.TypeExpr, span: Span | None = None) -> Type:
    """The type of an input or of what a network gives: a tensor for each row, with or without the token axis."""
    if t.name not in INPUT_TYPES:
        help_ = did_you_mean(t.name, INPUT_TYPES) or "int, float or bool"
        raise elab.failure("NF326", f"`{t.name}` is no type of an input", t.span or span, help_)
    clock, shape = _axes(elab, t.dims)
    return Type(t.name, shape, True, clock)


def _input_type(elab: Elaborator, s: tree.Input) -> tuple[Type, float | None, float | None]:
    type_ = input_type(elab, s.type, s.span)
    low, high = (None, None) if s.type.domain is None else _range(elab, s.type.domain, s.type.name)
    return type_, low, high


def _axes(elab: Elaborator, dims: tuple[tree.Expr, ...]) -> tuple[str | None, tuple[int, ...]]:
    clock: str | None = None
    shape: list[int] = []
    for i, d in enumerate(dims):
        if isinstance(d, tree.Name) and d.name in AXES and d.name in elab.values and not i:
            message = f"`{d.name}` as the first axis is {AXES[d.name]}, and here a param hides it"
            raise elab.failure("NF219", message, d.span, "give the param another name: `length`")
        if isinstance(d, tree.Name) and d.name in AXES and d.name not in elab.values:
            if i:
                raise elab.failure("NF303", f"`{d.name}` is the first axis", d.span, "`float[T, 64]`")
            clock = d.name
        else:
            n = plain(elab, d, "an axis of an input")
            if not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= 2**31:
                message = f"an axis of an input is a whole number, and this is {n}"
                raise elab.failure("NF303", message, d.span, "`float[T, 64]`; T comes first")
            shape.append(n)
    return clock, tuple(shape)


def _range(elab: Elaborator, domain: tree.Domain, dtype: str) -> tuple[float | None, float | None]:
    """Both ends inclusive; an open end of a float is kept as it is written."""
    allowed = bounds(elab, domain)
    if allowed.values is not None:
        raise elab.not_yet("a set of values as the domain of an input", domain.span)
    low, high = allowed.low, allowed.high
    if dtype == "int":
        if isinstance(low, int) and allowed.low_open:
            low += 1
        if isinstance(high, int) and allowed.high_open:
            high -= 1
    return low, high
