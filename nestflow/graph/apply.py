"""What is called with its arguments known: words of the vocabulary, templates, shared instances, levels."""

from __future__ import annotations

import re
from typing import Any

from nestflow.diagnostics.core import Span
from nestflow.graph.arguments import NEEDS_AXES, bind, check_place, is_like, link
from nestflow.graph.scope import Env, Site
from nestflow.graph.unrolled import LOOKS_BACK, is_unrolled, look_back
from nestflow.graph.values import DecayFirst, Linked, OnValue, Partial, SharedValue, is_list
from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.language import tree
from nestflow.vocabulary.record import Word

NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def apply(value: Any, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr, base: str) -> Any:
    """Call a value. A template or word without its first input becomes a Partial."""
    from nestflow.graph.outside import called

    elab = env.elab
    outside = called(value, args, dict(kwargs), env, site)
    if outside is not None:
        return outside
    if isinstance(value, SharedValue):
        return elab.templates.call_shared(value, args, kwargs, env, site)
    if not isinstance(value, Partial):
        recall = getattr(value, "call", None)
        if recall is not None:  # a level without slots
            return recall(args, kwargs, site)
        raise elab.failure("NF204", f"`{base}` is not a function", site.span)
    kwargs = dict(kwargs)
    written = kwargs.pop("name", None)
    if written is not None:
        if not isinstance(written, str) or not NAME.fullmatch(written):
            what = f"`{written}` is none" if isinstance(written, str) else "this is no string"
            help_ = '`name = "mlp_1"`; `{i}` in it is the variable of a `repeat` or `for` around it'
            raise elab.failure(
                "NF212", f"`name =` takes names of letters, digits and `_`, and {what}", site.span, help_
            )
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
    if word.elementwise and args and is_list(args[0]):
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
    check_place(word, args, env, site)
    if word.name in NEEDS_AXES and any(is_like(a) for a in (*args, *kwargs.values())):
        help_ = "update rules are made of g, w, memories, numbers and elementwise functions"
        raise elab.failure("NF547", f"`{word.name}` cannot stand in an update rule", site.span, help_)
    if word.name in LOOKS_BACK and args and is_unrolled(args[0]):
        return look_back(word, args, kwargs, env, site, base)
    bound = bind(word, args, kwargs, elab, site)
    s = Site(env, word.name, site, base)
    if word.kind == "objective":
        if [x.name for x in word.slots] == ["p", "v"] and all(b is not None for b in bound):  # `l2(p, v)` of outputs
            return word.build(s, *(elab.as_node(b, site, f"`{word.name}`") for b in bound))
        return Partial(word, word.name, tuple(args), tuple(kwargs.items()))
    try:
        return word.build(s, *bound, **kwargs) if word.variadic else word.build(s, *bound)
    except ops.ShapeError as e:
        given = ", ".join(f"{a.type}" for a in args if isinstance(a, Node))
        told = f"`{word.signature}` is given {given}" if given else f"`{word.signature}`"
        written = site.args if isinstance(site, tree.Call) and len(site.args) == len(args) else ()
        parts = shape_parts(*((x, a) for x, a in zip(written, args, strict=False) if isinstance(a, Node)))
        raise ops.ShapeError(str(e), told if e.help is None else f"{e.help} ({told})", e.parts or parts) from e


def special(word: Word, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr) -> Any:
    if word.kind == "memory":
        return Partial(word, word.name, tuple(args), tuple(kwargs.items()))
    bound = bind(word, args, kwargs, env.elab, site)
    if word.name == "decay_first":
        return DecayFirst(bound[0])
    if word.name == "lq":
        return Linked(bound[0], link(word.name, bound[1], env, site))
    if word.name == "on_value":
        node = env.elab.as_node(bound[0], site)
        # in an update it stands beside the tensor itself, whose rows are the value's features
        return OnValue(node) if env.rule is None else ops.reshape(node, (*node.type.shape, 1))
    raise env.elab.failure("NF205", f"`{word.name}` cannot stand here", site.span, word.doc)


def shape_parts(*pieces: tuple[tree.Expr, Node]) -> tuple[tuple[Span, str], ...]:
    """What each piece of an expression is, to be drawn under it."""
    return tuple((e.span, str(n.type)) for e, n in pieces if e.span is not None)
