"""Memories of one level that are computed side by side: which, and that they are what each would be on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow
from nestflow.bundle.counting import counted
from nestflow.lowering.explain import explanations
from nestflow.lowering.plan import LevelPlan
from nestflow.ops.coefficients import decays, running_before
from nestflow.ops.delta import delta_system, solve_errors
from tests.lowering.compiled import Compiled, as_interpreted, error, gradients

MLP = "mlp(depth = 2, expand = 1"
LEVELS = {
    # fields of the level; the memories that are together
    "two": (
        f"memory a : {MLP}) {{ value linear(x) }}; memory b : {MLP}) {{ value linear(x) }}; key l2norm(linear(x))\n"
        "objective l2; update gd(0.1); return a(x) + b(x)",
        [["a", "b"]],
    ),
    "momentum and a gate": (
        f"k = linear(x); for m in [a, b, c] {{ memory m : {MLP}) {{ value linear(x) }} }}\n"
        "key l2norm(k); objective l2; update momentum(0.1 * sigmoid(linear(x, 1)), 0.7)\n"
        "retain sigmoid(linear(x, 1) + 2); return a(linear(x)) * b(x) + c(k)",
        [["a", "b", "c"]],
    ),
    "keys of their own": (
        f"for m in [a, b] {{ memory m : {MLP}, bias = false) {{ key l2norm(linear(x)); value linear(x) }} }}\n"
        "objective l2; update dgd(0.5); retain 0.9; return a(x) + b(l2norm(x))",
        [],  # with `exact` the rate is of the key: other keys, other rates
    ),
    "keys of their own, one rate": (
        f"for m in [a, b] {{ memory m : {MLP}) {{ key l2norm(linear(x)); value linear(x) }} }}\n"
        "objective l2; update gd(0.2); retain 0.9; return a(x) + b(l2norm(x))",
        [["a", "b"]],
    ),
    "one that depends on another": (
        f"k = l2norm(linear(x)); v = a(x); for m in [a, b] {{ memory m : {MLP}, residual = true) {{ value m(v) }} }}\n"
        "key k; objective l2; update dgd(0.3, exact = true); return b(x)",
        [["a", "b"]],
    ),
    "a rate that is recalled": (
        f"k = l2norm(linear(x)); memory a : {MLP}) {{ value linear(x) }}; memory b : {MLP}) {{ value a(x) }}\n"
        f"memory eta : {MLP}, out = 1) {{ value mean(x) }}; key k; objective l2\n"
        "update dgd(0.5 * sigmoid(eta(x))); retain sigmoid(eta(k) + 2); return a(x) + b(a(x))",
        [["a", "b", "eta"]],
    ),
    "other depths": (
        f"k = l2norm(linear(x)); memory a : {MLP}) {{ value linear(x) }}\n"
        "memory b : mlp(depth = 3, expand = 1) { value linear(x) }; memory c : matrix { value linear(x) }\n"
        f"memory d : {MLP}) {{ value linear(x) }}; key k; objective l2; update gd(0.1)\n"
        "return a(x) + b(x) + c(x) + d(x)",
        [["a", "d"]],
    ),
    "other rates": (
        f"k = l2norm(linear(x)); for m in [a, b] {{ memory m : {MLP}) {{ value linear(x); update gd(0.1) }} }}\n"
        f"memory c : {MLP}) {{ value linear(x); update gd(0.2) }}; key k; objective l2; return a(x) + b(x) + c(x)",
        [["a", "b"]],
    ),
    "other chunks": (
        f"k = l2norm(linear(x)); memory a : {MLP}) {{ value linear(x); chunk 8 }}; key k; objective l2\n"
        f"for m in [b, c] {{ memory m : {MLP}) {{ value linear(x) }} }}; update gd(0.1); return a(x) + b(x) + c(x)",
        [["b", "c"]],
    ),
    "other objectives": (
        f"k = l2norm(linear(x)); memory a : {MLP}) {{ objective dot }}; memory b : {MLP}) {{ objective l2 }}\n"
        "value linear(x); key k; update gd(0.1); return a(x) + b(x)",
        [["a", "b"]],
    ),
    "steps constant, between updates": (
        f"k = l2norm(linear(x)); for m in [a, b] {{ memory m : {MLP}) {{ value linear(x) }} }}\n"
        "every 2 tokens; gradient stop; key k; objective l2; update momentum(0.1, 0.5); return a(x) + b(x)",
        [["a", "b"]],
    ),
    "read before and at the chunk's start": (
        f"k = l2norm(linear(x)); memory a : {MLP}) {{ value linear(x); read before }}\n"
        f"memory b : {MLP}) {{ value linear(x); read chunk_start }}; key k; objective l2\n"
        "update dgd(0.2); return a(x) + b(x)",
        [["a", "b"]],
    ),
    "heads": (
        f"heads 2; k = l2norm(linear(x)); v = linear(x)\n"
        f"for m in [a, b] {{ memory m : {MLP}, residual = true) {{ value m(v) }} }}\n"
        f"memory gate : {MLP}, out = 1) {{ value gate(v) }}; key k; objective l2; update dgd(0.5)\n"
        "retain sigmoid(gate(k) + 2); return merge_heads(a(v) + b(linear(x)))",
        [["a", "b", "gate"]],
    ),
}

# what keeps two memories apart that are alike but for it: of one of them, of the other, of both
TWO = (
    f"k = l2norm(linear(x)); memory a : {MLP}) {{ value linear(x); ONE }}\n"
    f"memory b : {MLP}) {{ value linear(x); OTHER }}\n"
    "key k; objective l2; BOTH; return a(x) + b(linear(x))"
)
APART = {
    "begin anew": ("", "", "update gd(0.1); reset each(chunk)"),
    "begin anew where": ("", "", "update gd(0.1); reset where(mean(x) > 0.3)"),
    "learn at times": ("", "", "update gd(0.1); when mean(x) > 0"),
    "clocks of their own": ("every 2 tokens", "every 1 token", "update gd(0.1)"),
    "gradients of their own": ("gradient stop", "", "update gd(0.1)"),
    "decay of their own": ("retain 0.9", "retain 0.8", "update gd(0.1)"),
    "betas of their own": ("update momentum(0.1, 0.5)", "update momentum(0.1, 0.6)", ""),
    "rules of their own": ("update dgd(0.1)", "update gd(0.1)", ""),
    "vectors": ("", "", "update gd(0.1)"),
}
for _name, (_one, _other, _both) in APART.items():
    _text = TWO.replace("ONE", _one).replace("OTHER", _other).replace("BOTH; ", f"{_both}; " if _both else "")
    LEVELS[_name] = (_text.replace("expand = 1)", "expand = 1, bias = true)") if _name == "vectors" else _text, [])
LEVELS["a rate for each tensor"] = (
    TWO.replace("ONE", "").replace("OTHER", "").replace("BOTH", "update gd({linear: 0.1, linear_2: 0.2})"),
    [["a", "b"]],
)


def text(name: str) -> str:
    fields = LEVELS[name][0]
    clock = "" if "every" in fields else "every 1 token; "
    return f"nestflow 1\ninput x : float[T, 8]\noutput mem(x)\nlevel mem(x) {{ {clock}chunk 4\n{fields}\n}}\n"


def draw(ticks: int, seed: int = 0, rows: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(rows, ticks, 8, generator=g, dtype=torch.float64, requires_grad=True)}


def together(plan: Any) -> list[list[str]]:
    (level,) = plan.levels.values()
    return [[p.memory.name for p in g] for g in level.groups]


@pytest.mark.parametrize("name", LEVELS)
def test_side_by_side(name: str) -> None:
    """The interpreter's numbers and gradients; in one call or several, with the same state behind them."""
    c = Compiled(text(name))
    assert together(c.plan) == LEVELS[name][1]
    x = draw(11)
    as_interpreted(c, x)
    w = c.weights()
    whole, state = c.run(x, w)
    parts, kept = c.run(x, w, [3, 1, 4, 2, 1])
    assert error(parts, whole) < 1e-12
    assert all(error(kept[p], state[p]) < 1e-12 for p in state)


