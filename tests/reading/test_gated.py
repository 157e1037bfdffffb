"""Which ticks teach (`when`), how much (`weight`), and what is made of the copies afterwards (`project`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow
from nestflow.bundle.bundle import Bundle
from tests.reading.models import HEAD, PLAIN, compiled, mlp, near, tokens
from tests.reading.test_reading import FAST_W, SLOW_W, gradients

INPUTS = HEAD.replace("output model", "input m : bool[T]\ninput r : float[T]\noutput model") + PLAIN
LEVEL = 'level one {{ every 4 tokens; memory weights(model, "fast.**"); objective loss; {} }}\n'
NESTED = (
    'level one { every 2 tokens; memory weights(model, "fast.**"); objective loss; update adam(0.1); when m; init two; '
    "reset each(two) }\n"
    'level two { every 8 tokens; memory weights(model, "slow.**"); objective loss; update gd(0.2); project ball(1); '
    "weight r }\n"
)
Terms = Callable[[Tensor, Tensor, Tensor], Tensor]  # of the losses, m and r
Project = Callable[[Tensor, Tensor], Tensor]


def given(ticks: int = 15) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(4)
    m = torch.rand(2, ticks, generator=source) < 0.4
    m[0, 4:8] = False  # a whole period in which the first row learns nothing
    return {"tokens": tokens(2, ticks), "m": m, "r": torch.rand(2, ticks, generator=source, dtype=torch.float64)}


def always(losses: Tensor, m: Tensor, r: Tensor) -> Tensor:
    return torch.ones_like(losses, dtype=torch.bool)


def loop(
    weights: dict[str, Tensor],
    x: dict[str, Tensor],
    update: str,
    when: Terms = always,
    weight: Terms = lambda losses, m, r: torch.ones_like(losses),
    project: Project = lambda w, w0: w,
    retain: float = 1.0,
) -> Tensor:
    """One row by hand: segments of four, the next token closes each."""
    row, m, r = x["tokens"], x["m"], x["r"]
    embed, head = weights["model.embed.weight"], weights["model.linear.weight"]
    slow = [weights[n] for n in SLOW_W]
    now = start = [weights[n] for n in FAST_W]
    moments, updates, outs = [(torch.zeros_like(w), torch.zeros_like(w)) for w in now], 0, []
    for at in range(0, len(row), 4):
        here = slice(at, at + 4)
        outs.append(mlp(mlp(embed[row[here]], now), slow) @ head.T)
        if at + 4 >= len(row):
            break
        held = [w.detach().clone().requires_grad_() for w in now]
        scores = mlp(mlp(embed[row[here]], held), slow) @ head.T
        losses = F.cross_entropy(scores, row[at + 1 : at + 5], reduction="none")
        taught = when(losses, m[here], r[here])
        if not taught.any():
            continue
        terms = weight(losses, m[here], r[here]).detach() * losses
        grads = torch.autograd.grad(terms[taught].sum(), held)
        updates += 1
        for i, g in enumerate(grads):
            if update == "mean":
                step = -0.1 * g / taught.sum()
            elif update == "adam":
                a, b = (0.9 * moments[i][0] + 0.1 * g, 0.999 * moments[i][1] + 0.001 * g * g)
                moments[i] = a, b
                step = -0.05 * (a / (1 - 0.9**updates)) / ((b / (1 - 0.999**updates)).sqrt() + 1e-8)
            else:
                step = -float(update) * g
            now = [project(retain * w + step, start[j]) if j == i else w for j, w in enumerate(now)]
    return torch.cat(outs)


def ball(w: Tensor, w0: Tensor) -> Tensor:
    size = w.norm()
    return w * torch.where(size > 1, 1 / size, torch.ones_like(size))


CASES: dict[str, dict] = {
    "update gd(0.1); weight r": {"update": "0.1", "weight": lambda losses, m, r: r},
    "update gd(0.1); weight 0.5 * loss": {"update": "0.1", "weight": lambda losses, m, r: 0.5 * losses},
    "update adam(0.05); when m": {"update": "adam", "when": lambda losses, m, r: m},
    "update (g / n_ticks) |> gd(0.1); when r > 0.5; retain 0.9": {
        "update": "mean",
        "when": lambda losses, m, r: r > 0.5,
        "retain": 0.9,
    },
    "update gd(0.1); when loss > 2": {"update": "0.1", "when": lambda losses, m, r: losses > 2},
    "update gd(0.5); project ball(1)": {"update": "0.5", "project": ball},
    "update adam(0.05); retain 0.9; when m; weight 2 * r; project 0.5 * (w / norm(w) + w0)": {
        "update": "adam",
        "retain": 0.9,
        "when": lambda losses, m, r: m,
        "weight": lambda losses, m, r: 2 * r,
        "project": lambda w, w0: 0.5 * (w / w.norm() + w0),
    },
}


@pytest.mark.parametrize("fields", CASES)
def test_is_the_equations(fields: str) -> None:
    """Outputs, and the gradients of the slow weights, which go through `project` and around the steps."""
    b = compiled(INPUTS + LEVEL.format(fields))
    weights, x = dict(b.module.named_weights()), given()
    want = torch.stack([loop(weights, {n: v[i] for n, v in x.items()}, **CASES[fields]) for i in range(2)])
    theirs = gradients(want, weights)
    for y in (b.module(**x), b.reference()(**x)):
        near(y, want)
        for mine, other in zip(gradients(y, weights), theirs, strict=True):
            near(mine, other, 1e-8)
    pieces(b, x)
    near(b.module(**{n: v[1:] for n, v in x.items()}), want[1:])


def pieces(b: Bundle, x: dict[str, Tensor]) -> None:
    """Any split is the whole; the state is the interpreter's."""
    state, theirs, outs = None, None, []
    whole, after = b.module.run(None, **x)
    with torch.no_grad():
        for low, high in ((0, 3), (3, 4), (4, 9), (9, 15)):
            part = {n: v[:, low:high] for n, v in x.items()}
            y, state = b.module.run(state, **part)
            _, theirs = b.reference().run(theirs, part)
            outs.append(y)
    near(torch.cat(outs, 1), whole)
    assert state is not None and theirs is not None
    for path, value in after.tensors.items():
        near(state.tensors[path].double(), value.double())
        near(theirs[path].double(), value.double())


