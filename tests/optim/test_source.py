"""The text that is emitted: a reader of torch.optim recognises it, and it is the code that runs."""

from __future__ import annotations

import ast
import inspect
import linecache
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

import nestflow
from nestflow.bundle.step_level import expand
from nestflow.emit.optim import compress, emit_optim, emit_rule, glob_matches
from nestflow.graph.build import build, optimizer_rule
from nestflow.language.resolve import load
from nestflow.language.shipped import shipped_names

from .driving import drive, level_optimizer, parameters

ADAMW = """
    @staticmethod
    def update(w, g, state, group, fact):
        lr, beta1, beta2, eps = group["lr"], group["beta1"], group["beta2"], group["eps"]
        weight_decay = group["weight_decay"]
        m, v = state["m"], state["v"]
        t = state["step"]  # updates of this weight, this one included
        w.mul_(1 - lr * weight_decay)  # optimizers/adamw.nl:12
        m.lerp_(g, 1 - beta1)  # optimizers/adamw.nl:13
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # optimizers/adamw.nl:14
        # optimizers/adamw.nl:15
        w.addcdiv_(m, (v.sqrt() / (1 - beta2**t) ** 0.5).add_(eps), value=-lr / (1 - beta1**t))
"""


def test_adamw_reads_like_torchs() -> None:
    assert ADAMW in emit_rule(optimizer_rule("adamw", {}), "adamw")


LION = """
        w.add_(m.lerp(g, 1 - beta1).sign().add_(w, alpha=weight_decay), alpha=-lr)
        m.lerp_(g, 1 - beta2)
"""


def test_a_memory_that_is_read_before_its_update_is_updated_last() -> None:
    source = emit_rule(optimizer_rule("lion", {}), "lion")
    bare = "\n".join(line.partition("  # ")[0] for line in source.splitlines())
    assert LION in bare


NEEDED = {
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "gd": {"lr": 0.1},
    "momentum": {"lr": 0.1, "beta": 0.9},
    "nesterov": {"lr": 0.1, "beta": 0.9},
    "m3": {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "beta3": 0.9, "alpha": 1.0},
    "schedule_free": {"lr": 0.1},
    "delta_momentum": {"lr": 0.1},
    "deep_momentum": {"lr": 0.1},
    "plastic": {"lr": 0.1, "bound": 1.0},
    "hypergradient": {"lr": 0.1, "kappa": 1e-4},
    "sophia": {"lr": 0.1},
}
WRAPPERS = {"averaged", "lookahead", "dgd"}  # they take an optimiser, or are a whole spec
NAMES = [n.removeprefix("optimizers.") for n in shipped_names() if n.startswith("optimizers.")]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in WRAPPERS])
def test_every_shipped_optimiser_is_readable_and_moves_weights(name: str) -> None:
    settings = NEEDED.get(name, {})
    source = emit_rule(optimizer_rule(name, settings), name)
    if name == "sophia":  # it needs the objective too: `test_memories`
        return
    ast.parse(source)
    assert all(len(line) <= 122 for line in source.splitlines())
    assert f"optimizers/{name}.nl:" in source
    params = parameters()
    before = [p.detach().clone() for p in params]
    drive(nestflow.optimizer(name, params, **settings), params, 3)
    assert all(not torch.equal(p, b) and p.isfinite().all() for p, b in zip(params, before, strict=True))


def test_all_optimisers_that_the_sheet_promises_are_shipped() -> None:
    assert {"sgd", "momentum", "adam", "adamw", "muon", "m3", "dgd", "lion", "rmsprop", "gd", "nesterov"} <= set(NAMES)


def test_tracebacks_show_the_generated_line() -> None:
    params = parameters(shapes=[(3, 4)])
    opt = nestflow.optimizer("adam", params)
    opt.state[params[0]]["m"] = torch.zeros(5)
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(RuntimeError) as caught:
        opt.step()
    assert "m.lerp_(g, 1 - beta1)" in "".join(traceback.format_exception(caught.value))
    update = type(opt).levels[0].update
    assert inspect.getsource(update) in "".join(linecache.getlines(update.__code__.co_filename))


