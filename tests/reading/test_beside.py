"""What stands in a model beside weights that learn while it reads: chance, `emit`, several outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.bundle.bundle import Bundle
from tests.reading.models import FAST, HEAD, PLAIN, Block, compiled, continuum, near, tokens
from tests.reading.test_reading import FAST_W, SLOW_W, gradients
from tests.reference.test_chance import draw

BOTH = FAST + 'level two { every 8 tokens; memory weights(model, "slow.**"); objective loss; update gd(0.2) }\n'
NOISY = PLAIN.replace("|> fast", "|> noisy |> fast") + "flow noisy(x) { return x + 0.5 * noise(4) }\n"
TOLD = PLAIN.replace("|> linear(8)", "|> told |> linear(8)")
TOLD += "flow told(x) { emit size = mean(square(x)); return x }\n"
PENALTY = "loss = cross_entropy(model(tokens), next(tokens)) + 0.5 * emitted(size)"
PENALISED = HEAD.replace("loss = cross_entropy(model(tokens), next(tokens))", PENALTY) + TOLD


def blocks() -> list[Block]:
    return [Block(FAST_W, 4), Block(SLOW_W, 8, 0.2)]


def flat(y: Tensor | dict[str, Tensor]) -> Tensor:
    """All outputs beside each other."""
    parts = y.values() if isinstance(y, dict) else [y]
    return torch.cat([v if v.ndim > 2 else v.unsqueeze(-1) for v in parts], -1)


def check(b: Bundle, training: bool = False) -> Tensor:
    """Compiled is interpreted, forward and backward, in the loss, in pieces, and row by row."""
    assert b.optimizer is not None  # its steps are what draws count
    b.module.train(training)
    x, weights, reference = tokens(ticks=14), dict(b.module.named_weights()), b.reference()
    reference.training = training
    y, want = flat(b.module(tokens=x)), flat(reference(tokens=x))
    near(y, want)
    for mine, other in zip(gradients(y, weights), gradients(want, weights), strict=True):
        near(mine, other, 1e-8)
    near(b.module.losses(tokens=x)["outer"], reference.loss(b.graph.step_levels[0].objective, {"tokens": x}))
    state, outs = None, []
    with torch.no_grad():
        for low, high in ((0, 3), (3, 4), (4, 9), (9, 14)):
            out, state = b.module.run(state, tokens=x[:, low:high])
            outs.append(flat(out))
    near(torch.cat(outs, 1), y)
    near(flat(b.module(tokens=x[:1])), y[:1])  # the first row draws as it does in company
    b.module.__dict__["_program"].READING.batched[0] = False
    near(flat(b.module(tokens=x)), y)
    return y


def test_noise_is_the_equations() -> None:
    """Draws belong to row and tick: the segment that is run again for its gradient has those it had."""
    b = compiled(HEAD + NOISY + BOTH)
    b.module.eval()  # where no steps are counted, passes in training are
    weights, x = dict(b.module.named_weights()), tokens()
    (path,) = {n["path"] for i in b.graph.root.walk() if i.name == "noisy" for n in noises(i.result)}
    full = f"model.noisy.{path}"
    added = [
        [[0.5 * draw(b.seed, full, 0, row, t + 1, 0, i)[1] for i in range(4)] for t in range(x.shape[1])]
        for row in range(2)
    ]
    parts = torch.tensor(added, dtype=torch.float64)
    want = torch.stack([continuum(weights, row, blocks(), added=a) for row, a in zip(x, parts)])
    near(b.module(tokens=x), want)
    near(b.reference()(tokens=x), want)
    check(b)


def noises(node: object) -> list:
    from nestflow.ir.node import Node, walk

    return [n for n in walk(node) if n.op == "noise"] if isinstance(node, Node) else []


@pytest.mark.parametrize("training", [False, True])
def test_dropout(training: bool) -> None:
    """In training the copies learn from what was left; otherwise it is the model without dropout."""
    b = compiled(HEAD + PLAIN.replace("|> slow", "|> dropout(0.3) |> slow") + BOTH)
    y = check(b, training)
    plain = compiled(HEAD + PLAIN + BOTH).module(tokens=tokens(ticks=14))
    assert torch.allclose(plain, y) is not training


def test_starts_that_are_drawn() -> None:
    store = "level store(x) { every 1 token; chunk 2; heads 2; memory matrix; init normal(0.5); key linear(x); "
    store += "value linear(x); query linear(x); objective l2; update gd(0.1); reset each(chunk) }\n"
    y = check(compiled(HEAD + PLAIN.replace("|> slow", "|> store |> slow") + store + BOTH))
    assert (y[0] - y[1]).abs().max() > 1e-3


def test_emitted_in_the_loss_is_the_equations() -> None:
    b = compiled(PENALISED + BOTH)
    weights, x = dict(b.module.named_weights()), tokens()
    want = torch.stack([continuum(weights, row, blocks(), penalty=0.5) for row in x])
    y = b.module(tokens=x)
    near(y, want)
    for mine, other in zip(gradients(y, weights), gradients(want, weights), strict=True):
        near(mine, other)
    assert (want - torch.stack([continuum(weights, row, blocks()) for row in x])).abs().max() > 1e-3
    check(b)


def test_several_outputs_and_what_is_published() -> None:
    text = PENALISED.replace("output model(tokens)", "output { scores: model(tokens), size: emitted(size) }") + BOTH
    b, one = compiled(text), compiled(PENALISED + BOTH)
    check(b)
    x = tokens()
    y = b.module(tokens=x)
    near(y["scores"], one.module(tokens=x))
    out, published = one.module.emitted(tokens=x)
    near(out, y["scores"])
    near(published["size"], y["size"])
    assert abs(one.step({"tokens": x})["emitted"]["size"] - float(y["size"].detach().mean())) < 1e-6


def test_one_name_for_several_shapes_is_told() -> None:
    text = HEAD.replace("output model(tokens)", "output { a: model(tokens), b: other(tokens) }") + TOLD + FAST
    text += "flow other(tokens) { x = embed(tokens, 8, 4); emit size = x; return x }\n"
    with pytest.raises(nestflow.NestflowError, match=r"NF490.*several shapes"):
        nestflow.check(text + "level frozen { every never; memory rest(other) }\n")


def test_what_is_the_same_in_all_rows_is_told() -> None:
    """It is not: each row has weights of its own."""
    for text in (
        TOLD.replace("mean(square(x))", "mean(square(learned(3)))"),
        PLAIN + "flow gain() { return learned(3) }\n",
    ):
        outputs = "output { a: model(tokens), b: gain() }" if "gain" in text else "output model(tokens)"
        head = HEAD.replace("output model(tokens)", outputs)
        with pytest.raises(nestflow.NestflowError, match=r"NF490.*same in all rows"):
            nestflow.check(head + text + FAST)
