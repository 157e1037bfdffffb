"""One token at a time: code of its own gives what the whole sequence gives, in fewer calls, and misses no change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import nestflow
from benchmarks.cases import SPEC
from benchmarks.models import one_layer, some_tokens
from nestflow.bundle.bundle import Bundle
from nestflow.bundle.token import one_token
from nestflow.diagnostics.core import NestflowError
from nestflow.language.shipped import specs_dir

TOKENS = some_tokens(21, 2)
ARCHITECTURES = sorted(p.stem for p in (specs_dir() / "architectures").glob("*.nl"))
NONE = ("cms_nested", "cms_independent", "cms_sequential", "cms_stack")  # they learn while they read


class Launches(TorchDispatchMode):
    """Counts the calls that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def launches(step: Callable[[Any], Any], tokens: int = 3) -> int:
    """Of the last token of a few: `step(state)` gives output and state."""
    state, found = None, Launches()
    with torch.no_grad():
        for _ in range(tokens - 1):
            _, state = step(state)
        with found:
            step(state)
    return found.count


def titans_layer() -> Bundle:
    return nestflow.compile(str(SPEC), chunk_size=16)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in NONE])
def test_every_shipped_spec_token_by_token(name: str) -> None:
    b = one_layer(name, dim=16, heads=2)
    b.module.double()
    with torch.no_grad():
        whole = b.module(tokens=TOKENS)
        stream, parts = b.stream(2), []
        for n in (1, 1, 1, 4, 1, 1, 1, 1, 1, 1, 1, 1, 6):  # more than a chunk, and back to longer pieces
            at = sum(x.shape[1] for x in parts)
            parts.append(stream.feed(tokens=TOKENS[:, at : at + n]))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-11)
    assert one_token(b.module) is not None and "in_turn" not in (b.token_source or "in_turn")
    one = some_tokens(1, 2)
    mine = launches(lambda s: b.module.run(s, tokens=one, training=False))
    b.module.__dict__["_token"] = False
    # memories that run side by side there have more launches here, of less work each
    assert mine <= 1.5 * launches(lambda s: b.module.run(s, tokens=one, training=False))


