"""The loop of a level over its pieces: piece after piece, a state that passes through them, recalls that are collected.

`in_turn` is where `execution` acts. Plainly, it is a Python loop under autograd. With `checkpointing` a segment of
pieces keeps nothing for the backward pass but the state that it began with, and runs again there; so does a loop that
would keep too much (`nestflow.ops.room`). With `compile`, a few pieces are one call of compiled code, forward and
backward. Where gradients are differentiated again (`create_graph=True`) a segment runs again plainly, and compiled
code says that it cannot; what is known to need more (`plainly`, transforms of `torch.func`) is the plain loop from the
start.
"""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor

from nestflow.ops.causal import CARE, careful, joined
from nestflow.ops.room import counted, watched
from nestflow.ops.runtime import Context

State = tuple[Tensor | None, ...]
Recalls = tuple[Tensor, ...]
Piece = Callable[..., tuple[State, Recalls]]
Inputs = list[tuple[Any, ...]]  # of each piece

TOGETHER = 4  # pieces in one call of compiled code
LONG = 64  # pieces of a loop that is looked at for what it keeps, where `execution` does not say
UNROLLED = 8  # pieces that `torch.compile` of a whole module may see; longer loops stay out of its graph
PLAIN: ContextVar[bool] = ContextVar("nestflow_plain", default=False)


@contextmanager
def plainly() -> Iterator[None]:
    """Loops that are run inside this are plain: their gradients are differentiated again, or something watches them."""
    token = PLAIN.set(True)
    try:
        yield
    finally:
        PLAIN.reset(token)


def as_it_stands() -> bool:
    """Whether more than first derivatives by plain autograd may be asked of what runs now."""
    return not torch.compiler.is_compiling() and (PLAIN.get() or torch._C._are_functorch_transforms_active())


def in_turn(
    c: Context,
    piece: Piece,
    t: int,
    sizes: Sequence[int],
    state: State,
    lists: Sequence[Any],
    axes: Sequence[int],
    period: int = 0,
    masked: bool = False,
) -> tuple[State, Recalls]:
    """The state after all pieces, and what each of them recalled, joined along the ticks.

    piece(t, n, state, *inputs) -> (state, recalls): t ticks before it, n ticks in it. lists: for each input one value
    a piece. axes: of each recall, where its ticks lie. period: all that a piece asks of t is t modulo this (0: it asks
    for t itself). masked: ticks of a piece are computed together, and numbers that are not finite are looked for
    (`nestflow.ops.causal`, which raises NotFinite).
    """
    if len(sizes) > UNROLLED and torch.compiler.is_dynamo_compiling():
        given = (c, piece, t, sizes, state, lists, axes, period, masked)
        return _apart(*given)
    inputs: Inputs = list(zip(*lists)) if lists else [()] * len(sizes)
    compiled = c.how.compiled and period > 0 and len(sizes) > 1 and not careful()
    found: list[Recalls] = []
    segment = c.how.segment if torch.is_grad_enabled() else 0
    if not compiled and not segment and _may_be_too_much(c, len(sizes)):
        state, found, segment = _first_two(c, piece, t, sizes, state, inputs)
        t, sizes, inputs = t + sum(sizes[:2]), sizes[2:], inputs[2:]
    if (not compiled and not segment) or as_it_stands():
        state, parts = several(piece, t, tuple(sizes), state, inputs)
        return state, _joined(found + parts, axes, masked)
    if compiled:
        tensors, form = flattened(state)
        # all segments are one compiled function: the first one's state asks for gradients too
        ask = torch.is_grad_enabled() and not segment
        state = built(form, [_asking(x) if ask else x.contiguous() for x in tensors])
    for a, b in segments(sizes, t, segment, period if compiled else 0):
        ticks, even = tuple(sizes[a:b]), b - a > 1 or len(sizes) < TOGETHER
        run = _compiled if compiled and even else several
        start = t % period if run is _compiled else t
        if segment:
            state, parts = _segment(run, c, piece, start, ticks, state, inputs[a:b])
        else:
            state, parts = run(piece, start, ticks, state, inputs[a:b])
        found += parts
        t += sum(ticks)
    recalls = _joined(found, axes, masked)
    if compiled and not segment:
        for x in flattened((state, recalls))[0]:
            if x.requires_grad:
                x.register_hook(_differentiated_once)
    return state, recalls


def _may_be_too_much(c: Context, pieces: int) -> bool:
    """Whether what a loop keeps for the backward pass is looked at: nobody said, and it is long."""
    asked = c.how.room is not None and pieces >= LONG and torch.is_grad_enabled()
    return asked and not torch.compiler.is_compiling() and not as_it_stands() and not watched()


