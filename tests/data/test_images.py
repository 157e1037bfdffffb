"""Images: each function beside torch's, patches as a token axis beside the interpreter and beside plain sequences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow
from tests.graph.building import mistake


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FUNCTIONS = {
    "patches(2)": lambda x, w: F.unfold(x, 2, stride=2).transpose(1, 2),
    "conv2d(5, 3)": lambda x, w: F.conv2d(x, w, padding=1),
    "conv2d(4, 4, stride = 2)": lambda x, w: F.conv2d(x, w, stride=2, padding=1),
    "conv2d(2, 1)": lambda x, w: F.conv2d(x, w),
    "max_pool(3)": lambda x, w: F.max_pool2d(x, 3, 1, 1),
    "max_pool(2, stride = 2)": lambda x, w: F.max_pool2d(x, 2),
    "max_pool(3, stride = 2)": lambda x, w: F.max_pool2d(x, 3, 2, 1),
    "upsample(3)": lambda x, w: F.interpolate(x, scale_factor=3, mode="nearest"),
    "flatten": lambda x, w: x.flatten(1),
    "reshape(9, 2, 8)": lambda x, w: x.reshape(-1, 9, 2, 8),
}


@pytest.mark.parametrize("ticks", [False, True], ids=["image", "video"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_is_torchs(function: str, ticks: bool) -> None:
    axis = "T, " if ticks else ""
    text = f"nestflow 1\ninput x : float[{axis}3, 6, 8]\noutput f(x)\nflow f(x) {{ return x |> {function} }}\n"
    b = nestflow.compile(text, dtype="float64")
    x = draw(2, *([4] if ticks else []), 3, 6, 8).requires_grad_()
    y = b.module(x)
    w = next(iter(b.module.weights.values()), torch.zeros(0, dtype=torch.float64))
    want = FUNCTIONS[function](x.reshape(-1, 3, 6, 8), w)
    torch.testing.assert_close(y.reshape(want.shape), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b.reference()(x), y, rtol=1e-12, atol=1e-12)
    leaves = [x, w] if w.numel() else [x]
    probe = draw(*y.shape, seed=1)
    found = torch.autograd.grad((y * probe).sum(), leaves)
    for got, one in zip(found, torch.autograd.grad((want * probe.reshape(want.shape)).sum(), leaves), strict=True):
        torch.testing.assert_close(got, one, rtol=1e-12, atol=1e-12)


SEQUENCE = """
level mem(x, s) {
  every 1 token; chunk 2; heads 2; memory mlp(depth = 2, expand = 1)
  key x |> linear |> short_conv(2) |> l2norm; value x |> linear; query x |> linear |> l2norm
  objective l2; update momentum(0.1 * sigmoid(linear(s, 1)), 0.9); retain 0.9
  return y |> merge_heads |> linear(12) |> scale(1 / t)
}
level attend(x) {
  heads 2; memory cache(window = 3); key x |> linear |> rope; value x |> linear; query x |> linear |> rope
  return y |> merge_heads |> linear(12)
}
flow block(x, s) {
  x = x + mem(rmsnorm(x), s) + attend(rope(x)) + previous(x, 2) * t + short_conv(x, 3)
  return x + swiglu(rmsnorm(x))
}
"""
PATCHES = (
    """nestflow 1
input image : float[2, 6, 4]
input s : float[3]
output model(image, s)
flow model(image, s) { return image |> patches(2) |> linear(12) |> block(s) |> mean(axis = 0) }
"""
    + SEQUENCE
)
VIDEO = (
    """nestflow 1
input image : float[T, 2, 6, 4]
input s : float[T, 3]
output model(image, s)
level over(x) {
  heads 2; memory cache; key x |> linear; value x |> linear; query x |> linear
  return y |> merge_heads |> linear(12)
}
flow model(image, s) {
  x = image |> patches(2) |> linear(12)
  x = x + learned(6, 12, init = normal(0.5))
  repeat 2 { x = block(x, s) }
  h = x |> mean(axis = 0)
  return concat(over(h), x[3])
}
"""
    + SEQUENCE
)
INSIDE = (
    """nestflow 1
input image : float[T, 2, 4, 4]
input s : float[T, 3]
output store(image, s)
level store(image, s) {
  every 2 tokens
  seen = image |> patches(2) |> linear(12) |> attend |> mean(axis = 0)
  memory matrix; key seen |> l2norm; value linear(s, 4); query seen |> l2norm
  objective l2; update gd(0.3); retain 0.9
}
"""
    + SEQUENCE
)


@pytest.mark.parametrize("text", [PATCHES, VIDEO, INSIDE], ids=["image", "video", "inside a level"])
def test_along_patches_compiled_is_interpreted(text: str) -> None:
    b = nestflow.compile(text, dtype="float64")
    clock = b.graph.inputs[0].type.clock
    lead = (3, 5) if clock else (3,)
    given = {i.name: draw(*lead, *i.type.shape, seed=n).requires_grad_() for n, i in enumerate(b.graph.inputs)}
    y, want = b.module(**given), b.reference()(**given)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    leaves = [*given.values(), *b.module.weights.values()]
    probe = draw(*y.shape, seed=9)
    for a, c in zip(*(torch.autograd.grad((z * probe).sum(), leaves, allow_unused=True) for z in (y, want))):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(b.module(**{n: x[1:2] for n, x in given.items()}), y[1:2], rtol=1e-10, atol=1e-10)
    if clock:  # frames are split as tokens are: each begins its patches anew
        state, parts = None, []
        for low, high in ((0, 2), (2, 5)):
            part, state = b.module.run(state, **{n: x[:, low:high] for n, x in given.items()})
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts, 1), y, rtol=1e-10, atol=1e-10)
    space: dict[str, object] = {}
    exec(compile(b.standalone(), "standalone", "exec"), space)
    alone = space["Model"]().double()
    alone.load_state_dict(b.module.state_dict())
    torch.testing.assert_close(alone(**given), y)


def test_along_patches_is_along_tokens() -> None:
    """The same block over patches and over a token axis of the same vectors: equal weights, equal numbers."""
    tokens = (
        """nestflow 1
