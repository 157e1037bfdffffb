"""What `nestflow.optimizer` takes and refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import nestflow

TWO = "nestflow 1\noptimizer up(lr) { step lr * g }\noptimizer down(lr) { step -lr * g }\n"


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(2, dtype=torch.float64))


def moved(target: Any, **settings: Any) -> list[float]:
    w = weight()
    opt = nestflow.optimizer(target, [w], **settings)
    w.sum().backward()
    opt.step()
    return w.tolist()


@pytest.mark.parametrize(
    "target",
    [
        {"nestflow": 1, "optimizers": {"down(lr)": "-lr * g"}},
        "nestflow 1\noptimizer down(lr) { step -lr * g }\n",
        "gd",
    ],
)
def test_targets(target: Any) -> None:
    assert moved(target, lr=0.25) == [0.75, 0.75]
    assert moved(target, lr=torch.tensor(0.25)) == [0.75, 0.75]


def test_of_several_the_one_that_is_called_as_the_file(tmp_path) -> None:
    for name, want in (("up", 1.25), ("down", 0.75)):
        file = tmp_path / f"{name}.nl"
        file.write_text(TWO, encoding="utf-8")
        assert moved(str(file), lr=0.25) == [want, want]


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "several": ("NF242.*`up`, `down`", lambda: nestflow.optimizer(TWO, [weight()], lr=0.1)),
    "none": ("NF242", lambda: nestflow.optimizer("titans", [weight()])),
    "nothing": ("NF544", lambda: nestflow.optimizer("adam", None)),  # type: ignore[arg-type]
    "a module": ("NF544", lambda: nestflow.optimizer("adam", torch.nn.Linear(2, 2))),  # type: ignore[arg-type]
    "a mean that is divided by nothing": ("NF325", lambda: nestflow.optimizer("adam", [weight()], beta1=1.0)),
    "a name as its base": ("is an optimizer", lambda: nestflow.optimizer("averaged", [weight()], base="adam")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    match, call = REFUSED[name]
    with pytest.raises(nestflow.NestflowError, match=match):
        call()
