"""Rules that count, beside `reset where(…)`: every row counts its updates from where it started anew."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import nestflow

T = 11
LEVEL = (
    "nestflow 1\ninput x : float[T, 4]\ninput s : bool[T]\noutput m(x, s)\nlevel m(x, s) {{ {heads} memory {memory}\n"
    "key x |> linear |> l2norm; value x |> linear; query x |> linear |> l2norm; objective l2; {fields} }}\n"
    "optimizer slow_sum(lr) {{ memory s : like(w) {{ value g; update gd(1); every 2 ticks }}\n"
    "step -lr * (g + 0.1 * s) }}\n"
)
RULES = [
    "update adam(0.1)",
    "update gd(0.3 / t)",
    "update slow_sum(0.1)",
    "chunk 3; update adam(0.1); retain 0.9",
    "every 2 tokens; update adam(0.1)",
    "every 2 tokens; chunk 4; update schedule_free(0.1)",
    "update adam(0.1); when x[1] > 0",
    "update gd(0.1); project w * (1 - 0.1 / t)",
    "rounds 2; update adam(0.1)",
]


def bundle(memory: str, heads: str, fields: str) -> nestflow.Bundle:
    return nestflow.compile(LEVEL.format(memory=memory, heads=heads, fields=fields), dtype="float64")


def inputs() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, T, 4, generator=source, dtype=torch.float64)
    return {"x": x, "s": torch.rand(2, T, generator=source) < 0.3}


@pytest.mark.parametrize("heads", ["", "heads 2;"])
@pytest.mark.parametrize("memory", ["matrix", "mlp(depth = 2, expand = 1)"])
@pytest.mark.parametrize("fields", RULES)
def test_a_document_is_read_as_if_alone(memory: str, heads: str, fields: str) -> None:
    """What stands between two resets gets what a fresh call of it alone gets, in a spec without `reset`."""
    b, alone, given = bundle(memory, heads, fields + "; reset where(s)"), bundle(memory, heads, fields), inputs()
    alone.module.load_state_dict(b.module.state_dict())
    rows = []
    for i, row in enumerate(given["s"]):
        cuts = sorted({0, *(t for t in range(T) if row[t]), T})
        assert len(cuts) > 3
        parts = [alone.module(**{n: v[i : i + 1, low:high] for n, v in given.items()}) for low, high in pairwise(cuts)]
        rows.append(torch.cat(parts, 1))
    want = torch.cat(rows)
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = torch.autograd.grad((want * probe).sum(), list(alone.module.weights.values()))
    for run in (b.module, b.reference()):
        y = run(**given)
        torch.testing.assert_close(y, want, rtol=1e-8, atol=1e-10)
        mine = torch.autograd.grad((y * probe).sum(), list(b.module.weights.values()))
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    stream, state, parts = b.stream(batch=2), None, []
    for low, high in ((0, 2), (2, 3), (3, T)):
        piece = {n: v[:, low:high] for n, v in given.items()}
        parts.append(stream.feed(**piece))
        with torch.no_grad():
            _, state = b.reference().run(state, piece)
    torch.testing.assert_close(torch.cat(parts, 1), want)
    for path, kept in stream.state.tensors.items():
        torch.testing.assert_close(kept, state[path], rtol=1e-8, atol=1e-10, msg=lambda m, p=path: f"{p}: {m}")


def test_the_count_may_be_spared() -> None:
    """`keep rule`: Adam's memories and its count go on, so compiled is interpreted and not the fresh one."""
    keeps, anew = (bundle("matrix", "", f"update adam(0.1); reset where(s){k}") for k in ("; keep rule", ""))
    anew.module.load_state_dict(keeps.module.state_dict())
    given = inputs()
    y = keeps.module(**given)
    torch.testing.assert_close(keeps.reference()(**given), y, rtol=1e-9, atol=1e-11)
    assert (y - anew.module(**given)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        "update gd(cosine(0.1, total = 8))",
        "objective windowed(l2, 2); update gd(0.1)",
        "update gd(0.1); retain t / (t + 1)",
        "update gd(0.1); weight 1 / t",
        "update gd(0.1); when t > 3",
    ],
)
def test_what_waits_is_told(fields: str) -> None:
    with pytest.raises(nestflow.NestflowError, match="NF490"):
        text = LEVEL.format(memory="matrix", heads="", fields=f"{fields}; reset where(s)")
        nestflow.check(text.replace("objective l2; objective", "objective"))
