"""`per model; reset never`: one copy of a memory, which all rows write in lockstep and the module keeps."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow
from tests.reading.models import near

KINDS = {
    "matrix": "memory matrix; objective dot; update gd(0.1); retain 0.9",
    "delta": "memory matrix; objective l2; update dgd(0.2); weight sigmoid(x |> linear(1))",
    "chunk": "memory mlp(depth = 2, expand = 1); chunk 4; objective l2; update momentum(0.1, 0.9); retain 0.95",
    "every": "memory mlp(depth = 2, expand = 1); every 2 tokens; chunk 4; objective l2; update muon(0.05)",
    "gram": "memory matrix; every 2 tokens; objective l2; update dgd(0.2)",
    "adam": "memory mlp(depth = 1); chunk 4; objective l2; update adam(0.05) |> clip_norm(0.1); retain 1 - 0.1 / t",
    "rounds": "memory matrix; objective l2; update gd(0.1); rounds 2",
    "before": "memory matrix; read before; objective l2; update gd(0.1); project clamp(w, -0.5, 0.5)",
}
LOSS = "level outer { every 1 step; memory rest(keep); objective l2(keep(x), x); update adam(1e-2) }\n"


def compiled(kind: str, more: str = "") -> nestflow.Bundle:
    every = "" if "every" in KINDS[kind] else "every 1 token; "
    b = nestflow.compile(
        "nestflow 1\ninput x : float[T, 8]\noutput keep(x)\n"
        f"level keep(x) {{ {every}heads 2; key x |> linear(4) |> short_conv(2) |> l2norm; value x |> linear(4)\n"
        f"query x |> linear(4) |> rope |> l2norm; {KINDS[kind]}; per model; reset never }}\n{more}",
        dtype=torch.float64,
    )
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in b.module.weights.values():
            w.add_(0.5 * torch.randn(w.shape, generator=source, dtype=torch.float64))
    return b


def values(rows: int = 3, ticks: int = 11, seed: int = 1) -> Tensor:
    return torch.randn(rows, ticks, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PLAIN = """nestflow 1
input x : float[T, 4]
output keep(x)
level keep(x) { every 2 tokens; memory matrix; key x; value x |> linear(3); query x; weight x.sum; objective l2
update momentum(0.1, 0.8); retain 0.9; per model; reset never }
"""


def test_a_plain_loop() -> None:
    """G sums over the rows; each call goes on from where the last one ended, in the middle of a period too."""
    b = nestflow.compile(PLAIN.replace("x.sum", "sigmoid(sum(x))"), dtype=torch.float64)
    (linear,) = b.module.weights.values()
    a, m, pending = (torch.zeros(3, 4, dtype=torch.float64) for _ in range(3))
    t = 0
    for rows, ticks in ((3, 5), (2, 4), (1, 1), (4, 6)):
        x = values(rows, ticks, rows)[..., :4]
        wanted = []
        for i in range(ticks):
            k, v, t = x[:, i], F.linear(x[:, i], linear), t + 1
            error = torch.sigmoid(k.sum(-1, keepdim=True)) * (k @ a.T - v)
            pending = pending + error.T @ k
            if t % 2 == 0:
                m, pending = 0.8 * m + pending, torch.zeros_like(pending)
                a = 0.9 * a - 0.1 * m
            wanted.append(k @ a.T)
        near(b.module(x=x), torch.stack(wanted, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_is_interpreted(kind: str) -> None:
    """Over calls with other rows, forward and backward; no gradient crosses a call."""
    b = compiled(kind)
    reference = b.reference()
    weights = list(b.module.weights.values())
    for rows, ticks in ((3, 5), (2, 6), (1, 3)):
        x, probe = values(rows, ticks, ticks), values(rows, ticks, 9).mean(-1, keepdim=True)
        mine, theirs = b.module(x=x), reference(x=x)
        near(mine, theirs)
        both = [torch.autograd.grad((y * probe).sum(), weights, allow_unused=True) for y in (mine, theirs)]
        for g, h in zip(*both, strict=True):
            assert (g is None or not g.any()) if h is None else g is not None or not h.any()
            if g is not None and h is not None:
                near(g, h, 1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_split_is_whole_and_the_rows_share(kind: str) -> None:
    whole, split, x = compiled(kind), compiled(kind), values()
    with torch.no_grad():
        want = whole.module(x=x)
    stream = split.stream(3)
    near(torch.cat([stream.feed(x=x[:, :3]), stream.feed(x=x[:, 3:4]), stream.feed(x=x[:, 4:])], 1), want)
    kept = {p: v for p, v in whole.module.kept.items() if not p.endswith("@chunk")}
    assert len(kept) > 1
    for path, value in kept.items():
        near(split.module.kept[path], value)
    assert (compiled(kind).module(x=x[:1]) - want[:1]).abs().max() > 1e-3


def test_streams_begin_anew_and_the_memory_goes_on() -> None:
    b, x = compiled("delta"), values()
    with torch.no_grad():
        reference = b.reference()
        want = torch.cat([reference(x=x[:, :4]), reference(x=x[:, 4:7]), reference(x=x[:, 7:])], 1)
    stream = b.stream(3)
    outs = [stream.feed(x=x[:, :4])]
    stream.begin_sequence()
    outs.append(stream.feed(x=x[:, 4:7]))
    outs.append(b.stream(3).feed(x=x[:, 7:]))
    near(torch.cat(outs, 1), want)
    stream.begin_sequence([1])
    with pytest.raises(nestflow.NestflowError) as e:
        stream.feed(x=x[:, :2])
    assert e.value.diagnostics[0].code == "NF507"


@pytest.mark.parametrize("kind", ["delta", "every", "adam"])
def test_training_steps(kind: str) -> None:
    """A step reads its batch once and leaves the memory where that led."""
    b = compiled(kind, LOSS)
    slow = b.reference_steps()
    for seed in range(3):
        x = values(2, 5, seed)
        b.step({"x": x})
        slow.step({"x": x})
    for path, w in b.module.weights.items():
        near(w, slow.tensors[path], 1e-8)
    with torch.no_grad():
        near(b.module(x=x), nestflow.reference.Reference(b.graph, slow.tensors, lasting=slow.lasting)(x=x), 1e-8)


def test_saved_copied_and_pickled(tmp_path: Path) -> None:
    import pickle

    b, x = compiled("every"), values()
    with torch.no_grad():
        b.module(x=x[:, :5])
        b.save(tmp_path / "kept")
        others = [
            copy.deepcopy(b.module),
            pickle.loads(pickle.dumps(b.module)),
            nestflow.load(tmp_path / "kept").module,
        ]
        fresh = compiled("every").module
        fresh.load_state_dict(b.module.state_dict())
        want = b.module(x=x[:, 5:])
        for other in (*others, fresh):
            near(other(x=x[:, 5:]), want)
