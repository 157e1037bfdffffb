"""The oracles themselves, each against something else: torch, a closed form, another paper's recurrence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles import (
    FIVE_MEMORIES,
    attention,
    delta_rule,
    dgd_step,
    gated_delta,
    init_mlp,
    linear_attention,
    momentum_delta,
    rope,
    self_modifying,
    titans_memory,
)
from tests.oracles import optim as oracle_optim
from tests.oracles.hope import dgd_memory, l2norm
from tests.oracles.mlp import mlp
from tests.oracles.titans import dot, gradient, huber, l2

B, H, T, D = 2, 2, 9, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streams(ticks: int = T, width: int = D) -> tuple[Tensor, Tensor, Tensor]:
    key, value, query = (draw(B, H, ticks, width, seed=s) for s in (1, 2, 3))
    return F.normalize(key, dim=-1), value, query


def gate(low: float, high: float, seed: int, width: int = 1, ticks: int = T) -> Tensor:
    return low + (high - low) * draw(B, H, ticks, width, seed=seed).sigmoid()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_linear_attention_is_masked_attention_without_softmax() -> None:
    k, v, q = streams()
    y, state = linear_attention(k, v, q)
    close(y, (q @ k.mT).tril() @ v)
    close(state, v.mT @ k)


def test_retention_is_the_decay_matrix_of_retnet() -> None:
    k, v, q = streams()
    ages = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    decay = torch.where(ages >= 0, 0.9 ** ages.clamp(min=0).double(), torch.zeros(()).double())
    close(
        linear_attention(k, v, q, retain=torch.full((B, H, T, 1), 0.9, dtype=torch.float64))[0],
        ((q @ k.mT) * decay) @ v,
    )


def test_channel_gates_equal_rescaled_keys_and_queries() -> None:
    k, v, q = streams()
    alpha = gate(0.6, 1.0, 4, width=D)
    total = alpha.cumprod(2)
    close(linear_attention(k, v, q, retain=alpha)[0], ((q * total) @ (k / total).mT).tril() @ v)


def test_delta_rule_on_orthonormal_keys_stores_the_values() -> None:
    keys = torch.eye(D, dtype=torch.float64).expand(B, H, D, D)
    values = draw(B, H, D, D, seed=5)
    _, state = delta_rule(keys, values, keys, rate=torch.ones(B, H, D, 1).double())
    close(state @ keys.mT, values.mT)


def test_decay_first_is_the_plain_order_with_scaled_rate_and_value() -> None:
    k, v, q = streams()
    alpha, beta = gate(0.5, 1.0, 6), gate(0.1, 0.9, 7)
    first = gated_delta(k, v, q, rate=beta, retain=alpha)[0]
    close(first, delta_rule(k, v / alpha, q, rate=alpha * beta, retain=alpha)[0])
    assert (first - delta_rule(k, v, q, rate=beta, retain=alpha)[0]).abs().max() > 1e-2


def test_titans_of_depth_one_at_chunk_one_is_the_momentum_delta_rule() -> None:
    k, v, q = streams()
    start = [draw(H, D, D, seed=8)]
    gates = {"rate": gate(0.0, 0.5, 9), "beta": gate(0.0, 0.9, 10), "retain": gate(0.8, 1.0, 11)}
    y, (w,), _ = titans_memory(k, v, q, start, **gates)
    expected, state = momentum_delta(k, v, q, initial=start[0], **gates)
    close(y, expected)
    close(w, state)


def test_titans_without_momentum_is_the_delta_rule_and_dot_is_linear_attention() -> None:
    k, v, q = streams()
    zero, rate = [torch.zeros(H, D, D, dtype=torch.float64)], gate(0.0, 0.5, 9)
    close(titans_memory(k, v, q, zero, rate=rate)[0], delta_rule(k, v, q, rate=rate)[0])
    close(titans_memory(k, v, q, zero, rate=rate, objective=dot)[0], linear_attention(k, v, q, rate=rate)[0])


@pytest.mark.parametrize("chunk", [1, 4])
def test_titans_chunk_in_closed_form(chunk: int) -> None:
    """F2 of the literature: within a chunk θ_t is a fixed combination of θ_a, S_a and the chunk's gradients at θ_a."""
    k, v, q = streams(chunk)
    weights = init_mlp(D, 6, D, 2, heads=H, seed=3)
    rate, beta, retain = (gate(a, b, s, ticks=chunk) for a, b, s in ((0.0, 0.2, 9), (0.3, 0.9, 10), (0.8, 1.0, 11)))
    _, state, _ = titans_memory(k, v, q, weights, rate=rate, beta=beta, retain=retain, chunk=chunk)
    start = [w.expand(B, H, *w.shape[1:]) for w in weights]
    expected = [w * retain.prod(2).unsqueeze(-1) for w in start]
    for j in range(chunk):
        grads = gradient(start, k[:, :, j], v[:, :, j], l2, mlp)
        weight = (
            sum(beta[:, :, j + 1 : i + 1].prod(2) * retain[:, :, i + 1 :].prod(2) for i in range(j, chunk))
            * rate[:, :, j]
        )
        expected = [w - weight.unsqueeze(-1) * g for w, g in zip(expected, grads, strict=True)]
    for got, want in zip(state, expected, strict=True):
        close(got, want)


