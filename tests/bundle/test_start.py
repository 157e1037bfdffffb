"""What a first call costs: what is loaded for it, and how often it waits for an answer of its device."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import nestflow
from nestflow.bundle import unread

LOADED = """
import sys, torch, nestflow
b = nestflow.compile("hope", dim=16, n_heads=2, depth=1)
b.module(tokens=torch.zeros(1, 20, dtype=torch.long))
stream = b.stream()
stream.feed(torch.zeros(1, 1, dtype=torch.long)), stream.feed(torch.zeros(1, 1, dtype=torch.long))
print([m for m in ("torch._dynamo", "torch._inductor") if m in sys.modules])
"""


CHECKED = """
import sys
from nestflow.cli.main import main
sys.argv = ["nestflow", "check", "hope"]
try:
    main()
except SystemExit:
    pass
print("torch" in sys.modules)
"""


def test_no_compiler_of_torch_is_loaded() -> None:
    """It takes longer than all else that a first call does."""
    found = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_check_loads_no_torch() -> None:
    found = subprocess.run([sys.executable, "-c", CHECKED], capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == "False"


class Answers(TorchDispatchMode):
    """Counts the numbers that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def answers(x: Tensor, layers: int) -> int:
    text = """nestflow 1
param layers = 2
input x : float[T, 8]
output all(x)
level two(x) {
  every 1 token
  chunk 4
  memory first : mlp(depth = 2) { key x |> linear |> l2norm; value x; update gd(0.1) }
  memory second : matrix { key x |> linear |> l2norm; value x; update momentum(0.3, 0.8) }
  objective l2
  return first(x) + second(x)
}
flow all(x) { repeat layers { x = x + two(x) }; return x }
"""
    b = nestflow.compile(text, layers=layers, dtype="float64")
    with torch.no_grad(), Answers() as found:
        b.module(x)
    return found.count


def test_one_question_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 19, 8, dtype=torch.float64)
    assert [answers(x, n) for n in (1, 3)] == [1, 3]
    monkeypatch.setattr(unread, "waits", lambda device: True)  # as on a device whose answers are waited for
    assert [answers(x, n) for n in (1, 3)] == [1, 1]


@pytest.mark.parametrize("asks", [True, False])
def test_what_it_says_of_numbers_that_are_not_finite(asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach no tick before theirs, and nothing else changes, however the question is put."""
    monkeypatch.setattr(unread, "waits", lambda device: asks)
    b = nestflow.compile("titans", dim=16, n_heads=2, depth=2, chunk=4)
    tokens = torch.randint(0, 255, (2, 23), generator=torch.Generator().manual_seed(0))
    want = b.module(tokens=tokens)
    with torch.no_grad():
        b.module.weights["model.emb.weight"][255] = torch.inf
    bad = tokens.clone()
    bad[0, 9] = 255
    found = b.module(tokens=bad)
    assert torch.equal(found[0, :9, :255], want[0, :9, :255]) and torch.equal(found[1, :, :255], want[1, :, :255])
    assert not found[0, 9:].isfinite().all()
