"""Python functions in specs: allowed or not, checked, equal in both paths, as functions, flows and updates."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import nestflow
from nestflow import _python
from nestflow.cli.main import app
from nestflow.diagnostics.core import NestflowError
from tests.pyfunctions import mine

HERE = "tests.pyfunctions.mine"
HEAD = "nestflow 1\ninput x : float[T, 6]\n"
SPECS = {
    "function": 'output x |> py("MINE:swish")',
    "keyword": 'output x |> py("MINE:swish", by = 2)',
    "named": 'f = py("MINE:swish")\noutput f(x, 3.0) |> linear(4)',
    "two tensors": 'output m(x)\nflow m(x) { return py("MINE:pair", x, linear(x)) }',
    "flow": 'output r(x, mixers = [py("MINE:swish"), silu])\n'
    "flow r(x, mixers) { repeat 3 as i { x = mixers[i](linear(x)) }\n return x }",
    "in a level": """output m(x)
level m(x) {
  heads 2; every 1 token; chunk 2; memory mlp(depth = 2); objective l2
  key py("MINE:swish", linear(x)); value linear(x); query linear(x) |> py("MINE:swish")
  update gd(0.1 * sigmoid(py("MINE:pair", linear(x, 3), linear(x, 3))[0]))
  return y |> merge_heads |> py("MINE:swish")
}""",
    "an update": """output m(x)
level m(x) {
  heads 2; every 1 token; memory mlp(depth = 2, bias = true); objective l2
  key linear(x); value linear(x); query linear(x)
  update py("MINE:normed_step", g, w, 0.1 * sigmoid(linear(x, 1)))
  return y |> merge_heads
}""",
    "an update of a period": """output m(x)
level m(x) {
  every 2 tokens; memory matrix; objective l2; key linear(x); value linear(x); query linear(x)
  update py("MINE:sign_step")
}""",
}


def text(body: str) -> str:
    return HEAD + body.replace("MINE", HERE)


def x_of(rows: int = 2, ticks: int = 5) -> torch.Tensor:
    return torch.randn(rows, ticks, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def code(act: Any) -> str:
    with pytest.raises(NestflowError) as e:
        act()
    return e.value.diagnostics[0].code


@pytest.mark.parametrize("name", SPECS)
def test_compiled_is_interpreted_and_any_split_is_the_whole(name: str) -> None:
    b = nestflow.compile(text(SPECS[name]), dtype="float64", allow_python=True)
    x = x_of()
    y, ref = b.module(x=x), b.reference()(x=x)
    torch.testing.assert_close(y, ref)
    weights = list(b.module.weights.values())
    if weights:
        for a, r in zip(
            torch.autograd.grad(y.square().sum(), weights, allow_unused=True),
            torch.autograd.grad(ref.square().sum(), weights, allow_unused=True),
            strict=True,
        ):
            zero = torch.zeros(())
            torch.testing.assert_close(zero if a is None else a, zero if r is None else r)
    s = b.stream(2)
    torch.testing.assert_close(torch.cat([s.feed(x=x[:, i:j]) for i, j in ((0, 1), (1, 4), (4, 5))], 1), y)
    torch.testing.assert_close(b.module(x=x[1:]), y[1:])


def test_what_it_computes() -> None:
    x = x_of()
    b = nestflow.compile(text(SPECS["keyword"]), dtype="float64", allow_python=True)
    mine.CALLS.clear()
    torch.testing.assert_close(b.module(x=x), x * torch.sigmoid(2 * x))
    assert mine.CALLS == [(10, 6)]  # rows and ticks are one axis
    both = nestflow.compile(text(SPECS["two tensors"]), dtype="float64", allow_python=True)
    z = x @ both.module.weights["m.linear.weight"].T
    torch.testing.assert_close(both.module(x=x), torch.stack([x.sum(-1), (x * z).sum(-1)], -1))


@pytest.mark.parametrize(
    ("update", "step"),
    [
        ('py("MINE:sign_step")', lambda g, w: mine.sign_step(g)),
        ('(2 * g) |> clip_norm(1e9) |> py("MINE:sign_step", lr = 0.01)', lambda g, w: mine.sign_step(g, 0.01)),
        ('py("MINE:normed_step", g, w, 0.1)', lambda g, w: mine.normed_step(g[None], w[None], 0.1)[0]),
        ("my(0.1)", lambda g, w: mine.normed_step(g[None], w[None], 0.2)[0]),
    ],
)
def test_an_update_of_the_step_clock(update: str, step: Any) -> None:
    spec = """input v : float[T, 4]