def pair(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[nestflow.Bundle, nestflow.Bundle]:
    """A small hope, and the same with its memories one after the other."""
    sizes = {"dim": 16, "n_heads": 2, "depth": 1, "vocab": 16, "chunk": 4, **more}
    new = nestflow.compile("hope", **sizes, execution={"dtype": "float64", **how})
    with monkeypatch.context() as m:
        m.setattr(LevelPlan, "groups", ())
        old = nestflow.compile("hope", **sizes, execution={"dtype": "float64", **how})
        assert "side_by_side(" in new.source and "side_by_side(" not in old.source
    old.module.load_state_dict(new.module.state_dict())
    return new, old


@pytest.mark.parametrize("how", [{}, {"checkpointing": "auto"}, {"checkpointing": 1}], ids=str)
@pytest.mark.parametrize("more", [{}, {"own_query": True, "store_chunk": 8}, {"erase": False, "rate": 0.3}], ids=str)
def test_hope_is_as_if_its_memories_were_apart(
    how: dict[str, Any], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = pair(how, monkeypatch, **more)
    tokens = torch.randint(0, 16, (2, 22), generator=torch.Generator().manual_seed(0))
    got, want = new.module(tokens=tokens), old.module(tokens=tokens)
    assert error(got, want) < 1e-12
    for a, b in zip(*(gradients(y, list(b.module.parameters())) for y, b in ((got, new), (want, old))), strict=True):
        assert error(a, b) < 1e-9


def test_one_goes_on_where_the_other_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """In streams: what is kept has the same names and the same numbers."""
    new, old = pair({}, monkeypatch)
    tokens = torch.randint(0, 16, (2, 22), generator=torch.Generator().manual_seed(0))
    whole = new.module(tokens=tokens)
    streams = [new.stream(2), old.stream(2), new.stream(2)]
    ys = []
    for s, before, part in zip(streams, [None, *streams], tokens.split([5, 6, 11], 1)):
        if before is not None:
            s.state = before.state
        ys.append(s.feed(tokens=part))
    assert error(torch.cat(ys, 1), whole) < 1e-12


def test_what_is_not_finite_stays_with_its_row_and_later_ticks() -> None:
    c = Compiled(text("a rate that is recalled"))
    x, w = draw(11), c.weights()
    want = c(x, w)
    with torch.no_grad():
        x["x"][1, 6] = torch.inf
    got = c(x, w)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1, :6], want[1, :6])
    assert not got[1, 6:].isfinite().any()


