"""Rows and heads as one axis in a loop: where a piece does the same for any axes in front, and the same numbers."""

from __future__ import annotations

import pytest
import torch

import nestflow
from nestflow.emit.levels.fold import any_lead
from tests.lowering.compiled import Compiled, error, same
from tests.lowering.test_levels import draw

SPEC = """nestflow 1
flow normed(z) { return z |> linear(4) |> layernorm |> gelu |> linear(4) }
flow gated(z) { return linear(silu(linear(z, 8)) * linear(z, 8), 4) }
input x : float[T, 8]
output m(x)
level m(x) {
  every 1 token; chunk 4; heads 2
  memory MEMORY
  key x |> linear |> l2norm
  value x |> linear
  query x |> linear
  objective l2
  update momentum(lr = 0.3 * sigmoid(linear(x, 1)), beta = sigmoid(linear(x, 1)))
  retain sigmoid(linear(x, 1) + 2)
  return y |> merge_heads
}
"""
MEMORIES = {
    "mlp(depth = 2, expand = 2)": True,
    "mlp(depth = 3, act = silu, residual = true)": True,
    "gated": True,
    "matrix": True,
    "mlp(depth = 2, bias = true)": False,  # vectors of heads are indexed from the front
    'normed(slow = "layernorm.**")': False,  # so are weights of heads that stay
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("sizes", [[13], [3, 5, 1, 4]])
def test_one_axis_gives_the_same(memory: str, sizes: list[int]) -> None:
    text = SPEC.replace("MEMORY", memory)
    fast, slow = Compiled(text), Compiled(text, ["cache", "scan"])
    assert ("folded(" in fast.source) == MEMORIES[memory]
    x, w = draw(3, 13), fast.weights()
    (got, state), (want, kept) = fast.run(x, w, sizes), slow.run(x, w, [13])
    same(got, want, x, w)
    for path, tensor in state.items():
        assert tensor.shape == kept[path].shape
        assert path.endswith("@chunk") or error(tensor, kept[path]) < 1e-10


BODIES = {
    "y = F.gelu(x_BHCM @ w_BHMN)": True,
    "y = (x_BHCM * g_BHC[..., None]).mean(-1, keepdim=True)": True,
    "y = recalled(look, stack, lead, x_BHCM)": True,
    "y = x_BHCM * g_H[:, None, None]": False,
    "y = x_BHCM.mean(1)": False,
    "y = x_BHCM.transpose(1, 2)": False,
    "y = x_BHCM @ w_HMN": False,
    "y = c.w[p]": False,
    "y = elsewhere(x_BHCM)": False,
    "y = recalled(look, stack, others, x_BHCM)": False,
    "y = torch.cat([x_BHCM, x_BHCM], 1)": False,
}


@pytest.mark.parametrize("body", BODIES)
def test_what_asks_for_the_axes_in_front(body: str) -> None:
    lines = ["def piece(t, n, state, x_BHCM, w_BHMN, g_BHC, look, stack):", "    " + body, "    return state, (y,)"]
    assert any_lead(lines, {"recalled", "lead"}) == BODIES[body]


@pytest.mark.parametrize("name", ["titans", "gated_deltanet", "linear_attention", "hope", "ttt_linear", "titans_mag"])
def test_under_autocast_states_keep_their_digits(name: str) -> None:
    """Products in bfloat16, states in float32, and nearly the same numbers; forward and backward."""
    b = nestflow.compile(name, dim=16, n_heads=2, depth=1)
    x = torch.randint(0, 200, (2, 70), generator=torch.Generator().manual_seed(0))
    exact, kept = b.module.run(b.module.initial_state(2), tokens=x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, state = b.module.run(b.module.initial_state(2), tokens=x)
        found.float().square().mean().backward()
    assert (found.float() - exact).square().mean() < 0.03**2 * exact.square().mean()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in b.module.weights.values())
    before = {n: t for g in kept.groups for n, t in g.tensors.items()}
    after = {n: t for g in state.groups for n, t in g.tensors.items()}
    for n, t in after.items():
        if "memory." in n and t.is_floating_point() and "key" not in n and "value" not in n:
            assert (t.float() - before[n]).abs().max() <= 0.1 * before[n].abs().max().clamp(min=1), n