input x : float[T, 8]
input s : float[3]
output model(x, s)
flow model(x, s) { return x |> linear(12) |> block(s) }
"""
        + SEQUENCE
    )
    over, plain = (nestflow.compile(t, dtype="float64") for t in (PATCHES, tokens))
    plain.module.load_state_dict(over.module.state_dict())  # equal paths too
    image, s = draw(3, 2, 6, 4), draw(3, 3, seed=1)
    x = F.unfold(image, 2, stride=2).transpose(1, 2)
    torch.testing.assert_close(over.module(image=image, s=s), plain.module(x=x, s=s).mean(1), rtol=1e-12, atol=1e-12)


def test_patches_are_no_state_of_a_stream() -> None:
    b = nestflow.compile(PATCHES)
    assert b.module.initial_state(2).tensors == {} and b.graph.state == ()
    y, state = b.module.run(None, image=draw(2, 2, 6, 4).float(), s=draw(2, 3).float())
    again, _ = b.module.run(state, image=draw(2, 2, 6, 4).float(), s=draw(2, 3).float())
    assert torch.equal(y, again)
    assert {i.frequency_text for i in b.graph.levels} >= {"∞", "every patch, chunk 2"}


def test_hidden_patches_are_guessed_at() -> None:
    """A masked autoencoder: the loss compares patches with patches, outside flows."""
    text = """nestflow 1
input image : float[2, 4, 4]
input hidden : bool[4]
output model(image, hidden)
level around(x) { memory cache(causal = false); key linear(x); value linear(x); query linear(x) }
flow model(image, hidden) {
  seen = where(reshape(hidden, 4, 1), learned(8, init = normal(1)), patches(image, 2)) |> linear(6)
  return (seen + around(seen)) |> linear(8)
}
loss = mean(square(model(image, hidden) - patches(image, 2)) * reshape(hidden, 4, 1))
level outer { every 1 step; memory weights(model); objective loss; update gd(0.1) }
"""
    b = nestflow.compile(text, dtype="float64")
    given = {"image": draw(3, 2, 4, 4), "hidden": draw(3, 4, seed=1) > 0}
    y, want = b.module(**given), F.unfold(given["image"], 2, stride=2).transpose(1, 2)
    loss = ((y - want).square() * given["hidden"][..., None]).mean()
    torch.testing.assert_close(b.loss(given), loss)
    objective = b.graph.step_levels[0].objective
    assert objective is not None
    torch.testing.assert_close(b.reference().loss(objective, given), loss)


WRONG = {
    "patches(4)": ("float[3, 6, 8]", "NF301", "do not fill an image of 6 × 8"),
    "patches(2) |> patches(2)": ("float[3, 6, 8]", "NF301", "takes an image of three axes"),
    "conv2d(4, 3)": ("float[8]", "NF301", "channels first"),
    "max_pool(4)": ("float[1, 1, 1]", "NF301", "larger than an image"),
    "max_pool(0)": ("float[3, 4, 4]", "NF304", "between 1"),
    "upsample(1.5)": ("float[3, 4, 4]", "NF303", "whole number"),
    "patches(2) |> reshape(2, 2, 12) |> attend": ("float[3, 4, 4]", "NF401", "token axis"),
}


@pytest.mark.parametrize("pipe", WRONG)
def test_mistakes_are_told(pipe: str) -> None:
    type_, code, said = WRONG[pipe]
    text = f"nestflow 1\ninput x : {type_}\noutput f(x)\nflow f(x) {{ return x |> {pipe} }}\n" + SEQUENCE
    d = mistake(lambda: nestflow.check(text))
    assert d.code == code and said in f"{d.message} {d.help}" and d.span is not None


def test_numbers_and_vectors_meet_along_patches() -> None:
    text = """nestflow 1
input x : float[1, 4, 4]
output f(x)
flow along(p) { return p * t + mean(p, axis = 1) }
flow f(x) { return x |> patches(2) |> along }
"""
    b = nestflow.compile(text, dtype="float64")
    x = draw(2, 1, 4, 4)
    p = F.unfold(x, 2, stride=2).transpose(1, 2)
    want = p * torch.arange(1, 5)[:, None] + p.mean(-1, keepdim=True)
    torch.testing.assert_close(b.module(x), want)
    torch.testing.assert_close(b.reference()(x), want)