def test_titans_every_is_one_step_on_the_sum() -> None:
    k, v, q = streams(4)
    weights = init_mlp(D, 6, D, 2, heads=H, seed=3)
    y, state, _ = titans_memory(
        k, v, q, weights, rate=torch.full((B, H, 4, 1), 0.1, dtype=torch.float64), chunk=4, every=4
    )
    hand = [w.expand(B, H, *w.shape[1:]).clone().requires_grad_() for w in weights]
    recalled = torch.stack([mlp(hand, k[:, :, t]) for t in range(4)], 2)
    grads = torch.autograd.grad(0.5 * (recalled - v).square().sum(), hand)
    for got, w, g in zip(state, hand, grads, strict=True):
        close(got, w - 0.1 * g)
    close(y[:, :, :3], torch.stack([mlp(hand, q[:, :, t]) for t in range(3)], 2).detach())


def test_read_points_are_shifts_of_each_other() -> None:
    k, v, q = streams(6)
    weights = init_mlp(D, 6, D, 2, heads=H)
    rate = torch.full((B, H, 6, 1), 0.1, dtype=torch.float64)
    repeated = q[:, :, :1].expand_as(q)
    after, before, start = (
        titans_memory(k, v, repeated, weights, rate=rate, chunk=3, read=r)[0]
        for r in ("after", "before", "chunk_start")
    )
    close(before[:, :, 1:], after[:, :, :-1])
    close(start[:, :, [0, 1, 2]], before[:, :, [0, 0, 0]])
    close(start[:, :, [3, 4, 5]], before[:, :, [3, 3, 3]])


def test_huber_is_torchs() -> None:
    p, v = 3 * draw(5, seed=1), draw(5, seed=2)
    close(huber(0.7)(p, v), F.huber_loss(p, v, reduction="sum", delta=0.7))


def test_exact_dgd_is_the_proximal_step() -> None:
    """argmin ½‖Wx − u‖² + ‖W − W₀‖²/(2η), for an x of any length, solved as a linear system."""
    w, x, u, eta = draw(3, D, seed=1), 3 * draw(D, seed=2), draw(3, seed=3), 0.7
    step = dgd_step(w, -torch.outer(u, x), x, torch.full((1, 1), eta, dtype=torch.float64))
    system = torch.outer(x, x) + torch.eye(D).double() / eta
    close(w + step, torch.linalg.solve(system, (torch.outer(u, x) + w / eta).mT).mT)


def test_printed_dgd_with_dot_is_the_delta_rule_and_with_l2_erases_twice() -> None:
    k, v, q = streams()
    zero, rate, retain = [torch.zeros(H, D, D).double()], gate(0.0, 0.5, 9), gate(0.8, 1.0, 3)
    y, _ = dgd_memory(k, v, q, zero, rate=rate, retain=retain, exact=False, objective=dot)
    close(y, delta_rule(k, v, q, rate=rate, retain=retain)[0])
    same_key, same_value = k[:, :, :1].expand(B, H, 200, D), v[:, :, :1].expand(B, H, 200, D)
    y, _ = dgd_memory(
        same_key, same_value, same_key, zero, rate=torch.full((B, H, 200, 1), 0.3, dtype=torch.float64), exact=False
    )
    close(y[:, :, -1], same_value[:, :, -1] / 2, 1e-9)


def hope(ticks: int) -> tuple[Tensor, Tensor, Tensor, dict[str, list[Tensor]]]:
    a, u, q = (l2norm(draw(B, H, ticks, D, seed=s)) for s in (1, 2, 3))
    outs = {"rates": 1, "gates": 1}
    return a, u, q, {m: init_mlp(D, D, outs.get(m, D), 2, heads=H, seed=i) for i, m in enumerate(FIVE_MEMORIES)}