def test_nested_levels() -> None:
    """The faster one waits, and begins again with the slower one, which is kept in a ball: its counts begin too."""
    b, x = compiled(INPUTS + NESTED), given()
    weights = dict(b.module.named_weights())
    y, want = b.module(**x), b.reference()(**x)
    near(y, want)
    for mine, other in zip(gradients(y, weights), gradients(want, weights), strict=True):
        near(mine, other, 1e-8)
    pieces(b, x)
    _, state = b.module.run(None, **{n: v[:, :9] for n, v in x.items()})
    assert state.tensors["one@updates"].tolist() == [0, 0]


def test_a_stream_goes_on() -> None:
    """A sequence that ends inside a period leaves its count of ticks, and rows learn by their own."""
    text = INPUTS + LEVEL.format("update adam(0.1); when m; per stream; reset never")
    b, x = compiled(text), given()
    stream = b.stream(2)
    got = [stream.feed(**{n: v[:, :6] for n, v in x.items()})]
    stream.begin_sequence()
    got.append(stream.feed(**{n: v[:, 6:] for n, v in x.items()}))
    starts = torch.zeros(2, 15, dtype=torch.bool)
    starts[:, 6] = True
    with torch.no_grad():
        want, _ = b.reference().run(None, x, starts)
    near(torch.cat(got, 1), want)


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("when r", "NF305"),
        ("when true", "NF305"),
        ("weight m", "NF322"),
        ("weight model(tokens)", "NF322"),
        ("project ball", "NF"),
        ("project 3", "NF323"),
        ("when next(next(m))", "NF435"),
        ("chunk 8", "NF490"),
        ("rounds 2", "NF490"),
    ],
)
def test_mistakes_are_told(field: str, code: str) -> None:
    with pytest.raises(nestflow.NestflowError, match=code):
        nestflow.check(INPUTS + LEVEL.format(f"update gd(0.1); {field}"))


def test_what_goes_by_its_updates_is_told() -> None:
    text = NESTED.replace("weight r }", "when m }")
    with pytest.raises(nestflow.NestflowError, match="NF490"):
        nestflow.check(INPUTS + text)


def test_standalone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b, x = compiled(INPUTS + NESTED), given()
    (tmp_path / "gated_alone.py").write_text(b.standalone(), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = importlib.import_module("gated_alone").Model()
    model.double().load_state_dict(b.module.state_dict())
    near(model(**x), b.module(**x))
