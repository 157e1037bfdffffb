"""Weights that learn from the model's own loss while it reads: the equations, splits, rows, streams, files."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.lowering.explain import explain
from tests.reading.models import FAST, HEAD, PLAIN, Block, compiled, continuum, near, tokens

FAST_W = ("model.fast.linear.weight", "model.fast.linear_2.weight")
SLOW_W = ("model.slow.linear.weight", "model.slow.linear_2.weight")

LEVELS = {
    "sequential": (
        FAST + 'level two { every 8 tokens; memory weights(model, "slow.**"); objective loss; update adam(0.02) }\n',
        lambda: [Block(FAST_W, 4), Block(SLOW_W, 8, 0.02, adam=True)],
    ),
    "nested": (
        'level one { every 4 tokens; memory weights(model, "fast.**"); objective loss; update gd(0.1); init two; '
        "reset each(two) }\n"
        'level two { every 8 tokens; memory weights(model, "slow.**"); objective loss; update gd(0.2) }\n',
        lambda: _nested(),
    ),
    "every token, and a gate": (
        'level one { every 1 token; memory weights(model, "fast.**"); objective loss; update gd(0.1); retain 0.9 }\n',
        lambda: [Block(FAST_W, 1, retain=0.9), Block(SLOW_W, 10**6)],
    ),
}


def _nested() -> list[Block]:
    slow = Block(SLOW_W, 8, 0.2)
    return [Block(FAST_W, 4, start=SLOW_W, back=slow), slow]


def gradients(y: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    leaves = list(weights.values())
    return list(torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("name", LEVELS)
def test_is_the_equations(name: str) -> None:
    """Compiled and interpreted are the plain loop: outputs, and the gradients of the slow weights."""
    text, blocks = LEVELS[name]
    b = compiled(HEAD + PLAIN + text)
    weights, x = dict(b.module.named_weights()), tokens()
    want = torch.stack([continuum(weights, row, blocks()) for row in x])
    theirs = gradients(want, weights)
    for y in (b.module(tokens=x), b.reference()(tokens=x)):
        near(y, want)
        for mine, other in zip(gradients(y, weights), theirs, strict=True):
            near(mine, other)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("cuts", [(1, 4, 5, 13), (8,), (16,), (2, 3)])
def test_splits_are_the_whole(name: str, cuts: tuple[int, ...]) -> None:
    b = compiled(HEAD + PLAIN + LEVELS[name][0])
    x, state, theirs = tokens(), None, None
    reference = b.reference()
    whole, after = b.module.run(None, tokens=x)
    outs = []
    with torch.no_grad():
        for low, high in zip((0, *cuts), (*cuts, 19), strict=True):
            y, state = b.module.run(state, tokens=x[:, low:high])
            outs.append(y)
            _, theirs = reference.run(theirs, {"tokens": x[:, low:high]})
    near(torch.cat(outs, 1), whole)
    assert state is not None and theirs is not None
    assert {*theirs} - {"@t", "@age"} == {*after.tensors}
    for path, value in after.tensors.items():
        near(state.tensors[path], value)
        near(theirs[path], value)


def test_row_alone_and_no_look_ahead() -> None:
    b = compiled(HEAD + PLAIN + LEVELS["sequential"][0])
    x = tokens(3)
    y = b.module(tokens=x)
    for i in range(3):
        near(b.module(tokens=x[i : i + 1]), y[i : i + 1])
    changed = x.clone()
    changed[:, 9:] = (x[:, 9:] + 1) % 8
    assert torch.equal(b.module(tokens=changed)[:, :9], y[:, :9])


def test_changes_at_its_ticks() -> None:
    """The term of tick 4 needs token 5: what is read there is the first to see the new weights."""
    b = compiled(HEAD + PLAIN + FAST)
    state, seen = b.module.initial_state(1), []
    with torch.no_grad():
        for t in range(12):
            before = state.tensors["one.model.fast.linear.weight"]
            _, state = b.module.run(state, tokens=tokens(1)[:, t : t + 1])
            if not torch.equal(before, state.tensors["one.model.fast.linear.weight"]):
                seen.append(t + 1)
    assert seen == [5, 9]


def test_a_label_at_the_same_tick_is_learned_at_once() -> None:
    text = HEAD.replace("next(tokens)", "labels").replace("output", "input labels : int[T] in [0, 8)\noutput")
    b = compiled(text + PLAIN + FAST)
    state, seen = b.module.initial_state(1), []
    x, labels = tokens(1), tokens(1, seed=3)
    with torch.no_grad():
        for t in range(9):
            before = state.tensors["one.model.fast.linear.weight"]
            _, state = b.module.run(state, tokens=x[:, t : t + 1], labels=labels[:, t : t + 1])
            if not torch.equal(before, state.tensors["one.model.fast.linear.weight"]):
                seen.append(t + 1)
    assert seen == [4, 8]
    near(b.module(tokens=x, labels=labels), b.reference()(tokens=x, labels=labels))
    with pytest.raises(nestflow.NestflowError, match="`labels` is missing"):
        b.module(tokens=x)


def test_rate_zero_is_the_plain_model_bit_for_bit() -> None:
    x = tokens()
    plain, still = compiled(HEAD + PLAIN), compiled(HEAD + PLAIN + FAST.replace("gd(0.1)", "gd(0)"))
    still.module.load_state_dict(plain.module.state_dict())
    assert torch.equal(plain.module(tokens=x), still.module(tokens=x))
    learns = compiled(HEAD + PLAIN + FAST)
    learns.module.load_state_dict(plain.module.state_dict())
    assert not torch.equal(plain.module(tokens=x), learns.module(tokens=x))
    near(plain.module(tokens=x)[:, :4], learns.module(tokens=x)[:, :4], 1e-14)


def test_mask_removes_a_term() -> None:
    text = HEAD.replace("next(tokens))", "next(tokens), mask = m)").replace("output", "input m : bool[T]\noutput")
    b = compiled(text + PLAIN + FAST)
    weights, x = dict(b.module.named_weights()), tokens()
    m = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    want = torch.stack([continuum(weights, r, [Block(FAST_W, 4), Block(SLOW_W, 10**6)], k) for r, k in zip(x, m)])
    near(b.module(tokens=x, m=m), want)
    near(b.reference()(tokens=x, m=m), want)


def test_an_addend_without_a_tick_counts_at_each() -> None:
    """½‖z w‖² of an input without ticks, over 4 ticks: w ← w − 0.1 · 4 · z (z w), and the next ticks show it."""
    text = HEAD.replace("output model", "input z : float[3]\noutput gain(z) * model")
    b = compiled(
        text
        + PLAIN
        + "flow gain(z) { return linear(z, 1) }\nlevel rest_of_it { every 1 step; memory weights(gain); objective "
        + "mean(square(gain(z))); update gd(0.1) }\nlevel one { every 4 tokens; memory weights(gain); "
        + "objective 0 * loss + 0.5 * mean(square(gain(z))); update gd(0.1) }\n"
    )
    x, z = tokens(), torch.randn(2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = b.module(tokens=x, z=z)
    near(y, b.reference()(tokens=x, z=z))
    w, scores = b.module.weights["gain.linear.weight"][0], compiled(HEAD + PLAIN)
    scores.module.load_state_dict({p: v for p, v in b.module.state_dict().items() if p in scores.module.state_dict()})
    plain = scores.module(tokens=x)
    for i in range(2):
        now = w.detach().clone()
        for at in range(0, 19, 4):
            near(y[i, at : at + 4], (now @ z[i]) * plain[i, at : at + 4])
            now = now - 0.1 * 4 * z[i] * (now @ z[i])


MEMORIES = {
    "delta": "memory matrix; chunk 3; objective l2; update gd(0.1)",
    "deep": "memory mlp; chunk 4; heads 2; objective l2; update momentum(0.1, 0.5); retain 0.9",
    "scan": "memory mlp; chunk 4; heads 2; objective l2; update adam(0.1)",
    "cache": "memory cache(window = 5); heads 2",
}
RULES = {
    "all of it, by adam": "memory weights(model); update g |> clip_norm(1) |> adam(0.02); retain 0.99",
    "muon": 'memory weights(model, "**.linear*.**"); update muon(0.02)',
    "a schedule": "memory rest(model); update gd(linear_decay(0.2, warmup = 4, total = 16))",
    "schedule_free": 'memory weights(model, except = "embed.**"); update schedule_free(0.1)',
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("rule", RULES)
def test_around_other_memories(memory: str, rule: str) -> None:
    """The model may hold memories of its own, per head and with look-back: they go on through the segments."""
    fields = "key x |> linear |> short_conv(2) |> l2norm; query x |> linear |> l2norm"
    value = "; value x |> linear"
    level = f"level mix(x) {{ {fields}{value}; {MEMORIES[memory]} }}\n"
    model = PLAIN.replace("|> fast", "|> blend |> fast") + "flow blend(x) { return x + mix(x) }\n" + level
    b = compiled(HEAD + model + f"level one {{ every 4 tokens; objective loss; {RULES[rule]} }}\n")
    weights, x = dict(b.module.named_weights()), tokens(ticks=14)
    y, want = b.module(tokens=x), b.reference()(tokens=x)
    near(y, want)
    for mine, other in zip(gradients(y, weights), gradients(want, weights), strict=True):
        near(mine, other, 1e-8)
    near(b.loss({"tokens": x}), b.reference().loss(b.graph.step_levels[0].objective, {"tokens": x}))
    state, outs = None, []
    with torch.no_grad():
        for low, high in ((0, 3), (3, 4), (4, 9), (9, 14)):
            out, state = b.module.run(state, tokens=x[:, low:high])
            outs.append(out)
    near(torch.cat(outs, 1), y)


@pytest.mark.parametrize("memory", MEMORIES)
def test_rows_at_once_are_rows_one_by_one(memory: str) -> None:
    """The generated code is mapped over the rows; where an operation cannot be, they are run in turn."""
    level = f"level mix(x) {{ key linear(x); query linear(x); value linear(x); {MEMORIES[memory]} }}\n"
    model = PLAIN.replace("|> fast", "|> mix |> fast") + level
    b = compiled(HEAD + model + FAST)
    table = b.module.__dict__["_program"].READING
    x = tokens(3)
    assert table.batched == [True]
    with torch.no_grad():
        at_once = b.module(tokens=x)
        assert table.batched == [True]
        table.batched[0] = False
        near(b.module(tokens=x), at_once)


def test_beside_levels_with_other_losses() -> None:
    """A second objective on a flow of its own, with labels that no call of the module needs, and a condition."""
    outer = HEAD[HEAD.index("level outer") :]
    text = HEAD.replace(
        outer,
        "input labels : int[T] in [0, 8)\nflow side(tokens) { return embed(tokens, 8, 4) |> linear(8) }\n"
        + outer.replace(" }", "; when mean(model(tokens)) > -100 }")
        + "level two { every 2 steps; memory weights(side); update adam(1e-3)\n"
        "  objective cross_entropy(side(tokens) + model(tokens), labels) }\n",
    )
    b = compiled(text + PLAIN + FAST)
    x, batch = tokens(), {"tokens": tokens(), "labels": tokens(seed=3)}
    near(b.module(tokens=x), b.reference()(tokens=x))
    found = b.losses(batch)
    for level in b.graph.step_levels:
        assert level.objective is not None
        near(found[level.name], b.reference().loss(level.objective, batch))
    assert b.step(batch)["levels"]["outer"]["updated"]
    assert b.module.metrics(**batch)["accuracy of outer"][1] == 36


def test_explain_prices_it() -> None:
    """Copies, their pending gradients and Adam's two memories: 4 times the 48 numbers of an MLP."""
    text = explain(compiled(HEAD + PLAIN + LEVELS["sequential"][0]))
    assert "segments of 4 tokens" in text and "every 8 tokens, by adam(0.02)" in text and "192 numbers" in text
    still = explain(compiled(HEAD + PLAIN + FAST.replace("gd(0.1)", "gd(0)")))
    assert "its rate is 0: the plain model" in still


