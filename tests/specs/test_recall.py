"""At initialisation no shipped memory's recall vanishes or blows up over 2,048 tokens."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.language import tree
from nestflow.language.shipped import find_shipped, read_shipped

TOKENS, DIM = 2048, 64
LEVELS = {"linear_attention": "linear_attention", "titans": "titans", "hope": "self_modifying"}
NORM = re.compile(r"\|> rmsnorm \|> merge_heads \|> linear\(dim.*?\)(?= \}|$)", re.MULTILINE)


def bare(spec: str, level: str) -> str:
    """The level alone, fed from outside, giving its recall as it is (no norm, no projection)."""
    body = read_shipped(find_shipped(spec)[1]).body
    found = next(s for s in body if isinstance(s, tree.Level) and s.name == level)
    assert found.span is not None and NORM.search(found.span.text)
    params = "".join(f"{s.span.text.split('##')[0]}\n" for s in body if isinstance(s, tree.Param) and s.span)
    text = NORM.sub("|> merge_heads", found.span.text)
    return f"nestflow 1\n{params}input x : float[T, dim]\noutput {level}(x)\n{text}\n"


def streams(kind: str) -> Tensor:
    """Normal inputs of unit variance (what rmsnorm gives): all different, or 16 of them again and again."""
    generator = torch.Generator().manual_seed(0)
    if kind == "noise":
        return torch.randn(2, TOKENS, DIM, generator=generator)
    few = torch.randn(2, 16, DIM, generator=generator)
    which = torch.randint(0, 16, (2, TOKENS), generator=generator)
    return few[torch.arange(2)[:, None], which]


@pytest.mark.parametrize("kind", ["noise", "few words"])
@pytest.mark.parametrize("spec", LEVELS)
def test_recall_stays(spec: str, kind: str) -> None:
    b = nestflow.compile(bare(spec, LEVELS[spec]), dim=DIM, n_heads=2)
    with torch.no_grad():
        size_BT = b.module(x=streams(kind)).norm(dim=-1)
    early, late = size_BT[:, 64:192].mean(), size_BT[:, -128:].mean()
    assert torch.isfinite(size_BT).all()
    # a sum that nothing decays (linear attention) may grow as its terms do: 1,984 ticks against 128
    most = 16 if spec == "linear_attention" else 4
    assert 0.25 < late / early < most
    assert 0.01 < late < 1000
