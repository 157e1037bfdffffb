"""Reverse mode on the IR against torch.autograd: every operation that a memory or an objective may use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nestflow.bundle.source import load_source
from nestflow.emit.expr import Emitter
from nestflow.emit.writer import Writer
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.ir.pullback import NotDifferentiable, gradient, times
from nestflow.ops.runtime import Context

B, T, D = 2, 3, 4
ROW = Type(shape=(D,), batch=True, clock="T")
x, y = ops.leaf("slot", ROW, name="x"), ops.leaf("slot", ROW, name="y")
m = ops.leaf("slot", Type(shape=(D, 3), batch=True, clock="T"), name="m")
w = ops.leaf("slot", Type(shape=(5, D)), name="w")
gain, bias = ops.leaf("slot", Type(shape=(D,)), name="gain"), ops.leaf("slot", Type(shape=(D,)), name="bias")
LEAVES = {n: n["name"] for n in (x, y, m, w, gain, bias)}
_BACKWARD = {
    "gelu_backward": "torch.ops.aten.gelu_backward({}, {})",
    "gelu_tanh_backward": 'torch.ops.aten.gelu_backward({}, {}, approximate="tanh")',
}


def values(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"x": (B, T, D), "y": (B, T, D), "m": (B, T, D, 3), "w": (5, D), "gain": (D,), "bias": (D,)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}


def evaluate(node: Node, given: dict[str, Tensor]) -> Tensor:
    """Run the emitted statements of one expression."""
    writer = Writer()

    def special(n: Node) -> str | None:
        if n.op == "position":  # a class
            return "torch.full((), 2)"
        if n.op in _BACKWARD:
            return _BACKWARD[n.op].format(*(em.value(a) for a in n.args))
        return None

    em = Emitter(writer, dict(LEAVES), special=special, ticks=str(T), batch=str(B))
    body = em.value(node)
    lines = "\n".join("    " + line for line in [*writer.lines, f"return {body}"])
    text = (
        f"import torch\nimport torch.nn.functional as F\nfrom nestflow.ops.blocks import *\n"
        f"from nestflow.ops.matrices import *\n\n\n"
        f"def f(c, {', '.join(given)}):\n{lines}\n"
    )
    result = load_source(text, "expression.py").f(Context({}, {}, 0, True, torch.float64, torch.device("cpu")), **given)
    return torch.as_tensor(result, dtype=torch.float64)


def u(op: str) -> Callable[[], Node]:
    return lambda: ops.unary(op, x)


def positive(op: str) -> Callable[[], Node]:
    return lambda: ops.unary(op, ops.binary("add", ops.unary("square", x), ops.const(0.5)))


def b(op: str) -> Callable[[], Node]:
    return lambda: ops.binary(op, x, y)


CASES: dict[str, Callable[[], Node]] = {
    **{
        op: u(op)
        for op in [
            "neg",
            "exp",
            "abs",
            "square",
            "relu",
            "sigmoid",
            "tanh",
            "silu",
            "gelu",
            "gelu_tanh",
            "softplus",
            "elu1",
            "log_sigmoid",
        ]
    },
    **{op: positive(op) for op in ("log", "sqrt", "inverse_softplus")},
    **{op: b(op) for op in ("add", "sub", "mul", "div", "max", "min")},
    "broadcast": lambda: ops.binary("mul", x, gain),
    "number": lambda: ops.binary("mul", ops.index(x, 0), y),
    "pow 3": lambda: ops.binary("pow", x, ops.const(3)),
    "pow 2": lambda: ops.binary("pow", x, ops.const(2)),
    "pow y": lambda: ops.binary("pow", ops.binary("add", ops.unary("square", x), ops.const(0.5)), y),
    "tie": lambda: ops.binary("max", x, x),
    "where": lambda: ops.where(ops.binary("gt", x, y), x, ops.unary("square", y)),
    "sum": lambda: ops.binary("mul", ops.reduce("sum", x), y),
    "sum keep": lambda: ops.binary("mul", ops.reduce("sum", m, 0, True), m),
    "mean": lambda: ops.reduce("mean", m, 1),
    "amax": lambda: ops.binary("mul", ops.reduce("amax", x), y),
    "amax axis": lambda: ops.reduce("amax", m, 0),
    "linear": lambda: ops.linear(x, w),
    "linear rows": lambda: ops.linear(ops.transpose(m), w),
    "matmul": lambda: ops.matmul(x, m),
    "matmul right": lambda: ops.matmul(ops.transpose(m), x),
    "matmul two": lambda: ops.matmul(ops.transpose(m), m),
    "matmul one": lambda: ops.matmul(x, y),
    "transpose": lambda: ops.transpose(m),
    "outer": lambda: ops.outer(x, y),
    "inner": lambda: ops.inner(x, y),
    "inner rows": lambda: ops.inner(ops.transpose(m), x),
    "softmax": lambda: ops.rowwise("softmax", x),
    "log_softmax": lambda: ops.rowwise("log_softmax", x),
    "l2norm": lambda: ops.rowwise("l2norm", x, eps=1e-6),
    "rmsnorm": lambda: ops.rowwise("rmsnorm", x, gain, eps=1e-6),
    "layernorm": lambda: ops.rowwise("layernorm", x, gain, bias, eps=1e-5),
    "concat": lambda: ops.concat((x, y)),
    "concat rows": lambda: ops.concat((m, ops.outer(x, y))),
    "index": lambda: ops.index(x, 2),
    "slice": lambda: ops.index(x, (1, 3)),
    "index rows": lambda: ops.index(m, 1),
    "reshape": lambda: ops.reshape(m, (3, D)),
    "stop": lambda: ops.binary("mul", ops.stop(x), y),
    "diag": lambda: ops.matmul(ops.diag(x), y),
    "diagonal": lambda: ops.binary("mul", ops.diag(ops.outer(x, y)), x),
    "trace": lambda: ops.binary("mul", ops.trace(ops.outer(x, y)), x),
    "solve": lambda: ops.solve(positive_matrix(), y),
    "solve columns": lambda: ops.solve(positive_matrix(), m),
    "solve cg": lambda: ops.solve(positive_matrix(), y, "cg", 12),
    "root": lambda: ops.matmul(ops.matrix_function("matrix_root", positive_matrix(), p=-4.0), y),
    "eigenvectors": lambda: ops.matmul(ops.matrix_function("eigenvectors", positive_matrix()), y),
    "qr": lambda: ops.qr(m),
    "log_prob": lambda: ops.log_prob(x, ops.leaf("position", Type("int"))),
    "kl": lambda: ops.kl_divergence(x, y),
}


def positive_matrix() -> Node:
    """Symmetric, positive, with eigenvalues that differ."""
    own = ops.diag(ops.binary("add", ops.unary("square", x), ops.const(0.5)))
    return ops.binary("add", ops.matmul(m, ops.transpose(m)), own)


@pytest.mark.parametrize("name", CASES)
def test_pullback_equals_autograd(name: str) -> None:
    """The cotangents that come out per tick, summed over what a shared leaf is stretched along."""
    node, given = CASES[name](), values()
    probe = ops.unary("tanh", node)  # a nonlinear objective on top
    objective = probe if not node.type.shape else ops.reduce("sum", probe)
    found = gradient(objective, list(LEAVES))
    used = [n for n in LEAVES if n in found.dense or n in found.factors]
    want = torch.autograd.grad(evaluate(objective, given).sum(), [given[LEAVES[n]] for n in LEAVES], allow_unused=True)
    assert used
    for leaf, expected in zip(LEAVES, want, strict=True):
        total = torch.zeros_like(given[LEAVES[leaf]])
        if leaf in found.dense:
            total = total + summed(evaluate(found.dense[leaf], given), total)
        for h, e in found.factors.get(leaf, ()):
            hv, ev = evaluate(h, given).flatten(0, -2), evaluate(e, given).flatten(0, -2)
            total = total + ev.mT @ hv
        torch.testing.assert_close(
            total, torch.zeros_like(total) if expected is None else expected, rtol=1e-10, atol=1e-10
        )


def summed(g: Tensor, like: Tensor) -> Tensor:
    return g.sum(tuple(range(g.dim() - like.dim()))) if g.dim() > like.dim() else g


def test_constants_fold() -> None:
    """½‖p − v‖² gives e = p − v, not 2 · 0.5 · (p − v)."""
    p = ops.linear(x, w)
    v = ops.leaf("slot", Type(shape=(5,), batch=True, clock="T"), name="v")
    e = ops.binary("sub", p, v)
    found = gradient(ops.binary("mul", ops.const(0.5), ops.reduce("sum", ops.unary("square", e))), [w])
    assert found.factors[w] == [(x, e)]
    assert times(ops.const(2.0), ops.binary("mul", ops.const(0.5), x)) is x


def test_seed_multiplies_the_error() -> None:
    rate = ops.leaf("slot", Type(batch=True, clock="T"), name="rate")
    p = ops.linear(x, w)
    found = gradient(ops.reduce("sum", p), [w], rate)
    ((h, e),) = found.factors[w]
    assert h is x and any(n is rate for n in (e, *e.args, *(a for b_ in e.args for a in b_.args)))


def test_what_has_no_derivative_is_told() -> None:
    with pytest.raises(NotDifferentiable, match="newton_schulz"):
        from nestflow.ir.node import make

        gradient(ops.reduce("sum", make("newton_schulz", (m,), m.type, iters=1)), [m])


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "max", "min", "pow"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_sum_of_what_was_stretched(op: str, turned: bool) -> None:
    """The cotangent of a plain sum is a number for all elements: an operand that was stretched counts as often as it
    stands there."""
    one = ops.binary("add", ops.const(0.5), ops.reduce("mean", ops.unary("square", x)))
    rows = ops.binary("add", ops.const(0.5), ops.reduce("mean", ops.unary("square", m), -1, keep=True))
    objective = ops.reduce("sum", ops.binary(op, *((rows, one) if turned else (one, rows))))
    given, found = values(), gradient(objective, [x, m])
    want = torch.autograd.grad(evaluate(objective, given).sum(), [given["x"], given["m"]])
    for leaf, expected in zip((x, m), want, strict=True):
        torch.testing.assert_close(evaluate(found.dense[leaf], given), expected, rtol=1e-10, atol=1e-10)