output m(x)
flow m(x) { return linear(x, 4, bias = true) |> rmsnorm }
level o { memory weights(m); objective mean(square(m(x) - v)); update UPDATE }
optimizer my(lr) { step py("MINE:normed_step", g, w, 2 * lr) }
""".replace("UPDATE", update)
    b = nestflow.compile(text(spec), dtype="float64", allow_python=True)
    batch = {"x": x_of(), "v": x_of()[..., :4]}
    for _ in range(3):
        weights = {n: w.detach().clone() for n, w in b.module.weights.items()}
        gradients = torch.autograd.grad(b.loss(batch), list(b.module.weights.values()))
        b.step(batch)
        for (n, w), g in zip(b.module.weights.items(), gradients, strict=True):
            torch.testing.assert_close(w.detach(), weights[n] + step(g, weights[n]))


def test_an_update_sees_one_head_at_a_time() -> None:
    spec = """output m(x)
level m(x) { heads 2; every 1 token; memory matrix; key linear(x); value linear(x); query linear(x)
  objective dot; update gd(0.1); return y |> merge_heads }
level o { memory weights(m); objective mean(square(m(x))); update py("MINE:normed_step", g, w, 0.1) }
"""
    b = nestflow.compile(text(spec), dtype="float64", allow_python=True)
    weights = {n: w.detach().clone() for n, w in b.module.weights.items()}
    gradients = torch.autograd.grad(b.loss({"x": x_of()}), list(b.module.weights.values()))
    b.step({"x": x_of()})
    for (n, w), g in zip(b.module.weights.items(), gradients, strict=True):
        assert w.shape[0] == 2
        for h in range(2):
            wanted = mine.normed_step(g[h][None], weights[n][h][None], 0.1)[0]
            torch.testing.assert_close(w.detach()[h], weights[n][h] + wanted)


def test_an_optimizer_on_any_parameters() -> None:
    rule = f'nestflow 1\noptimizer my(lr) {{ step py("{HERE}:normed_step", g, w, lr) }}'
    w = torch.nn.Parameter(torch.ones(3, 2))
    assert code(lambda: nestflow.optimizer(rule, [w], lr=0.1)) == "NF570"
    opt = nestflow.optimizer(rule, [w], lr=0.1, allow_python=True)
    w.grad = torch.full((3, 2), 2.0)
    wanted = 1 + mine.normed_step(w.grad[None], torch.ones(1, 3, 2), 0.1)[0]
    opt.step()
    torch.testing.assert_close(w.detach(), wanted)


def test_nothing_is_imported_unless_it_is_allowed(tmp_path: Path) -> None:
    marker = "tests.pyfunctions.marker"
    spec = HEAD + f'output x |> py("{marker}:fn")'
    (tmp_path / "a.nl").write_text(spec, encoding="utf-8")
    for act in (
        lambda: nestflow.check(spec),
        lambda: nestflow.compile(spec),
        lambda: nestflow.compile(spec, allow_python=False),
    ):
        assert code(act) == "NF570"
    for command in ("check", "view", "explain", "compile", "train"):
        run = CliRunner().invoke(app, [command, str(tmp_path / "a.nl")])
        assert run.exit_code != 0 and "NF570" in run.output + (run.stderr or "")
    assert marker not in sys.modules
    assert CliRunner().invoke(app, ["check", str(tmp_path / "a.nl"), "--allow-python"]).exit_code == 0
    assert marker in sys.modules
    assert CliRunner().invoke(app, ["check", str(tmp_path / "a.nl")]).exit_code != 0, "each command asks anew"
    _python.allow(False)
    del sys.modules[marker]


def test_a_bundle_is_loaded_only_where_it_may_run(tmp_path: Path) -> None:
    b = nestflow.compile(text(SPECS["named"]), allow_python=True)
    b.save(tmp_path / "b")
    assert code(lambda: nestflow.load(tmp_path / "b")) == "NF570"
    x = x_of().float()
    for other in (
        nestflow.load(tmp_path / "b", allow_python=True),
        copy.deepcopy(b),
        pickle.loads(pickle.dumps(b)),  # a pickle runs code anyway
    ):
        assert torch.equal(other.module(x=x), b.module(x=x))
    assert code(b.standalone) == "NF565"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('output x |> py("MINE:nope")', "NF571"),
        ('output x |> py("no.such.module:a")', "NF571"),
        ('output x |> py("MINE:NUMBER")', "NF571"),
        ('output x |> py("no_entry_point")', "NF571"),
        ('output x |> py("MINE:")', "NF571"),
        ('output x |> py("MINE:a b")', "NF571"),
        ("output py(x)", "NF571"),
        ("output py()", "NF571"),
        ('output py("MINE:swish")', "NF207"),
        ('output x |> py("MINE:swish", 1, 2)', "NF572"),
        ('output x |> py("MINE:swish", much = 1)', "NF572"),
        ('output py("MINE:swish", 3)', "NF572"),
        ('output x |> py("MINE:mean")', "NF573"),
        ('output x |> py("MINE:broken")', "NF573"),
        (
            'output m(x)\nflow f(z) { return py("MINE:swish", linear(z)) }\n'
            "level m(x) { every 1 token; memory f; key x; value x; query x; objective l2; update gd(0.1) }",
            "NF574",
        ),
        (
            "output m(x)\nlevel m(x) { every 1 token; memory matrix; key x; value x; query x; update gd(0.1)\n"
            'objective sum(py("MINE:swish", M(key)) - value) }',
            "NF574",
        ),
    ],
)
def test_mistakes_are_told(body: str, wanted: str) -> None:
    assert code(lambda: nestflow.check(text(body), allow_python=True)) == wanted


def test_a_step_of_another_shape_is_told() -> None:
    spec = "output m(x)\nflow m(x) { return linear(x) }\nlevel o { memory weights(m); objective mean(m(x)); "
    b = nestflow.compile(text(spec + 'update py("MINE:pair", g, w) }'), allow_python=True)
    assert code(lambda: b.step({"x": x_of().float()})) == "NF573"


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "their_swish"

        @staticmethod
        def load() -> Any:
            return mine.swish

    found = {"nestflow.functions": [Point]}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found.get(group, []))
    b = nestflow.compile(HEAD + 'output x |> py("their_swish")', dtype="float64", allow_python=True)
    torch.testing.assert_close(b.module(x=x_of()), x_of() * torch.sigmoid(x_of()))


def test_an_objective_of_the_whole_model() -> None:
    spec = """input v : float[T, 6]
