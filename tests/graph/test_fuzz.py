"""No text makes a traceback: mutants of the shipped specs are built, or their mistakes are told with a place."""

from __future__ import annotations

import random
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import pytest

from nestflow.diagnostics.core import NestflowError
from nestflow.graph.build import build
from nestflow.language import tree
from nestflow.language.nl import parse_expression
from nestflow.language.printer import print_nl
from nestflow.language.resolve import load, read_target, shipped_names

EXPRESSION = (
    tree.Number, tree.String, tree.Name, tree.Bool, tree.Call, tree.Pipe, tree.Unary, tree.Binary, tree.Conditional,
    tree.Attribute, tree.Index, tree.ListExpr, tree.Record,
)  # fmt: skip

STRANGE = """
0 ; -1 ; 1e9 ; 1_000_000_000 ; true ; "s" ; t ; y ; M ; g ; w ; head ; never ; cache ; matrix ; vector ; scalar
like(w) ; weights(model) ; rest(model) ; before(m) ; debias(m) ; next(x) ; stop(x) ; ones ; zeros ; learned(4)
normal(0.1) ; [1, 2] ; [] ; x ; dgd(0.1) ; adam(1e-3) ; merge_heads(x) ; split_heads(x) ; transpose(x) ; reshape(x, 4)
concat(x, x) ; stack(x, x) ; max(x) ; min(x, 2) ; where(x > 0, x, 1) ; sum(x) ; mean(x) ; huber(1) ; lp(3) ; dot ; l2
decay_first(0.5) ; on_value(x) ; training ; cosine(1) ; width(x) ; flatten(x) ; outer_product(x, x) ; inner(x, x)
clip_norm(x, 1) ; trust(x, 1) ; norm_all(x) ; ndim(w) ; newton_schulz(x) ; softmax(x) ; rope(x) ; short_conv(x, 4)
previous(x) ; embed(x, 4, 4) ; M(x) ; x[0] ; x[0:2] ; emb.weight ; x if t > 3 else 2 ; mlp ; mlp(depth = 2) ; linear
linear(x, 1) ; x @ x ; x // 2 ; x % 2 ; x ^ 2 ; not x ; "a" == "b" ; titans ; model ; block ; tokens ; model(tokens)
w0 ; n_ticks ; cross_entropy(x, tokens) ; [x, x] ; [x, x][1] ; mixers[0] ; gelu(x, approx = tanh) ; silu([x, x]) ; 1 / 0
2 ^ 9999 ; log(0) ; 1e300 * 1e300 ; x |> x ; x(1) ; 1(2) ; matrix(4) ; cache(window = x) ; l2(x, x) ; stack() ; concat()
lerp(x, 1, 2) ; linear(name = "a.b") ; linear(x, name = "") ; linear(x, 3, 4, 5, 6) ; x.read(x) ; schedule_free(0.1)
lookahead(adam(0.1)) ; g * g ; g |> adam(1) ; adam(1) |> trust(1) ; eye(3) ; ones(4) ; fill ; uniform(1, 0) ; {a: 1}
"""


@cache
def strange() -> list[tree.Expr]:
    return [parse_expression(e.strip()) for line in STRANGE.strip().split("\n") for e in line.split(";")]


@cache
def specs() -> list[tree.Spec]:
    return [read_target(name)[0] for name in shipped_names()]


Path = tuple[str | int, ...]


def places(n: Any, at: Path = ()) -> list[Path]:
    """Where the statements and expressions of a body stand."""
    found: list[Path] = []
    if isinstance(n, tuple):
        for i, x in enumerate(n):
            found += places(x, (*at, i))
    elif is_dataclass(n) and isinstance(n, tree.Node):
        found += [at] if isinstance(n, (*EXPRESSION, tree.Statement)) else []
        for f in fields(n):
            if f.name not in ("span", "name_span", "unit_span", "source"):
                found += places(getattr(n, f.name), (*at, f.name))
    return found


def get(n: Any, path: Path) -> Any:
    for k in path:
        n = n[k] if isinstance(k, int) else getattr(n, k)
    return n


def put(n: Any, path: Path, new: Any) -> Any:
    if not path:
        return new
    k, rest = path[0], path[1:]
    if isinstance(k, int):
        return (*n[:k], put(n[k], rest, new), *n[k + 1 :])
    return replace(n, **{k: put(getattr(n, k), rest, new)})


def mutant(seed: int) -> str:
    """A shipped spec with one to three statements or expressions left out, doubled, or put in another's place."""
    r = random.Random(seed)
    spec = r.choice(specs())
    body: Any = spec.body
    for _ in range(r.choice([1, 1, 2, 3])):
        at = r.choice(places(body))
        old = get(body, at)
        if not isinstance(old, tree.Statement):
            body = put(body, at, r.choice(strange()) if r.random() < 0.6 else other(r, False))
            continue
        *above, i = at
        around = get(body, tuple(above))
        kind = r.random()
        new = (
            ()
            if kind < 0.3
            else (old, old)
            if kind < 0.5
            else (other(r, True), old)
            if kind < 0.75
            else (other(r, True),)
        )
        body = put(body, tuple(above), (*around[:i], *new, *around[i + 1 :]))
        if not body:
            break
    return print_nl(replace(spec, body=body))


def other(r: random.Random, statement: bool) -> Any:
    """A statement or an expression of any shipped spec."""
    while True:
        body = r.choice(specs()).body
        found = get(body, r.choice(places(body)))
        if isinstance(found, tree.Statement) == statement:
            return found


@pytest.mark.parametrize("first", range(0, 240, 20))
def test_mutants(first: int) -> None:
    outcomes: set[bool] = set()
    for seed in range(first, first + 20):
        text = mutant(seed)
        try:
            build(load(text))
            outcomes.add(True)
        except NestflowError as e:
            outcomes.add(False)
            assert e.diagnostics and all(d.message and d.code for d in e.diagnostics)
            assert all(d.span is not None for d in e.diagnostics), f"{e}\n{text}"
            assert len(str(e)) < 40_000
    assert False in outcomes, "these seeds mend nothing: every text was right"


@pytest.mark.parametrize("expression", range(len(strange())))
def test_a_strange_expression_anywhere(expression: int) -> None:
    """Each strange expression as each field of a level, as a name, an output, an update of weights."""
    from nestflow.language.expressions import expression as written
    from tests.graph.building import LEVEL, graph, level

    text = written(strange()[expression])
    acts: list[Any] = [lambda f=f: level(**{f: text}) for f in (*LEVEL, "retain", "heads", "chunk", "init")]
    acts += [lambda: level(heads=2, returns=text)]
    weights = "input x : float[T, 8]\noutput f(x)\nflow f(x) {{ return linear(x{}) }}\n"
    weights += "level o {{ every 1 step; memory weights(f{}); objective {}; update {} }}\n"
    for given in (
        (f", {text}", "", "mean(f(x))", "gd(1)"),
        ("", f", {text}", "mean(f(x))", "gd(1)"),
        ("", "", text, "gd(1)"),
    ):
        acts.append(lambda given=given: graph(weights.format(*given)))
    acts.append(lambda: graph(weights.format("", "", "mean(f(x))", text)))
    for act in acts:
        try:
            act()
        except NestflowError as e:
            assert all(d.span is not None for d in e.diagnostics), str(e)
