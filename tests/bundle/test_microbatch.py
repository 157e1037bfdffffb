"""`microbatch`: the parts' gradients are the whole batch's, and what needs the batch as a whole is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.diagnostics.core import NestflowError

TEXT = """nestflow 1
input x : float[T, 4]
output f(x)
level m(x) { every 1 token; memory matrix; key x |> l2norm; value linear(x); query x; objective l2; update gd(0.1) }
flow f(x) { emit size = mean(square(x)); return linear(dropout(m(x), 0.3)) }
loss = 2 * mean(square(f(x) - x)) + 0.1 * mean(abs(next(f(x)))) / 3
level outer { every 1 step; memory weights(f); objective loss; update adam(0.01) }
"""
LAYER = {"dim": 16, "n_heads": 2, "depth": 1, "vocab": 32}


def trained(target: str, rows: int, parts: int, **params: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[int]]:
    """The last of three steps' report, the weights, and the rows of each pass."""
    b = nestflow.compile(target, dtype="float64", execution={"microbatch": parts}, **params)
    made = torch.Generator().manual_seed(0)
    (i,) = b.graph.inputs
    shape = (rows, 9, *i.type.shape)
    x = torch.randn(shape, dtype=torch.float64, generator=made)
    x = x if i.type.dtype == "float" else torch.randint(0, 32, shape, generator=made)
    passes: list[int] = []
    plain = b.module.objective

    def objective(name: str, inputs: Any, *more: Any, **how: Any) -> Tensor:
        passes.append(len(next(iter(inputs.values()))))
        return plain(name, inputs, *more, **how)

    b.module.__dict__["objective"] = objective
    report = {}
    for _ in range(3):
        report = b.step({i.name: x})
    return report, {n: w.detach() for n, w in b.module.named_parameters()}, passes


@pytest.mark.parametrize(
    ("target", "params"),
    [(TEXT, {}), ("titans", LAYER | {"chunk": 4}), ("cms_nested", LAYER | {"fast": 2, "slow": 4, "rate": 0.02})],
    ids=["chance and emit", "titans", "reading"],
)
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_the_parts_are_the_whole(target: str, params: dict[str, Any], parts: int) -> None:
    report, weights, passes = trained(target, 5, 1, **params)
    found, mine, cut = trained(target, 5, parts, **params)
    assert passes == [5] * 3
    assert cut == {2: [2, 3], 3: [1, 2, 2], 9: [1] * 5}[parts] * 3
    assert found["loss"] == pytest.approx(report["loss"], rel=1e-12)
    assert found["emitted"] == pytest.approx(report["emitted"], rel=1e-6)
    for n, w in weights.items():
        assert (mine[n] - w).abs().max() <= 1e-9, n


OUTER = "level outer { every 1 step; memory weights(f); objective LOSS; update UPDATE }"
HEAD = "nestflow 1\nexecution { microbatch 2 }\ninput x : float[T, 4]\ninput label : int[T] in [0, 4)\noutput f(x)\n"
FLOW = "flow f(x) { return linear(x) }\n"


@pytest.mark.parametrize(
    ("loss", "update", "said"),
    [
        ("mean(square(f(x)))", "dgd(0.1)", "reads the inputs of its weights"),
        ("mean(square(f(x))) * mean(f(x))", "gd(0.1)", "no sum of means over rows"),
        ("1 / mean(square(f(x)))", "gd(0.1)", "no sum of means over rows"),
        ("mean(square(f(x) - mean(f(x))))", "gd(0.1)", "reads a mean of the whole batch in each row"),
        ("cross_entropy(f(x), label, label > 0)", "gd(0.1)", "has a mask"),
        ("es(mean(square(f(x))), 0.1, pairs = 2)", "gd(0.1)", "estimated from the whole batch"),
    ],
)
def test_what_needs_the_batch_is_told(loss: str, update: str, said: str) -> None:
    text = HEAD + FLOW + OUTER.replace("LOSS", loss).replace("UPDATE", update)
    with pytest.raises(NestflowError, match=f"NF549.*{said}") as caught:
        nestflow.check(text)
    assert caught.value.diagnostics[0].span is not None
    whole = text.replace("execution { microbatch 2 }\n", "")
    with pytest.raises(NestflowError, match="NF549"):
        nestflow.compile(whole, execution={"microbatch": 2})
    nestflow.check(whole)


def test_what_all_rows_write_is_told() -> None:
    level = "level m(x) { every 4 tokens; per model; memory matrix; key x; value x; query x; LEARNS }\n"
    level = level.replace("LEARNS", "objective l2; update gd(0.1)")
    text = HEAD + level + "flow f(x) { return linear(m(x)) }\n"
    with pytest.raises(NestflowError, match=r"NF549.*per model"):
        nestflow.check(text + OUTER.replace("LOSS", "mean(square(f(x)))").replace("UPDATE", "gd(0.1)"))


def test_a_penalty_on_weights_counts_once() -> None:
    """What does not come from the batch is in each part, and the shares sum to one."""
    text = HEAD.replace("input label : int[T] in [0, 4)\n", "") + FLOW
    loss = "mean(square(f(x))) + 0.5"
    text += OUTER.replace("LOSS", loss).replace("UPDATE", "gd(0.1)")
    plain = trained(text.replace("execution { microbatch 2 }\n", ""), 5, 1)
    found = trained(text, 5, 2)
    assert found[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-12) and found[0]["loss"] > 0.5