def test_explain_says_who_is_together() -> None:
    found = {e.row: e.beside for e in explanations(Compiled(text("other depths")).plan)}
    assert [found[f"mem.{m}"] for m in "abcd"] == [("d",), (), (), ("a",)]


@pytest.mark.parametrize("names", ["a, b", "a, b, c, d"])
def test_many_launch_what_one_does(names: str) -> None:
    def launches(names: str) -> list[float]:
        recalls = " + ".join(f"{m}(linear(x))" for m in names.split(", "))
        b = nestflow.compile(f"""nestflow 1
input x : float[T, 8]
output mem(x)
level mem(x) {{ every 1 token; chunk 4; for m in [{names}] {{ memory m : {MLP}) {{ value linear(x) }} }}
  key l2norm(linear(x)); objective l2; update momentum(0.1 * sigmoid(linear(x, 1)), 0.7)
  retain sigmoid(linear(x, 1) + 2); return {recalls}
}}
""")
        few, many = (counted(b, 2, 4 * n, backward=True) for n in (3, 5))
        return [(many[p].launches - few[p].launches) / 2 for p in ("mem", "backward")]

    assert all(many <= one + 2 for one, many in zip(launches("a"), launches(names), strict=True))


def test_keys_and_targets_are_rows_of_one_product() -> None:
    """Of a piece of hope: five memories read keys and targets at one state, in three products (one for each shape)."""
    b = nestflow.compile("hope", dim=16, n_heads=2, depth=1, chunk=4)
    (path,) = b.plan.levels
    few, many = (counted(b, 1, 4 * n) for n in (3, 5))
    assert (many[path].ops["bmm"] - few[path].ops["bmm"]) / 2 <= 23


@pytest.mark.parametrize("alike", [0.0, 1.0])
@pytest.mark.parametrize("n", [16, 64])
def test_one_system_for_many_right_sides(alike: float, n: int) -> None:
    """The recurrence it stands for, in float32, with keys that are all but equal too: u_t = −η (W_{t−1} k_t + b_t)."""
    g = torch.Generator().manual_seed(0)
    draw = {"generator": g, "dtype": torch.float64}
    k = torch.nn.functional.normalize(torch.randn(1, 2, n, 8, **draw) * (1.001 - alike) + alike, dim=-1)
    b, w = torch.randn(5, 1, 2, n, 6, **draw), torch.randn(5, 1, 2, 6, 8, **draw)
    eta, gate = 1.8 * torch.rand(1, 2, n, **draw), 0.9 + 0.1 * torch.rand(1, 2, n, **draw)
    want, state = [], w
    for t in range(n):
        u = -eta[..., t, None] * ((state @ k[..., t, :, None])[..., 0] + b[..., t, :])
        state = gate[..., t, None, None] * state + u[..., :, None] * k[..., t, None, :]
        want.append(u)
    k32, b32, w32, eta32, gate32 = (x.float() for x in (k, b, w, eta, gate))
    before = running_before(decays(gate32, n, torch.float32, "cpu"))
    system = delta_system(k32, k32, 1.0, before, rate=eta32)
    got = solve_errors(system, k32, 1.0, b32, before, (w32,), rate=eta32)
    assert error(got.double(), torch.stack(want, -2)) < 2e-5
