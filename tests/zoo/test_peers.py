"""The zoo beside other people's code, where it is installed: fla's naive loops (float32), titans-pytorch's layer.

Conventions apart: fla scales queries by 1/√d unless told otherwise (here they are told 1, or get √d more), takes gates
as logarithms, and lays tensors out as [B, T, H, D].
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import nestflow
from tests.zoo.bare import CASES, HEADS, WIDTH, Tensors

TICKS = 11
ROOT = WIDTH**0.5
Peer = Callable[[Callable[..., Tensor], Tensors], Tensor]


def naive(room: str, function: str) -> Callable[..., Tensor]:
    """One of fla's loops; what it returns besides the output is left out."""
    pytest.importorskip("fla", exc_type=ImportError)
    found = getattr(importlib.import_module(f"fla.ops.{room}.naive"), function)

    def output(*args: object, **more: object) -> Tensor:
        y = found(*args, **more)
        return y[0] if isinstance(y, tuple) else y

    return output


def head_first(f: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    """A loop over [B, H, T, D]."""
    return f(*(x.transpose(1, 2) for x in xs)).transpose(1, 2)


def in_turn(*xs: Tensor) -> Tensor:
    """The pairs of a tick one after the other: [B, n·T, ...]."""
    return torch.stack(xs, 2).flatten(1, 2)


PEERS: dict[str, tuple[str, str, Peer]] = {
    "retnet": ("retention", "naive_retention", lambda f, x: head_first(f, ROOT * x["q"], x["k"], x["v"])),
    "gla": ("gla", "naive_recurrent_gla", lambda f, x: f(ROOT * x["q"], x["k"], x["v"], x["a"].log())),
    "hgrn2": ("gla", "naive_recurrent_gla", lambda f, x: f(ROOT * x["q"], 1 - x["f"], x["v"], x["f"].log())),
    "deltanet": ("delta_rule", "delta_rule_recurrence",
                 lambda f, x: head_first(f, ROOT * x["q"], x["k"], x["v"], x["b"])),
    "gated_deltanet": ("gated_delta_rule", "naive_recurrent_gated_delta_rule",
                       lambda f, x: f(x["q"], x["k"], x["v"], x["b"][..., 0], x["a"][..., 0].log(), scale=1)),
    "kda": ("kda", "naive_recurrent_kda",
            lambda f, x: f(x["q"], x["k"], x["v"], x["a"].log(), x["b"][..., 0], scale=1)),
    "comba": ("comba", "naive_recurrent_comba",
              lambda f, x: f(x["q"], x["k"], x["v"], x["c"] * x["k"], x["b"][..., 0], x["a"][..., 0].log(), scale=1)),
    "deltaproduct": ("gated_delta_product", "naive_recurrent_gated_delta_product",
                     lambda f, x: f(x["q"], in_turn(x["k"], x["k2"]), in_turn(x["v"], x["v2"]), x["a"][..., 0].log(),
                                    in_turn(x["b"], x["c"])[..., 0], scale=1, num_householder=2)),
    # RWKV-7's transition diag(w) − κ (f κ)ᵀ is fla's diag(w) + β αᵀ, with the erase key κ and its rates apart
    "rwkv7": ("generalized_delta_rule.dplr", "dplr_recurrence",
              lambda f, x: head_first(f, ROOT * x["q"], x["k"], x["v"], -x["gone"], x["f"] * x["gone"], x["a"].log())),
}  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_is_what_fla_computes(name: str) -> None:
    room, function, peer = PEERS[name]
    f = naive(room, function)
    case = next(c for c in CASES if c.name == name)
    b = nestflow.compile(case.text, dtype=torch.float64)
    inputs = case.inputs(2, TICKS, seed=6)
    given = {n: x.detach().unflatten(-1, (HEADS, -1)).float() for n, x in inputs.items()}
    with torch.no_grad():
        got, want = b.module(**inputs), peer(f, given).flatten(2).double()
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 3e-6 * (1 + want.abs().max())


LUCID = """nestflow 1
input x : float[T, 6]
output memory_layer(x)
level memory_layer(x) {
  every     4 tokens
  memory    mlp(depth = 2, expand = 2, act = gelu)
  key       x |> linear
  value     x |> linear
  query     x |> linear
  objective 2 / 6 * l2(M(key), value)
  weight    x |> linear(1, bias = true) |> sigmoid
  update    momentum(lr = 1, beta = mean(ticks(x), axis = 0) |> linear(1, bias = true) |> sigmoid)
  retain    1 - (mean(ticks(x), axis = 0) |> linear(1, bias = true) |> sigmoid)
}
"""


def test_is_what_titans_pytorch_computes() -> None:
    """Its mode in which the gradient is taken anew at each chunk (`batch_size = chunk_size`), float64.

    Its conventions, said in the language: it learns once per chunk, from the sum of the chunk's errors, each with a
    rate of its own; momentum and decay are made of the chunk's mean; the loss is a mean over features; a tick whose
    chunk is complete reads what the chunk has taught. The paper's, and our `titans`: it learns at each token."""
    titans_pytorch = pytest.importorskip("titans_pytorch", exc_type=ImportError)
    theirs = titans_pytorch.NeuralMemory(
        dim=6, chunk_size=4, batch_size=4, pre_rmsnorm=False, mem_model_norm_add_residual=False,
        default_model_kwargs={"depth": 2, "expansion_factor": 2.0},
    ).double()  # fmt: skip
    ours = nestflow.compile(LUCID, dtype=torch.float64)
    names = {
        "memory.linear.weight": theirs.memory_model_parameters[0][0].T,  # theirs map by x @ W
        "memory.linear_2.weight": theirs.memory_model_parameters[1][0].T,
        "key.linear.weight": theirs.to_keys.weight,
        "value.linear.weight": theirs.to_values.weight,
        "query.linear.weight": theirs.to_queries.weight,
    }
    for field, part in {"weight": "adaptive_step", "update": "momentum", "retain": "decay_factor"}.items():
        linear = getattr(theirs, f"to_{part}")[0]
        names |= {f"{field}.linear.weight": linear.weight, f"{field}.linear.bias": linear.bias}
    weights = dict(ours.module.named_weights())
    assert {f"memory_layer.{n}" for n in names} == set(weights)
    with torch.no_grad():
        for n, w in names.items():
            weights[f"memory_layer.{n}"].copy_(w)
    x = torch.randn(2, 19, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    probe = torch.randn(2, 19, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    got, (want, _) = ours.module(x=x), theirs(x)
    assert (got - want).abs().max() <= 1e-12 * (1 + want.abs().max())
    mine = torch.autograd.grad((got * probe).sum(), [weights[f"memory_layer.{n}"] for n in names])
    their_leaves = [theirs.memory_model_parameters[0], theirs.memory_model_parameters[1], *list(names.values())[2:]]
    other = list(torch.autograd.grad((want * probe).sum(), their_leaves))
    other[:2] = [g[0].T for g in other[:2]]
    for n, a, b in zip(names, mine, other, strict=True):
        assert b.abs().max() > 0, n
        assert (a - b).abs().max() <= 1e-11 * (1 + b.abs().max()), n