def test_levels_of_one_rule_share_it() -> None:
    opt, _ = level_optimizer(
        """level a { memory weights(net, "up.**"); objective loss; update adam(1e-2) }
level b { every 4 steps; memory rest(net); objective loss; update adam(1e-2) }""",
        'return linear(silu(linear(x, 5, name = "up")), 3, name = "down")',
    )
    a, b = type(opt).levels
    assert issubclass(b, a) and (a.every, b.every) == (1, 4) and b.weights == ("net.down.weight",)


def test_names_with_numbers_are_written_as_ranges() -> None:
    names = ("emb.w", *(f"block.{i}.{x}.w" for i in range(12) for x in ("up", "down")), "mlp.3.w", "a.0.w", "a.2.w")
    patterns = compress(names)
    assert patterns == ["emb.w", "block.{0..11}.up.w", "block.{0..11}.down.w", "mlp.3.w", "a.0.w", "a.2.w"]
    assert sorted(expand(*patterns)) == sorted(names)


@pytest.mark.parametrize(
    ("glob", "path", "fits"),
    [
        ("**", "model.block.0.linear.weight", True),
        ("**.linear.**", "model.block.0.linear.weight", True),
        ("block.*.linear.weight", "model.block.0.linear.weight", True),
        ("block.*.weight", "model.block.0.linear.weight", False),
        ("**.mlp.**", "model.block.0.linear.weight", False),
    ],
)
def test_globs_of_only(glob: str, path: str, fits: bool) -> None:
    assert glob_matches(glob, path) is fits


STANDALONE = """
import sys, torch
import optim
assert not any(m.startswith("nestflow") for m in sys.modules)
w = torch.nn.Parameter(torch.ones(3, 4))
opt = optim.Optimizer({"net.linear.weight": w}, total_steps=9)
for t in range(6):
    w.grad = torch.full((3, 4), 0.1 * (t + 1))
    opt.step()
torch.save(w.detach(), "w.pt")
try:
    optim.Optimizer({})
except RuntimeError as e:  # not nestflow's own error, even where nestflow is installed
    print(e)
assert not any(m.startswith("nestflow") for m in sys.modules)
"""


@pytest.mark.parametrize(
    "rule", ["soap(1e-2)", "shampoo(1e-2)", "newton_schulz(g, iters = 1, coefficients = [[1, 2, 3]])"]
)
def test_standalone_source_has_what_its_helpers_use(tmp_path: Path, rule: str) -> None:
    """Operations that come from other modules of nestflow are written out too."""
    graph = build(
        load("nestflow 1\ninput x : float[T, 4]\noutput net(x)\nflow net(x) { return linear(x, 3) }\n"
             f"level a {{ memory weights(net); objective mean(net(x) ^ 2); update {rule} }}\n")
    )  # fmt: skip
    (tmp_path / "optim.py").write_text(emit_optim(graph, standalone=True), encoding="utf-8")
    (tmp_path / "run.py").write_text(STANDALONE.split("try:")[0], encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); import run"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    from nestflow.bundle.optimizer import optimizer_class

    w = torch.nn.Parameter(torch.ones(3, 4))
    opt = optimizer_class(graph)({"net.linear.weight": w}, total_steps=9)
    for t in range(6):
        w.grad = torch.full((3, 4), 0.1 * (t + 1))
        opt.step()
    torch.testing.assert_close(torch.load(tmp_path / "w.pt"), w.detach())


def test_standalone_source_needs_torch_alone(tmp_path: Path) -> None:
    graph = build(
        load("""nestflow 1
input x : float[T, 4]
output net(x)
flow net(x) { return linear(x, 3) }
level a {
  every 2 steps; memory weights(net); objective mean(net(x) ^ 2)
  update g |> clip_norm(0.1) |> muon(cosine(0.1))
}
""")
    )
    (tmp_path / "optim.py").write_text(emit_optim(graph, standalone=True), encoding="utf-8")
    (tmp_path / "run.py").write_text(STANDALONE, encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); import run"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NF544" in done.stdout
    from nestflow.bundle.optimizer import optimizer_class

    w = torch.nn.Parameter(torch.ones(3, 4))
    opt = optimizer_class(graph)({"net.linear.weight": w}, total_steps=9)
    for t in range(6):
        w.grad = torch.full((3, 4), 0.1 * (t + 1))
        opt.step()
    assert torch.equal(torch.load(tmp_path / "w.pt"), w.detach())