def test_hope_with_frozen_gates_first_chunk_is_one_dgd_memory_of_given_streams() -> None:
    """Inside the first chunk nothing that is generated has moved yet, so ``store`` is a plain dgd memory."""
    a, u, q, memories = hope(5)
    y, states = self_modifying(
        a, u, q, memories, chunk=5, rate=lambda r: 0.3 * r.sigmoid(), retain=lambda r: (r + 8).sigmoid()
    )
    k = l2norm(mlp(_at(memories["keys"]), a, residual=True))
    v = l2norm(mlp(_at(memories["values"]), u, residual=True))
    rate = 0.3 * mlp(_at(memories["rates"]), u).sigmoid()
    retain = (mlp(_at(memories["gates"]), u) + 8).sigmoid()
    target = mlp(_at(memories["store"]), v, residual=True)
    expected, state = dgd_memory(k, target, q, memories["store"], rate=rate, retain=retain, chunk=5, residual=True)
    close(y, expected)
    for got, want in zip(states["store"], state, strict=True):
        close(got, want)


def _at(weights: list[Tensor]) -> list[Tensor]:
    """The start, shaped to multiply [B,H,T,D] at once."""
    return [w[None, :, None] for w in weights]


def test_hope_chunks_go_on_from_the_last_state() -> None:
    a, u, q, memories = hope(8)
    rules = {"chunk": 4, "rate": lambda r: 0.3 * r.sigmoid(), "retain": lambda r: (r + 4).sigmoid()}
    whole, _ = self_modifying(a, u, q, memories, **rules)
    first, state = self_modifying(a[:, :, :4], u[:, :, :4], q[:, :, :4], memories, **rules)
    second, _ = self_modifying(a[:, :, 4:], u[:, :, 4:], q[:, :, 4:], state, **rules)
    close(whole, torch.cat([first, second], 2))