def _first_two(
    c: Context, piece: Piece, t: int, sizes: Sequence[int], state: State, inputs: Inputs
) -> tuple[State, list[Recalls], int]:
    """Two pieces, and how long the segments are in which the others go."""
    assert c.how.room is not None
    state, first = several(piece, t, tuple(sizes[:1]), state, inputs[:1])

    def run() -> tuple[State, list[Recalls]]:
        return several(piece, t + sizes[0], tuple(sizes[1:2]), state, inputs[1:2])

    (state, second), bytes_ = counted(run, [*c.w.values(), *flattened(inputs[1])[0]])
    return state, first + second, 0 if c.how.room.holds(bytes_ * len(sizes), c.device) else -1


def _asking(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x if x.requires_grad or not x.is_floating_point() else x.detach().requires_grad_()


def _differentiated_once(gradient: Tensor) -> None:
    """On what compiled code gives: says so where its gradient is to be differentiated again."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "`execution { compile true }` has first derivatives only, and `create_graph=True` asks for more: "
            "leave `compile` out, or add `checkpointing auto`, which differentiates again what it runs again"
        )


def _out_of_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the decorator `torch.compiler.disable` says to a compiler that meets the function. The decorator itself
    would load that compiler, which takes a second, wherever this file is imported."""
    vars(function)["_torchdynamo_disable"] = True
    return function


@_out_of_graphs
def _apart(*given: Any) -> tuple[State, Recalls]:
    """`in_turn` out of the graph of a `torch.compile` around the module, where it runs as it does without one."""
    return cast("Callable[..., Any]", torch.compiler.disable(in_turn))(*given)


def several(piece: Piece, t: int, sizes: Sequence[int], state: State, inputs: Inputs) -> tuple[State, list[Recalls]]:
    """Pieces one after the other."""
    found = []
    for n, given in zip(sizes, inputs):
        state, recalls = piece(t, n, state, *given)
        found.append(recalls)
        t += n
    return state, found


def _joined(parts: list[Recalls], axes: Sequence[int], masked: bool) -> Recalls:
    if masked:
        return joined(parts, axes)
    return tuple(torch.cat(part, axis) for part, axis in zip(zip(*parts), axes))


def segments(sizes: Sequence[int], t: int, segment: int, period: int) -> Iterator[tuple[int, int]]:
    """Where segments begin and end. segment: pieces in each (−1: about the root of their number). period: of code that
    is compiled once for all segments (0: it is not compiled); then they are even, and an odd piece is alone."""
    if not period:
        length = segment if segment > 0 else math.isqrt(len(sizes) - 1) + 1
        yield from ((a, min(a + length, len(sizes))) for a in range(0, len(sizes), length))
        return
    full = max(sizes)
    length = max(TOGETHER, period // full if period % full == 0 else 1)
    a = 0
    while a < len(sizes):
        b = a + length
        if b <= len(sizes) and all(n == full for n in sizes[a:b]):
            yield a, b
            a = b
        else:
            yield a, a + 1
            a += 1


# ---- compiled


_code: dict[str, Any] = {}


def not_compiled() -> str | None:
    """Why nothing is compiled in this process, where that was tried and failed."""
    return _code.get("failed")


def _compiled(piece: Piece, t: int, sizes: Sequence[int], state: State, inputs: Inputs) -> tuple[State, list[Recalls]]:
    """`several` by `torch.compile`; where it cannot compile, as it stands, with a warning."""
    if "failed" in _code:
        return several(piece, t, sizes, state, inputs)
    if "several" not in _code:
        _code["several"] = torch.compile(several, dynamic=False)
    try:
        return _code["several"](piece, t, sizes, state, inputs)
    except Exception as e:  # whatever torch, its compiler or the system's raises: the piece itself can still run
        result = several(piece, t, sizes, state, inputs)  # if the fault lies in the piece, it is raised here
        _code["failed"] = reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        warnings.warn(f"`execution {{ compile true }}` has no effect: {reason:.200}", stacklevel=2)
        return result


# ---- one node of the graph


def _segment(
    run: Callable[..., Any],
    c: Context,
    piece: Piece,
    t: int,
    sizes: tuple[int, ...],
    state: State,
    inputs: Inputs,
) -> tuple[State, list[Recalls]]:
    """Pieces as one node of autograd's graph, which keeps what they are given."""
    outside = Outside(c, piece)
    values, form = flattened((state, inputs, outside.values))
    count = len({id(x) for x in state if x is not None})
    care = careful()

    def again(tensors: Sequence[Tensor], plain: bool) -> tuple[list[Tensor], Any]:
        state, inputs, values = built(form, tensors)
        token = CARE.set(care)  # the backward pass runs outside of what asked for care
        try:
            return flattened((several if plain else run)(outside.bound(values), t, sizes, state, inputs))
        finally:
            CARE.reset(token)

    held: list[Any] = []
    results = Segment.apply(again, held, count, *values)
    return built(held[0], results)


class Segment(torch.autograd.Function):
    """A function of tensors that keeps its arguments alone, and runs again when gradients are asked for; plainly, and
    from the arguments themselves, where these gradients are differentiated again."""

    @staticmethod
    def forward(ctx: Any, again: Callable[..., Any], held: list[Any], state: int, *tensors: Tensor) -> Any:
        ctx.again, ctx.state = again, state
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            results, form = again(tensors, False)
        held.append(form)
        ctx.mark_non_differentiable(*(x for x in results if not x.is_floating_point()))
        ctx.set_materialize_grads(False)
        known = set(map(id, tensors))  # a result that is an argument is another tensor here
        return tuple(x.view_as(x) if id(x) in known else x for x in results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        twice, needed = torch.is_grad_enabled(), ctx.needs_input_grad[3:]
        if twice:  # views: what an argument is made of may be an argument too, and counts by itself
            wanted = needed
            tensors = [x.view_as(x) if n else x for x, n in zip(ctx.saved_tensors, needed)]
        else:
            # the state of the first segment needs none; computed all the same, all segments are one compiled function
            wanted = [
                x.is_floating_point() and (n or i < ctx.state)
                for i, (x, n) in enumerate(zip(ctx.saved_tensors, needed))
            ]
            tensors = [x.detach().requires_grad_(w) for x, w in zip(ctx.saved_tensors, wanted)]
        with torch.enable_grad():
            results, _ = ctx.again(tensors, twice)
        pairs = [(x, g) for x, g in zip(results, gradients) if g is not None and x.requires_grad]
        leaves = [x for x, w in zip(tensors, wanted) if w]
        outputs, weights = [x for x, _ in pairs], [g for _, g in pairs]
        found: Iterator[Tensor | None] = iter(
            torch.autograd.grad(outputs, leaves, weights, allow_unused=True, create_graph=twice)
            if pairs
            else [None] * len(leaves)
        )
        given = [next(found) if w else None for w in wanted]
        return (None, None, None, *(g if n else None for g, n in zip(given, needed)))


class Outside:
    """What a piece takes from the function around it: its variables, and the slow weights below its path."""

    def __init__(self, c: Context, piece: Piece) -> None:
        names = piece.__code__.co_freevars
        cells = dict(zip(names, (cell.cell_contents for cell in piece.__closure__ or ())))
        self.piece, self.context, self.names = piece, c, names
        self.cells = {n: v for n, v in cells.items() if n != "c"}
        path = self.cells.get("p", "")
        weights = {n: x for n, x in c.w.items() if n.startswith(path)} if "c" in names else {}
        self.values = (self.cells, weights)

    def bound(self, values: tuple[dict[str, Any], dict[str, Tensor]]) -> Piece:
        """The piece with other tensors in their place."""
        cells, weights = values
        if "c" in self.names:
            cells = {**cells, "c": self.context.part(w={**self.context.w, **weights})}
        closure = tuple(types.CellType(cells[n]) for n in self.names)
        code, around = self.piece.__code__, self.piece.__globals__
        return types.FunctionType(code, around, self.piece.__name__, self.piece.__defaults__, closure)


def flattened(tree: Any) -> tuple[list[Tensor], Any]:
    """The distinct tensors in nested tuples, lists and dicts, and the form that `built` puts them back into."""
    places: dict[int, int] = {}
    tensors: list[Tensor] = []

    def visit(x: Any) -> Any:
        if isinstance(x, Tensor):
            if id(x) not in places:
                places[id(x)] = len(tensors)
                tensors.append(x)
            return _Place(places[id(x)])
        if isinstance(x, tuple):
            made = [visit(y) for y in x]
            return type(x)(*made) if hasattr(x, "_fields") else tuple(made)
        if isinstance(x, list):
            return [visit(y) for y in x]
        return {n: visit(y) for n, y in x.items()} if isinstance(x, dict) else x

    form = visit(tree)
    return tensors, form


class _Place(int):
    """Where a tensor stands in the list."""


def built(form: Any, tensors: Sequence[Tensor]) -> Any:
    """The tree that `flattened` took apart, with these tensors."""
    if isinstance(form, _Place):
        return tensors[form]
    if isinstance(form, tuple):
        made = [built(y, tensors) for y in form]
        return type(form)(*made) if hasattr(form, "_fields") else tuple(made)
    if isinstance(form, list):
        return [built(y, tensors) for y in form]
    return {n: built(y, tensors) for n, y in form.items()} if isinstance(form, dict) else form
