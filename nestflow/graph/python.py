"""`py("pkg.mod:fn")`: a Python function of the user as a function of the language.

It is called with tensors whose first axis has everything that is carried (rows, ticks, heads), features behind it, and
gives one tensor of that first axis. So it acts at each tick by itself, as every function here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nestflow import _python
from nestflow.diagnostics.core import NestflowError, fail
from nestflow.graph.scope import Env
from nestflow.graph.values import Partial
from nestflow.ir import ops
from nestflow.ir.node import Node, Type, make
from nestflow.language import tree

ROWS = (2, 3)
_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class PyFunction:
    """A Python function that a spec named: it is called like a flow."""

    target: str
    function: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.target.rpartition(":")[2].rpartition(".")[2]

    def state_node(self, expr: tree.Expr) -> Node:
        """Where a value is wanted, a bare function is none."""
        raise fail("NF207", f"`{self.name}` is a function, and a value is needed here", expr.span, "call it")


def reach(args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr) -> Any:
    """`py("m:f")` is a function; `py("m:f", x)` and `x |> py("m:f")` call it."""
    at = next((i for i, a in enumerate(args[:2]) if isinstance(a, str)), None)
    if at is None:
        message = "`py` names a Python function by a string"
        raise env.elab.failure("NF571", message, site.span, '`py("pkg.mod:fn")`')
    target: str = args[at]
    if not _python.allowed():
        message = f"`{target}` is Python, and a spec runs none unless you allow it"
        help_ = "if you trust it: `--allow-python`, or `allow_python=True` from Python"
        raise env.elab.failure("NF570", message, site.span, help_)
    found = PyFunction(target, _python.function(target, site.span))
    given = [*args[:at], *args[at + 1 :]]
    return call(found, given, kwargs, env, site) if given or kwargs else found


def call(f: PyFunction, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr) -> Node:
    """A call with values of the spec. Its type is what the function gives for a few rows of zeros."""
    elab = env.elab
    if env.builder.memory is not None:
        message = f"`{f.target}` is Python, and a memory's function is differentiated as the language's own are"
        raise elab.failure("NF574", message, site.span, "apply it to the key or to what is recalled")
    nodes: list[Node] = []
    form: list[tuple[str | None, Any]] = []  # keyword or None; a constant, or None where the next tensor stands
    for name, value in [*((None, a) for a in args), *kwargs.items()]:
        plain = _constant(value)
        if plain is None:
            node = elab.as_node(value, site, f"an argument of `{f.name}`")
            nodes.append(node)
        form.append((name, plain))
    tensors = iter(nodes)
    given = [(n, next(tensors) if c is None else c) for n, c in form]
    _bind(f, given, elab, site)
    if not nodes:
        raise elab.failure("NF572", f"`{f.target}` is called with no tensor", site.span, "give it one")
    like = any(n.type.like for n in nodes)
    lead = ops.carried(*(n.type for n in nodes))
    if like:
        type_ = Type(like=True)
    else:
        type_ = lead.with_(**_shown(f, given, elab, site))
    return make("py", tuple(nodes), type_, site.span, target=f.target, form=tuple(form), rule=like)


def _constant(value: Any) -> Any:
    if isinstance(value, Node):
        return value.value if value.op == "const" else None
    if isinstance(value, Partial) and value.is_name and value.kind == "word":
        return None
    return value if isinstance(value, _PLAIN) else None


def _bind(f: PyFunction, given: list[tuple[str | None, Any]], elab: Any, site: tree.Expr) -> None:
    """The call fits the function's signature."""
    import inspect

    try:
        signature = inspect.signature(f.function)
    except (TypeError, ValueError):
        return  # some functions written in C have none
    try:
        signature.bind(*(v for n, v in given if n is None), **{n: v for n, v in given if n is not None})
    except TypeError as e:
        raise elab.failure("NF572", f"`{f.target}` is `{f.name}{signature}`: {e}", site.span) from None


def _shown(f: PyFunction, given: list[tuple[str | None, Any]], elab: Any, site: tree.Expr) -> dict[str, Any]:
    """dtype and feature shape of the result, from two calls with rows of zeros."""
    import torch

    random: Any = torch.random

    def run(rows: int) -> Any:
        values = [(n, v if not isinstance(v, Node) else _zeros(v.type, rows)) for n, v in given]
        with torch.no_grad(), random.fork_rng(devices=[]):
            return f.function(*(v for n, v in values if n is None), **{n: v for n, v in values if n is not None})

    try:
        a, b = (run(rows) for rows in ROWS)
    except NestflowError:
        raise
    except Exception as e:  # whatever the user's function raises
        said = str(e).strip().splitlines()[0][:120] if str(e).strip() else ""
        message = f"`{f.target}` failed on rows of zeros ({type(e).__name__}: {said})"
        help_ = "its tensors have rows first, then features; it gives a tensor with as many rows"
        raise elab.failure("NF573", message, site.span, help_) from e
    sizes: list[Any] = [list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in (a, b)]
    right = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and not a.is_complex()
    if not right or a.shape[:1] != (ROWS[0],) or b.shape[:1] != (ROWS[1],) or a.shape[1:] != b.shape[1:]:
        message = f"`{f.target}` gives {sizes[0]} for {ROWS[0]} rows and {sizes[1]} for {ROWS[1]}"
        raise elab.failure("NF573", message, site.span, "one tensor, its first axis the rows that it was given")
    dtype = "float" if a.is_floating_point() else "bool" if a.dtype == torch.bool else "int"
    return {"dtype": dtype, "shape": tuple(a.shape[1:])}


def _zeros(t: Type, rows: int) -> Any:
    import torch

    dtype = {"int": torch.int64, "bool": torch.bool}.get(t.dtype, torch.get_default_dtype())
    return torch.zeros((rows, *t.shape), dtype=dtype)
