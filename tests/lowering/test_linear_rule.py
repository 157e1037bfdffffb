"""The symbolic linearity test: which rules have a closed form, and what it is."""

from __future__ import annotations

import pytest

from nestflow.graph.build import build
from nestflow.graph.model import Memory
from nestflow.ir import ops
from nestflow.language.resolve import load
from nestflow.lowering.linear_rule import LinearRule, NotLinear, linear_rule

TEXT = """nestflow 1
input x : float[T, 4]
input a : float[T, 1]
output mem(x, a)
optimizer two_way(lr) {{
  memory m : like(w) {{ value before(n); update gd(1) }}
  memory n : like(w) {{ value m; update gd(1) }}
  step -lr * n
}}
level mem(x, a) {{ every 1 token; chunk 4; memory mlp(depth = 2, bias = true); key x; value x; query x; objective l2
  update {update}; retain a }}
"""


def memory(update: str) -> Memory:
    graph = build(load(TEXT.format(update=update)))
    return next(i for i in graph.root.walk() if i.kind == "level").memories[0]


def rule(update: str, tensor: int = 0) -> LinearRule:
    m = memory(update)
    assert m.function is not None
    return linear_rule(m, m.function.tensors[tensor])


def shape(r: LinearRule) -> list[tuple[str, list[str]]]:
    return [(c.slot, [where for where, _ in c.drive]) for c in r.carries]


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ("gd(a)", [("", ["g"])]),
        ("-0.1 * g", [("", ["g"])]),
        ("(g / n_ticks) |> gd(0.1)", [("", ["g"])]),
        ("momentum(0.1, a)", [("s", ["g"]), ("", ["new:s"])]),
        ("nesterov(0.1, 0.9)", [("m", ["g"]), ("", ["g", "new:m"])]),
        ("schedule_free(0.1)", [("z", ["g"]), ("x", ["new:z"]), ("", ["new:z", "new:x"])]),
        ("dgd(0.1)", [("", ["g"])]),
    ],
)
def test_linear(update: str, expected: list[tuple[str, list[str]]]) -> None:
    assert shape(rule(update)) == expected


def test_coefficients_of_gd() -> None:
    """θ_t = a θ_{t−1} − 0.1 g_t."""
    (carry,) = rule("-0.1 * g").carries
    assert carry.decay.type.is_number and not ops.is_const(carry.decay)
    assert [c.value for _, c in carry.drive] == [-0.1]


def test_facts_differ_from_tensor_to_tensor() -> None:
    update = "-0.1 * g - (0.01 if ndim(w) >= 2 else 0) * w"
    matrix, vector = rule(update, 0), rule(update, 1)
    assert matrix.carries[-1].decay is not vector.carries[-1].decay


@pytest.mark.parametrize(
    ("update", "why"),
    [
        ("adam(0.1)", "applies"),
        ("muon(0.1)", "newton_schulz"),
        ("g |> clip_norm(1) |> gd(0.1)", "norm_all"),
        ("lion(0.1)", "sign"),
        ("-0.1 * g * g", "mul"),
        ("-0.1 * sign(g)", "sign"),
        ("-0.1 * (g + 1)", "does not come from g"),
        ("-0.1 * (w - w0)", "w0"),
        ("two_way(0.1)", "read each other"),
    ],
)
def test_not_linear(update: str, why: str) -> None:
    with pytest.raises(NotLinear, match=why):
        rule(update)
