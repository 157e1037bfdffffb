"""Levels that begin anew in every step: MAML, first-order and implicit, Reptile, SAM. Each against a plain loop written
from its equations, and compiled = interpreted, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import nestflow
import nestflow.train

EXAMPLES = Path(__file__).parents[2] / "examples"
B, N, Q = 4, 5, 7
Tensors = dict[str, Tensor]


def example(name: str, **changes: str) -> str:
    text = (EXAMPLES / f"{name}.nl").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def tasks(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "support.x": torch.randn(B, N, 4, generator=g, dtype=torch.float64),
        "support.label": torch.randint(0, 3, (B, N), generator=g),
        "query.x": torch.randn(B, Q, 4, generator=g, dtype=torch.float64),
        "query.label": torch.randint(0, 3, (B, Q), generator=g),
    }


def weights(b: nestflow.Bundle) -> Tensors:
    return {p: w.detach().clone().requires_grad_() for p, w in b.module.weights.items()}


def net(w: Tensors, x: Tensor) -> Tensor:
    h = torch.tanh(F.linear(x, w["net.linear.weight"], w["net.linear.bias"]))
    return F.linear(h, w["net.linear_2.weight"], w["net.linear_2.bias"])


def adapted(w: Tensors, error: Callable[[Tensors], Tensor], rounds: int, rate: float, through: int) -> Tensors:
    """`rounds` steps down; gradients go through the last `through` of them, the steps before are constants."""
    own = dict(w)
    for i in range(rounds):
        keep = i >= rounds - through
        at = own if keep else {n: x.detach().requires_grad_() for n, x in own.items()}
        found = torch.autograd.grad(error(at), list(at.values()), create_graph=keep)
        own = {n: x - rate * (g if keep else g.detach()) for (n, x), g in zip(own.items(), found, strict=True)}
    return own


def same(got: tuple[Tensor, ...], want: tuple[Tensor, ...], rtol: float = 1e-9) -> None:
    for a, c in zip(got, want, strict=True):
        torch.testing.assert_close(a, c, rtol=rtol, atol=1e-11)


@pytest.mark.parametrize(
    ("gradient", "through"),
    [("", 5), ("gradient stop", 0), ("gradient truncate(2)", 2), ("gradient truncate(9)", 5), ("gradient through", 5)],
)
def test_maml_has_the_gradient_of_the_loop(gradient: str, through: int) -> None:
    b = nestflow.compile(
        example("maml", **{"  update gd(rate)\n": f"  update gd(rate)\n  {gradient}\n"}), dtype="float64"
    )
    batch, w = tasks(), weights(b)
    outs: list[Tensor] = []
    for i in range(B):
        error = lambda own, i=i: F.cross_entropy(net(own, batch["support.x"][i]), batch["support.label"][i])  # noqa: E731
        outs.append(net(adapted(w, error, 5, 0.1, through), batch["query.x"][i]))
    loss = F.cross_entropy(torch.cat(outs), batch["query.label"].flatten())
    want = torch.autograd.grad(loss, list(w.values()))
    got = b.loss(batch)
    torch.testing.assert_close(got, loss)
    same(torch.autograd.grad(got, list(b.module.weights.values())), want)
    told = b.reference().loss(b.graph.step_levels[-1].objective, batch)
    same(torch.autograd.grad(told, list(b.module.weights.values())), want)
    seen = {n: x for n, x in batch.items() if n != "query.label"}  # the output reads no query label
    torch.testing.assert_close(b.module(**seen), torch.stack(outs).detach(), check_stride=False)
    torch.testing.assert_close(b.reference()(**seen), b.module(**seen))
    with torch.no_grad():
        torch.testing.assert_close(b.module(**seen), torch.stack(outs))


def test_a_task_alone_is_the_task_in_company() -> None:
    b = nestflow.compile(example("maml"), dtype="float64")
    seen = {n: x for n, x in tasks().items() if n != "query.label"}
    alone = b.module(**{n: x[2:3] for n, x in seen.items()})
    torch.testing.assert_close(b.module(**seen)[2:3], alone)


def test_maml_learns_and_its_copies_leave_nothing_behind() -> None:
    b = nestflow.compile(example("maml", **{"adam(1e-3)": "adam(0.02)"}), hidden=16)
    g = torch.Generator().manual_seed(1)
    centres = torch.eye(3, 4)

    def batch() -> dict[str, Tensor]:
        """Tasks that name the same three clusters in another order each."""
        names = torch.stack([torch.randperm(3, generator=g) for _ in range(8)])
        made: dict[str, Tensor] = {}
        for part, n in (("support", 6), ("query", 9)):
            kind = torch.arange(n).expand(8, n) % 3
            made[f"{part}.x"] = centres[kind] + 0.1 * torch.randn(8, n, 4, generator=g)
            made[f"{part}.label"] = names.gather(1, kind)
        return made

    first = b.step(batch())["loss"]
    for _ in range(60):
        last = b.step(batch())["loss"]
    assert last < 0.5 * first
    assert set(b.module.state_dict()) == set(b.module.weights) and not b.module.kept
    assert set(b.optimizer.report()) == {"meta"}


def test_implicit_maml_is_the_gradient_at_the_stationary_point() -> None:
    """With the inner problem solved, cg that converges gives the exact derivative −H⁻¹ ∂²ℓ; here by a dense solve."""
    spec = example("imaml", **{"linear(32": "linear(3"})
    b = nestflow.compile(spec, dtype="float64", rounds=400, rate=0.3, pull=0.7, iters=60)
    batch, w = tasks(), weights(b)
    flat = torch.cat([x.detach().flatten() for x in w.values()])
    shapes = [x.shape for x in w.values()]

    def unflat(v: Tensor) -> Tensors:
        parts = v.split([s.numel() for s in shapes])
        return {n: p.reshape(s) for n, p, s in zip(w, parts, shapes, strict=True)}

    grads, losses = [], []
    for i in range(B):
        error = lambda v, theta, i=i: (  # noqa: E731
            F.cross_entropy(net(unflat(v), batch["support.x"][i]), batch["support.label"][i])
            + 0.35 * (v - theta).square().sum()
        )
        own = flat.clone()
        for _ in range(400):
            own = own - 0.3 * torch.func.grad(error)(own, flat)
        own.requires_grad_()
        loss = F.cross_entropy(net(unflat(own), batch["query.x"][i]), batch["query.label"][i])
        (v,) = torch.autograd.grad(loss, own)
        hessian = torch.func.hessian(error)(own.detach(), flat)
        grads.append(0.7 * torch.linalg.solve(hessian, v))  # ∂²ℓ/∂θ∂φ = −pull · I
        losses.append(loss.detach())
    want = torch.stack(grads).mean(0)
    got = b.loss(batch)
    torch.testing.assert_close(got, torch.stack(losses).mean())
    found = torch.autograd.grad(got, list(b.module.weights.values()))
    torch.testing.assert_close(torch.cat([x.flatten() for x in found]), want, rtol=1e-6, atol=1e-9)


def test_implicit_maml_compiled_equals_interpreted() -> None:
    spec = example("imaml", **{"linear(32": "linear(3"})
    b = nestflow.compile(spec, dtype="float64", rounds=6, rate=0.2, iters=3)
    batch, w = {n: x[:2] for n, x in tasks(5).items()}, list(b.module.weights.values())
    got, told = b.loss(batch), b.reference().loss(b.graph.step_levels[-1].objective, batch)
    torch.testing.assert_close(got, told)
    same(torch.autograd.grad(got, w), torch.autograd.grad(told, w))


def test_reptile_goes_to_where_the_copies_arrive() -> None:
    b = nestflow.compile(example("reptile"), dtype="float64")
    slow, w = b.reference_steps(), weights(b)
    for seed in range(3):
        batch = {"x": tasks(seed)["support.x"], "label": tasks(seed)["support.label"]}
        copies = []
        for i in range(B):
            x, label = batch["x"][i], batch["label"][i]
            error = lambda own, x=x, label=label: F.cross_entropy(net(own, x), label)  # noqa: E731
            copies.append(adapted(w, error, 5, 0.1, 0))
        w = {n: (x + 0.3 * (torch.stack([c[n] for c in copies]).mean(0) - x)).detach() for n, x in w.items()}
        w = {n: x.requires_grad_() for n, x in w.items()}
        b.step(batch)
        slow.step(batch)
        for n, x in b.module.weights.items():
            torch.testing.assert_close(x, w[n])
            torch.testing.assert_close(x.detach(), slow.tensors[n])


def test_sam_takes_its_gradient_uphill() -> None:
    b = nestflow.compile(example("sam"), dtype="float64", radius=0.2)
    slow, w = b.reference_steps(), weights(b)
    opt = torch.optim.SGD(list(w.values()), lr=0.1, momentum=0.9)
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        x, label = torch.randn(6, 8, generator=g, dtype=torch.float64), torch.randint(0, 4, (6,), generator=g)
        found = torch.autograd.grad(F.cross_entropy(net(w, x), label), list(w.values()))
        size = torch.cat([d.flatten() for d in found]).norm()
        above = {n: (v + 0.2 * d / size).detach().requires_grad_() for (n, v), d in zip(w.items(), found, strict=True)}
        loss = F.cross_entropy(net(above, x), label)
        for v, d in zip(w.values(), torch.autograd.grad(loss, list(above.values())), strict=True):
            v.grad = d
        opt.step()
        assert b.step({"x": x, "label": label})["loss"] == pytest.approx(loss.item(), rel=1e-12)
        slow.step({"x": x, "label": label})
        for n, v in b.module.weights.items():
            torch.testing.assert_close(v, w[n])
            torch.testing.assert_close(v.detach(), slow.tensors[n])


RULES = {
    "adam": "adam(0.05)",
    "clipped": "g |> clip_norm(0.1) |> momentum(0.1, 0.9)",
    "decay": "adamw(0.05, weight_decay = 0.1 if ndim(w) >= 2 else 0)",
    "muon": "muon(0.05)",
    "lion": "lion(0.02)",
    "periods": "m3(0.01, 0.9, 0.9, 0.99, 0.1, period = 2)",
    "look-ahead": "lookahead(gd(0.1), period = 2)",
    "its start": "-0.1 * g - 0.05 * (w - w0)",
    "retained": "gd(0.1); retain 0.9; project ball(1.5)",
    "stopped": "adam(0.05); gradient stop; retain 0.95",
    "truncated": "momentum(0.1, 0.9); gradient truncate(2)",
    "to a start": "gd(0.1); gradient truncate(1); project w / max(norm(w), 1)",
}


@pytest.mark.parametrize("name", RULES)
def test_any_rule_inside_compiled_equals_interpreted(name: str) -> None:
    spec = example("maml", **{"  update gd(rate)\n": f"  update {RULES[name]}\n"})
    b = nestflow.compile(spec, dtype="float64", rounds=4, hidden=3)
    batch, w = {n: x[:2] for n, x in tasks(2).items()}, list(b.module.weights.values())
    got, told = b.loss(batch), b.reference().loss(b.graph.step_levels[-1].objective, batch)
    torch.testing.assert_close(got, told, rtol=1e-10, atol=1e-12)
    same(torch.autograd.grad(got, w), torch.autograd.grad(told, w))


def test_a_copy_of_a_block_and_starts_in_order() -> None:
    """`memory mlp(…)` is a function too; `init` matches tensors in text order where their names differ."""
    spec = """nestflow 1