def test_the_parts_of_a_memory_learn_together() -> None:
    """Rates that a memory gives stay those of the state that the token found, whichever memory learns first."""
    text = """nestflow 1
input x : float[T, 4]
output two(x)
level two(x) {
  every 1 token
  memory first : mlp(depth = 2) { key x |> l2norm; value x; update adam(0.1 * sigmoid(second(x) |> linear(1))) }
  memory second : matrix { key x |> l2norm; value first(x); update momentum(0.3, 0.8); retain 0.9 }
  objective l2
  return first(x) + second(x)
}
"""
    b = nestflow.compile(text, dtype="float64")
    x = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stream = b.stream(2)
    with torch.no_grad():
        parts = [stream.feed(x=x[:, t : t + 1]) for t in range(9)]
        torch.testing.assert_close(torch.cat(parts, 1), b.reference()(x=x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("make", "name", "shape", "most"),
    [
        (titans_layer, "x", (1, 1, 256), 115),
        (lambda: one_layer("linear_attention"), "tokens", (1, 1), 100),
        (lambda: one_layer("gated_deltanet"), "tokens", (1, 1), 150),
        (lambda: one_layer("hope"), "tokens", (1, 1), 620),
    ],
    ids=["titans layer", "linear attention", "gated deltanet", "hope"],
)
def test_launches_of_a_token(make: Callable[[], Bundle], name: str, shape: tuple[int, ...], most: int) -> None:
    module = make().module
    x = torch.zeros(shape, dtype=torch.long if name == "tokens" else torch.float32)
    assert 40 < launches(lambda s: module.run(s, training=False, **{name: x})) <= most


def changed(b: Bundle, how: str) -> None:
    """Other weights in the place of those that a stream has seen."""
    for w in b.module.weights.values():
        if how == "in place":
            w.mul_(1.5)
        elif how == "data":
            w.data.copy_(1.5 * w)
        elif how == "storage":
            w.data = 1.5 * w.data
    if how == "parameter":
        for _, module, leaf in b.module.__dict__["_places"]:
            module._parameters[leaf] = torch.nn.Parameter(1.5 * module._parameters[leaf])


@pytest.mark.parametrize("how", ["in place", "data", "storage", "parameter"])
def test_a_stream_sees_weights_that_change(how: str) -> None:
    """Nothing that was made of weights is kept from token to token."""
    outputs = []
    for own in (True, False):
        b = one_layer("gated_deltanet", dim=16, heads=2)
        if not own:
            b.module.__dict__["_token"] = False
        stream = b.stream(2)
        with torch.no_grad():
            stream.feed(TOKENS[:, :1])
            stream.feed(TOKENS[:, 1:2])
            changed(b, how)
            outputs.append(stream.feed(TOKENS[:, 2:3]))
    torch.testing.assert_close(*outputs)


def code(step: Callable[[], Tensor]) -> str:
    with pytest.raises(NestflowError) as e:
        step()
    return e.value.diagnostics[0].code


def test_mistakes_are_told_as_ever() -> None:
    b = one_layer("gated_deltanet", dim=16, heads=2)
    stream, one = b.stream(2), TOKENS[:, :1]
    stream.feed(one)
    stream.feed(one)
    before = stream.t
    assert code(lambda: stream.feed(one + 10**6)) == "NF506"
    assert code(lambda: stream.feed(one - 10**6)) == "NF506"
    assert code(lambda: stream.feed(one.float())) == "NF503"
    assert code(lambda: stream.feed(one[0])) == "NF504"
    assert code(lambda: stream.feed(one[:1])) == "NF507"
    assert code(lambda: stream.feed(words=one)) == "NF501"
    assert code(lambda: stream.feed()) == "NF502"
    other = one_layer("linear_attention", dim=16, heads=2)
    with torch.no_grad():
        assert code(lambda: other.module.run(stream.state, tokens=one)[0]) == "NF507"
    assert stream.t == before


def test_gradients_go_through_the_module_s_own_code() -> None:
    b = one_layer("titans", dim=16, heads=2)
    _, state = b.module.run(None, tokens=TOKENS[:, :1])
    y, _ = b.module.run(state, tokens=TOKENS[:, 1:2])
    assert y.requires_grad
    assert b.module.__dict__["_token"] is None  # it was not even made


def test_rows_at_other_places_go_on() -> None:
    b = one_layer("titans", dim=16, heads=2)
    b.module.double()
    stream = b.stream(2)
    with torch.no_grad():
        for t in range(3):
            stream.feed(TOKENS[:, t : t + 1])
        stream.reset(1)
        parts = [stream.feed(TOKENS[:, t : t + 1]) for t in range(3, 6)]
        want = torch.stack([b.module(tokens=TOKENS[:1, :6])[0, 3:], b.module(tokens=TOKENS[1:, 3:6])[0]])
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=1e-9, atol=1e-11)


def test_a_module_that_has_another_type_since() -> None:
    """A state does not follow it: one token says so as several do."""
    b = one_layer("titans", dim=16, heads=2)
    stream = b.stream(2)
    for t in range(2):
        stream.feed(tokens=TOKENS[:, t : t + 1])
    b.module.double()
    for ticks in (1, 3):
        with pytest.raises(NestflowError, match=r"NF507.*the state is float32 on cpu, and the module float64 on cpu"):
            stream.feed(tokens=TOKENS[:, :ticks])


@pytest.mark.parametrize("ticks", [1, 2])
def test_tokens_that_are_no_plain_tensor(ticks: int) -> None:
    b = one_layer("titans", dim=16, heads=2)
    stream = b.stream(2)
    for t in range(2):
        stream.feed(tokens=TOKENS[:, t : t + 1])
    for x in (TOKENS[:, :ticks].to("meta"), TOKENS[:, :ticks].to_sparse()):
        with pytest.raises(NestflowError, match="NF503"):
            stream.feed(tokens=x)


