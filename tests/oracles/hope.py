"""Hope's self-modifying memory (arXiv 2512.24695, section 8), one token at a time.

Five MLPs learn together. Everything a memory generates (key, value, rate, gate, its own target) is recalled from the
state that the chunk began with, θ_a; so is every gradient. The update is delta gradient descent, exact form:

    W_t = α_t W_{t−1} − η' (W_{t−1} h hᵀ + G),   η' = η / (1 + η‖h‖²),   h = the matrix's own input at θ_a
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.oracles.mlp import inputs_of, mlp
from tests.oracles.titans import gradient, l2

FIVE_MEMORIES = ("keys", "values", "store", "rates", "gates")
Memories = dict[str, list[Tensor]]


def l2norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / √(Σx² + eps) over the last axis."""
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def dgd_step(weight: Tensor, grad: Tensor, seen: Tensor, rate: Tensor, *, exact: bool = True) -> Tensor:
    """−η'(W h hᵀ + G) for one pair: ``weight`` [...,out,in], ``seen`` = h [...,in], ``rate`` broadcasts to [...,1,1].

    With G = −u hᵀ this is argmin_W ½‖W h − u‖² + ‖W − W₀‖²/(2η), less W₀. ``exact=False`` is η' = η.
    """
    erase = torch.einsum("...oi,...i,...j->...oj", weight, seen, seen)
    if exact:
        rate = rate / (1 + rate * seen.square().sum(-1)[..., None, None])
    return -rate * (erase + grad)


def dgd_update(
    weights: list[Tensor], grads: list[Tensor], seen: list[Tensor], rate: Tensor, retain: Tensor, *, exact: bool = True
) -> list[Tensor]:
    """αW + dgd step, matrix by matrix."""
    steps = (dgd_step(w, g, h, rate, exact=exact) for w, g, h in zip(weights, grads, seen, strict=True))
    return [retain * w + step for w, step in zip(weights, steps, strict=True)]


def self_modifying(
    key_input: Tensor,
    value_input: Tensor,
    query: Tensor,
    memories: Memories,
    *,
    chunk: int = 16,
    rate: Callable[[Tensor], Tensor],
    retain: Callable[[Tensor], Tensor],
    read: str = "after",
    exact: bool = True,
) -> tuple[Tensor, Memories]:
    """The level of five memories. ``key_input`` a, ``value_input`` u, ``query`` q: [B,H,T,D]; weights: [H,out,in].

    k = l2norm(keys(a)), v = l2norm(values(u)), η = rate(rates(u)), α = retain(gates(u)); memory m learns k ↦ m(v).
    ``keys``, ``values``, ``store`` have a residual, ``rates`` and ``gates`` give one number. Returns store(q), states.
    """
    batch, heads, ticks = query.shape[:3]
    recalls = {
        name: (lambda theta, x, r=name in ("keys", "values", "store"): mlp(theta, x, residual=r))
        for name in FIVE_MEMORIES
    }
    theta = {m: [w.expand(batch, heads, *w.shape[-2:]) for w in memories[m]] for m in FIVE_MEMORIES}
    anchor, outputs = theta, []
    for t in range(ticks):
        if t % chunk == 0:
            anchor = theta
        before = theta
        a, u = key_input[:, :, t], value_input[:, :, t]
        k = l2norm(recalls["keys"](anchor["keys"], a))
        v = l2norm(recalls["values"](anchor["values"], u))
        eta = rate(recalls["rates"](anchor["rates"], u)).unsqueeze(-1)
        alpha = retain(recalls["gates"](anchor["gates"], u)).unsqueeze(-1)
        learned = {}
        for m in FIVE_MEMORIES:
            target = recalls[m](anchor[m], v)
            grads = gradient(anchor[m], k, target, l2, recalls[m])
            learned[m] = dgd_update(theta[m], grads, inputs_of(anchor[m], k), eta, alpha, exact=exact)
        theta = learned
        at = {"after": theta, "before": before, "chunk_start": anchor}[read]
        outputs.append(recalls["store"](at["store"], query[:, :, t]))
    return torch.stack(outputs, 2), theta


def dgd_memory(
    key: Tensor,
    value: Tensor,
    query: Tensor,
    weights: list[Tensor],
    *,
    rate: Tensor,
    retain: Tensor | None = None,
    chunk: int = 1,
    exact: bool = True,
    objective: Callable[[Tensor, Tensor], Tensor] = l2,
    residual: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """One MLP memory that learns by dgd from given keys and values, read after: outputs and the last state."""
    batch, heads, ticks = key.shape[:3]

    def recall(theta: list[Tensor], x: Tensor) -> Tensor:
        return mlp(theta, x, residual=residual)

    theta = [w.expand(batch, heads, *w.shape[-2:]) for w in weights]
    anchor, outputs = theta, []
    for t in range(ticks):
        if t % chunk == 0:
            anchor = theta
        k = key[:, :, t]
        grads = gradient(anchor, k, value[:, :, t], objective, recall)
        alpha = rate.new_ones(1) if retain is None else retain[:, :, t].unsqueeze(-1)
        theta = dgd_update(theta, grads, inputs_of(anchor, k), rate[:, :, t].unsqueeze(-1), alpha, exact=exact)
        outputs.append(recall(theta, query[:, :, t]))
    return torch.stack(outputs, 2), theta
