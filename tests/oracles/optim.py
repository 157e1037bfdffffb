"""Optimisers as plain loops over tensors, from the published update rules. States start at 0, t counts from 1.

Each rule is made with its rates and then called as ``rule.step(weights, grads)``, which returns the new weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)


class Rule:
    """Base: one dictionary of state for each weight, and the number of steps so far."""

    def __init__(self) -> None:
        self.t = 0
        self.states: list[dict[str, Tensor]] = []

    def step(self, weights: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """One step on every weight; returns the new ones."""
        self.t += 1
        if not self.states:
            self.states = [{} for _ in weights]
        return [self.one(w, g, s) for w, g, s in zip(weights, grads, self.states, strict=True)]

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        """The new weight."""
        raise NotImplementedError


def ema(s: dict[str, Tensor], name: str, value: Tensor, keep: float, rate: float) -> Tensor:
    """s[name] ← keep·s[name] + rate·value, from 0."""
    s[name] = keep * s.get(name, torch.zeros_like(value)) + rate * value
    return s[name]


class Sgd(Rule):
    """torch's SGD: the decay is coupled, the first buffer is the first gradient."""

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__()
        self.lr, self.mu, self.damp, self.wd, self.nesterov = lr, momentum, dampening, weight_decay, nesterov

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        g = g + self.wd * w
        if self.mu:
            s["m"] = self.mu * s["m"] + (1 - self.damp) * g if "m" in s else g
            g = g + self.mu * s["m"] if self.nesterov else s["m"]
        return w - self.lr * g


class Momentum(Rule):
    """S ← βS − lr·g, w ← w + S: the rate is inside the memory (Titans; NL eq. 33)."""

    def __init__(self, lr: float, beta: float) -> None:
        super().__init__()
        self.lr, self.beta = lr, beta

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        return w + ema(s, "s", g, self.beta, -self.lr)


class Adam(Rule):
    """Kingma and Ba; ``weight_decay`` is AdamW's, which shrinks the weight first."""

    def __init__(
        self, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        self.lr, self.b1, self.b2, self.eps, self.wd = lr, beta1, beta2, eps, weight_decay

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        m = ema(s, "m", g, self.b1, 1 - self.b1) / (1 - self.b1**self.t)
        v = ema(s, "v", g * g, self.b2, 1 - self.b2) / (1 - self.b2**self.t)
        return w * (1 - self.lr * self.wd) - self.lr * m / (v.sqrt() + self.eps)


class Rmsprop(Rule):
    """v ← αv + (1−α)g², step −lr·g/(√v + eps)."""

    def __init__(self, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__()
        self.lr, self.alpha, self.eps = lr, alpha, eps

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        return w - self.lr * g / (ema(s, "v", g * g, self.alpha, 1 - self.alpha).sqrt() + self.eps)


class Adagrad(Rule):
    """v ← v + g², step −lr·g/(√v + eps)."""

    def __init__(self, lr: float = 1e-2, eps: float = 1e-10) -> None:
        super().__init__()
        self.lr, self.eps = lr, eps

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        return w - self.lr * g / (ema(s, "v", g * g, 1.0, 1.0).sqrt() + self.eps)


class Lion(Rule):
    """Chen et al. 2023: the sign of β1·m + (1−β1)·g with the *old* m, then m ← β2·m + (1−β2)·g."""

    def __init__(self, lr: float = 1e-4, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.lr, self.b1, self.b2, self.wd = lr, beta1, beta2, weight_decay

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        direction = (self.b1 * s.get("m", torch.zeros_like(g)) + (1 - self.b1) * g).sign()
        ema(s, "m", g, self.b2, 1 - self.b2)
        return w - self.lr * (direction + self.wd * w)


def newton_schulz(
    g: Tensor, iters: int = 5, coefficients: tuple[float, float, float] = QUINTIC, eps: float = 1e-7
) -> Tensor:
    """X / max(‖X‖_F, eps), then aX + (bA + cA²)X with A = XXᵀ on the shorter side; a vector passes unchanged."""
    if g.ndim < 2:
        return g
    a, b, c = coefficients
    x = g.reshape(g.shape[0], -1)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(iters):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).reshape(g.shape)


class Muon(Rule):
    """Jordan et al. 2024 in torch's form, with Newton-Schulz in the dtype of the gradient."""

    def __init__(
        self, lr: float = 0.02, beta: float = 0.95, iters: int = 5, weight_decay: float = 0.0, nesterov: bool = True
    ) -> None:
        super().__init__()
        self.lr, self.beta, self.iters, self.wd, self.nesterov = lr, beta, iters, weight_decay, nesterov

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        m = ema(s, "m", g, self.beta, 1 - self.beta)
        n = (1 - self.beta) * g + self.beta * m if self.nesterov else m
        rows, cols = w.shape[0], max(1, w[0].numel())
        scale = max(1.0, rows / cols) ** 0.5
        return w * (1 - self.lr * self.wd) - self.lr * scale * newton_schulz(n, self.iters)


class M3(Rule):
    """Multi-scale momentum Muon (NL algorithm 1) as printed: sums without decay, the slow memory used one step late."""

    def __init__(
        self, lr: float, beta1: float, beta2: float, beta3: float, alpha: float, eps: float = 1e-8, period: int = 8
    ) -> None:
        super().__init__()
        self.lr, self.b1, self.b2, self.b3 = lr, beta1, beta2, beta3
        self.alpha, self.eps, self.period = alpha, eps, period

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        zero = torch.zeros_like(g)
        slow, pending = s.get("slow", zero), s.get("pending", zero)
        if self.t > 1 and (self.t - 1) % self.period == 0:
            slow, pending = slow + self.b3 * pending, zero
        s["slow"], s["pending"] = slow, pending + g
        fast = ema(s, "fast", g, 1.0, self.b1)
        power = ema(s, "power", g * g, 1.0, self.b2)
        return w - self.lr * (newton_schulz(fast) + self.alpha * newton_schulz(slow)) / (power.sqrt() + self.eps)


class ScheduleFree(Rule):
    """Defazio et al. 2024, SGD: z takes the step, x is the mean of the z, the weight is (1−β)z + βx."""

    def __init__(self, lr: float, beta: float = 0.9) -> None:
        super().__init__()
        self.lr, self.beta = lr, beta

    def one(self, w: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        s["z"] = s.get("z", w) - self.lr * g
        x = s.get("x", w)
        s["x"] = x + (s["z"] - x) / self.t
        return (1 - self.beta) * s["z"] + self.beta * s["x"]

    def averages(self) -> list[Tensor]:
        """The weights to evaluate."""
        return [s["x"] for s in self.states]


def dgd_exact(w: Tensor, grad: Tensor, inputs_ND: Tensor, lr: float) -> Tensor:
    """Delta gradient descent on a batch: W − η(W K + G), K = mean of x xᵀ, η = lr/(1 + lr·tr K)."""
    gram = inputs_ND.mT @ inputs_ND / inputs_ND.shape[0]
    eta = lr / (1 + lr * gram.trace())
    return w - eta * (w @ gram + grad)
