"""Emitted expressions against an evaluator that goes row by row, head by head, tick by tick and knows features only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestflow.bundle.source import load_source
from nestflow.emit.expr import Emitter, Letters
from nestflow.emit.layout import axes
from nestflow.emit.writer import Writer
from nestflow.ir import ops as O
from nestflow.ir.node import Node, Type, walk
from nestflow.ops.runtime import Context

BATCH, HEADS, TICKS, WIDTH = 2, 3, 5, 4
SIZES = {"B": BATCH, "H": HEADS, "T": TICKS}
PER_TICK = Type(batch=True, clock="T")


def slot(name: str, shape: tuple[int, ...] = (WIDTH,), heads: int | None = None, base: Type = PER_TICK) -> Node:
    return O.leaf("slot", base.with_(shape=shape, heads=heads), name=name)


def weight(path: str, shape: tuple[int, ...], heads: int | None = None) -> Node:
    return O.leaf("weight", Type(shape=shape, heads=heads), path=path)


def draw(node: Node) -> Tensor:
    """A tensor for a slot or weight, laid out as the type says, from the node's name alone."""
    name = node.get("name") or node.get("path")
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + 7)
    shape = [SIZES[a] for a in axes(node.type)] + list(node.type.shape)
    if node.type.dtype == "bool":
        return torch.rand(shape, generator=generator) > 0.5
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def run(root: Node, t0: int = 0) -> Tensor:
    """The value of a node by emitted code."""
    writer = Writer()
    leaves = [n for n in walk(root) if n.op in ("slot", "weight")]
    slots = {n: f"s_{n['name']}" for n in leaves if n.op == "slot"}
    em = Emitter(writer, slots, roots=[root], letters=Letters({WIDTH: "D"}), ticks=str(TICKS), batch=str(BATCH))
    with writer.block(f"def f(c, p{''.join(', ' + v for v in slots.values())}):"):
        writer.line(f"return {em.value(root)}")
    imports = [f"from {m} import {', '.join(sorted(n))}" for m, n in writer.imports.items()]
    program = load_source(
        "\n".join(["import torch", "import torch.nn.functional as F", *imports, writer.text()]), "test_expr"
    )
    c = Context(
        {"x." + n["path"]: draw(n) for n in leaves if n.op == "weight"},
        {},
        t0,
        False,
        torch.float64,
        torch.device("cpu"),
    )
    return program.f(c, "x.", *(draw(n) for n in slots))


def at(x: Tensor, t: Type, place: dict[str, int]) -> Tensor:
    for a in axes(t):
        x = x[place[a]]
    return x


UNARY: dict[str, Any] = {
    "neg": torch.neg,
    "exp": torch.exp,
    "abs": torch.abs,
    "sign": torch.sign,
    "square": torch.square,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "log_sigmoid": F.logsigmoid,
    "elu1": lambda x: F.elu(x) + 1,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "not": torch.logical_not,
}
BINARY: dict[str, Any] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "max": torch.maximum,
    "min": torch.minimum,
    "lt": torch.lt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "div": torch.div,
    "pow": torch.pow,
    "le": torch.le,
    "gt": torch.gt,
    "and": torch.logical_and,
    "or": torch.logical_or,
}


def slow(node: Node, place: dict[str, int], t0: int = 0) -> Tensor:
    """The value at one row, head and tick: features only."""
    a = [slow(x, place, t0) for x in node.args] if node.op not in ("split_heads", "merge_heads") else []
    match node.op:
        case "const":
            return torch.tensor(node.value, dtype=torch.bool if isinstance(node.value, bool) else torch.float64)
        case "slot" | "weight":
            return at(draw(node), node.type, place)
        case "position":
            return torch.tensor(float(t0 + place["T"] + 1), dtype=torch.float64)
        case "head":
            return torch.tensor(float(place["H"]), dtype=torch.float64)
        case "linear":
            return torch.einsum("...i,oi->...o", a[0], a[1])
        case "matmul":
            return torch.matmul(a[0], a[1])
        case "inner":
            return (a[0] * a[1]).sum(-1)
        case "outer":
            return torch.einsum("i,j->ij", a[0], a[1])
        case "transpose":
            return a[0].transpose(-1, -2)
        case "sum" | "mean":
            return getattr(a[0], node.op)(node["axes"], keepdim=node["keep"]) if node["axes"] else a[0]
        case "softmax":
            return a[0].exp() / a[0].exp().sum(-1, keepdim=True)
        case "l2norm":
            return a[0] / (a[0].square().sum(-1, keepdim=True) + node["eps"]).sqrt()
        case "rmsnorm":
            return a[0] / (a[0].square().mean(-1, keepdim=True) + node["eps"]).sqrt() * a[1]
        case "concat":
            return torch.cat(a, -1)
        case "stack":
            return torch.stack(torch.broadcast_tensors(*a), -1)
        case "index":
            item = node["item"]
            return a[0][item] if isinstance(item, int) else a[0][item[0] : item[1]]
        case "reshape":
            return a[0].reshape(node["shape"])
        case "where":
            return torch.where(a[0].bool(), *torch.broadcast_tensors(a[1], a[2]))
        case "split_heads":
            n = node.type.shape[-1]
            return slow(node.args[0], place, t0)[..., place["H"] * n : (place["H"] + 1) * n]
        case "merge_heads":
            return torch.cat([slow(node.args[0], {**place, "H": h}, t0) for h in range(HEADS)], -1)
        case _:
            return UNARY[node.op](a[0]) if node.op in UNARY else BINARY[node.op](a[0], a[1])


