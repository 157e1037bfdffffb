"""`init` as a distribution, drawn anew at each reset and for each copy, and as an expression of slow weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.bundle.bundle import Bundle
from nestflow.bundle.source import load_source
from tests.reference.test_chance import draw

T, D = 11, 4
HEAD = "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\noutput m(k, v)\n"
KEYS = "key k; value v; query k; objective l2"


def inputs() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    return {n: torch.randn(2, T, D, generator=source, dtype=torch.float64) for n in "kv"}


def learned(a: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
    return a - rate * (torch.einsum("boi,bi->bo", a, k) - v)[:, :, None] * k[:, None]


def agrees(b: Bundle, x: dict[str, Tensor]) -> Tensor:
    """Compiled is interpreted, with all gradients, and a stream in pieces is the whole."""
    b.module.eval()
    weights, found = list(b.module.weights.values()), []
    for run in (b.module, b.reference()):
        y = run(**x)
        probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        loss = (y * probe).sum()
        found.append([y, *(torch.autograd.grad(loss, weights) if weights else ())])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    assert all(g.abs().sum() > 0 for g in found[0][1:])
    stream = b.stream(batch=2)
    parts = [stream.feed(**{n: e[:, i:j] for n, e in x.items()}) for i, j in ((0, 3), (3, 4), (4, T))]
    torch.testing.assert_close(torch.cat(parts, 1), found[0][0])
    return found[0][0]


def test_a_draw_by_hand() -> None:
    """Each row, each head and each new beginning has a start of its own, that of the counter."""
    b = nestflow.compile(
        HEAD + "level m(k, v) { memory matrix; heads 2; key split_heads(k); value split_heads(v)\n"
        "query split_heads(k); objective l2; update gd(0.2); init normal(0.3); chunk 4; reset each(chunk) }\n",
        dtype=torch.float64,
        seed=9,
    )
    assert not b.module.weights
    x, ys = inputs(), []
    for row in range(2):
        for head in range(2):
            k, v = (x[n][row, :, 2 * head : 2 * head + 2] for n in "kv")
            for t in range(T):
                if t % 4 == 0:
                    draws = [draw(9, "m.memory.weight", 0, row, t + 1, head, i)[1] for i in range(4)]
                    a = anchor = 0.3 * torch.tensor(draws, dtype=torch.float64).view(2, 2)
                a = a - 0.2 * torch.outer(anchor @ k[t] - v[t], k[t])
                ys.append(a @ k[t])
    want = torch.stack(ys).view(2, 2, T, 2).transpose(1, 2).reshape(2, T, D)
    b.module.eval()
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x), want)


def test_an_expression_by_hand() -> None:
    b = nestflow.compile(
        HEAD + f"level m(k, v) {{ a = learned(1, init = normal(1)); memory matrix; {KEYS}\n"
        "update gd(0.2); init 0.1 * eye + a * learned(normal(0.5)); reset where(k[0] > 0.5) }\n",
        dtype=torch.float64,
    )
    x, rows = inputs(), []
    a, w = (b.module.weights[p] for p in ("m.a.learned", "m.memory.weight"))
    start = (0.1 * torch.eye(D, dtype=torch.float64) + a * w).expand(2, D, D)
    state = start
    for t in range(T):
        k, v = x["k"][:, t], x["v"][:, t]
        state = learned(torch.where((k[:, 0] > 0.5)[:, None, None], start, state), k, v, 0.2)
        rows.append(torch.einsum("boi,bi->bo", state, k))
    want = torch.stack(rows, 1)
    torch.testing.assert_close(agrees(b, x), want)
    grads = [torch.autograd.grad(y.square().sum(), [a, w]) for y in (b.module(**x), want)]
    for got, by_hand in zip(*grads, strict=True):
        torch.testing.assert_close(got, by_hand)


@pytest.mark.parametrize(
    ("kind", "init"),
    [
        ("matrix", "log(uniform(1, 2))"),
        ("matrix", "learned(2, 2, init = normal(1)) @ learned(2, 2, init = normal(1)) / 4"),
        ("mlp(depth = 2, expand = 1)", "normal(0.4)"),
        ("mlp(depth = 2, expand = 1)", "0.5 * learned + 0.1 * ones"),
        ("mlp(depth = 2, expand = 1)", "inverse_softplus(log_uniform(0.1, 1))"),
    ],
)
@pytest.mark.parametrize(
    "fields",
    [
        "chunk 4; update momentum(0.2, 0.5); reset each(chunk)",
        "update momentum(0.01, 0.5); reset where(sum(k) > 0)",
        "every 2 tokens; chunk 4; update lion(0.01); reset each(chunk); keep rule; read chunk_start",
    ],
)
def test_compiled_is_interpreted(kind: str, init: str, fields: str) -> None:
    b = nestflow.compile(
        HEAD + f"level m(k, v) {{ heads 2; memory {kind}; {fields}; init {init}\nkey split_heads(k) |> l2norm\n"
        "value split_heads(v); query split_heads(k); objective l2 }\n",
        dtype=torch.float64,
    )
    agrees(b, inputs())


SEVERAL = """nestflow 1
input k : float[T, 4]
output model(k)
level store(x) { heads 2; memory slow : matrix { update gd(0.1); chunk 2; every 2 tokens; init normal(0.5) }
  memory fast : matrix { update momentum(0.2, 0.5); init slow; reset each(slow) }
  a = split_heads(x) |> l2norm; key a; value split_heads(x); objective l2
  return merge_heads(fast(a) + slow(a)) }
