"""What draws is seen wherever a spec has it: chance that is passed over is the same in every step."""

from __future__ import annotations

import pytest
import torch

import nestflow
from nestflow.graph.contents import draws_at_random

FIELDS = {
    "key": "key x |> l2norm",
    "value": "value x",
    "query": "query x",
    "objective": "objective l2",
    "update": "update gd(0.1)",
}
SPEC = """nestflow 1
EXECUTION
input x : float[T, 4]
output m(x)
level m(x) { every 1 token; memory matrix; FIELDS }
flow other(x) { return m(x) }
level outer { every 1 step; memory weights(m); objective mean(square(other(x))); update gd(0.1) }
"""
CHANCE = {
    "a key": ("key", "key dropout(x, 0.3)"),
    "a value": ("value", "value x + noise(4)"),
    "a query": ("query", "query dropout(x, 0.3)"),
    "a weight": ("", "weight bernoulli(0.5)"),
    "a retention": ("", "retain sigmoid(mean(noise(4)))"),
    "an occasion": ("", "when bernoulli(0.5) > 0"),
    "a reset": ("", "reset where(bernoulli(0.5) > 0)"),
    "an objective": ("objective", "z = noise(4); objective sum(square(M(key) - value - z))"),
    "a rate": ("update", "rate = bernoulli(0.5); update gd(rate)"),
    "a start": ("", "init normal(0.3)"),
    "a name": ("key", "k = dropout(x, 0.3); key k"),
}


def spec(chance: str, execution: str = "") -> str:
    field, text = CHANCE.get(chance, ("", ""))
    fields = FIELDS | {field or "more": text}
    body = "; ".join(x for x in fields.values() if x)
    return SPEC.replace("EXECUTION", execution).replace("FIELDS", body)


@pytest.mark.parametrize("chance", CHANCE)
def test_chance_is_seen_where_it_stands(chance: str) -> None:
    assert draws_at_random(nestflow.check(spec(chance)))
    with pytest.raises(nestflow.NestflowError, match=r"NF552.*what it draws"):
        nestflow.check(spec(chance, "execution { capture true }"))


def test_what_draws_nothing_is_captured() -> None:
    assert not draws_at_random(nestflow.check(spec("nothing", "execution { capture true }")))


@pytest.mark.parametrize("chance", CHANCE)
def test_another_seed_and_another_step_draw_anew(chance: str) -> None:
    """And it is the interpreter that says what."""
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in (1, 2):
        b = nestflow.compile(spec(chance), dtype="float64", seed=seed)
        b.module.train()
        for _ in range(2):
            reference = b.reference()
            reference.training = True
            found.append(b.module(x=x))
            torch.testing.assert_close(found[-1], reference(x=x), rtol=1e-9, atol=1e-11)
            b.step({"x": x})
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


TASKS = """nestflow 1
EXECUTION
input x : float[T, 4]
output net(x)
level m(x) { every 1 token; memory MEMORY; key x |> l2norm; value x; query x; objective l2; update gd(0.1); FIELDS }
flow net(x) { return x |> linear(4) |> tanh }
level task {
  per task; memory net; init meta; reset each(step); rounds 2; GRADIENT; update gd(0.1)
  objective mean(square(task(x) - INNER)) + 0.3 * square_distance(task, before(meta))
}
level meta { every 1 step; memory weights(net); update gd(0.1); objective mean(square(task(x) - m(x))) }
"""


def tasks(inner: str, execution: str = "", fields: str = "", memory: str = "matrix", gradient: str = "") -> str:
    words = {"EXECUTION": execution, "INNER": inner, "FIELDS": fields, "MEMORY": memory, "GRADIENT; ": gradient}
    text = TASKS
    for old, new in words.items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("chance", ["weight bernoulli(0.5)", "init normal(0.3)", "retain sigmoid(mean(noise(4)))"])
def test_copies_learn_from_nothing_that_draws(chance: str) -> None:
    """Each of them would draw as the first row does."""
    with pytest.raises(nestflow.NestflowError, match=r"NF490.*chance in what a level with a copy for each task"):
        nestflow.check(tasks("m(x)", fields=chance))
    nestflow.check(tasks("x", fields=chance))
    head = tasks("x").partition("level task")[0]
    worker = "level task { per worker(2); every 1 step; memory net; init meta; update gd(0.1)\n"
    worker += "  objective mean(square(task(x) - m(x))) }\n"
    shared = "level meta { every 1 step; memory weights(net); value average(task); objective l2; update gd(0.9) }\n"
    assert nestflow.check(head + worker + shared)
    with pytest.raises(nestflow.NestflowError, match=r"NF490.*chance in what a level with a copy for each worker"):
        nestflow.check(head.replace("gd(0.1); ", f"gd(0.1); {chance} ") + worker + shared)


@pytest.mark.parametrize("chance", ["weight bernoulli(0.5)", "init normal(0.3)"])
def test_parts_of_a_batch_draw_what_the_whole_draws(chance: str) -> None:
    """Beside copies too, which learn from what is certain."""
    x = torch.randn(5, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for parts in (1, 2):
        b = nestflow.compile(tasks("x", f"execution {{ microbatch {parts} }}", chance), dtype="float64", seed=3)
        found.append([b.step({"x": x})["loss"] for _ in range(3)])
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize("gradient", ["", "gradient stop; ", "gradient implicit(cg, iters = 5); "])
@pytest.mark.parametrize("memory", ["matrix", "mlp(depth = 2)"])
def test_a_copy_learns_from_a_memory_of_its_own_row(memory: str, gradient: str) -> None:
    b = nestflow.compile(tasks("m(x)", fields="init 0.2", memory=memory, gradient=gradient), dtype="float64")
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got, want = b.loss({"x": x}), b.reference().loss(b.graph.step_levels[-1].objective, {"x": x})
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    weights = list(b.module.weights.values())
    for a, c in zip(torch.autograd.grad(got, weights), torch.autograd.grad(want, weights), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-11)