MEMORY = """nestflow 1
input x : float[T, 4]
output m(x)
level m(x) { every 1 token; chunk 4; MORE; memory matrix; key l2norm(x); value x; query x;
  objective l2; update gd(0.5) }
"""
NET = "nestflow 1\ninput x : float[T, 4]\nextern net(x) : float[T, 4]\noutput f(x)\nflow f(x) { return net(x) + x }\n"
NOT_PLAIN = {
    "chance": MEMORY.replace("value x", "value x + noise(4)"),
    "a start that is drawn": MEMORY.replace("MORE", "init normal(0.5)"),
    "one copy of the model": MEMORY.replace("MORE", "per model"),
    "beyond a sequence": MEMORY.replace("MORE", "per stream; reset never"),
    "a network": NET,
}


class Net(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_more_than_the_code_of_a_token_is_the_same(name: str) -> None:
    """Draws, what all streams share, networks of the caller, ages of streams: outputs, and what is kept."""
    x = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for own in (True, False):
        torch.manual_seed(0)
        nets = {"net": Net(4, 4).double()} if name == "a network" else {}
        b = nestflow.compile(NOT_PLAIN[name].replace("MORE; ", ""), dtype="float64", seed=3, **nets)
        if not own:
            b.module.__dict__["_token"] = False
        stream, parts = b.stream(2), []
        with torch.no_grad():
            for t in range(9):
                if t == 6:
                    stream.begin_sequence()
                parts.append(stream.feed(x=x[:, t : t + 1]))
        kept = {**b.module.kept, **{n: y for g in stream.state.groups for n, y in g.tensors.items()}}
        found.append({"output": torch.cat(parts, 1), **kept})
    assert found[0].keys() == found[1].keys()
    for n, y in found[1].items():
        torch.testing.assert_close(found[0][n], y, rtol=1e-9, atol=1e-11)


BOUNDED = """nestflow 1
input x : float[T, 4] in [-1, 1]
input k : int[T] in [0, 3)
output f(x, k)
flow f(x, k) { return x + embed(k, 8, 4) }
"""


@pytest.mark.parametrize("rows", [1, 2, 80])
def test_bounds_are_looked_at_in_every_token(rows: int) -> None:
    """Also those that no table has: one number, a few, and many of them."""
    stream = nestflow.compile(BOUNDED).stream(rows)
    x, k = torch.zeros(rows, 1, 4), torch.zeros(rows, 1, dtype=torch.int64)
    for _ in range(3):
        stream.feed(x=x, k=k)
    bad, last = x.clone(), k.clone()
    bad[-1], last[-1] = 2.0, 3
    assert code(lambda: stream.feed(x=bad, k=k)) == "NF506"
    assert code(lambda: stream.feed(x=x, k=last)) == "NF506"
    assert code(lambda: stream.feed(x=x, k=last - 5)) == "NF506"
    assert stream.feed(x=x, k=k).shape == (rows, 1, 4)


@pytest.mark.parametrize("rows", [1, 2, 80])
def test_one_integer_input_has_bounds_that_no_table_has(rows: int) -> None:
    text = BOUNDED.replace("input x : float[T, 4] in [-1, 1]\n", "").replace("f(x, k)", "f(k)").replace("x + ", "")
    b = nestflow.compile(text.replace("[0, 3)", "[1, 4)"))
    stream, k = b.stream(rows), torch.ones(rows, 1, dtype=torch.int64)
    for _ in range(3):
        stream.feed(k=k)
    for wrong in (0, 4, -1, 9):
        bad = k.clone()
        bad[-1] = wrong
        assert code(lambda y=bad: stream.feed(k=y)) == "NF506"
    with torch.no_grad():
        assert code(lambda: b.module.run(stream.state, k=k, more=k)[0]) == "NF501"
