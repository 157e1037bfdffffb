"""Calls of the vocabulary's words: where each may stand, and its arguments in the order of its slots."""

from __future__ import annotations

from typing import Any

from nestflow.graph.model import Link
from nestflow.graph.scope import Env
from nestflow.ir.node import Node, Type
from nestflow.language import tree
from nestflow.vocabulary.bounds import Bounds
from nestflow.vocabulary.record import Word

NEEDS_AXES = frozenset(
    ["linear", "embed", "short_conv", "previous", "rope", "rmsnorm", "layernorm", "outer_product", "concat", "stack"]
    + ["reshape", "flatten", "width", "split_heads", "merge_heads", "next", "cross_entropy"]
)
"""Words that ask for the axes of what they are given: a tensor like w has those of each weight."""


def bind(word: Word, args: list[Any], kwargs: dict[str, Any], elab: Any, site: tree.Expr) -> list[Any]:
    """Arguments in the order of the word's slots, with its defaults."""
    names = [s.name for s in word.slots]
    for k in kwargs:
        if k not in names:
            raise elab.unknown_slot(word.name, k, names, site)
    if word.variadic:
        # slots before the `...` are given by position
        fixed = sum(s.required for s in word.slots)
        if len(args) < fixed or any(s.required and s.name in kwargs for s in word.slots):
            raise elab.failure("NF214", f"`{word.name}` needs `{names[0]}` first", site.span, f"`{word.signature}`")
        return list(args)
    if len(args) > len(names):
        raise elab.failure(
            "NF213",
            f"`{word.name}` takes at most {len(names)} argument{'s'[: len(names) != 1]}, and this gives {len(args)}",
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
            value = kwargs[slot.name]
            result.append(None if value == "none" and slot.default is None else value)
        elif slot.required:
            raise elab.failure("NF214", f"`{word.name}` needs `{slot.name}`", site.span, whole_call(word, site))
        else:
            result.append(slot.default)
        if slot.bounds is not None:
            check_bounds(elab, word.name, slot.name, slot.bounds, result[-1], site)
    return result


def check_bounds(elab: Any, function: str, slot: str, allowed: Bounds, value: Any, site: tree.Node) -> None:
    """A number that is known when compiling is inside the bounds of its slot. Raises NF325."""
    known = value.value if isinstance(value, Node) and value.op == "const" else value
    if isinstance(known, (bool, int, float)) and not allowed.allow(known):
        message = f"`{slot}` of `{function}` is {allowed.text}, and this is {shown(known)}"
        raise elab.failure("NF325", message, site.span)


def shown(value: Any) -> str:
    """A known value as specs write it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def whole_call(word: Word, site: tree.Expr) -> str:
    """How to complete a call: where only the first slot was left out, its value may come through a pipe."""
    given = len(site.args) + len(site.kwargs) if isinstance(site, tree.Call) and site.span else -1
    if given != sum(s.required for s in word.slots) - 1 or not site.span:
        return f"`{word.signature}`"
    first, written_ = word.slots[0].name, site.span.text
    later = f"; to make it here and call it later: `shared NAME = {written_}`" if first == "i" else ""
    return f"`{word.signature}`; where `{first}` is missing: `{first} |> {written_}`{later}"


def check_place(word: Word, args: list[Any], env: Env, site: tree.Expr) -> None:
    """Words of update rules stand in them; what needs a value of the stream is not given a bare number."""
    if word.kind == "update" and word.build is not None:
        if env.rule is None or not args or not is_like(args[0]):
            message = f"`{word.name}` belongs to `update` and to optimisers, and takes a tensor like w first"
            raise env.elab.failure("NF205", message, site.span, f"`g |> {word.name}(…)`")
    elif word.kind == "schedule" and env.rule is None and env.place != "top":
        message = f"`{word.name}` counts ticks of a level, and stands in `update`"
        raise env.elab.failure("NF205", message, site.span, f"`update adam({word.name}(…))`")
    elif (
        word.name in NEEDS_AXES
        and word.name != "width"
        and args
        and isinstance(args[0], Node)
        and args[0].op == "const"
    ):
        message = f"`{word.name}` takes a value with features, and this is the number {args[0].value}"
        raise env.elab.failure("NF301", message, site.span, whole_call(word, site))


def is_like(value: Any) -> bool:
    """A tensor of w's shape, or a memory of an optimiser that is one."""
    type_ = getattr(value, "type", None)
    return isinstance(type_, Type) and type_.like


def link(kind: str, number: Any, env: Env, site: tree.Expr) -> Link:
    """The link of a named retention: its scale or its order is known when compiling."""
    value = number if isinstance(number, (int, float)) else env.elab.as_node(number, site)
    if isinstance(value, Node):
        if value.op != "const":
            what = "the scale of `kl`" if kind == "kl" else "the order of `lq`"
            raise env.elab.failure(
                "NF302", f"{what} must be known when compiling", site.span, "use a number or a param"
            )
        value = value.value
    return Link("kl" if kind == "kl" else "lq", float(value))
