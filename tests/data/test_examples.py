"""The specs for other data than text: beside a torch twin, beside the interpreter, and learning from tiny data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.train import measure, train
from tests.data.vit_twin import Twin, copied

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIZES: dict[str, Any] = {"dim": 12, "depth": 2, "n_heads": 2, "size": 8, "channels": 2, "patch": 4, "classes": 3}
VIT = SIZES | {"warmup": 1}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, size: int = 8, channels: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Bright rows, bright columns or a bright corner, in noise."""
    g = generator(seed)
    label = torch.randint(0, 3, (n,), generator=g)
    image = torch.randn(n, channels, size, size, generator=g) * 0.3
    image[label == 0, :, ::2] += 1
    image[label == 1, :, :, ::2] += 1
    image[label == 2, :, : size // 2, : size // 2] += 1.5
    return {"image": image, "label": label}


def table(n: int) -> dict[str, Tensor]:
    x = torch.randn(n, 4, generator=generator())
    return {"x": x, "price": x[:, 0] - 2 * x[:, 1] + (x[:, 2] * x[:, 3]).tanh()}


def sentences(n: int) -> dict[str, Any]:
    """The tag of a token is its number and that of the one before, modulo 5; lengths differ."""
    g = generator()
    tokens = [torch.randint(0, 10, (int(k),), generator=g) for k in torch.randint(3, 12, (n,), generator=g)]
    tags = [(t + torch.cat([t.new_zeros(1), t[:-1]])) % 2 for t in tokens]
    return {"tokens": [t.tolist() for t in tokens], "tag": [t.tolist() for t in tags]}


def waves(n: int) -> dict[str, Tensor]:
    g = generator()
    t = torch.arange(24.0)
    speed, phase = torch.rand(n, 1, generator=g) * 0.5 + 0.3, torch.rand(n, 1, generator=g) * 6
    return {"reading": (t * speed + phase).sin().unsqueeze(-1)}


def patterns(n: int) -> dict[str, Tensor]:
    """Runs of three equal tokens: a hidden one is what stands beside it."""
    g = generator()
    tokens = torch.randint(0, 12, (n, 4), generator=g).repeat_interleave(3, 1)
    return {"tokens": tokens, "hidden": torch.rand(n, 12, generator=g) < 0.25}


CASES: dict[str, tuple[dict[str, Any], Any, int, str, float]] = {
    "vit_titans": (VIT | {"chunk": 2}, images, 40, "accuracy", 0.8),
    "regression": ({}, table, 160, "loss", 0.5),
    "tagging": ({"vocab": 10}, sentences, 60, "accuracy", 0.7),
    "forecasting": ({}, waves, 50, "loss", 0.1),
    "masked_tokens": ({}, patterns, 80, "accuracy", 0.5),
}


def test_every_example_for_data_is_here() -> None:
    specs = {p.stem for p in EXAMPLES.glob("*.nl") if nestflow.check(p).inputs}
    assert set(CASES) <= specs


@pytest.mark.parametrize("name", CASES)
def test_compiled_is_interpreted_and_learns(name: str, tmp_path: Path) -> None:
    params, make, steps, what, wanted = CASES[name]
    b = nestflow.compile(EXAMPLES / f"{name}.nl", dtype="float64", **params)
    data = nestflow.train.dataset(b.graph.inputs, make(6))
    given = {n: x.double() if x.is_floating_point() else x for n, x in data.take(torch.arange(3)).items()}
    objective = b.graph.step_levels[0].objective
    assert objective is not None
    slow = b.reference().loss(objective, given)
    torch.testing.assert_close(b.loss(given), slow, rtol=1e-10, atol=1e-10)
    weights = list(b.module.weights.values())
    for a, c in zip(*(torch.autograd.grad(x, weights, allow_unused=True) for x in (b.loss(given), slow))):
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-10)
    small = nestflow.compile(EXAMPLES / f"{name}.nl", **params)
    before = measure(small, make(48))[what]
    history = train(small, make(96), steps, batch=32, show=False, out=tmp_path / "run", eval_every=0)
    after = history.metrics[-1][1][what]
    assert (after > wanted > before) if what == "accuracy" else (after < wanted < before), (before, after)
    loaded = nestflow.load(history.bundle.save(tmp_path / "bundle"))
    for n, w in loaded.module.state_dict().items():
        assert torch.equal(w, history.bundle.module.state_dict()[n])


def test_vit_is_its_torch_twin() -> None:
    """Output, loss and the gradient of every weight, to 1e-9."""
    b = nestflow.compile("vit", dtype="float64", **VIT)
    weights = dict(b.module.weights)
    with torch.no_grad():
        for n, w in weights.items():
            w.copy_(torch.randn(w.shape, generator=generator(len(n)), dtype=torch.float64) * 0.3)
    twin = Twin(*(SIZES[k] for k in ("dim", "depth", "n_heads", "size", "channels", "patch", "classes"))).double()
    pairs = copied(weights, twin)
    given = images(5)
    image, label = given["image"].double(), given["label"]
    torch.testing.assert_close(b.module(image), twin(image), rtol=1e-9, atol=1e-9)
    b.loss({"image": image, "label": label}).backward()
    twin.loss(image, label).backward()
    for path, theirs in pairs.items():
        assert theirs.grad is not None
        ours = weights[path].grad
        assert ours is not None
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs.grad, rtol=1e-9, atol=1e-9)
    for i, block in enumerate(twin.blocks):
        parts = [weights[f"model.block.{i}.attention.{f}.linear.weight"].grad for f in ("query", "key", "value")]
        joined = torch.cat([g.flatten(0, 1) for g in parts if g is not None])
        torch.testing.assert_close(joined, block.attention.in_proj_weight.grad, rtol=1e-9, atol=1e-9)
    assert len(pairs) + 3 * len(twin.blocks) == len(weights)


def test_vit_compiled_is_interpreted_and_learns() -> None:
    b = nestflow.compile("vit", dtype="float64", **VIT)
    image = images(3)["image"].double()
    torch.testing.assert_close(b.module(image), b.reference()(image), rtol=1e-10, atol=1e-10)
    history = train(nestflow.compile("vit", **VIT), images(96), 25, batch=32, show=False, eval_every=0)
    assert history.metrics[-1][1]["accuracy"] > 0.8


def test_an_image_alone_is_an_image_in_company_and_patches_matter() -> None:
    b = nestflow.compile("vit", dtype="float64", **VIT)
    image = images(4)["image"].double()
    together = b.module(image)
    torch.testing.assert_close(torch.cat([b.module(image[i : i + 1]) for i in range(4)]), together)
    moved = image.clone()
    moved[0, :, :4, :4] += 1
    other = b.module(moved)
    assert torch.equal(other[1:], together[1:]) and not torch.allclose(other[0], together[0])