level plain(x) { memory matrix; key x |> l2norm; value x; query x; objective l2; update gd(0.1); chunk 3
  reset each(chunk); init normal(0.3) }
level scaled(x) { memory matrix; key x |> l2norm; value x; query x; objective l2; update gd(0.1)
  init 0.5 * learned(normal(0.3)) }
flow model(x) { shared s = plain; shared e = scaled; repeat 2 { x = x + store(x) + scaled(x) }
  z = s(x) + s.read(2 * x); return z + e(x) + e(e(x)) }
level outer { every 1 step; memory weights(model); objective square(model(k)); update adamw(1e-2) }
"""


def test_several_memories_and_calls(tmp_path: Path) -> None:
    """Copies of a block draw their own; `init slow` takes over the draw; a shared level has its starts once."""
    b = nestflow.compile(SEVERAL, dtype=torch.float64, seed=4)
    x = {"k": inputs()["k"]}
    y = agrees(b, x)
    starts = b.module.initial_state(2).tensors
    one, two = (starts[f"model.store.{i}.slow.weight"] for i in (0, 1))
    assert not torch.equal(one, two) and not torch.equal(one[0], one[1])
    assert torch.equal(one, starts["model.store.0.fast.weight"])
    alone = load_source(b.standalone(), "alone.py").Model(seed=4).double()
    alone.load_state_dict(b.module.state_dict())
    torch.testing.assert_close(alone.eval()(x["k"]), y)
    b.save(tmp_path / "b")
    torch.testing.assert_close(nestflow.load(tmp_path / "b").module.eval()(**x), y)


def test_rows_that_begin_apart() -> None:
    """A row that begins a sequence by itself starts where it would in company; the interpreter agrees."""
    b = nestflow.compile(SEVERAL, dtype=torch.float64)
    b.module.eval()
    x, stream, starts = inputs()["k"], b.stream(batch=2), torch.zeros(2, T, dtype=torch.bool)
    starts[1, 3] = True
    parts = [stream.feed(k=x[:, :3])]
    stream.reset(1)
    parts += [stream.feed(k=x[:, 3:5]), stream.feed(k=x[:, 5:])]
    with torch.no_grad():
        want, _ = b.reference().run(None, {"k": x}, starts)
    torch.testing.assert_close(torch.cat(parts, 1), want)
    torch.testing.assert_close(torch.cat(parts, 1)[1, 3:], b.module(k=x[:, 3:])[1])


def test_moments() -> None:
    b = nestflow.compile(
        "nestflow 1\ninput x : float[T, 64]\noutput m(x)\nlevel m(x) { memory matrix; key x; value x; query x\n"
        "objective l2; update gd(0.1); init normal(0.2) }\n",
        dtype=torch.float64,
    )
    start = b.module.initial_state(8).tensors["m.memory.weight"]
    assert abs(start.mean()) < 0.01 and abs(start.std() - 0.2) < 0.005
    assert torch.equal(start, b.module.initial_state(8).tensors["m.memory.weight"])
    assert b.module.initial_state(8).tensors["m.memory.weight"].requires_grad is False


@pytest.mark.parametrize(
    ("init", "code"),
    [
        ("k", "NF316"),
        ("mean(k) * eye", "NF316"),
        ("noise(4, 4)", "NF316"),
        ("learned(3, 3)", "NF319"),
        ("learned(4) * 0.5", "NF319"),
        ("other + 1", "NF316"),
        ("missing * 2", "NF201"),
    ],
)
def test_told(init: str, code: str) -> None:
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.check(
            HEAD + f"level m(k, v) {{ {KEYS.replace('query k; ', '')}; memory other : vector {{ value v\n"
            f"objective dot; update gd(0.1) }}\nmemory m : matrix {{ update gd(0.1); init {init} }}; return m(k) }}\n"
        )
    assert code in [d.code for d in e.value.diagnostics], str(e.value)


def test_what_waits() -> None:
    """The start of a draw is not kept: a rule that looks back at it is told."""
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.check(HEAD + f"level m(k, v) {{ memory matrix; {KEYS}; update w0 - w; init normal(0.1) }}\n")
    assert [d.code for d in e.value.diagnostics] == ["NF490"]
