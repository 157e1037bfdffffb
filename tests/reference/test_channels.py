"""Gates and rates of a network memory that differ by channel: records of vectors on the axes of each tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow

T, D = 9, 4
HEAD = "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\noutput m(k, v)\n"
RECORD = "{linear: sigmoid(linear(k, W)), linear_2: on_value(sigmoid(linear(v, W)))}"


def inputs() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    return {n: torch.randn(2, T, D, generator=source, dtype=torch.float64) for n in "kv"}


@pytest.mark.parametrize("chunk", [1, 4])
def test_by_hand(chunk: int) -> None:
    """W₁ forgets by key channel and learns by value channel, W₂ the other way round; errors by torch.autograd."""
    b = nestflow.compile(
        HEAD + "level m(k, v) { memory mlp(depth = 2, expand = 2, bias = false); key k; value v; query k\n"
        f"objective l2; chunk {chunk}\n"
        "update gd({linear: on_value(0.2 * sigmoid(concat(k, v))), linear_2: 0.2 * sigmoid(concat(v, k))})\n"
        "retain {linear: sigmoid(k + 2), linear_2: on_value(sigmoid(v + 2))} }\n",
        dtype=torch.float64,
    )
    x, rows = inputs(), []
    start = [b.module.weights[f"m.memory.{n}.weight"].detach() for n in ("linear", "linear_2")]
    for row in range(2):
        one = two = anchor_1 = anchor_2 = torch.zeros(())
        one, two = start
        ys = []
        for t in range(T):
            k, v = x["k"][row, t], x["v"][row, t]
            if t % chunk == 0:
                anchor_1, anchor_2 = (a.detach().clone().requires_grad_() for a in (one, two))
            e = anchor_2 @ torch.nn.functional.gelu(anchor_1 @ k) - v
            g1, g2 = torch.autograd.grad(0.5 * e.square().sum(), (anchor_1, anchor_2))
            one = one * (k + 2).sigmoid() - 0.2 * torch.cat([k, v]).sigmoid()[:, None] * g1
            two = two * (v + 2).sigmoid()[:, None] - 0.2 * torch.cat([v, k]).sigmoid() * g2
            ys.append(two @ torch.nn.functional.gelu(one @ k))
        rows.append(torch.stack(ys))
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x), torch.stack(rows))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("only", [(True, True), (True, False), (False, True)], ids=str)
def test_delta_steps_by_hand(exact: bool, only: tuple[bool, bool]) -> None:
    """Row i of W erases and writes at its own rate: w_i ← w_i − η_i/(1 + η_i‖h‖²) (w_i h hᵀ + g_i); where `only`
    leaves a matrix out, −η_i g_i."""
    glob = {(True, True): "**", (True, False): "linear.*", (False, True): "**.linear_2.**"}[only]
    b = nestflow.compile(
        HEAD + "level m(k, v) { memory mlp(depth = 2, expand = 2, bias = false); key k; value v; query k\n"
        "objective l2; chunk 4\nupdate dgd({linear: on_value(sigmoid(concat(k, v))), linear_2: on_value(sigmoid(v))}, "
        f'exact = {str(exact).lower()}, only = "{glob}") }}\n',
        dtype=torch.float64,
    )
    x, rows = inputs(), []
    start = [b.module.weights[f"m.memory.{n}.weight"].detach() for n in ("linear", "linear_2")]
    for row in range(2):
        state, anchor, ys = start, start, []
        for t in range(T):
            k, v = x["k"][row, t], x["v"][row, t]
            if t % 4 == 0:
                anchor = [w.detach().clone().requires_grad_() for w in state]
            hidden = torch.nn.functional.gelu(anchor[0] @ k)
            grads = torch.autograd.grad(0.5 * (anchor[1] @ hidden - v).square().sum(), anchor)
            rates = [torch.cat([k, v]).sigmoid()[:, None], v.sigmoid()[:, None]]
            new = []
            for w, g, h, eta, erases in zip(state, grads, (k, hidden.detach()), rates, only, strict=True):
                if erases:
                    eta = eta / (1 + eta * (h @ h)) if exact else eta
                    g = g + torch.outer(w @ h, h)
                new.append(w - eta * g)
            state = new
            ys.append(state[1] @ torch.nn.functional.gelu(state[0] @ k))
        rows.append(torch.stack(ys))
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x), torch.stack(rows))


def test_delta_step_of_a_matrix_by_hand() -> None:
    """A vector on the value axis: each row has its own rate; the fixed point of l2 under dgd is v/2 in every row."""
    b = nestflow.compile(
        HEAD + "level m(k, v) { memory matrix; key l2norm(k); value v; query l2norm(k); objective l2\n"
        "update dgd(on_value(sigmoid(v))) }\n",
        dtype=torch.float64,
    )
    x = inputs()
    k, rows = x["k"] / (x["k"].square().sum(-1, keepdim=True) + 1e-6).sqrt(), []
    for row in range(2):
        w, ys = torch.zeros(D, D, dtype=torch.float64), []
        for t in range(T):
            h, v = k[row, t], x["v"][row, t]
            eta = v.sigmoid()[:, None] / (1 + v.sigmoid()[:, None] * (h @ h))
            w = w - eta * (torch.outer(w @ h, h) + torch.outer(w @ h - v, h))
            ys.append(w @ h)
        rows.append(torch.stack(ys))
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x), torch.stack(rows))


@pytest.mark.parametrize("heads", ["", "heads 2;"])
@pytest.mark.parametrize(
    "fields",
    [
        "chunk 4; update momentum(R, 0.5); retain R",
        "every 2 tokens; chunk 4; update momentum(0.1, R)",
        "update gd(0.1); retain decay_first(R)",
        "update adam(0.01); retain {linear: R1, linear_2: 0.9}",
        "chunk 2; update dgd(0.1); retain R",
        "chunk 2; update dgd(R); retain R",
        'chunk 4; update dgd(0.2, only = "linear.*"); retain 0.9',
        'every 2 tokens; chunk 4; update (g / n_ticks) |> dgd(R, exact = false, only = "**.linear_2.weight")',
        "chunk 4; update gd(0.1 * R1); objective huber(softplus(v), form = mixed)",
    ],
)
def test_compiled_is_interpreted(heads: str, fields: str) -> None:
    width = 2 if heads else 4
    values = ("split_heads(k)", "split_heads(v)") if heads else ("k", "v")
    fields = fields.replace("0.1 * R1", "0.1").replace("R1", "sigmoid(linear(k, W))").replace("R", RECORD)
    fields = fields.replace("softplus(v)", f"softplus({values[1]})") + ("" if "huber" in fields else "; objective l2")
    b = nestflow.compile(
        HEAD + f"level m(k, v) {{ {heads} memory mlp(depth = 2, expand = 2); {fields.replace('W', str(width))}\n"
        f"key {values[0]} |> l2norm; value {values[1]}; query {values[0]} }}\n",
        dtype=torch.float64,
    )
    x, weights, found = inputs(), list(b.module.weights.values()), []
    for run in (b.module, b.reference()):
        y = run(**x)
        probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        found.append([y, *torch.autograd.grad((y * probe).sum(), weights)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    stream = b.stream(batch=2)
    parts = [stream.feed(**{n: e[:, i:j] for n, e in x.items()}) for i, j in ((0, 3), (3, 4), (4, T))]
    torch.testing.assert_close(torch.cat(parts, 1), found[0][0])


def test_mixed_huber_by_channel() -> None:
    """The derivative of the objective: e where ‖e‖ ≤ δ_i, else δ_i · sign(e_i)."""
    b = nestflow.compile(
        HEAD + "level m(k, v) { memory matrix; key k; value v; query k; update gd(1)\n"
        "objective huber(softplus(2 * v + 1), form = mixed) }\n",
        dtype=torch.float64,
    )
    x = inputs()
    e, delta = -x["v"][:, 0], torch.nn.functional.softplus(2 * x["v"][:, 0] + 1)
    inside = e.norm(dim=-1, keepdim=True) <= delta
    assert inside.any() and not inside.all()
    want = -torch.where(inside, e, delta * e.sign()) * x["k"][:, 0].square().sum(-1, keepdim=True)
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x)[:, 0], want)


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("retain {linear: sigmoid(linear(k, 3)), linear_2: 0.9}", "NF322"),
        ("retain {linear: sigmoid(linear(k, 8)), linear_2: 0.9}", "NF322"),
        ("retain {linear: sigmoid(linear(k, 4))}", "NF322"),
        ("retain sigmoid(k)", "NF322"),
        ("weight {linear: sigmoid(k), linear_2: 1}", "NF322"),
        ("heads 2; retain {linear: sigmoid(k), linear_2: 0.9}", "NF319"),
        ("update dgd({linear: sigmoid(linear(k, 3)), linear_2: 0.9})", "NF322"),
        ("update dgd(sigmoid(k))", "NF322"),
        ('update dgd(0.1, only = "linear")', "NF238"),
    ],
)
def test_told(field: str, code: str) -> None:
    values = ("split_heads(k)", "split_heads(v)") if "heads" in field else ("k", "v")
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.check(
            HEAD + f"level m(k, v) {{ memory mlp(depth = 2, expand = 2); key {values[0]}; value {values[1]}\n"
            f"query {values[0]}; objective l2; {'' if 'update' in field else 'update gd(0.1);'} {field} }}\n"
        )
    assert code in [d.code for d in e.value.diagnostics], str(e.value)