def check(root: Node, t0: int = 0) -> None:
    got = run(root, t0)
    names = axes(root.type)
    assert list(got.shape) == [SIZES[a] for a in names] + list(root.type.shape)
    for flat in range(math.prod(SIZES[a] for a in names)):
        place, rest = {"B": 0, "H": 0, "T": 0}, flat
        for a in reversed(names):
            place[a], rest = rest % SIZES[a], rest // SIZES[a]
        torch.testing.assert_close(
            at(got, root.type, place).double(), slow(root, place, t0).double(), rtol=1e-9, atol=1e-11
        )


X, U, N = slot("x"), slot("u"), slot("n", ())
K, R = slot("k", heads=HEADS), slot("r", (), HEADS)
MAT, KMAT = slot("m", (2, WIDTH)), slot("km", (WIDTH, WIDTH), HEADS)
ROW = slot("row", base=Type(batch=True))
GAIN, WHOLE, HEAD_W = weight("gain", (WIDTH,)), weight("w", (6, WIDTH)), weight("hw", (WIDTH, WIDTH), HEADS)
HEAD_GAIN, HEAD_RATE = weight("hg", (WIDTH,), HEADS), weight("hr", (), HEADS)
STATE = O.leaf("slot", Type(batch=True, heads=HEADS, shape=(2, WIDTH)), name="state")
POSITION = O.leaf("position", Type("int", clock="T"))
HEAD = O.leaf("head", Type("int", heads=HEADS))


@pytest.mark.parametrize(
    "node",
    [
        O.linear(X, WHOLE),
        O.linear(X, HEAD_W),
        O.linear(K, HEAD_W),
        O.linear(K, WHOLE),
        O.linear(MAT, WHOLE),
        O.linear(MAT, HEAD_W),
        O.linear(K, STATE),
        O.linear(ROW, WHOLE),
        O.linear(ROW, HEAD_W),
        O.linear(K, slot("wt", (2, WIDTH), HEADS)),
        O.linear(GAIN, HEAD_W),
        O.matmul(X, O.transpose(WHOLE)),
        O.matmul(K, O.transpose(STATE)),
        O.matmul(K, KMAT),
        O.matmul(KMAT, K),
        O.matmul(KMAT, KMAT),
        O.matmul(X, U),
        O.matmul(MAT, X),
        O.matmul(HEAD_W, K),
        O.matmul(X, O.transpose(MAT)),
        O.inner(X, U),
        O.inner(K, HEAD_GAIN),
        O.outer(X, U),
        O.outer(K, HEAD_GAIN),
        O.outer(X, GAIN),
        O.binary("mul", N, X),
        O.binary("mul", K, R),
        O.binary("add", X, GAIN),
        O.binary("mul", K, HEAD_GAIN),
        O.binary("mul", K, HEAD_RATE),
        O.binary("mul", N, K),
        O.binary("add", MAT, X),
        O.binary("mul", R, KMAT),
        O.binary("sub", ROW, X),
        O.binary("mul", HEAD_W, R),
        O.binary("div", O.const(1), POSITION),
        O.binary("mul", X, POSITION),
        O.binary("mul", K, HEAD),
        O.binary("pow", O.const(0.5), HEAD),
        O.binary("max", X, O.const(0.1)),
        O.binary("min", O.const(0.1), K),
        O.where(O.binary("lt", N, O.const(0)), X, U),
        O.where(O.binary("gt", R, O.const(0)), O.const(0.3), O.const(0.7)),
        O.where(O.binary("gt", POSITION, O.const(2)), X, O.const(0.0)),
        O.split_heads(slot("wide", (6,)), HEADS),
        O.merge_heads(K),
        O.split_heads(slot("rows", (2, 6)), HEADS),
        O.split_heads(weight("whole", (6,)), HEADS),
        O.concat((X, GAIN)),
        O.concat((K, HEAD_GAIN)),
        O.stack((X, N)),
        O.stack((R, HEAD_RATE, O.const(0.5))),
        O.stack((K, HEAD_GAIN)),
        O.index(X, 1),
        O.index(MAT, 1),
        O.index(KMAT, (1, 3)),
        O.index(HEAD_W, 0),
        O.index(GAIN, (0, 2)),
        O.reshape(MAT, (WIDTH, 2)),
        O.reshape(GAIN, (2, 2)),
        O.rowwise("l2norm", K, eps=1e-6),
        O.rowwise("rmsnorm", K, HEAD_GAIN, eps=1e-6),
        O.rowwise("rmsnorm", X, GAIN, eps=1e-3),
        O.rowwise("softmax", MAT),
        O.reduce("mean", KMAT, 0),
        O.reduce("sum", MAT),
        O.reduce("mean", X, keep=True),
        O.reduce("sum", KMAT, 1, keep=True),
    ],
    ids=lambda n: repr(n)[:60],
)
def test_alignment_of_every_operation(node: Node) -> None:
    check(node, t0=3)


