"""Bodies of optimisers: before, debias, order of memories, steps, nesting; and rules as expressions."""

from __future__ import annotations

from typing import Any

import pytest

from nestflow.graph.build import optimizer_rule
from nestflow.ir.node import walk
from nestflow.ir.rule import DgdStep, Rule, SetWeight, SlotUpdate, Step
from tests.graph.building import HEAD, codes, graph, level, memory, mistake, mistakes


def rule(body: str, slots: str = "lr = 0.1", **arguments: Any) -> Rule:
    return optimizer_rule(HEAD + f"optimizer o({slots}) {{\n{body}\n}}\n", arguments)


def on_weights(update: str, more: str = "") -> Rule:
    g = graph(f"""
        input x : float[T, 8]
        output f(x)
        flow f(x) {{ return linear(rmsnorm(x), 4) }}
        level outer {{ every 1 step; memory weights(f); objective mean(f(x) ^ 2); update {update} }}
        {more}
    """)
    found = g.step_levels[0].rule
    assert found is not None
    return found


def test_adam_is_two_memories_and_a_step() -> None:
    r = optimizer_rule("optimizers.adam", {})
    assert [(s.name, s.like) for s in r.slots] == [("m", "w"), ("v", "w")]
    assert [type(s) for s in r.program] == [SlotUpdate, SlotUpdate, Step]
    assert {k: v.value for k, v in r.arguments} == {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def test_arguments_are_given_by_name() -> None:
    assert optimizer_rule("optimizers.adam", {"lr": 3e-3}).argument("lr").value == 3e-3
    assert codes(lambda: optimizer_rule("optimizers.adam", {"learning_rate": 3e-3})) == ["NF202"]


def test_before_reads_the_old_state_anywhere() -> None:
    r = rule("u = before(m)\nmemory m : like(w) { value g; update gd(1 - 0.9); retain 0.9 }\nstep -lr * sign(u)")
    step = r.program[-1]
    assert isinstance(step, Step)
    assert [n.op for n in walk(step.value) if n.op.startswith("slot")] == ["slot_old"]


def test_a_memorys_name_is_its_new_state() -> None:
    r = rule("memory m : like(w) { value g; update gd(1); retain 0.9 }\nstep -lr * m")
    step = r.program[-1]
    assert isinstance(step, Step) and any(n.op == "slot_new" for n in walk(step.value))


@pytest.mark.parametrize(
    "body",
    [
        "u = m\nmemory m : like(w) { value g; update gd(1) }\nstep -lr * u",
        "memory m : like(w) { value g + m; update gd(1) }\nstep -lr * m",
        "u = debias(m)\nmemory m : like(w) { value g; update gd(1) }\nstep -lr * u",
    ],
)
def test_read_above_its_own_statement(body: str) -> None:
    found = mistakes(lambda: rule(body))
    assert found[0].code == "NF235" and found[0].help == "`before(m)` is its state before this tick"


def test_an_ema_is_a_retain_and_a_share() -> None:
    (update, _) = rule("memory m : like(w) { value g; update gd(1 - 0.9); retain 0.9 }\nstep -lr * m").program
    assert isinstance(update, SlotUpdate)
    assert update.value.op == "add" and {a.op for a in update.value.args} == {"mul"}


def test_l2_is_the_lerp_of_the_paper() -> None:
    (update, _) = rule("memory m : like(w) { value g; objective l2; update gd(0.1) }\nstep -lr * m").program
    assert isinstance(update, SlotUpdate) and any(n.op == "slot_old" for n in walk(update.value))


def test_a_period_sums_in_between() -> None:
    r = rule("memory m : like(w) { value g; update gd(1); every 8 ticks }\nstep -lr * m")
    assert [s.name for s in r.slots] == ["m", "m.pending"]
    assert isinstance(r.program[0], SlotUpdate) and (r.program[0].every, r.program[0].pending) == (8, "m.pending")


def test_set_and_eval() -> None:
    r = rule("memory x : like(w) { value w; update gd(1); init w }\nset w - lr * g\neval x")
    assert isinstance(r.program[-1], SetWeight) and r.eval is not None
    assert r.slots[0].init.op == "w"


def test_names_conditions_and_repeats() -> None:
    r = rule(
        "u = g\nrepeat 3 { u = u + w }\nif flag { u = -u } else { u = u * 2 }\nstep -lr * u", "lr = 0.1, flag = true"
    )
    step = r.program[0]
    assert isinstance(step, Step) and sum(n.op == "w" for n in walk(step.value)) == 1


def test_a_step_after_a_step_sees_the_new_weight() -> None:
    r = on_weights("adamw(1e-3) |> trust(0.5)", "")
    assert r.slots and isinstance(r.program[-1], Step)


def test_optimisers_nest() -> None:
    r = on_weights("lookahead(adam(1e-3))")
    assert [s.name for s in r.slots][-1] == "slow" and len(r.slots) == 3


def test_what_stands_before_transforms_the_gradient() -> None:
    r = on_weights("g |> clip_norm(1) |> adam(1e-3)")
    assert any(n.op == "norm_all" for n in walk(r.gradient))
    assert r.arguments[0][0] == "lr"


def test_an_optimiser_takes_the_gradient_first() -> None:
    assert any(n.op == "n_ticks" for n in walk(on_weights("adam(g / n_ticks, 1e-3)").gradient))


def test_a_step_may_be_an_expression() -> None:
    (step,) = on_weights("-0.1 * g").program
    assert isinstance(step, Step)


def test_the_same_optimiser_serves_on_tokens() -> None:
    r = memory(level(update="adam(lr = 0.01 * sigmoid(linear(x, 1)))")).rule
    assert r is not None and r.argument("lr").type.batch, "its rate is a function of the token"


def test_dgd_and_what_may_stand_before_it() -> None:
    r = on_weights("(g / n_ticks) |> clip_norm(1) |> dgd(0.1)")
    step = r.program[0]
    assert isinstance(step, DgdStep) and step.scale is not None and step.exact and not step.normalize
    assert codes(lambda: on_weights("sign(g) |> dgd(0.1)")) == ["NF408"]
    assert codes(lambda: on_weights("dgd(0.1) |> trust(1)")) == ["NF205"]
    assert codes(lambda: on_weights("dgd(0.1, only = 3)")) == ["NF238"]


def test_a_schedule_is_an_argument() -> None:
    assert on_weights("adam(cosine(1e-3, warmup = 10))").argument("lr").op == "schedule"


# --- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("step lr", "NF323"),
        ("memory m : like(w) { update gd(1) }\nstep -lr * g", "NF234"),
        ("memory m : like(w) { value g }\nstep -lr * g", "NF234"),
        ("memory m : scalar { value g; update gd(1) }\nstep -lr * g", "NF301"),
        ("memory m : l2 { value g; update gd(1) }\nstep -lr * g", "NF226"),
        ("memory m : like(w) { value g; update gd(1); retian 0.9 }\nstep -lr * m", "NF221"),
        ("memory m : like(w) { value g; value g; update gd(1) }\nstep -lr * m", "NF222"),
        ("memory m : like(w) { value g; update gd(1); every 0 ticks }\nstep -lr * m", "NF406"),
        ("memory m : like(w) { value g; update gd(1); every 2 steps }\nstep -lr * m", "NF401"),
        ("memory m : like(w) { value g; update gd(1) }\nmemory m : like(w) { value g; update gd(1) }", "NF220"),
        ("step -lr * before(v)", "NF237"),
        ("step -lr * before(g)", "NF237"),
        ("step -lr * (g |> before)", "NF237"),
        ("return g", "NF217"),
        ("key g\nstep -lr * g", "NF217"),
        ("t = 3\nstep -lr * g", "NF219"),
        ("step -lr * gg", "NF201"),
        ("step -lr * rmsnorm(g)", "NF547"),
        ("step -lr * linear(g, 3)", "NF547"),
        ("a, b = g\nstep -lr * a", "NF314"),
    ],
)
def test_what_a_body_cannot_say(body: str, code: str) -> None:
    found = mistakes(lambda: rule(body))
    assert found[0].code == code and found[0].span is not None


