"""dropout, noise, bernoulli: functions of a counter, the same in every execution (language.md, chance)."""

from __future__ import annotations

import copy
import math
from hashlib import blake2b
from pathlib import Path

import pytest
import torch

import nestflow
from nestflow.bundle.bundle import Bundle
from nestflow.bundle.source import load_source

MODEL = """nestflow 1
input x : float[T, 6]
output model(x)
level store(x) {
  every 1 token; chunk 4; heads 2; memory mlp(depth = 2, expand = 1)
  r = dropout(sigmoid(linear(x, 1)), 0.25)
  key x |> linear(3) |> dropout(0.3) |> l2norm; value linear(x, 3); query x |> linear(3) |> short_conv(2)
  objective l2 + 0.1 * inner(M(key + 0.1 * noise(3)), value); update gd(0.1 * r); weight bernoulli(0.7)
  return merge_heads(y) |> linear(6)
}
flow block(x) { return x + dropout(store(x), 0.2) + 0.1 * noise(6) }
flow model(x) { repeat 3 { x = block(x) }; return x + bernoulli(sigmoid(x), like = x) }
level outer { every 1 step; memory weights(model); objective square(model(x)); update adamw(1e-2) }
""".replace("objective l2 + 0.1", "objective 0.5 * sum(square(M(key) - value)) + 0.1")
X = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = 2**64 - 1