input x : float[6]
input label : int in [0, 3)
output outer(x)
flow net(x) { return x |> linear(5, name = "a") |> silu |> linear(3, name = "b") }
level fast {
  memory mlp(3, depth = 2, hidden = 5, act = silu); init outer; reset each(step); rounds 2
  objective cross_entropy(fast(x), label); update gd(0.1)
}
level start {
  memory mlp(3, depth = 1); init 0.1; reset each(step)
  objective cross_entropy(start(x), label); update adam(0.1)
}
level outer {
  every 1 step; memory weights(net); update gd(0.1)
  objective cross_entropy(fast(x), label) + cross_entropy(outer(x) + start(x), label)
}
"""
    b = nestflow.compile(spec, dtype="float64")
    slow = b.reference_steps()
    g = torch.Generator().manual_seed(0)
    for _ in range(3):
        batch = {
            "x": torch.randn(4, 6, generator=g, dtype=torch.float64),
            "label": torch.randint(0, 3, (4,), generator=g),
        }
        assert b.step(batch)["losses"] == pytest.approx(slow.step(batch), rel=1e-12)
    for n, v in b.module.weights.items():
        torch.testing.assert_close(v.detach(), slow.tensors[n])


WRONG = [
    ("  init meta\n", "", "NF234"),
    ("reset each(step)", "reset never", "NF231"),
    ("memory net\n  init meta\n", 'memory weights(net, "linear.**")\n', "NF231.*slow weights live on"),
    ("per task", "per worker", "NF231"),
    ("per task", "per worker(2)", "NF231"),
    ("per task", "per stream", "NF490"),
    ("per task", "per tsk", "NF231"),
    ("rounds rounds", "rounds 0", "NF406"),
    ("update gd(rate)", "update gd(rate); gradient thru", "NF231"),
    ("update gd(rate)", "update gd(rate); gradient implicit(newton)", "NF231"),
    ("update gd(rate)", "update dgd(rate)", "NF490"),
    ("cross_entropy(task(query.x), query.label)", "total((task - meta) ^ 2)", "NF237"),
    ("cross_entropy(task(query.x), query.label)", "mean(task(query.x) - net(support.x) + support.x @ eye(4, 3))", "NF"),
    ("x |> linear(hidden, bias = true)", "x |> short_conv(2) |> linear(hidden, bias = true)", "NF301"),
    ("init meta", "init query", "NF"),
    ("init meta", "init task", "NF206"),  # begins at itself
    ("per task", "per task; every 2 steps", "NF231"),
    (
        "output task(query.x)",
        "output task(query.x)\nlevel b { every 1 step; memory like(meta); value meta; init task }",
        "NF490",
    ),
    ("gd(rate)", "shampoo(rate)", "NF490"),
    ("gd(rate)", "soap(rate)", "NF490"),
    ("gd(rate)", "adafactor(rate)", "NF490"),
    ("gd(rate)", "sophia(rate)", "NF490"),
]


@pytest.mark.parametrize(("old", "new", "code"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_mistakes_are_told(old: str, new: str, code: str) -> None:
    with pytest.raises(nestflow.NestflowError, match=code):
        nestflow.check(example("maml", **{old: new}))


def test_examples_of_one_group_agree_in_their_number() -> None:
    b = nestflow.compile(example("maml"), dtype="float64")
    batch = tasks()
    with pytest.raises(nestflow.NestflowError, match=r"NF505.*examples"):
        b.loss(batch | {"support.label": batch["support.label"][:, :3]})
    assert b.loss(batch | {n: batch[n][:, :3] for n in ("query.x", "query.label")}).isfinite()


def test_functional_call_sees_the_same_module() -> None:
    """The module is a plain torch module: its weights can be put in from outside."""
    b = nestflow.compile(example("sam"), dtype="float64")
    x = torch.randn(2, 8, dtype=torch.float64)
    doubled = {n: 2 * v for n, v in b.module.state_dict().items()}
    want = net({n: v for n, v in doubled.items() if n.startswith("net.")}, x)
    torch.testing.assert_close(functional_call(b.module, doubled, kwargs={"x": x}), want)


def test_one_file_of_python_gives_the_same_numbers() -> None:
    b = nestflow.compile(example("imaml"))
    names: dict[str, object] = {}
    exec(compile(b.standalone(), "standalone", "exec"), names)
    batch = {n: x[:2].float() if n.endswith("x") else x[:2] for n, x in tasks().items()}
    alone = names["Model"]()(**{n.replace(".", "_"): x for n, x in batch.items()})  # type: ignore[operator]
    del batch["query.label"]
    assert torch.equal(alone, b.module(**batch))


def test_a_vector_for_a_step_is_run_before_it_is_read() -> None:
    """A level inside a step that keeps one tensor, no record: b ← b − 0.1 ∇ℓ(net(x) + b), and θ learns through it."""
    text = example("maml", **{"task(query.x)": "(net(query.x) + task)", "task(support.x)": "(net(support.x) + task)"})
    text = text.replace("  per task\n", "").replace("memory net\n  init meta", "memory vector(3)\n  init zeros")
    b, batch = nestflow.compile(text, dtype="float64"), tasks()
    slow = b.reference_steps()
    inputs = {n: batch[n] for n in b.graph.needed}
    shift = torch.zeros(3, dtype=torch.float64)
    net = b.module.weights

    def plain(x: Tensor) -> Tensor:
        h = torch.tanh(x @ net["net.linear.weight"].T + net["net.linear.bias"])
        return h @ net["net.linear_2.weight"].T + net["net.linear_2.bias"]

    with torch.no_grad():
        p = plain(batch["support.x"])
        for _ in range(5):
            error = (p + shift).softmax(-1) - F.one_hot(batch["support.label"], 3)
            shift = shift - 0.1 * error.mean((0, 1))
        torch.testing.assert_close(b.module(**inputs), plain(batch["query.x"]) + shift)
    torch.testing.assert_close(b.reference()(**inputs), b.module(**inputs))
    for seed in range(2):
        assert b.step(tasks(seed))["losses"] == pytest.approx(slow.step(tasks(seed)), rel=1e-12)
    for n, v in b.module.weights.items():
        torch.testing.assert_close(v.detach(), slow.tensors[n])


def test_conjugate_gradients_end_where_rounding_begins() -> None:
    """H is singular (a shift of all logits changes nothing), and 10 iterations are more than its 3 axes."""
    from nestflow.ops.inner import conjugate_gradients

    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    h = torch.diag(p) - torch.outer(p, p)
    v = h @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    want = torch.linalg.pinv(h) @ v
    (u,) = conjugate_gradients(lambda x: [h @ x[0]], [v], 40, 0)
    torch.testing.assert_close(u, want, rtol=1e-10, atol=1e-12)
    h, v = h.float(), v.float()
    (u,) = conjugate_gradients(lambda x: [h @ x[0]], [v], 40, 0)
    torch.testing.assert_close(u.double(), want, rtol=1e-4, atol=1e-4)


def test_a_vector_for_each_task_is_not_one() -> None:
    text = example("maml", **{"task(query.x)": "(net(query.x) + task)", "task(support.x)": "(net(support.x) + task)"})
    text = text.replace("memory net\n  init meta", "memory vector(3)\n  init zeros")
    with pytest.raises(nestflow.NestflowError, match="NF237"):
        nestflow.check(text)


def test_tasks_are_trained_on() -> None:
    """Rows of the data are tasks; support and query may have other numbers of examples, all tasks the same."""
    data = {n: torch.cat([tasks(s)[n] for s in range(3)]) for n in tasks()}
    b = nestflow.compile(example("maml"), dtype="float64")
    history = nestflow.train.train(b, data, steps=2, batch=3, show=False)
    assert len(history.records) == 2
    with pytest.raises(nestflow.NestflowError, match=r"NF533.*examples"):
        nestflow.train.train(b, data | {"support.x": data["support.x"][:, 1:]}, steps=1, batch=3, show=False)


def test_the_interpreter_where_no_gradient_comes_through() -> None:
    """Under `gradient stop` the weights of a rate are constants in the result; compiled code gives them a zero too."""
    b = nestflow.compile(
        """nestflow 1
input x : float[T, 4]
output net(x)
flow net(x) { return store(x) }
level store(x) {
  memory m : matrix {
    key x |> l2norm; value x; objective l2; update gd(sigmoid(linear(x, 1))); gradient stop
  }
  return m(x)
}
level outer { every 1 step; memory weights(net); objective mean(square(net(x) - x)); update gd(1) }
""",
        dtype="float64",
    )
    slow, before = b.reference_steps(), {p: w.detach().clone() for p, w in b.module.weights.items()}
    x = {"x": torch.randn(2, 5, 4, dtype=torch.float64)}
    loss = b.step(x)["loss"]
    assert slow.step(x)["outer"] == pytest.approx(loss, rel=1e-12)
    for p, w in b.module.weights.items():
        assert torch.equal(w, before[p]) and torch.equal(slow.tensors[p], before[p])