def test_an_operand_used_twice_is_computed_once() -> None:
    shared = O.linear(X, WHOLE)
    root = O.binary("add", O.unary("exp", shared), O.unary("tanh", shared))
    writer = Writer()
    em = Emitter(writer, {X: "x_BTD"}, roots=[root])
    em.value(root)
    assert "\n".join(writer.lines).count("F.linear") == 1


def test_a_name_is_assigned_again_only_when_its_old_value_is_dead() -> None:
    first = O.unary("exp", X)
    second = O.binary("add", first, X)
    root = O.binary("mul", first, second)
    writer = Writer()
    em = Emitter(
        writer,
        {X: "x_BTD"},
        names=[("x", first), ("x", second)],
        roots=[root],
        reuse=True,
        letters=Letters({WIDTH: "D"}),
    )
    value = em.value(root)
    assert len({line.split(" = ")[0] for line in writer.lines}) == len(writer.lines) == 2
    namespace: dict[str, Any] = {"torch": torch, "x_BTD": torch.ones(1)}
    exec("\n".join([*writer.lines, f"r = {value}"]), namespace)
    assert torch.allclose(namespace["r"], torch.tensor(math.e * (math.e + 1)))


@st.composite
def expressions(draw_: Any) -> Node:
    """A random DAG of operations whose shapes fit, per tick, whole or per head."""
    pool: list[Node] = [X, U, N, K, R, GAIN, HEAD_GAIN, HEAD_RATE, O.const(0.5), O.const(-2), POSITION, ROW]
    for _ in range(draw_(st.integers(2, 9))):
        kind = draw_(
            st.sampled_from(["unary", "binary", "linear", "inner", "norm", "where", "merge", "reduce", "concat"])
        )
        x, y = draw_(st.sampled_from(pool)), draw_(st.sampled_from(pool))
        try:
            if kind == "unary":
                node = O.unary(draw_(st.sampled_from(["neg", "tanh", "sigmoid", "abs", "silu", "square"])), x)
            elif kind == "binary":
                node = O.binary(draw_(st.sampled_from(["add", "sub", "mul", "max", "min"])), x, y)
            elif kind == "linear":
                node = O.linear(x, draw_(st.sampled_from([HEAD_W, weight("sq", (WIDTH, WIDTH))])))
            elif kind == "inner" and (x.type.shape or y.type.shape):
                node = O.inner(x, y)
            elif kind == "norm":
                node = O.rowwise("l2norm", x, eps=1e-6)
            elif kind == "where":
                node = O.where(O.binary("lt", x, O.const(0.2)), x, y)
            elif kind == "merge":
                node = O.index(O.merge_heads(x), (0, WIDTH))
            elif kind == "reduce":
                node = O.reduce("mean", x, keep=draw_(st.booleans()))
            else:
                node = O.index(O.concat((x, y)), (1, 1 + WIDTH))
        except (O.ShapeError, OverflowError):
            continue
        if node.type.dtype != "bool":
            pool.append(node)
    return pool[-1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expressions())
def test_random_expressions(node: Node) -> None:
    if axes(node.type):
        check(node)
