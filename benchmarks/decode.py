"""Milliseconds a token when a stream is fed one token at a time: at its beginning, and after many tokens.

Ours, the same spec as a per-token loop, the loops that one would write by hand (`plain_steps.py`), titans-pytorch and
nested-learning (where they are installed) and softmax attention with a cache in plain torch. All start every round from
the same kept state. Before anything is timed, what a stream gives token by token must be what the whole sequence
gives, in float64, and a loop by hand must give what the spec gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import nestflow
from benchmarks import hope_peer
from benchmarks.cases import DIM as LAYER_DIM
from benchmarks.cases import SPEC, titans_pytorch
from benchmarks.layers import CLOSE
from benchmarks.machine import version
from benchmarks.models import DIM, HEADS, one_layer, per_token, some_tokens
from benchmarks.options import Options
from benchmarks.plain_steps import BY_HAND
from benchmarks.same import apart
from benchmarks.timing import Run, Times, interleave

SPECS = ("linear_attention", "gla", "gated_deltanet", "ttt_mlp", "titans", "hope", "transformer")
QUICK = ("linear_attention", "titans", "transformer")
CHUNK = 16
Step = Callable[[Any, Tensor], tuple[Tensor, Any]]  # (state or None, inputs of some ticks) -> output, state


def stepper(module: Any, name: str) -> Step:
    """A module of ours, with its one input of that name."""

    def step(state: Any, x: Tensor) -> tuple[Tensor, Any]:
        return module.run(state, training=False, **{name: x})

    return step


def titans_stepper(device: str) -> Step:
    """titans-pytorch with a state, chunk 16, gradient refreshed at every chunk."""
    inner = titans_pytorch(CHUNK, refreshed=True).to(device)

    def step(state: Any, x: Tensor) -> tuple[Tensor, Any]:
        return inner(x, state=state)

    return step


class Cached:
    """The mixer of a softmax attention block in plain torch: projections, a cache that grows, F.sdpa. x [B,T,dim]."""

    def __init__(self, dim: int, heads: int, device: str) -> None:
        self.heads = heads
        self.w_qkv, self.w_out = (torch.randn(n * dim, dim, device=device) * dim**-0.5 for n in (3, 1))

    def __call__(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        q, k, v = (x @ self.w_qkv.mT).unflatten(-1, (3, self.heads, -1)).movedim(-2, 1).unbind(-2)
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=state is None and x.shape[1] > 1)
        return y.transpose(1, 2).flatten(2) @ self.w_out.mT, (k, v)


@torch.no_grad()
def fed(step: Step, x: Tensor, sizes: Iterable[int]) -> tuple[Tensor, Any]:
    """Outputs and last state of a sequence that is fed in pieces."""
    state, outputs, at = None, [], 0
    for n in sizes:
        y, state = step(state, x[:, at : at + n])
        outputs.append(y)
        at += n
    return torch.cat(outputs, 1), state


def streams_apart(step: Step, x: Tensor, whole: Step | None = None) -> float:
    """The largest difference between token by token and at once (of `whole`, if given), as a share of the largest
    output."""
    one, _ = fed(step, x, [1] * x.shape[1])
    all_, _ = fed(whole or step, x, [x.shape[1]])
    return apart([one], [all_])


def decoding(step: Step, state: Any, x: Tensor) -> Run:
    """Every token of x in a call of its own, from that state."""
    pieces = list(x.split(1, 1))

    def run() -> None:
        now = state
        with torch.no_grad():
            for piece in pieces:
                _, now = step(now, piece)

    return run


@dataclass
class Group:
    """One model fed token by token. steppers: the first is ours. error: token by token against at once."""

    what: str
    steppers: dict[str, Step]
    x: Tensor
    error: float


def of_spec(name: str, tokens: Tensor, device: str) -> Group:
    """A shipped architecture, one block; beside it the loop by hand where there is one."""
    bundle = one_layer(name).to(device)
    module, loop = bundle.module, per_token(bundle)
    few = tokens[:, :40]
    module.double(), loop.double()
    here = stepper(module, "tokens")
    error = streams_apart(here, few) + streams_apart(stepper(loop, "tokens"), few, here)
    if name in BY_HAND:
        error += streams_apart(BY_HAND[name](dict(module.named_weights())), few, here)
    module.float(), loop.float()
    steppers = {"nestflow": here, "per-token loop": stepper(loop, "tokens")}
    if name in BY_HAND:
        steppers["by hand"] = BY_HAND[name](dict(module.named_weights()))
    return Group(f"{name}, one block", steppers, tokens, error)


def of_titans(x: Tensor, device: str) -> Group:
    """The layer of titans_memory.nl beside titans-pytorch's, and attention."""
    layer = nestflow.compile(str(SPEC), chunk_size=CHUNK).to(device)
    step, loop, few = stepper(layer.module, "x"), per_token(layer), x[:, :40].double()
    layer.module.double(), loop.double()
    error = streams_apart(step, few) + streams_apart(stepper(loop, "x"), few, step)
    layer.module.float(), loop.float()
    cases: dict[str, Step] = {"nestflow": step, "per-token loop": stepper(loop, "x")}
    if version("titans-pytorch"):
        cases["titans-pytorch"] = titans_stepper(device)
    cases["attention with a cache"] = Cached(LAYER_DIM, HEADS, device)
    return Group(f"titans_memory, chunk {CHUNK}", cases, x, error)