def draw(seed: int, path: str, step: int, row: int, tick: int, head: int, feature: int) -> tuple[float, float]:
    """The counter of the language in plain integers: a flat draw, and the normal one."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    name = int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little")
    z = 0
    for word in (seed, name, step, row, tick, head, feature):
        z = mix((z + golden * (word + 1)) & MASK)
    u, v = ((h >> 11) / 2**53 for h in (z, mix((z + golden) & MASK)))
    return u, math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)


@pytest.fixture(scope="module")
def b() -> Bundle:
    return nestflow.compile(MODEL, dtype="float64", seed=5)


def test_draws_are_those_of_the_counter() -> None:
    text = "nestflow 1\ninput x : float[T, 4]\noutput model(x)\nflow model(x) {{ return {} }}"
    x = torch.ones(2, 3, 4, dtype=torch.float64)
    for expression, of in (("x * noise(4)", 1), ("bernoulli(0.5, like = x)", 0), ("dropout(x, 0.4)", 0)):
        word = expression.replace("x * ", "").partition("(")[0]
        module = nestflow.compile(text.format(expression), dtype="float64", seed=7).module.train()
        module(x=x)  # a pass of training is a step
        out = module(x=x)
        want = torch.tensor(
            [[[draw(7, f"model.{word}", 1, i, t + 1, 0, j)[of] for j in range(4)] for t in range(3)] for i in range(2)],
            dtype=torch.float64,
        )
        if word == "bernoulli":
            want = (want < 0.5).double()
        if word == "dropout":
            want = (want >= 0.4).double() / 0.6
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize("training", [False, True])
def test_compiled_is_interpreted(b: Bundle, training: bool) -> None:
    b.module.train(training)
    reference = b.reference()
    reference.training = training
    probe = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = list(b.module.weights.values())
    want = reference(x=X)
    got = b.module(x=X)
    torch.testing.assert_close(got, want)
    gradients = [torch.autograd.grad((y * probe).sum(), weights) for y in (got, want)]
    for g, w in zip(*gradients, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("cuts", [(4,), (1, 2, 7), (3, 4, 5, 6, 7, 8)])
def test_splits_agree(b: Bundle, cuts: tuple[int, ...]) -> None:
    b.module.eval()
    whole = b.module(x=X)
    stream = b.stream(3)
    parts = [stream.feed(x=p) for p in X.tensor_split(cuts, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_rows_that_are_computed_apart_draw_their_own(b: Bundle) -> None:
    b.module.eval()
    stream = b.stream(3)
    stream.feed(x=X[:, :4])
    stream.reset([1])
    out = stream.feed(x=X[:, 4:7])  # rows 0 and 2 at tick 5, row 1 at tick 1
    whole = b.module.eval()(x=X)
    torch.testing.assert_close(out[[0, 2]], whole[[0, 2], 4:7])
    alone = b.stream(3)
    torch.testing.assert_close(alone.feed(x=X[:, 4:7])[1], out[1])


def test_draws_have_their_moments() -> None:
    text = "nestflow 1\ninput x : float[T, 500]\noutput m(x)\nflow m(x) {{ return {} }}"
    x = torch.ones(2, 40, 500)
    n = nestflow.compile(text.format("noise(500)")).module(x=x)
    assert abs(float(n.mean())) < 0.02 and abs(float(n.var()) - 1) < 0.02 and abs(float((n**4).mean()) - 3) < 0.1
    for a, c in ((n[:, 1:], n[:, :-1]), (n[..., 1:], n[..., :-1]), (n[0], n[1])):
        assert abs(float((a * c).mean())) < 0.02
    d = nestflow.compile(text.format("dropout(x, 0.3)")).module.train()(x=x)
    torch.testing.assert_close(d.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert abs(float((d == 0).float().mean()) - 0.3) < 0.01


def test_each_step_draws_anew_and_runs_resume(tmp_path: Path) -> None:
    b, batch = nestflow.compile(MODEL, dtype="float64", seed=5), {"x": X}
    first = [b.step(batch)["loss"] for _ in range(2)]
    b.save(tmp_path / "run")
    want = [b.step(batch)["loss"] for _ in range(3)]
    resumed = nestflow.load(tmp_path / "run")
    assert [resumed.step(batch)["loss"] for _ in range(3)] == want
    assert len({*first, *want}) == 5
    again = nestflow.compile(MODEL, dtype="float64", seed=5)
    own = torch.optim.AdamW(again.module.parameters(), lr=0.0, weight_decay=0.0)  # a loop of one's own: passes count
    losses = []
    for _ in range(2):
        loss = again.module.train().losses(x=X)["outer"]
        loss.backward()
        own.step()
        losses.append(float(loss.detach()))
    assert losses[0] != losses[1]
    copied = copy.deepcopy(again.module)
    assert copied.draws == 2 and torch.equal(copied.train()(x=X), again.module.train()(x=X))


def test_one_file_draws_the_same() -> None:
    b = nestflow.compile(MODEL, dtype="float64", seed=5)
    program = load_source(b.standalone(), "alone.py")
    alone = program.Model(seed=5).double()
    alone.load_state_dict(b.module.state_dict())
    torch.testing.assert_close(alone.eval()(X), b.module.eval()(x=X))
    for _ in range(2):
        torch.testing.assert_close(alone.train()(X), b.module.train()(x=X))


def test_the_seed_decides() -> None:
    one, two = (nestflow.compile(MODEL, dtype="float64", seed=s) for s in (1, 2))
    two.module.load_state_dict(one.module.state_dict())
    assert not torch.equal(one.module(x=X), two.module(x=X))


def test_without_a_token_axis_a_draw_is_one_an_example() -> None:
    text = "nestflow 1\ninput x : float[6]\noutput m(x)\nflow m(x) { return dropout(linear(x), 0.5) + noise(6) }"
    b = nestflow.compile(text, dtype="float64")
    x = torch.ones(4, 6, dtype=torch.float64)
    reference = b.reference()
    reference.training = True
    torch.testing.assert_close(b.module.train()(x=x), reference(x=x))


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("dropout(0.3)", "dropout(1)", "NF325"),
        ("dropout(0.3)", "dropout(sigmoid(sum(x)))", "NF302"),
        ("update gd(0.1 * r)", "update g + noise(3)", "NF205"),
        ("mlp(depth = 2, expand = 1)", "lossy", "NF320"),
        ("square(model(x))", "square(model(x) + noise(6))", "NF205"),
    ],
)
def test_mistakes(old: str, new: str, code: str) -> None:
    text = MODEL.replace(old, new) + "flow lossy(x) { return dropout(linear(x), 0.5) }\n"
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.compile(text)
    assert code in str(e.value)