def test_every_mistake_of_a_body_is_told() -> None:
    body = "a = g1\nmemory m : like(w) { value g2; update gd(1) }\nstep -lr * g3"
    assert [d.message.split("`")[1] for d in mistakes(lambda: rule(body))] == ["g1", "g2", "g3"]


def test_an_optimiser_that_nothing_calls_is_looked_at() -> None:
    text = "optimizer o(lr) { step -lr * gg }\ninput x : float[T, 8]\noutput x\n"
    assert codes(lambda: graph(text)) == ["NF201"]


def test_an_optimiser_without_step() -> None:
    more = "optimizer o(lr) { memory m : like(w) { value g; update gd(1) } }"
    assert codes(lambda: on_weights("o(0.1)", more)) == ["NF236"]


def test_an_optimiser_that_calls_itself() -> None:
    assert codes(lambda: on_weights("o(0.1)", "optimizer o(lr) { step o(lr) }")) == ["NF433"]
    more = "optimizer a(lr) { step b(lr) }\noptimizer b(lr) { step a(lr) }"
    assert codes(lambda: on_weights("a(0.1)", more)) == ["NF433"]


@pytest.mark.parametrize(
    ("update", "shape"),
    [("-0.1 * (g @ w)", "[4, 8]"), ("-0.1 * (g @ transpose(w))", "[4, 8]"), ("-0.1 * transpose(g)", "[4, 8]")],
)
def test_shapes_inside_a_rule_are_those_of_the_weights(update: str, shape: str) -> None:
    d = mistake(lambda: on_weights(update))
    assert d.code == "NF301" and shape in d.message + str(d.help)


def test_a_rule_that_fits() -> None:
    on_weights("-0.1 * (g @ transpose(w) @ w if ndim(w) == 2 else g)")


def test_a_vector_of_another_weight_is_told() -> None:
    """rmsnorm's gain has one axis: it has no transpose."""
    d = mistake(lambda: on_weights("-0.1 * (g @ transpose(w) @ w)"))
    assert d.code == "NF301" and "f.rmsnorm.weight" in d.message


def test_shapes_inside_a_rule_on_tokens() -> None:
    d = mistake(lambda: level(update="-0.1 * (g @ w)", value="linear(x, 3)"))
    assert d.code == "NF301" and "memory.weight" in d.message and "[3, 8]" in d.message