output m(x)
flow m(x) { return linear(x) }
loss = mean(py("MINE:pair", m(x), v)[0]) + mean(square(py("MINE:swish", m(x)) - v))
level o { memory weights(m); objective loss; update gd(0.1) }
"""
    b = nestflow.compile(text(spec), dtype="float64", allow_python=True)
    batch = {"x": x_of(), "v": x_of(2, 5).flip(1)}
    objective = b.graph.step_levels[0].objective
    assert objective is not None
    y = b.module(x=batch["x"])
    wanted = y.sum(-1).mean() + (mine.swish(y) - batch["v"]).square().mean()
    torch.testing.assert_close(b.loss(batch), wanted)
    torch.testing.assert_close(b.reference().loss(objective, batch), wanted)


def test_an_optimizers_memory_of_python() -> None:
    """A momentum whose value goes through Python, beside a loop."""
    spec = """input v : float[T, 6]
output m(x)
flow m(x) { return linear(x) }
optimizer signed(lr) {
  memory s : like(w) { value py("MINE:sign_step", g, lr = -1.0); update gd(0.5); retain 0.5 }
  step -lr * s
}
level o { memory weights(m); objective mean(square(m(x) - v)); update signed(0.05) }
"""
    b = nestflow.compile(text(spec), dtype="float64", allow_python=True)
    batch = {"x": x_of(), "v": x_of(2, 5).flip(1)}
    (w,) = b.module.weights.values()
    kept = torch.zeros_like(w)
    for _ in range(3):
        (g,) = torch.autograd.grad(b.loss(batch), [w])
        kept = 0.5 * kept + 0.5 * torch.sign(g)
        wanted = w.detach() - 0.05 * kept
        b.step(batch)
        torch.testing.assert_close(w.detach(), wanted)