STREAM = FAST.replace(" }", "; reset never; per stream }")


@pytest.mark.parametrize("first", [3, 4, 6, 9])
def test_streams_go_on_beyond_a_sequence(first: int) -> None:
    """A sequence that ends inside a segment leaves its gradient, without the term whose token never came."""
    b = compiled(HEAD + PLAIN + STREAM)
    x = tokens(2, 15)
    stream = b.stream(2)
    got = torch.cat([stream.feed(tokens=x[:, :2]), stream.feed(tokens=x[:, 2:first])], 1)
    stream.begin_sequence()
    got = torch.cat([got, stream.feed(tokens=x[:, first:11]), stream.feed(tokens=x[:, 11:])], 1)
    starts = torch.zeros(2, 15, dtype=torch.bool)
    starts[:, first] = True
    with torch.no_grad():
        want, _ = b.reference().run(None, {"tokens": x}, starts)
    near(got, want)
    fresh = b.module(tokens=x[:, first:])
    assert (got[:, first:] - fresh).abs().max() > 1e-3 or first < 4  # what was learned before the border is kept


def test_rows_of_a_stream_begin_by_themselves() -> None:
    b = compiled(HEAD + PLAIN + STREAM)
    x = tokens(2, 15)
    stream = b.stream(2)
    outs = [stream.feed(tokens=x[:, :6])]
    stream.begin_sequence(1)
    assert stream.t == (6, 0)
    outs.append(stream.feed(tokens=x[:, 6:]))
    starts = torch.zeros(2, 15, dtype=torch.bool)
    starts[1, 6] = True
    with torch.no_grad():
        for i in range(2):
            want, _ = b.reference().run(None, {"tokens": x[i : i + 1]}, starts[i : i + 1])
            near(torch.cat(outs, 1)[i : i + 1], want)
    stream.reset()
    near(stream.feed(tokens=x[:, :9]), b.module(tokens=x[:, :9]))


