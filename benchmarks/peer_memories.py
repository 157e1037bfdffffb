"""fla's forms in plain torch and torch's attention beside our levels alone; titans-pytorch's layer beside ours."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nestflow
from benchmarks.cases import CASES, forward_pass, training_pass
from benchmarks.cases import DIM as LAYER_DIM
from benchmarks.machine import version
from benchmarks.models import per_token
from benchmarks.pair import Pair
from benchmarks.same import apart
from benchmarks.timing import Run

HEADS, WIDTH = 4, 64
Attend = Callable[[dict[str, Tensor]], Tensor]  # q, k, v, rates b and gates a, c, [B,T,H,...] -> [B,T,H,d]

SPLIT = "key split_heads(k); value split_heads(v); query split_heads(q)"
DOT = f"memory matrix; {SPLIT}; objective dot; update gd(1)"
DELTA = f"memory matrix; {SPLIT}; objective l2; update gd(split_heads(b))"
# name -> lines of our level, what it reads beside k, v, q (b: a rate a head, a: a gate a head, c: gates by channel)
LEVELS: dict[str, tuple[str, str]] = {
    "linear attention": (DOT, ""),
    "retention (RetNet)": (f"{DOT}; retain 0.97", ""),
    "a gate a head (Mamba-2)": (f"{DOT}; retain split_heads(a)", "a"),
    "gated linear attention": (f"{DOT}; retain split_heads(c)", "c"),
    "delta rule": (DELTA, "b"),
    "gated delta rule": (f"{DELTA}; retain decay_first(split_heads(a))", "ba"),
    "softmax attention": (f"memory cache; {SPLIT}", ""),
}


def head_first(f: Callable[..., Any], *xs: Tensor, **more: Any) -> Tensor:
    """A function of [B,H,T,...] on [B,T,H,...]."""
    return first(f(*(x.transpose(1, 2) for x in xs), **more)).transpose(1, 2)


def first(y: Any) -> Tensor:
    """The output of what may give a state too."""
    return y[0] if isinstance(y, tuple) else y


def fla(room: str, function: str) -> Callable[..., Any]:
    """One of fla's forms in plain torch. Raises ImportError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(f"fla.ops.{room}.naive"), function)


ROOT = WIDTH**0.5  # fla divides queries by it
# what, name of the form, where it is, how it is called
FLA: list[tuple[str, str, tuple[str, str], Callable[[Callable[..., Any]], Attend]]] = [
    ("linear attention", "chunks", ("linear_attn", "naive_chunk_linear_attn"),
     lambda f: lambda x: first(f(x["q"], x["k"], x["v"], scale=1.0))),
    ("linear attention", "loop", ("linear_attn", "naive_recurrent_linear_attn"),
     lambda f: lambda x: first(f(x["q"], x["k"], x["v"], scale=1.0))),
    ("gated linear attention", "loop", ("gla", "naive_recurrent_gla"),
     lambda f: lambda x: first(f(ROOT * x["q"], x["k"], x["v"], x["c"].log()))),
    ("delta rule", "chunks", ("delta_rule", "delta_rule_chunkwise"),
     lambda f: lambda x: head_first(
         lambda q, k, v, b: f(q, k, v, b.squeeze(-1)), ROOT * x["q"], x["k"], x["v"], x["b"])),
    ("delta rule", "loop", ("delta_rule", "delta_rule_recurrence"),
     lambda f: lambda x: head_first(f, ROOT * x["q"], x["k"], x["v"], x["b"])),
    ("gated delta rule", "chunks", ("gated_delta_rule", "naive_chunk_gated_delta_rule"),
     lambda f: lambda x: first(
         f(x["q"], x["k"], x["v"], g=x["a"].squeeze(-1).log(), beta=x["b"].squeeze(-1), scale=1.0))),
    ("gated delta rule", "loop", ("gated_delta_rule", "naive_recurrent_gated_delta_rule"),
     lambda f: lambda x: first(
         f(x["q"], x["k"], x["v"], beta=x["b"].squeeze(-1), g=x["a"].squeeze(-1).log(), scale=1.0))),
]  # fmt: skip

MATRICES = (  # beside their loops
    "linear attention", "retention (RetNet)", "a gate a head (Mamba-2)", "delta rule", "gated delta rule",
)  # fmt: skip
LOOP = "the same, tick by tick"
SHORT = 1024  # ticks at which these are held against attention too


def streams(length: int, device: str) -> dict[str, Tensor]:
    """Unit keys and queries, rates in (0, 1), gates near 1: [B,T,H,...]."""
    source = torch.Generator().manual_seed(0)

    def draw(width: int) -> Tensor:
        return torch.randn(1, length, HEADS, width, generator=source)

    found = {
        "k": F.normalize(draw(WIDTH), dim=-1),
        "v": draw(WIDTH),
        "q": F.normalize(draw(WIDTH), dim=-1),
        "b": draw(1).sigmoid(),
        "a": 0.9 + 0.1 * draw(1).sigmoid(),
        "c": 0.9 + 0.1 * draw(WIDTH).sigmoid(),
    }
    return {n: x.to(device) for n, x in found.items()}