def of_hope(x: Tensor, device: str) -> Group:
    """The block of hope_block.nl, with four heads and with one, beside nested-learning's. That ends its chunk with each
    call, so token by token it learns after every token: more often than at once."""
    made = {
        f"nestflow{', one head' if h == 1 else ''}": hope_peer.ours(LAYER_DIM, CHUNK, h, device) for h in (HEADS, 1)
    }
    steppers = {n: stepper(b.module, "x") for n, b in made.items()}
    error = 0.0
    for name, b in made.items():
        b.module.double()
        error += streams_apart(steppers[name], x[:, :40].double())
        b.module.float()
    if version(hope_peer.PACKAGE):
        steppers[hope_peer.PACKAGE] = hope_peer.stepper(hope_peer.theirs(LAYER_DIM, CHUNK, device))
    return Group(f"hope_block, chunk {CHUNK}", steppers, x, error)


def groups(quick: bool, device: str) -> Iterable[tuple[str, Callable[[], Group]]]:
    """(what, the function that makes it), for all that is fed."""
    count = (64 if quick else 4096) + 64
    tokens, x = some_tokens(count, 1, device), torch.randn(1, count, LAYER_DIM, device=device)
    for name in QUICK if quick else SPECS:
        yield f"{name}, one block", lambda n=name: of_spec(n, tokens, device)
    yield f"titans_memory, chunk {CHUNK}", lambda: of_titans(x, device)
    yield f"hope_block, chunk {CHUNK}", lambda: of_hope(x, device)


def results(options: Options) -> dict[str, Any]:
    """A row for each case and place in the stream: ms a token, and how many times ours it takes."""
    after = 64 if options.quick else 4096
    ticks = 32
    settings = {"after": after, "ticks": ticks, "dim": DIM, "heads": HEADS, "rounds": options.rounds}
    found = options.begin("decode", settings)
    found["peers"] = {n: version(n) for n in ("titans-pytorch", hope_peer.PACKAGE)}
    done = {r["what"] for r in found["rows"]}
    for what, make in groups(options.quick, options.device):
        if what in done:
            continue
        group = make()
        cases, x, error = group.steppers, group.x, group.error
        if not error < CLOSE:
            found["rows"].append({"what": what, "failed": f"a stream and the whole differ by {error:.1e} in float64"})
            print(f"{what}: {found['rows'][-1]['failed']}", file=sys.stderr)
            options.keep("decode", found)
            continue
        begun = {n: fed(step, x, [after])[1] for n, step in cases.items()}
        runs = {(n, 0): decoding(step, None, x[:, :ticks]) for n, step in cases.items()}
        runs |= {(n, after): decoding(step, begun[n], x[:, after : after + ticks]) for n, step in cases.items()}
        names = {f"{n} {t}": run for (n, t), run in runs.items()}
        for run in names.values():
            run()
        times: dict[str, Times] = interleave(None, names, options.rounds, options.budget, options.device)
        for n in cases:
            row: dict[str, Any] = {"what": what, "case": n}
            for label, t in (("start", 0), ("later", after)):
                mine, base = times[f"{n} {t}"], times[f"{next(iter(cases))} {t}"]
                row[label] = {"ms": 1e3 * mine.plain()["seconds"] / ticks, **mine.over(base)}
            row["growth"] = times[f"{n} {after}"].over(times[f"{n} 0"])
            found["rows"].append(row)
            s, e = row["start"], row["later"]
            print(f"{what:32s} {n:24s} {s['ms']:7.2f} ms a token, after {after:,d} {e['ms']:7.2f}", flush=True)
        options.keep("decode", found)
    return found


def markdown(result: dict[str, Any]) -> str:
    """One row a case; times of ours in the same rounds are the unit."""
    after = f"{result['settings']['after']:,}"
    lines = [
        f"| fed token by token | | × ours at the start / after {after} | ms a token at the start / after {after} | "
        "later over start |",
        "|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        if "failed" in r:
            lines.append(f"| {r['what']} | not timed: {r['failed']} | – | – | – |")
            continue
        s, e = r["start"], r["later"]
        ratios, times = f"**{s['ratio']:.2g}** / **{e['ratio']:.2g}**", f"{s['ms']:.2f} / {e['ms']:.2f}"
        lines.append(f"| {r['what']} | {r['case']} | {ratios} | {times} | {r['growth']['ratio']:.2f} |")
    if absent := [n for n, found in result["peers"].items() if not found]:
        lines += ["", f"Not installed: {', '.join(absent)}."]
    return "\n".join(lines)