def test_hope_gradients_reach_every_start_and_are_those_of_finite_differences() -> None:
    a, u, q, memories = hope(4)
    leaves = [w.requires_grad_() for m in FIVE_MEMORIES for w in memories[m]]
    rules = {"chunk": 2, "rate": lambda r: 0.3 * r.sigmoid(), "retain": lambda r: (r + 4).sigmoid()}
    grads = torch.autograd.grad(self_modifying(a, u, q, memories, **rules)[0].square().sum(), leaves)
    for leaf, grad in zip(leaves, grads, strict=True):
        assert grad.abs().max() > 0
        point, values = tuple(int(i) for i in (grad.abs() == grad.abs().max()).nonzero()[0]), []
        for sign in (1, -1):
            with torch.no_grad():
                leaf[point] += sign * 1e-5
            values.append(self_modifying(a, u, q, memories, **rules)[0].square().sum().item())
            with torch.no_grad():
                leaf[point] -= sign * 1e-5
        assert grad[point].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_attention_is_torchs() -> None:
    k, v, q = streams()
    close(attention(k, v, q), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    close(attention(k, v, q, causal=False), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(("window", "segment", "sink"), [(3, None, 0), (None, 4, 0), (3, None, 2), (3, 4, 1)])
def test_attention_masks(window: int | None, segment: int | None, sink: int) -> None:
    k, v, q = streams()
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    mask = torch.ones(T, T, dtype=torch.bool)
    mask &= (i - j < window) if window else mask
    mask &= (i // segment == j // segment) if segment else mask
    mask = (mask | (j < sink)) & (j <= i)
    close(
        attention(k, v, q, window=window, segment=segment, sink=sink),
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    )


def test_attention_prefix_is_more_keys() -> None:
    k, v, q = streams()
    pk, pv = draw(H, 3, D, seed=8), draw(H, 3, D, seed=9)
    mask = torch.cat([torch.ones(T, 3, dtype=torch.bool), torch.ones(T, T, dtype=torch.bool).tril()], 1)
    long_k, long_v = (torch.cat([p.expand(B, H, 3, D), x], 2) for p, x in ((pk, k), (pv, v)))
    close(
        attention(k, v, q, prefix_key=pk, prefix_value=pv),
        F.scaled_dot_product_attention(q, long_k, long_v, attn_mask=mask),
    )


def test_rope_is_a_complex_rotation_and_keeps_relative_positions() -> None:
    x = draw(B, H, T, 6, seed=4)
    angles = torch.arange(T).double()[:, None] * 10000.0 ** (-torch.arange(3).double() * 2 / 6)
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones_like(angles), angles)
    close(rope(x), torch.cat([turned.real, turned.imag], -1))
    one = x[:, :, :1].expand_as(x)
    scores = rope(one) @ rope(one).mT
    close(scores[..., 1:, 1:], scores[..., :-1, :-1])


def run_torch(make: type[torch.optim.Optimizer], steps: int, dtype: torch.dtype, **kwargs: object) -> list[Tensor]:
    params = [torch.nn.Parameter(w.to(dtype)) for w in starts()]
    opt = make(params, **kwargs)  # type: ignore[arg-type]
    for t in range(steps):
        for p, g in zip(params, grads_at(t), strict=True):
            p.grad = g.to(dtype)
        opt.step()
    return [p.detach() for p in params]


def run_rule(rule: oracle_optim.Rule, steps: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    weights = [w.to(dtype) for w in starts()]
    for t in range(steps):
        weights = rule.step(weights, [g.to(dtype) for g in grads_at(t)])
    return weights


def starts() -> list[Tensor]:
    return [draw(4, 6, seed=1), draw(6, 3, seed=2)]


def grads_at(t: int) -> list[Tensor]:
    return [draw(4, 6, seed=100 + t), draw(6, 3, seed=200 + t)]


TORCH_RULES = {
    "sgd": (oracle_optim.Sgd(0.1, weight_decay=0.1), torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "sgd momentum": (
        oracle_optim.Sgd(0.1, momentum=0.9, dampening=0.2),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.2},
    ),
    "nesterov": (
        oracle_optim.Sgd(0.1, momentum=0.9, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "momentum": (oracle_optim.Momentum(0.1, 0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adam": (oracle_optim.Adam(0.01), torch.optim.Adam, {"lr": 0.01}),
    "adamw": (oracle_optim.Adam(0.01, weight_decay=0.1), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop": (oracle_optim.Rmsprop(), torch.optim.RMSprop, {"lr": 0.01}),
    "adagrad": (oracle_optim.Adagrad(), torch.optim.Adagrad, {"lr": 0.01}),
}


@pytest.mark.parametrize("name", TORCH_RULES)
def test_rules_are_torchs(name: str) -> None:
    rule, make, kwargs = TORCH_RULES[name]
    for got, want in zip(run_rule(rule, 20), run_torch(make, 20, torch.float64, **kwargs), strict=True):
        close(got, want)


def test_muon_is_torchs_up_to_bfloat16() -> None:
    kwargs = {"lr": 0.02, "weight_decay": 0.1}
    got = run_rule(oracle_optim.Muon(weight_decay=0.1), 6)
    for a, b in zip(got, run_torch(torch.optim.Muon, 6, torch.float64, **kwargs), strict=True):
        close(a, b, 5e-3)


def test_newton_schulz_ignores_scale_and_flattens_singular_values() -> None:
    g = draw(5, 3, seed=3)
    close(oracle_optim.newton_schulz(g), oracle_optim.newton_schulz(1000 * g))
    values = torch.linalg.svdvals(oracle_optim.newton_schulz(g))
    assert values.min() > 0.6 and values.max() < 1.3


def test_m3_as_printed_ignores_beta1_and_beta3_and_reads_the_slow_memory_late() -> None:
    common = {"lr": 0.1, "beta2": 0.5, "alpha": 0.7, "period": 4}
    base = run_rule(oracle_optim.M3(beta1=0.9, beta3=0.9, **common), 10)
    for a, b in zip(base, run_rule(oracle_optim.M3(beta1=0.1, beta3=0.3, **common), 10), strict=True):
        close(a, b)
    alone = {**common, "alpha": 0.0}
    for steps, same in ((4, True), (5, False)):
        with_slow = run_rule(oracle_optim.M3(beta1=0.9, beta3=0.9, **common), steps)[0]
        without = run_rule(oracle_optim.M3(beta1=0.9, beta3=0.9, **alone), steps)[0]
        assert torch.equal(with_slow, without) is same


def test_schedule_free_average_is_the_mean_of_the_iterates() -> None:
    rule = oracle_optim.ScheduleFree(0.1)
    run_rule(rule, 5)
    z, iterates = starts()[0], []
    for t in range(5):
        z = z - 0.1 * grads_at(t)[0]
        iterates.append(z)
    close(rule.averages()[0], torch.stack(iterates).mean(0))


def test_lion_moves_by_the_sign_of_the_old_average() -> None:
    got = run_rule(oracle_optim.Lion(0.1), 2)[0]
    g0, g1 = grads_at(0)[0], grads_at(1)[0]
    close(got, starts()[0] - 0.1 * g0.sign() - 0.1 * (0.9 * 0.01 * g0 + 0.1 * g1).sign())


def test_batched_dgd_of_one_example_is_the_proximal_step() -> None:
    w, x, u = draw(3, D, seed=1), draw(D, seed=2), draw(3, seed=3)
    step = dgd_step(w, -torch.outer(u, x), x, torch.full((1, 1), 0.4, dtype=torch.float64))
    close(oracle_optim.dgd_exact(w, -torch.outer(u, x), x[None], 0.4), w + step)