def level(what: str, device: str, loop: bool = False) -> Attend:
    """Ours: the compiled level alone, its streams given from outside. loop: the same, tick by tick."""
    fields, more = LEVELS[what]
    names = ["k", "v", "q", *more]
    widths = {"b": HEADS, "a": HEADS}
    inputs = "\n".join(f"input {n} : float[T, {widths.get(n, HEADS * WIDTH)}]" for n in names)
    call = f"mem({', '.join(names)})"
    bundle = nestflow.compile(
        f"nestflow 1\n{inputs}\noutput {call}\nlevel {call} {{ heads {HEADS}\n{fields} }}\n", device=device
    )
    module = per_token(bundle) if loop else bundle.module

    def run(x: dict[str, Tensor]) -> Tensor:
        return module(**{n: x[n].flatten(2) for n in names}).unflatten(-1, (HEADS, WIDTH))

    return run


def both_modes(f: Attend, x: dict[str, Tensor]) -> dict[str, Run]:
    """Forward under no_grad, and forward with backward into every stream."""
    leaves = {n: v.clone().requires_grad_() for n, v in x.items()}

    def forward() -> None:
        with torch.no_grad():
            f(x)

    def training() -> None:
        for v in leaves.values():
            v.grad = None
        f(leaves).square().mean().backward()

    return {"forward": forward, "training": training}


def compared(f: Attend, g: Attend, x: dict[str, Tensor], names: str) -> float:
    """The largest difference of outputs and gradients, each as a share of its largest number. names: of the streams
    that they read."""
    results = []
    for h in (f, g):
        leaves = {n: v[:, :128].clone().requires_grad_() for n, v in x.items() if n in names}
        y = h(leaves)
        grads = torch.autograd.grad(y.square().sum(), list(leaves.values()))
        results.append([y.detach(), *grads])
    return apart(*results)


def memories(length: int, device: str) -> Iterator[Pair]:
    """The matrix memories and attention."""
    x = streams(length, device)
    found = version("fla-core")
    for what, form, (room, function), make in FLA:
        if found is None:
            break
        try:
            theirs = make(fla(room, function))
        except (ImportError, AttributeError) as e:
            print(f"fla {function}: {e}", file=sys.stderr)
            continue
        ours, read = level(what, device), "kvq" + LEVELS[what][1]
        yield Pair(
            what, f"fla, {form}", found, both_modes(ours, x), both_modes(theirs, x), compared(ours, theirs, x, read)
        )

    attention = "softmax attention"
    ours = level(attention, device)
    yield Pair(
        attention, "torch sdpa", torch.__version__, both_modes(ours, x), both_modes(sdpa, x),
        compared(ours, sdpa, x, "kvq"),
    )  # fmt: skip
    for what in MATRICES:
        read = {n: x[n] for n in "kvq" + LEVELS[what][1]}
        ours, loop = level(what, device), level(what, device, loop=True)
        modes = both_modes(ours, read), both_modes(loop, read)
        yield Pair(what, LOOP, nestflow.__version__, *modes, compared(ours, loop, read, "".join(read)))
    few = {n: v[:, : min(SHORT, length // 2)] for n, v in x.items()}
    ticks = few["k"].shape[1]
    for what in MATRICES:
        read = {n: few[n] for n in "kvq" + LEVELS[what][1]}
        modes = both_modes(level(what, device), read), both_modes(sdpa, {n: few[n] for n in "kvq"})
        yield Pair(what, f"torch sdpa, T = {ticks:,}", torch.__version__, *modes, None, "another model")


def sdpa(x: dict[str, Tensor]) -> Tensor:
    """Causal softmax attention on the same streams."""
    return head_first(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), x["q"], x["k"], x["v"])


def titans(length: int, device: str) -> Iterator[Pair]:
    """The layer of `titans_memory.nl` beside titans-pytorch's, refreshed at every chunk and as its README runs it."""
    found = version("titans-pytorch")
    if found is None:
        return
    x = torch.randn(1, length, LAYER_DIM, device=device)
    for chunk in (16, 64):
        ours = _layer_modes(CASES["nestflow"](chunk, device), x)
        for case, note in (
            ("titans-pytorch", "learns and recalls once a chunk, from pooled gates"),
            ("titans-pytorch, first weights", "its default: all gradients at the sequence's first weights"),
        ):
            theirs = _layer_modes(CASES[case](chunk, device), x)
            yield Pair(f"Titans' memory, chunk {chunk}", case, found, ours, theirs, None, note)


def _layer_modes(layer: nn.Module, x: Tensor) -> dict[str, Run]:
    return {"forward": forward_pass(layer, x), "training": training_pass(layer, x)}
