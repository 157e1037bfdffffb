"""`m.g` on the token clock: the gradient that a memory takes in this tick, against loops written from the equations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow

HEAD = "nestflow 1\ninput x : float[T, 6]\noutput m(x)\n"
GATED = (
    HEAD
    + """level m(x) {
  every 1 token; objective l2
  memory one : matrix { key x |> linear(4) |> l2norm; value x |> linear(5); update gd(0.5) }
  memory two : matrix {
    key x |> linear(3); value x |> linear(5); update gd(0.1 * (1 + mean(square(one.g))))
    retain 1 / (1 + mean(square(one.g)))
  }
  emit surprise = mean(square(one.g))
  return two(x |> linear(3)) + one.g @ (x |> linear(4))
}
"""
)
DEEP = (
    HEAD
    + """level m(x) {
  every 2 tokens; chunk 4; memory mlp(depth = 2, expand = 1)
  key x |> linear(4); value x |> linear(4); query x |> linear(4)
  objective l2; weight 0.5 + sigmoid(linear(x, 1)); when mean(x) > 0; update gd(0.1)
  return y * mean(square(memory.g.linear_2)) + memory.g.linear @ (x |> linear(4))
}
"""
)


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def inputs() -> Tensor:
    return torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def same(got: Tensor, want: Tensor, weights: list[Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    found, wanted = (torch.autograd.grad(y.square().sum(), weights, **options) for y in (got, want))
    for a, c in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-10)


def test_one_memory_gates_another_by_its_gradient() -> None:
    """The gradient of half the squared error of a matrix is (W k - v) k transposed."""
    b, x = nestflow.compile(GATED, dtype="float64"), inputs()
    w = dict(b.module.weights)
    assert list(w) == [
        "m.one.key.linear.weight",
        "m.one.value.linear.weight",
        "m.two.key.linear.weight",
        "m.two.value.linear.weight",
        "m.out.linear.weight",
        "m.out.linear_2.weight",
    ]
    k1, v1, k2, v2, q2, q1 = (F.linear(x, p) for p in w.values())
    k1 = unit(k1)
    ys, told = [], []
    for row in range(2):
        one, two = torch.zeros(5, 4, dtype=x.dtype), torch.zeros(5, 3, dtype=x.dtype)
        for t in range(9):
            g = torch.outer(one @ k1[row, t] - v1[row, t], k1[row, t])
            size = g.square().mean()
            error = torch.outer(two @ k2[row, t] - v2[row, t], k2[row, t])
            two = two / (1 + size) - 0.1 * (1 + size) * error
            one = one - 0.5 * g
            ys.append(two @ q2[row, t] + g @ q1[row, t])
            told.append(size)
    want = torch.stack(ys).reshape(2, 9, 5)
    same(b.module(x), want, list(w.values()))
    same(b.reference()(x), want, list(w.values()))
    _, published = b.module.emitted(x)
    torch.testing.assert_close(published["surprise"].reshape(2, 9), torch.stack(told).reshape(2, 9))


@pytest.mark.parametrize("gradient", ["through", "stop"])
def test_the_gradient_of_a_tick_alone(gradient: str) -> None:
    """Two layers, errors at the chunk's first state, updates from sums of two ticks; by torch's autograd."""
    b, x = nestflow.compile(DEEP.replace("update", f"gradient {gradient}; update"), dtype="float64"), inputs()
    w = dict(b.module.weights)
    names = [n for n in w if "memory" in n]
    context = {n: F.linear(x, w[n]) for n in w if "memory" not in n}
    k, v, q = (context[f"m.{n}.linear.weight"] for n in ("key", "value", "query"))
    weight = 0.5 + torch.sigmoid(context["m.weight.linear.weight"])[..., 0]
    probe = context["m.out.linear.weight"]
    ys = []
    for row in range(2):
        state = [w[n] for n in names]
        start, sums = list(state), [torch.zeros_like(a) for a in state]
        for t in range(9):
            if t % 4 == 0:
                start = list(state)
            at = [a.clone() if a.requires_grad else a.detach().requires_grad_() for a in start]
            loss = 0.5 * (F.linear(F.gelu(F.linear(k[row, t], at[0])), at[1]) - v[row, t]).square().sum()
            on = bool(x[row, t].mean() > 0)
            g = torch.autograd.grad(loss, at, create_graph=gradient == "through")
            g = [weight[row, t] * a if on else torch.zeros_like(a) for a in g]
            g = g if gradient == "through" else [a.detach() for a in g]
            sums = [s + a for s, a in zip(sums, g, strict=True)]
            if t % 2 == 1:
                state = [a - 0.1 * s for a, s in zip(state, sums, strict=True)]
                sums = [torch.zeros_like(a) for a in state]
            y = F.linear(F.gelu(F.linear(q[row, t], state[0])), state[1])
            ys.append(y * g[1].square().mean() + g[0] @ probe[row, t])
    want = torch.stack(ys).reshape(2, 9, 4)
    same(b.module(x), want, list(w.values()))
    same(b.reference()(x), want, list(w.values()))


@pytest.mark.parametrize("text", [GATED, DEEP])
def test_a_stream_gives_the_same(text: str) -> None:
    b, x = nestflow.compile(text, dtype="float64"), inputs()
    whole = b.module(x).detach()
    for cut in (1, 3, 6):
        stream = b.stream(2)
        torch.testing.assert_close(torch.cat([stream.feed(x[:, :cut]), stream.feed(x[:, cut:])], 1), whole)


def test_what_is_computed_at_once() -> None:
    """Only where the next gradient needs the last update does a level go tick by tick."""
    dot = HEAD + (
        "level m(x) { every 1 token; memory matrix; key x |> linear(4); value x |> linear(4); query x |> linear(4)\n"
        "  objective dot; update gd(0.1); retain 0.9; return y + memory.g @ y }"
    )
    assert nestflow.compile(dot).how() == {"m": "recurrence"}
    assert nestflow.compile(dot.replace("objective dot", "objective l2; chunk 8")).how() == {"m": "chunk"}
    delta = dot.replace("objective dot", "objective l2")
    assert nestflow.compile(delta).how() == {"m": "scan"}
    assert nestflow.compile(delta.replace("memory.g @ y", "y")).how() == {"m": "delta"}


ONE = "memory one : matrix { key x |> linear(4) |> l2norm; value x |> linear(5); objective l2; update gd(0.1) }"
TWO = "memory two : matrix { key x |> linear(4); value x |> linear(5); objective l2; update gd(0.2); retain 0.9 }"
RETURN = "return one(x |> linear(4)) + two(x |> linear(4)) * mean(one.g)"
BOTH = HEAD + f"level m(x) {{ every 1 token\n{ONE}\n{TWO}\n{RETURN} }}"
SHARED = BOTH.replace("output m(x)", "output f(x)")
WRONG = [
    (BOTH.replace("retain 0.9", "weight sigmoid(mean(two.g))"), "NF418"),
    (BOTH.replace("x |> linear(5)", "x |> linear(5) |> mul(mean(two.g))"), "NF206"),
    (BOTH.replace("retain 0.9", "retain decay_first(sigmoid(mean(two.g)))"), "NF418"),
    (BOTH.replace("update gd(0.1) }", "update gd(0.1); rounds 2 }"), "NF490"),
    (BOTH.replace("objective l2; update gd(0.1) }", "every never }"), "NF315"),
    (BOTH.replace("mean(one.g)", "mean(one.g.wieght)"), "NF203"),
    (BOTH.replace("memory one : matrix", "memory one : mlp(depth = 2)"), r"NF315.*2 tensors"),
    (BOTH.replace("retain 0.9", "reset where(mean(one.g) > 0)"), "NF490"),
    (BOTH.replace("retain 0.9", "init one.g"), "NF316"),
    (BOTH.replace("every 1 token", "every 1 token; per model; reset never"), "NF490"),
    (SHARED + "\nflow f(x) { shared s = m; return s(x) * mean(s.g) }", "NF490"),
    (SHARED + "\nflow f(x) { return m(x) * mean(m.g) }", "NF490"),
    (SHARED + "\nflow f(x) { shared s = m; h = s.read(x); return s(x) + h }", "NF490"),
    (HEAD + "level m(x) { memory cache(window = 4); key x; value x; query x; return y * mean(memory.g) }", "NF315"),
]


@pytest.mark.parametrize(("text", "code"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_mistakes_are_told(text: str, code: str) -> None:
    with pytest.raises(nestflow.NestflowError, match=code):
        nestflow.check(text)
