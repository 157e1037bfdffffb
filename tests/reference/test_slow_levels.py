"""Levels without slots: anchors, teachers, clocks of a spec's own. Against plain loops, and compiled = interpreted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nestflow

HEAD = """nestflow 1
input x : float[6]
input label : int in [0, 3)
output net(x)
clock task
clock round = 3 steps
clock season = 2 rounds
flow net(x) { return x |> linear(5, bias = true) |> tanh |> linear(3) }
loss = cross_entropy(net(x), label)
"""
EWC = (Path(__file__).parents[2] / "examples" / "ewc.nl").read_text(encoding="utf-8")
OUTER = "level outer { every 1 step; memory weights(net); objective loss; update gd(0.1) }\n"
SPECS = {
    "teacher": """level outer { every 1 step; memory weights(net); update momentum(0.1, 0.9); retain 0.99
        objective loss + 0.3 * total((outer - before(teacher)) ^ 2) }
        level teacher { every 1 step; memory like(outer); value outer; objective l2; update gd(0.05); init outer }""",
    "teacher of weights before": OUTER
    + "level teacher { every 2 steps; memory like(net); value before(outer); objective l2; update adam(0.01) }",
    "rounds and seasons": OUTER
    + """level slow { every 1 round; memory like(outer); value outer; objective l2
          update nesterov(0.7, 0.9); init outer }
        level slower { every 1 season; memory like(slow); value slow; update replace; init slow }
        level fast { every 1 step; memory like(outer); value outer.g; update gd(1); reset each(round) }
        level kept { every 1 step; memory like(outer); value outer.g; update adam(0.1)
          reset each(slow, keep = rule); init outer }""",
    "weights begin anew": """level outer { every 1 step; memory weights(net); objective loss; update adam(0.05)
          init slow; reset each(round) }
        level slow { every 1 round; memory like(outer); value outer; objective l2; update gd(0.5)
          init outer }""",
    "sums and moments": OUTER
    + """level sums { every 2 steps; memory like(outer); value outer; update gd(0.1); retain 0.5; project ball(0.7) }
        level last { every 2 steps; memory like(outer); value outer; update replace }
        level near { every 1 step; memory like(outer); value outer; objective l2; update prox(0.3); init 0.1 }
        level robust { every 1 step; memory like(outer); value outer; objective huber(0.1); update gd(0.2) }""",
    "numbers": """level outer { every 1 step; memory weights(net); objective loss + 0.1 * baseline ^ 2; update gd(0.1)
          project ball(1.5); when loss > 0.9 * baseline; weight 1 + baseline }
        level baseline { every 1 step; memory scalar; value loss; objective l2; update gd(0.5); init 1 }
        level centre { every 1 step; memory vector(6); value mean(x); update gd(0.1) }
        """.replace("0.1 * baseline ^ 2", "0.1 * before(baseline) ^ 2").replace("before(baseline)", "1"),
    "learned numbers": """level outer { every 1 step; memory weights(net); update gd(0.1)
          objective cross_entropy(net(x) / exp(heat), label) }
        level heat { every 1 step; memory scalar; update adam(0.01); init 0.3
          objective cross_entropy(net(x) / exp(heat), label) + 0.01 * heat ^ 2 }""",
    "updates of another": """level outer { every 2 steps; memory weights(net); objective loss; update gd(0.1) }
        level slow { every 2 updates of outer; memory like(outer); value outer; objective l2; update gd(0.5) }""",
    "a task with a batch": OUTER.replace("weights(net)", 'weights(net, "linear.**")')
    + "level last { every 1 task; memory rest(net); objective loss; update gd(0.3) }",
    "norms": """level outer { every 1 step; memory weights(net); update gd(0.1)
          objective loss + 0.1 * total(norm(outer - anchor)) + 0.1 * total(mean(sqrt(abs(outer)))) }
        level anchor { every never; memory like(outer) }""",
}


def batches(n: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(7, 6, generator=g, dtype=torch.float64)
        yield {"x": x, "label": torch.randint(0, 3, (7,), generator=g)}


def tensors(b: nestflow.Bundle) -> dict[str, Tensor]:
    return {p: w.detach().clone() for p, w in {**b.module.weights, **b.module.kept}.items()}


@pytest.mark.parametrize("name", SPECS)
def test_compiled_equals_interpreted(name: str) -> None:
    b = nestflow.compile(HEAD + SPECS[name], dtype="float64", seed=1)
    slow, at_start = b.reference_steps(), tensors(b)
    for i, batch in enumerate(batches(14)):
        report = b.step(batch)
        losses = slow.step(batch)
        assert report["losses"] == pytest.approx({n: losses[n] for n in report["losses"]}, rel=1e-12)
        if i % 4 == 3:
            given = batch if "batch" in name else None
            b.tick("task", given)
            slow.tick("task", given)
        for p, x in tensors(b).items():
            torch.testing.assert_close(x, slow.tensors[p], rtol=1e-10, atol=1e-12, msg=f"{p} after step {i + 1}")
    moved = [p for p, x in tensors(b).items() if not torch.equal(x, at_start[p])]
    assert {p for p in moved if not p.startswith("anchor")} == {p for p in at_start if not p.startswith("anchor")}


@pytest.mark.parametrize("name", ["rounds and seasons", "weights begin anew", "sums and moments", "numbers"])
def test_saved_and_loaded_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    b = nestflow.compile(HEAD + SPECS[name], seed=1)
    given = [{n: x.float() if n == "x" else x for n, x in batch.items()} for batch in batches(9)]
    for batch in given[:4]:
        b.step(batch)
    b.tick("task")
    b.save(tmp_path / "run")
    other = nestflow.load(tmp_path / "run")
    for batch in given[4:]:
        assert b.step(batch) == other.step(batch)
    b.tick("task")
    other.tick("task")
    assert all(torch.equal(x, tensors(other)[p]) for p, x in tensors(b).items())


def test_elastic_weights_are_the_loop_of_the_paper() -> None:
    """Each task's Fisher, the sum of squared gradients over its steps, anchors what it has learned."""
    b = nestflow.compile(EWC, dtype="float64", strength=0.7, rate=0.1)
    names = list(b.module.weights)
    w = {n: x.detach().clone() for n, x in b.module.weights.items()}
    anchor, importance = dict(w), {n: torch.zeros_like(x) for n, x in w.items()}
    g = torch.Generator().manual_seed(3)
    for _ in range(3):
        fisher = {n: torch.zeros_like(x) for n, x in w.items()}
        for _ in range(4):
            x = torch.randn(5, 8, generator=g, dtype=torch.float64)
            label = torch.randint(0, 4, (5,), generator=g)
            p = {n: v.clone().requires_grad_() for n, v in w.items()}
            out = F.linear(torch.tanh(F.linear(x, p[names[0]])), p[names[1]])
            alone = F.cross_entropy(out, label)
            likelihood = torch.autograd.grad(alone, list(p.values()), retain_graph=True)
            loss = alone + 0.7 * sum((importance[n] * (p[n] - anchor[n]) ** 2).sum() for n in names)
            assert b.step({"x": x, "label": label})["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
            for n, d, e in zip(names, torch.autograd.grad(loss, list(p.values())), likelihood, strict=True):
                w[n], fisher[n] = w[n] - 0.1 * d, fisher[n] + e**2
        b.tick("task")
        anchor, importance = dict(w), {n: importance[n] + fisher[n] for n in names}
        for n in names:
            torch.testing.assert_close(b.module.weights[n].detach(), w[n])
            torch.testing.assert_close(b.module.kept[n.replace("net.", "importance.")].detach(), importance[n])
            assert torch.equal(b.module.kept[n.replace("net.", "anchor.")], b.module.weights[n])


def test_the_gradient_of_a_level_inside_a_step_is_told() -> None:
    text = (
        OUTER + "level probe { memory net; init outer; reset each(step); objective mean(probe(x)); update gd(0.1) }\n"
    )
    text += "level seen { every 1 step; memory like(outer); value probe.g; update gd(1) }\n"
    with pytest.raises(nestflow.NestflowError, match=r"NF490.*`g` of a level that begins anew"):
        nestflow.check(HEAD + text)


def test_what_a_level_keeps_is_no_weight() -> None:
    b = nestflow.compile(HEAD + SPECS["teacher"])
    assert set(b.module.kept) == {p.replace("net.", "teacher.") for p in b.module.weights}
    assert not any(p.requires_grad for p in b.module.kept.values())
    assert set(b.module.state_dict()) == {*b.module.weights, *b.module.kept}
    row = next(r for r in b.graph.levels if r.name == "teacher")
    assert (row.parameters, row.state) == (0, sum(w.numel() for w in b.module.weights.values()))
    assert {(e.kind, e.source, e.target) for e in b.graph.edges} >= {
        ("generates", "outer", "teacher"),
        ("initialises", "outer", "teacher"),
        ("context", "teacher", "outer"),
    }


WRONG = {
    "NF418": OUTER.replace("objective loss", "objective loss + total((outer - slow) ^ 2)")
    + "level slow { every 1 step; memory like(outer); value outer; update gd(0.1) }",
    "NF401": OUTER + "level slow { every 1 epoch; memory like(outer); value outer; update gd(0.1) }",
    "NF237": OUTER + "level slow { every 1 task; memory like(outer); value average(outer); update gd(0.1) }",
    "NF407": OUTER + "level slow { every 1 task; memory like(outer); objective (outer - slow) ^ 2; update gd(0.1) }",
    "NF301": OUTER + "level slow { every 1 task; memory scalar; value outer; update gd(0.1) }",
    "NF311": OUTER + "level slow { every 1 step; memory vector(6); value x; update gd(0.1) }",
    "NF231": OUTER + "level slow { every 1 task; memory like(outer); value outer; update gd(0.1); reset each(tsk) }",
    "NF232": OUTER + "level slow { every 1 task; memory like(outer); update gd(0.1) }",
    "NF408": OUTER + "level slow { every 1 task; memory like(outer); objective loss; update replace }",
    "NF226": OUTER + "level slow { every 1 task; memory like(loss); value outer; update replace }",
    "NF206": OUTER + "level slow { every 1 task; memory like(slow); value outer; update replace }",
    "NF243": OUTER.replace("objective loss", "objective mean(f(x))") + "flow f(x) { return net(x) * total(outer) }",
    "NF305": OUTER.replace("update", "when x > 0; update"),
    "NF205": OUTER.replace("objective loss", "objective total(net(x))"),
    "NF219": OUTER + "clock token",
    "NF406": OUTER + "clock era = 0 steps",
}


@pytest.mark.parametrize("code", WRONG)
def test_mistakes_are_told(code: str) -> None:
    with pytest.raises(nestflow.NestflowError, match=code):
        nestflow.check(HEAD + WRONG[code])


def test_updates_that_are_counted_by_themselves_are_told() -> None:
    one = "level {} {{ every 2 updates of {}; memory like(outer); value outer; update gd(0.5) }}\n"
    for levels in (one.format("a", "a"), one.format("a", "b") + one.format("b", "a")):
        with pytest.raises(nestflow.NestflowError, match="NF206"):
            nestflow.check(HEAD + OUTER + levels)


def test_clocks_of_the_caller() -> None:
    b = nestflow.compile(HEAD + SPECS["a task with a batch"], dtype="float64")
    for clock in ("round", "tsk", "step"):
        with pytest.raises(nestflow.NestflowError, match="NF519"):
            b.tick(clock)
    with pytest.raises(nestflow.NestflowError, match="NF502"):
        b.tick("task")
    with pytest.raises(nestflow.NestflowError, match="NF510"):
        nestflow.compile(HEAD + SPECS["teacher"]).loss(next(batches(1)))
