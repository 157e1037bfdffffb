"""A level whose objective has no gradient in its own memory would never learn: that is told, and nothing else is."""

from __future__ import annotations

import pytest

import nestflow
from nestflow.diagnostics.core import NestflowError

HEAD = """nestflow 1
input x : float[8]
input label : int in [0, 4)
output net(x)
flow net(x) { return x |> linear(4) }
"""
META = "level meta { every 1 step; memory weights(net); objective cross_entropy(task(x), label); update gd(0.1) }\n"
TASK = "level task { memory net; init meta; reset each(step); rounds 2; objective OBJECTIVE; update RULE }\n"
OUTER = "level a { every 1 step; memory weights(net); objective cross_entropy(net(x), label); update gd(1) }\n"
OTHER = "flow other(x) { return x |> linear(4) }\n"


def task(objective: str, rule: str = "gd(0.1)") -> str:
    return HEAD + TASK.replace("OBJECTIVE", objective).replace("RULE", rule) + META


def own(memory: str, objective: str) -> str:
    return HEAD + OTHER + OUTER + f"level b {{ every 1 step; memory {memory}; objective {objective}; update gd(1) }}\n"


TOKENS = (
    "nestflow 1\ninput x : float[T, 8]\noutput f(x)\nflow f(x) { return linear(x) }\nflow h(x) { return linear(x) }\n"
)
READING = "level a { every 4 tokens; memory weights(f); objective OBJECTIVE; update gd(0.1) }\n"
SLOW = "level b { every 1 step; memory weights(h); objective mean(h(x)); update gd(0.1) }\n"


def reading(objective: str) -> str:
    return TOKENS + READING.replace("OBJECTIVE", objective) + SLOW


LEVEL = "nestflow 1\ninput x : float[T, 8]\noutput m(x)\nlevel m(x) { memory matrix; key x; value x; query x; "

BY_CRITIC = TASK.replace("OBJECTIVE", "critic(task(x))").replace("RULE", "gd(0.1)")
CRITIC = (
    HEAD
    + "flow critic(p) { return mean(square(p |> linear(2))) }\n"
    + BY_CRITIC.replace("rounds 2", "rounds 2; gradient HOW")
    + META
    + "level c { every 1 step; memory weights(critic); objective cross_entropy(task(x), label); update gd(1) }\n"
)

NEVER = {
    "what steps under gradient stop are made of": (CRITIC.replace("HOW", "stop"), "`c`", "`critic`"),
    "a copy that its objective does not recall": (task("cross_entropy(net(x), label)"), "task", "task(…)"),
    "a copy recalled under stop": (task("mean(stop(task(x))) + mean(net(x))"), "task", "outside `stop(…)`"),
    "a flow below a sign": (own("weights(other)", "mean(net(x)) + mean(sign(other(x)))"), "b", "`sign`"),
    "a flow in a comparison": (own("weights(other)", "mean(where(other(x) > 0, 1.0, 2.0))"), "b", "comparisons"),
    "a memory below a sign": (
        LEVEL + "objective inner(sign(M(key)), value); update gd(0.1) }\n", "where no gradient passes", "`sign`"
    ),
    "weights of another flow": (own("weights(other)", "mean(net(x)) + 0 * mean(stop(other(x)))"), "b", "`other`"),
    "a vector that is not named": (own("vector(4)", "mean(net(x))"), "b", "square(b - …)"),
    "weights that learn while reading": (reading("mean(square(h(x)), axis = -1)"), "a", "`f`"),
    "a memory recalled under stop": (
        LEVEL + "objective inner(stop(M(key)), value); update gd(0.1) }\n", "the objective of `memory`", "stop"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER)
def test_what_never_learns_is_told(name: str) -> None:
    text, who, way_out = NEVER[name]
    with pytest.raises(NestflowError) as e:
        nestflow.check(text)
    (d,) = e.value.diagnostics
    assert d.code == "NF407" and who in d.message and "never learn" in d.message
    assert d.span is not None and way_out in (d.help or "")


LEARNS = {
    "what steps are made of": CRITIC.replace("HOW", "through"),
    "what the last step is made of": CRITIC.replace("HOW", "truncate(1)"),
    "the copy in its own objective": task("cross_entropy(task(x), label)"),
    "a rule that asks for no gradient": task("mean(net(x))", "-0.1 * w"),
    "through an optimiser": own("weights(other)", "mean(other(x))").replace("update gd(1) }\n", "update adam(1) }\n"),
    "a vector in its objective": own("vector(4)", "mean(square(net(x) - b))"),
    "a record of what another took": own("like(a)", "total(square(a.g - b))"),
    "values alone": own("weights(other)", "es(mean(stop(other(x))), 0.1, 2)"),
    "below a sign and beside it": own("weights(other)", "mean(sign(other(x)) * other(x))"),
    "where a comparison holds": own("weights(other)", "mean(where(other(x) > 0, other(x), 0.0 * other(x)))"),
    "while reading": reading("mean(square(f(x)), axis = -1)"),
    "some recalls under stop": LEVEL + "objective inner(stop(M(key)) + M(key), value); update gd(0.1) }\n",
}


@pytest.mark.parametrize("name", LEARNS)
def test_what_learns_is_left_alone(name: str) -> None:
    nestflow.check(LEARNS[name])


def test_through_the_start_of_a_copy() -> None:
    """`meta` is reached by the start of `task` alone."""
    nestflow.check(task("cross_entropy(task(x), label)").replace("output net(x)", "output task(x)"))