def test_state_is_saved_and_goes_on() -> None:
    b = compiled(HEAD + PLAIN + LEVELS["nested"][0])
    x = tokens()
    with torch.no_grad():
        whole = b.module(tokens=x)
        _, state = b.module.run(None, tokens=x[:, :10])
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        rest, _ = b.module.run(torch.load(file, weights_only=False), tokens=x[:, 10:])
    near(rest, whole[:, 10:])


def test_learns_in_training_and_without_gradients() -> None:
    """The same numbers under grad, no_grad and inference mode, and a step changes the slow weights."""
    b = compiled(HEAD + PLAIN + LEVELS["sequential"][0])
    x = tokens()
    y = b.module(tokens=x)
    with torch.no_grad():
        assert torch.equal(b.module(tokens=x), y)
    with torch.inference_mode():
        assert torch.equal(b.module(tokens=x), y)
    before = b.module.weights[FAST_W[0]].detach().clone()
    first = b.step({"tokens": x})["loss"]
    assert not torch.equal(before, b.module.weights[FAST_W[0]])
    for _ in range(30):
        last = b.step({"tokens": x})["loss"]
    assert last < first


def test_standalone_file_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = compiled(HEAD + PLAIN + LEVELS["nested"][0])
    x = tokens()
    (tmp_path / "reads_alone.py").write_text(b.standalone(), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = importlib.import_module("reads_alone").Model()
    model.double().load_state_dict(b.module.state_dict())
    near(model(x), b.module(tokens=x))
    rows = {r.name: r for r in b.graph.levels}
    assert (rows["one"].clock, rows["one"].every, rows["two"].every) == ("token", 4, 8)
    kinds = {(e.kind, e.source, e.target) for e in b.graph.edges}
    assert ("initialises", "two", "one") in kinds and ("initialises", "outer", "two") in kinds
    assert "one" in str(b) and "every 8 tokens" in str(b)
