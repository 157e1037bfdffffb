"""MesaNet's answer is that of the best map for the history so far: the loss of all pairs is stationary there."""

from __future__ import annotations

import torch

from tests.zoo.bare import CASES, WIDTH
from tests.zoo.test_recurrences import bundle, weights


def test_the_answer_is_that_of_the_best_fit() -> None:
    case = next(c for c in CASES if c.name == "mesa")
    inputs = case.inputs(1, 9, seed=2)
    heads = {n: x.detach().unflatten(-1, (2, -1)).transpose(1, 2)[0] for n, x in inputs.items()}
    ridge = torch.nn.functional.softplus(weights(case)["mem.ridge.learned"].detach()) + 0.25
    y = bundle("mesa").module(**inputs).detach().unflatten(-1, (2, WIDTH)).transpose(1, 2)[0]
    for h in range(2):
        k, v, q, b, a = (heads[n][h] for n in "kvqba")
        for t in (0, 3, 8):
            reach = b[: t + 1, 0] * torch.stack([a[i + 1 : t + 1, 0].prod(0) for i in range(t + 1)])
            w = torch.zeros(WIDTH, WIDTH, dtype=torch.float64, requires_grad=True)
            newton = torch.optim.LBFGS([w], lr=1, max_iter=200, tolerance_grad=1e-13, tolerance_change=0)

            def loss(k=k, v=v, reach=reach, w=w, h=h, t=t) -> torch.Tensor:  # type: ignore[no-untyped-def]
                fit = ((k[: t + 1] @ w.mT - v[: t + 1]).square().sum(-1) * reach).sum() / 2
                return fit + (w.square() * ridge[h]).sum() / 2

            def closure(newton=newton, loss=loss) -> torch.Tensor:  # type: ignore[no-untyped-def]
                newton.zero_grad()
                value = loss()
                value.backward()
                return value

            newton.step(closure)
            torch.testing.assert_close(y[h, t], w.detach() @ q[t], rtol=1e-6, atol=1e-8)
